"""What happens to a clip's pixels between decoder and batch: resizing, cropping and augmentation of uint8 frames.

A clip is one tensor [T, 3, H, W] throughout, and every random choice is made once for all of its frames.
"""

import math
import random
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from videoattn.compat import import_timm, import_torchvision
from videoattn.seeding import derive_seed, torch_seed

Interpolation = Literal["bilinear", "bicubic"]
_RAND_AUGMENT_TOKEN = re.compile(r"(m|n)\d+|inc[01]|(mstd|p)\d+(\.\d+)?")
_ERASED_AREA = (0.02, 1 / 3)
_ERASED_ASPECT = (0.3, 1 / 0.3)


class TrainTransform:
    """Augments a clip: RandAugment or colour jitter, then a jittered or random-resized crop, flip, and random erasing.

    `jitter_scales` is the range of the short side before a random crop, drawn uniformly, or uniformly in 1/size with
    `inverse_jitter`. `relative_scales` and `relative_aspect` (area and aspect ratio; both or neither) replace it by a
    random-resized crop. `aa_type` is RandAugment in timm's notation, e.g. "rand-m7-n4-mstd0.5-inc1", and colour jitter
    (a strength for brightness, contrast and saturation) is used only where `aa_type` is empty. Erased boxes hold noise
    ("pixel") or the mean colour ("const"); `mean` and `std` are in 0..1 units. Raises ValueError, naming the setting,
    on ranges that cannot be met.

    Source: PySlowFast, datasets/kinetics.py and datasets/transform.py; RandAugment, colour jitter and their exclusion
    of each other from timm.
    Differs: frames stay uint8, so resized values are rounded (by at most one level) and noise is clamped to 0..255;
    the last crop offset can be drawn, too; with several erased boxes, no frames are left out.
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
        color_jitter: float = 0.0,
        aa_type: str = "",
        interpolation: Interpolation = "bicubic",
        erase_prob: float = 0.0,
        erase_mode: Literal["pixel", "const"] = "pixel",
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
        self.erase_prob = erase_prob
        self.erase_mode = erase_mode
        self.erase_count = erase_count
        self._mean = 255 * torch.tensor(mean).view(3, 1, 1)
        self._std = 255 * torch.tensor(std).view(3, 1, 1)
        self._rand_augment = _rand_augment(aa_type, interpolation) if aa_type else None
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
        self._flip = v2.RandomHorizontalFlip(0.5 if flip else 0.0)

    def __call__(self, frames: Tensor, seed: int) -> Tensor:
        """[T, 3, H, W] to [T, 3, crop, crop], both uint8; the result is a function of the frames and the seed."""
        _check_frames(frames)
        with torch_seed(seed):
            if self._rand_augment is not None:
                frames = _per_frame(self._rand_augment, frames, derive_seed(seed, "rand_augment"))
            if self._color_jitter is not None:
                frames = self._color_jitter(frames)
            if self._jitter:
                frames = resize_short_side(frames, self._draw_short_side())
            frames = self._flip(self._crop(frames))
            if self.erase_prob and torch.rand(()).item() < self.erase_prob:
                frames = self._erase(frames)
        return frames

    def _draw_short_side(self) -> int:
        low, high = self.jitter_scales
        if self.inverse_jitter:
            return round(1 / _uniform(1 / high, 1 / low))
        return round(_uniform(low, high))

    def _erase(self, frames: Tensor) -> Tensor:
        frames = frames.clone()
        count = int(torch.randint(1, self.erase_count + 1, ()).item())
        for _ in range(count):
            box = _draw_box(self.crop_size, self.crop_size, count)
            if box is None:
                continue
            erased = frames[..., box[0], box[1]]
            noise = torch.zeros(erased.shape)
            if self.erase_mode == "pixel":
                noise = torch.randn(erased.shape)
            erased.copy_((noise * self._std + self._mean).round_().clamp_(0, 255))
        return frames


class TestTransform:
    """Resizes a clip's short side and cuts one centre crop, or three along the long side, from left or top on.

    Raises ValueError where the crop is larger than the short side, or their number is neither 1 nor 3.
    Source: PySlowFast, datasets/transform.py; the centre starts at ceil((size - crop) / 2).
    Differs: frames stay uint8, so resized values are rounded (by at most one level).
    """

    __test__ = False  # not a test, whatever its name suggests to pytest

    def __init__(self, *, short_side: int, crop_size: int, num_crops: int = 1) -> None:
        if num_crops not in (1, 3):
            raise ValueError(f"TEST.NUM_SPATIAL_CROPS expects 1 or 3, got {num_crops}")
        _check_crop_fits(crop_size, short_side, "the resized short side", "the evaluation's crop size")
        self.short_side = short_side
        self.crop_size = crop_size
        self.num_crops = num_crops

    def __call__(self, frames: Tensor) -> Tensor:
        """[T, 3, H, W] to [num_crops, T, 3, crop, crop], both uint8."""
        _check_frames(frames)
        frames = resize_short_side(frames, self.short_side)
        height, width = frames.shape[-2:]
        size = self.crop_size
        y, x = math.ceil((height - size) / 2), math.ceil((width - size) / 2)
        corners = [(y, x)]
        if self.num_crops == 3:
            corners = [(0, x), (y, x), (height - size, x)] if height > width else [(y, 0), (y, x), (y, width - size)]
        return torch.stack([frames[..., y : y + size, x : x + size] for y, x in corners])


def resize_short_side(frames: Tensor, size: int) -> Tensor:
    """Frames [T, 3, H, W] scaled so that the short side is `size`; the long side is rounded down.

    Source: PySlowFast, random_short_side_scale_jitter: bilinear, without antialiasing and corner alignment.
    """
    height, width = frames.shape[-2:]
    if min(height, width) == size:
        return frames
    if width < height:
        new_height, new_width = math.floor(height / width * size), size
    else:
        new_height, new_width = size, math.floor(width / height * size)
    return torch.nn.functional.interpolate(frames, (new_height, new_width), mode="bilinear", align_corners=False)


def _rand_augment(aa_type: str, interpolation: Interpolation) -> Any:
    name, *tokens = aa_type.split("-")
    unknown = [] if name == "rand" else [name]
    unknown += [token for token in tokens if not _RAND_AUGMENT_TOKEN.fullmatch(token)]
    if unknown:
        raise ValueError(
            f"AUG.AA_TYPE {aa_type!r}: {unknown[0]!r} is unknown; expected 'rand' and any of mINT, nINT, mstdFLOAT, "
            "pFLOAT, inc0, inc1, joined by '-', or '' for none"
        )
    import_timm()
    from PIL import Image
    from timm.data.auto_augment import rand_augment_transform

    resampling = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    # just below the scale's end of 10, where timm's posterize keeps 0 bits of a colour, which newer Pillows refuse
    return rand_augment_transform(aa_type, {"interpolation": resampling, "magnitude_max": 9.99})


def _per_frame(transform: Any, frames: Tensor, seed: int) -> Tensor:
    """Apply a transform of PIL images, which draws from the global generators, to each frame with the same draws."""
    from PIL import Image

    results = []
    for frame in frames.permute(0, 2, 3, 1).contiguous().numpy():
        with _python_seed(seed):
            results.append(np.asarray(transform(Image.fromarray(frame))))
    return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2)


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


def _draw_box(height: int, width: int, count: int) -> tuple[slice, slice] | None:
    """Rows and columns of one of `count` erased boxes, or None if no box drawn in ten attempts fits."""
    low, high = (math.log(ratio) for ratio in _ERASED_ASPECT)
    for _ in range(10):
        area = _uniform(*_ERASED_AREA) * height * width / count
        aspect = math.exp(_uniform(low, high))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top = int(torch.randint(0, height - h + 1, ()).item())
            left = int(torch.randint(0, width - w + 1, ()).item())
            return slice(top, top + h), slice(left, left + w)
    return None


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), dtype=torch.float64).item()


def _check_crop_fits(crop_size: int, short_side: int, side_name: str, crop_name: str) -> None:
    if crop_size > short_side:
        raise ValueError(f"{crop_name} {crop_size} expects at most {side_name}, which is {short_side}")


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8 or 0 in frames.shape:
        raise ValueError(f"expected uint8 frames [T, 3, H, W], none of them 0, got {frames.dtype} {list(frames.shape)}")
