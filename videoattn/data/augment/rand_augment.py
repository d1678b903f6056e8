"""RandAugment of clips: timm draws the operations; Pillow computes only the pixels that later steps read."""

import math
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from videoattn.compat import import_timm

Interpolation = Literal["bilinear", "bicubic"]
Matrix = tuple[float, float, float, float, float, float]
FILL = 128  # the grey level, in all colours, of what an operation moves in from outside the frame
_TOKEN = re.compile(r"(m|n)\d+|inc[01]|(mstd|p)\d+(\.\d+)?")
_NEED_WHOLE_FRAMES = ("AutoContrast", "Equalize", "Contrast")
_GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


class Operation(NamedTuple):
    """An operation under timm's name without "Increasing", with its values: a factor, degrees, a share or bits."""

    name: str
    values: tuple[float, ...]


class Box(NamedTuple):
    """A box of columns `left` to `right` and rows `top` to `bottom`, ends excluded."""

    left: int
    top: int
    right: int
    bottom: int


class RandAugment:
    """RandAugment in timm's notation, e.g. "rand-m7-n4-mstd0.5-inc1", with the same draws for all frames of a clip.

    Raises ValueError, naming the token, unless every token is one of mINT, nINT, mstdFLOAT, pFLOAT, inc0 and inc1.

    Source: timm, data/auto_augment.py.
    Differs: posterizing keeps at least one bit of a colour; newer versions of Pillow refuse to keep none.
    """

    def __init__(self, aa_type: str, interpolation: Interpolation = "bicubic") -> None:
        name, *tokens = aa_type.split("-")
        unknown = [] if name == "rand" else [name]
        unknown += [token for token in tokens if not _TOKEN.fullmatch(token)]
        if unknown:
            raise ValueError(
                f"AUG.AA_TYPE {aa_type!r}: {unknown[0]!r} is unknown; expected 'rand' and any of mINT, nINT, "
                "mstdFLOAT, pFLOAT, inc0, inc1, joined by '-', or '' for none"
            )
        import_timm()
        from timm.data.auto_augment import rand_augment_transform

        self.interpolation = interpolation
        # just below the scale's end of 10, where increasing posterize would keep no bit
        self._choose = rand_augment_transform(aa_type, {"magnitude_max": 9.99})
        for op in self._choose.ops:
            op.aug_fn = partial(_record, op.name.removesuffix("Increasing"))

    def draw(self, seed: int) -> tuple[Operation, ...]:
        """Draw the operations of one clip, in order, without those that timm's probability leaves out."""
        with _python_seed(seed):
            operations: tuple[Operation, ...] = self._choose(())
        return operations

    def __call__(self, frames: Tensor, seed: int, box: Box | None = None) -> Tensor:
        """Draw operations and apply them to frames [T, 3, H, W], uint8; outside of a `box` pixels are undefined."""
        operations = self.draw(seed)
        if any(map(_moves_by_round_number, operations)):
            box = None
        return apply_operations(frames, operations, self.interpolation, box)


def apply_operations(
    frames: Tensor, operations: Sequence[Operation], interpolation: Interpolation, box: Box | None = None
) -> Tensor:
    """Apply operations to each of the frames [T, 3, H, W], uint8; outside of `box` pixels are undefined.

    Pillow computes them. Pixels on which no pixel of the box depends are not computed. Pixels in the box are those of
    the whole frame, except that they can be one level off where a geometric operation moves by a round number.
    """
    if not operations:
        return frames
    from PIL import Image

    size = (frames.shape[-1], frames.shape[-2])
    boxes = [box or Box(0, 0, *size)]  # what each operation leaves for the next one, preceded by what the first reads
    for operation in reversed(operations):
        boxes.insert(0, boxes[0] if box is None else _box_read(operation, boxes[0], *size))
    read, written = boxes[0], boxes[-1]
    result = np.zeros((len(frames), size[1], size[0], 3), np.uint8)
    cut = frames[..., read.top : read.bottom, read.left : read.right]
    images = rearrange(cut, "t c h w -> t h w c").contiguous().numpy()
    for frame, place in zip(images, result[:, written.top : written.bottom, written.left : written.right], strict=True):
        image = Image.fromarray(frame)
        for operation, before, after in zip(operations, boxes, boxes[1:], strict=False):
            image = _apply(image, operation, before, after, size, interpolation)
        place[:] = np.asarray(image)
    return rearrange(torch.from_numpy(result), "t h w c -> t c h w")


def affine_matrix(operation: Operation, width: int, height: int) -> Matrix | None:
    """Return the affine map of a geometric operation, None for other operations.

    The value at (x, y) is taken from (ax + by + c, dx + ey + f). Centres of pixels lie at whole numbers and a half.
    """
    if operation.name not in _GEOMETRIC:
        return None
    (value,) = operation.values
    if operation.name == "Rotate":  # as Image.rotate, around the centre
        angle = -math.radians(value)
        cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
        x, y = width / 2, height / 2
        return cos, sin, -cos * x - sin * y + x, -sin, cos, sin * x - cos * y + y
    return {
        "ShearX": (1, value, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, value, 1, 0),
        "TranslateXRel": (1, 0, value * width, 0, 1, 0),
        "TranslateYRel": (1, 0, 0, 0, 1, value * height),
    }[operation.name]


def _moves_by_round_number(operation: Operation) -> bool:
    """Return True if pixels move to round fractions: many values are then whole numbers up to errors of float64.

    Pillow's error depends on the origin of its coordinates. Magnitudes are round without mstd, and at the ends of the
    scale.
    """
    return operation.name in _GEOMETRIC and abs(operation.values[0] - round(operation.values[0], 6)) < 1e-12


def _record(name: str, done: tuple[Operation, ...], *values: float, **options: Any) -> tuple[Operation, ...]:
    """Append an operation to those drawn so far; timm calls this instead of applying it to an image."""
    if name == "Posterize":
        values = (max(values[0], 1),)
    return (*done, Operation(name, values))


def _box_read(operation: Operation, box: Box, width: int, height: int) -> Box:
    """Return the part of a frame that an operation reads to write `box`."""
    if operation.name in _NEED_WHOLE_FRAMES:
        return Box(0, 0, width, height)
    reach = 1 if operation.name in (*_GEOMETRIC, "Sharpness") else 0  # pixels beyond the box's edges, moved or not
    xs: Sequence[float] = (box.left, box.right)
    ys: Sequence[float] = (box.top, box.bottom)
    matrix = affine_matrix(operation, width, height)
    if matrix is not None:
        a, b, c, d, e, f = matrix
        corners = [(x, y) for x in xs for y in ys]
        xs, ys = [a * x + b * y + c for x, y in corners], [d * x + e * y + f for x, y in corners]
    left = min(max(math.floor(min(xs)) - reach, 0), width - 1)
    top = min(max(math.floor(min(ys)) - reach, 0), height - 1)
    right = max(min(math.ceil(max(xs)) + reach, width), left + 1)
    bottom = max(min(math.ceil(max(ys)) + reach, height), top + 1)
    return Box(left, top, right, bottom)


def _apply(
    image: Any, operation: Operation, read: Box, written: Box, size: tuple[int, int], interpolation: Interpolation
) -> Any:
    """Map an image of the part `read` of a frame of `size` (width, height) to one of the part `written`."""
    from PIL import Image
    from timm.data.auto_augment import NAME_TO_OP

    matrix = affine_matrix(operation, *size)
    if matrix is not None:
        a, b, c, d, e, f = matrix
        x, y = written.left, written.top
        return image.transform(
            (written.right - x, written.bottom - y),
            Image.Transform.AFFINE,
            (a, b, a * x + b * y + c - read.left, d, e, d * x + e * y + f - read.top),
            resample=Image.Resampling.BICUBIC if interpolation == "bicubic" else Image.Resampling.BILINEAR,
            fillcolor=(FILL,) * 3,
        )
    operate: Any = NAME_TO_OP[operation.name]
    image = operate(image, *operation.values)
    if read == written:
        return image
    return image.crop(
        (written.left - read.left, written.top - read.top, written.right - read.left, written.bottom - read.top)
    )


@contextmanager
def _python_seed(seed: int) -> Iterator[None]:
    python_state, numpy_state = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
