"""Positions of a file that is for clips of another size, and what that size means for them."""

from collections.abc import Mapping

from torch import Tensor

from videoattn.grid import TokenGrid
from videoattn.layers.position import resize_grid
from videoattn.models.video_vit.model import VideoViT
from videoattn.models.weights.adapter import FitOptions
from videoattn.models.weights.files import CheckpointError, WeightFile
from videoattn.models.weights.grids import said_grid
from videoattn.models.weights.report import LoadReport, note_resized

# By kind of positions, those that a model has for clips of another size than its weights were trained with.
MEANING = {
    "sincos_1d": "the numbers of flattened tokens, which mean other frames, rows and columns there: fine-tune",
    "learned": "the learned ones resized, bicubic within frames, then linear along time",
    "rope_tiled": "further frames, rows and columns, which are extrapolated",
    "rope_interleaved": "further frames, rows and columns, which are extrapolated",
}
SCALED = "rows and columns scaled to the range of {0} x {0}, and further frames, which are extrapolated"


def fit_positions(
    model: VideoViT, state: Mapping[str, Tensor], file: WeightFile, report: LoadReport, options: FitOptions, sizes: str
) -> dict[str, Tensor]:
    """Return the learned positions for the model's grid, if it has any, and note what another clip size means.

    Raises CheckpointError where they have to be resized and may not be, or their grid can't be told; `sizes` says of
    both what they have.
    """
    size = tuple(file.settings.get("clip_size", ()))
    said = said_grid(file, model.patch_of(size))
    if said is None and options.file_grid is not None and "pos_embed" in state:
        said = _grid_of(state["pos_embed"].shape[1] - model.grid.prefix, *options.file_grid)
    here = f"{model.grid.t} x {model.grid.h} x {model.grid.w} tokens"
    if size != model.clip_size:
        theirs = f"the file is for clips of {' x '.join(map(str, size))}" if size else "the file does not say its clips"
        kind = model.positions["positions"]
        report.notes.append(f"{kind} positions of {here}; {theirs}, and other clips have {describe_positions(model)}")
    if model.positions["positions"] != "learned" or "pos_embed" not in state:
        return {}
    learned, prefix = state["pos_embed"], model.grid.prefix
    grid = model.grid if said is None else TokenGrid(said.t, said.h, said.w, prefix)
    if learned.shape[1] != grid.tokens:
        if said is None:
            raise CheckpointError(
                f"the file has {learned.shape[1] - prefix} learned positions of patches, the model {here}, and the "
                "file's clip size can't be told: pass file_grid=(h, w), the file's height and width in patches"
            )
        raise CheckpointError(
            f"the file has {learned.shape[1] - prefix} learned positions of patches, expected those of "
            f"{grid.t} x {grid.h} x {grid.w} patches"
        )
    if grid == model.grid:
        return {}
    note_resized(["pos_embed"], report, model.clip_size, allowed=options.allow_resize, sizes=sizes)
    return {"pos_embed": resize_grid(learned, grid, model.grid)}


def describe_positions(model: VideoViT) -> str:
    """Return what clips of another size than the trained ones mean for a model's positions."""
    kind, base = model.positions["positions"], model.positions["rotary_base"]
    return SCALED.format(base) if base else MEANING[str(kind)]


def _grid_of(count: int, h: int, w: int) -> TokenGrid:
    """Return the grid of `count` patches in frames of h x w."""
    if min(count, h, w) < 1 or count % (h * w):
        raise CheckpointError(f"the file has {count} positions, which are no frames of {h} x {w} patches")
    return TokenGrid(count // (h * w), h, w)
