"""Transforms between decoder and batch: resizing, cropping and augmentation of uint8 frames.

A clip is one tensor [T, 3, H, W] throughout, and every random choice is made once for all of its frames.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from videoattn.compat import import_torchvision
from videoattn.data.augment.erasing import EraseMode, RandomErasing, uniform
from videoattn.data.augment.flips import NEVER_FLIPPED
from videoattn.data.augment.rand_augment import Box, Interpolation, RandAugment
from videoattn.seeding import derive_seed, torch_seed

Rounding = Literal["up", "down", "whole_steps"]  # of the offsets of three crops


class TrainTransform:
    """Training transform: RandAugment or colour jitter, a jittered or random-resized crop, flip, random erasing.

    `jitter_scales` is the range of the short side before a random crop, drawn uniformly, or uniformly in 1/size with
    `inverse_jitter`. `relative_scales` and `relative_aspect` (area and aspect ratio; both or neither) replace it by a
    random-resized crop. `flipped_labels` has, for each class, the class of its flipped clips, or NEVER_FLIPPED; without
    it, flips keep the class. `aa_type` is RandAugment in timm's notation, e.g. "rand-m7-n4-mstd0.5-inc1"; colour jitter
    (a strength for brightness, contrast and saturation) is used only if `aa_type` is empty. Erased boxes are filled
    with noise ("pixel") or the mean colour ("const"); `mean` and `std` are in 0..1 units. Raises ValueError, naming the
    setting, on ranges that cannot be satisfied.

    Source: PySlowFast, datasets/kinetics.py and datasets/transform.py; RandAugment and colour jitter, which exclude
    each other, from timm.
    Differs: frames stay uint8, so resized values are rounded (by at most one level) and noise is clamped to 0..255; the
    last crop offset can be drawn, too; with several erased boxes, every frame is erased.
    """

    def __init__(
        self,
        *,
        crop_size: int,
        jitter_scales: tuple[int, int],
        inverse_jitter: bool = False,
        relative_scales: Sequence[float] = (),
        relative_aspect: Sequence[float] = (),
        flip: bool = True,
        flipped_labels: Sequence[int] | None = None,
        color_jitter: float = 0.0,
        aa_type: str = "",
        interpolation: Interpolation = "bicubic",
        erase_prob: float = 0.0,
        erase_mode: EraseMode = "pixel",
        erase_count: int = 1,
        mean: Sequence[float] = (0.45, 0.45, 0.45),
        std: Sequence[float] = (0.225, 0.225, 0.225),
    ) -> None:
        if bool(relative_scales) != bool(relative_aspect):
            raise ValueError(
                "DATA.TRAIN_JITTER_SCALES_RELATIVE and DATA.TRAIN_JITTER_ASPECT_RELATIVE expect both [low, high] or "
                f"both [], got {list(relative_scales)} and {list(relative_aspect)}"
            )
        if not relative_scales:
            _check_crop_fits(crop_size, jitter_scales[0], "DATA.TRAIN_JITTER_SCALES[0]", "DATA.TRAIN_CROP_SIZE")
        self.crop_size = crop_size
        self.jitter_scales = jitter_scales
        self.inverse_jitter = inverse_jitter
        self.flip_prob = 0.5 if flip else 0.0
        self.flipped_labels = flipped_labels
        self._rand_augment = RandAugment(aa_type, interpolation) if aa_type else None
        self._erase = RandomErasing(erase_prob, erase_mode, erase_count, mean, std)
        import_torchvision()
        from torchvision.transforms import v2

        self._color_jitter = None
        if color_jitter and not aa_type:
            self._color_jitter = v2.ColorJitter(color_jitter, color_jitter, color_jitter)
        self._crop = (
            v2.RandomResizedCrop(crop_size, tuple(relative_scales), tuple(relative_aspect), antialias=False)
            if relative_scales
            else v2.RandomCrop(crop_size)
        )
        self._jitter = not relative_scales

    def __call__(self, frames: Tensor, seed: int, label: int = 0) -> tuple[Tensor, int]:
        """Transform [T, 3, H, W] to [T, 3, crop, crop], both uint8; a flip may change the returned label.

        Both are functions of the frames, the seed and the label.
        """
        _check_frames(frames)
        with torch_seed(seed):
            if self._color_jitter is not None:
                frames = self._color_jitter(frames)
            before = (frames.shape[-2], frames.shape[-1])
            size = _short_side_size(*before, self._draw_short_side()) if self._jitter else before
            crop = self._crop.make_params([torch.empty(3, *size, device="meta")])
            if self._rand_augment is not None:
                box = _box_of_crop(crop, size, before)
                frames = self._rand_augment(frames, derive_seed(seed, "rand_augment"), box)
            frames = self._crop.transform(_resize(frames, size), crop)
            flips = torch.rand(1).item() < self.flip_prob
            flipped_label = label if self.flipped_labels is None else self.flipped_labels[label]
            if flips and flipped_label != NEVER_FLIPPED:
                frames, label = frames.flip(-1), flipped_label
            frames = self._erase(frames)
        return frames, label

    def _draw_short_side(self) -> int:
        low, high = self.jitter_scales
        if self.inverse_jitter:
            return round(1 / uniform(1 / high, 1 / low))
        return round(uniform(low, high))


class TestTransform:
    """Evaluation transform: resizes the short side and cuts one centre crop, or three along the long side.

    Three crops are ordered from left or top. Where the pixels that a crop leaves of the long side are an odd number,
    the centre of three begins at half of them rounded up or down; with `rounding` "whole_steps" it is rounded down, and
    the last crop begins at twice that, a pixel before the end. Raises ValueError if the crop is larger than the short
    side, or if the number of crops is neither 1 nor 3.
    Source: PySlowFast, datasets/transform.py ("up"); VideoMAE, kinetics.py and ssv2.py ("down"); V-JEPA 2,
    evals/video_classification_frozen/utils.py ("whole_steps").
    Differs: frames stay uint8, so resized values are rounded (by at most one level).
    """

    __test__ = False  # not a test, whatever its name suggests to pytest

    def __init__(self, *, short_side: int, crop_size: int, num_crops: int = 1, rounding: Rounding = "up") -> None:
        if num_crops not in (1, 3):
            raise ValueError(f"TEST.NUM_SPATIAL_CROPS expects 1 or 3, got {num_crops}")
        _check_crop_fits(crop_size, short_side, "the resized short side", "the evaluation's crop size")
        self.short_side = short_side
        self.crop_size = crop_size
        self.num_crops = num_crops
        self.rounding = rounding

    def __call__(self, frames: Tensor) -> Tensor:
        """Transform [T, 3, H, W] to [num_crops, T, 3, crop, crop], both uint8."""
        _check_frames(frames)
        frames = resize_short_side(frames, self.short_side)
        height, width = frames.shape[-2:]
        size = self.crop_size
        y, x = math.ceil((height - size) / 2), math.ceil((width - size) / 2)
        corners = [(y, x)]
        if self.num_crops == 3:
            rest = max(height, width) - size
            middle = math.ceil(rest / 2) if self.rounding == "up" else rest // 2
            starts = (0, middle, 2 * middle if self.rounding == "whole_steps" else rest)
            corners = [(start, x) if height > width else (y, start) for start in starts]
        return torch.stack([frames[..., y : y + size, x : x + size] for y, x in corners])


def resize_short_side(frames: Tensor, size: int) -> Tensor:
    """Resize frames [T, 3, H, W] so that the short side is `size`; the long side is rounded down.

    Source: PySlowFast, random_short_side_scale_jitter: bilinear, without antialiasing and corner alignment.
    """
    return _resize(frames, _short_side_size(frames.shape[-2], frames.shape[-1], size))


def _short_side_size(height: int, width: int, size: int) -> tuple[int, int]:
    if min(height, width) == size:
        return height, width
    if width < height:
        return math.floor(height / width * size), size
    return size, math.floor(width / height * size)


def _resize(frames: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(frames.shape[-2:]) == size:
        return frames
    return torch.nn.functional.interpolate(frames, size, mode="bilinear", align_corners=False)


def _box_of_crop(crop: dict[str, Any], size: tuple[int, int], before: tuple[int, int]) -> Box:
    """Return the part of frames of size `before` (height, width) that a crop reads once they are resized to `size`."""
    ends = []
    for first, length, resized, original in zip(
        (crop["left"], crop["top"]), (crop["width"], crop["height"]), reversed(size), reversed(before), strict=True
    ):
        scale, reach = original / resized, int(original != resized)  # bilinear reads one pixel further
        low, high = math.floor(first * scale) - reach, math.ceil((first + length) * scale) + reach
        ends.append((max(low, 0), min(high, original)))
    (left, right), (top, bottom) = ends
    return Box(left, top, right, bottom)


def _check_crop_fits(crop_size: int, short_side: int, side_name: str, crop_name: str) -> None:
    if crop_size > short_side:
        raise ValueError(f"{crop_name} {crop_size} expects at most {side_name}, which is {short_side}")


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8 or 0 in frames.shape:
        raise ValueError(f"expected uint8 frames [T, 3, H, W], none of them 0, got {frames.dtype} {list(frames.shape)}")
