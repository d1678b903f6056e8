"""Colour augmentation, RandAugment and erasing of whole batches on the model's device instead of in the workers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from videoattn.compat import import_torchvision
from videoattn.data.augment.clip_operations import apply_to_clip
from videoattn.data.augment.erasing import EraseMode, RandomErasing
from videoattn.data.augment.rand_augment import Interpolation, RandAugment
from videoattn.seeding import derive_seed, torch_seed


class BatchAugment:
    """Augmentation of clips that are already cropped and flipped: RandAugment or colour jitter, then random erasing.

    Options, operations and strengths are those of `TrainTransform`; as there, `aa_type` excludes colour jitter. Each
    clip draws from its own seed, so processes that share a batch in even parts augment as one process would, and a
    single clip is augmented as it is in a batch. The noise of erasing depends on the type of device.

    Differs: in the published code, RandAugment comes before the crop. Here it comes after it, so shifts are shares of
    the crop, shears and rotations leave grey corners in it, and Contrast, AutoContrast and Equalize see the crop alone.
    """

    def __init__(
        self,
        *,
        color_jitter: float = 0.0,
        aa_type: str = "",
        interpolation: Interpolation = "bicubic",
        erase_prob: float = 0.0,
        erase_mode: EraseMode = "pixel",
        erase_count: int = 1,
        mean: Sequence[float] = (0.45, 0.45, 0.45),
        std: Sequence[float] = (0.225, 0.225, 0.225),
    ) -> None:
        self.interpolation = interpolation
        self._rand_augment = RandAugment(aa_type, interpolation) if aa_type else None
        self._erase = RandomErasing(erase_prob, erase_mode, erase_count, mean, std)
        import_torchvision()
        from torchvision.transforms import v2

        self._color_jitter = None
        if color_jitter and not aa_type:
            self._color_jitter = v2.ColorJitter(color_jitter, color_jitter, color_jitter)

    def __call__(self, clips: Tensor, seed: int, first_clip: int = 0) -> Tensor:
        """Return a new tensor of augmented clips; input and output are [B, 3, T, H, W], uint8, on one device.

        `first_clip` is the number of this batch's first clip in the batch of all processes. Raises ValueError on clips
        of another type or shape.
        """
        if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[1] != 3:
            raise ValueError(f"expected uint8 clips [B, 3, T, H, W], got {clips.dtype} {list(clips.shape)}")
        result = torch.empty_like(clips)
        for number, clip in enumerate(clips.transpose(1, 2)):
            frames = self._augment(clip, derive_seed(seed, "augment", first_clip + number))
            result[number] = frames.transpose(0, 1)
        return result

    def _augment(self, frames: Tensor, seed: int) -> Tensor:
        """Augment one clip [T, 3, H, W]."""
        if self._rand_augment is not None:
            for operation in self._rand_augment.draw(derive_seed(seed, "rand_augment")):
                frames = apply_to_clip(frames, operation, self.interpolation)
        noise = torch.Generator(frames.device).manual_seed(derive_seed(seed, "noise"))
        with torch_seed(seed):
            if self._color_jitter is not None:
                frames = self._color_jitter(frames)
            return self._erase(frames, noise)
