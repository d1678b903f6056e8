"""The grid of positions in a file of weights, whose tensors show only how many there are."""

import math
from collections.abc import Sequence

from videoattn.grid import TokenGrid
from videoattn.models.weights.adapter import FitOptions
from videoattn.models.weights.files import CheckpointError, WeightFile


def source_grid(count: int, grid: tuple[int, int], said: tuple[int, int] | None) -> tuple[int, int]:
    """Return the (h, w) of `count` positions for a model's `grid`: as `said`, else square, else of the model's shape.

    Raises CheckpointError where `said` has another count, or where both or neither of the guesses are possible.
    """
    if said is not None:
        if math.prod(said) != count:
            raise CheckpointError(f"the file has {count} positions, which are not {said[0]} x {said[1]}")
        return said
    side, scale = math.isqrt(count), math.sqrt(count / math.prod(grid))
    alike = (round(grid[0] * scale), round(grid[1] * scale))
    possible = {(side, side)} if side * side == count else set()
    if math.prod(alike) == count and alike[0] * grid[1] == alike[1] * grid[0]:
        possible.add(alike)
    if len(possible) != 1:
        what = " or ".join(f"{h} x {w}" for h, w in sorted(possible)) or "of any shape"
        raise CheckpointError(
            f"the file has {count} positions, which may be {what}, and the model's grid is {grid[0]} x {grid[1]}: "
            "pass file_grid=(h, w), the file's height and width in patches"
        )
    return possible.pop()


def said_space(file: WeightFile, options: FitOptions, patch: Sequence[int]) -> tuple[int, int] | None:
    """Return the (h, w) of a file in `patch`es as the user or the file says it; None if neither does."""
    if options.file_grid is not None:
        return options.file_grid
    grid = said_grid(file, patch)
    return None if grid is None else (grid.h, grid.w)


def said_grid(file: WeightFile, patch: Sequence[int]) -> TokenGrid | None:
    """Return the grid in `patch`es of the clips that a file says it is for, or None if it says none."""
    size = file.settings.get("clip_size")
    return None if size is None else TokenGrid.of_clip(size, patch)
