"""Batches as they go from the loader to the loop: clips as bytes, and a record of what could not be decoded."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Failure(NamedTuple):
    """A video that could not be decoded: its index in the annotation list, its path and the reason."""

    index: int  # type: ignore[assignment]  # hides the method of tuples, which nobody needs here
    path: str
    reason: str


@dataclass(frozen=True)
class ClipSample:
    """The `n` clips [n, 3, T, H, W], uint8, of one draw or one video.

    `labels`, if set, has the label of each clip, which a flip may have changed from `label`, the video's.
    `sequential_reason` is the reason for sequential decoding, "" if the reader could seek.
    """

    clips: Tensor
    label: int
    video: int
    views: tuple[int, ...]
    failures: tuple[Failure, ...] = ()
    num_short: int = 0
    labels: tuple[int, ...] = ()
    sequential_reason: str = ""


@dataclass(frozen=True)
class Batch:
    """Clips [B, 3, T, H, W] as uint8 and, one entry a clip: label, index in the annotation list, number of the view.

    `failures` lists every video that could not be decoded. `num_short` counts clips whose window is longer than the
    video, so that frames repeat. `sequential` has the reason for each video that was decoded sequentially, from its
    start. `draws` counts the videos asked for: in training each was delivered or replaced, in evaluation those in
    `failures` are missing.
    """

    clips: Tensor
    labels: Tensor
    videos: Tensor
    views: Tensor
    failures: tuple[Failure, ...] = ()
    num_short: int = 0
    draws: int = 0
    sequential: tuple[str, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Return the batch with its tensors on `device`."""
        return replace(
            self,
            clips=self.clips.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
            videos=self.videos.to(device, non_blocking=non_blocking),
            views=self.views.to(device, non_blocking=non_blocking),
        )


# Turns a batch and a seed, the same in every process, into the model's input and targets on its device.
Prepare = Callable[[Batch, int], tuple[Tensor, Tensor]]


def collate_views(samples: Sequence[ClipSample], pinned: bool = False) -> Batch:
    """Collate all views, video after video; `pinned` uses page-locked memory, which a GPU copies asynchronously."""
    return _batch(samples, [(sample, view) for sample in samples for view in range(len(sample.views))], pinned)


def collate_copies(samples: Sequence[ClipSample], pinned: bool = False) -> Batch:
    """Collate augmented copies: the first copies of two videos, their second copies, then the next two videos.

    Neighbours (2i, 2i + 1) are thus two videos rather than two copies of one, which mixup could not tell apart, and the
    order does not depend on how an even number of videos is shared among processes.
    """
    pairs = [samples[start : start + 2] for start in range(0, len(samples), 2)]
    rows = [
        (sample, copy)
        for pair in pairs
        for copy in range(max(len(sample.views) for sample in pair))
        for sample in pair
        if copy < len(sample.views)
    ]
    return _batch(samples, rows, pinned)


def _batch(samples: Sequence[ClipSample], rows: Sequence[tuple[ClipSample, int]], pinned: bool) -> Batch:
    clips = torch.empty((len(rows), *samples[0].clips.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
    if rows:
        torch.stack([sample.clips[row] for sample, row in rows], out=clips)
    return Batch(
        clips=clips,
        labels=torch.tensor(
            [sample.labels[row] if sample.labels else sample.label for sample, row in rows], dtype=torch.int64
        ),
        videos=torch.tensor([sample.video for sample, _ in rows], dtype=torch.int64),
        views=torch.tensor([sample.views[row] for sample, row in rows], dtype=torch.int64),
        failures=tuple(failure for sample in samples for failure in sample.failures),
        num_short=sum(sample.num_short for sample in samples),
        sequential=tuple(sample.sequential_reason for sample in samples if sample.sequential_reason),
        draws=len(samples),
    )


def normalize(clips: Tensor, mean: Sequence[float], std: Sequence[float], reverse_channels: bool = False) -> Tensor:
    """Normalise clips [B, 3, T, H, W] from uint8 to float32, (x / 255 - mean) / std, on their device.

    `mean` and `std` are in the order red, green, blue, as decoded; `reverse_channels` then gives blue, green, red.
    Raises ValueError on clips that are not uint8 [B, 3, T, H, W].
    """
    if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[1] != 3:
        raise ValueError(f"expected uint8 clips [B, 3, T, H, W], got {clips.dtype} {list(clips.shape)}")
    means = torch.tensor(mean, device=clips.device).view(1, 3, 1, 1, 1)
    stds = torch.tensor(std, device=clips.device).view(1, 3, 1, 1, 1)
    if reverse_channels:
        clips, means, stds = clips.flip(1), means.flip(1), stds.flip(1)
    return torch.addcmul(-means / stds, clips, 1 / (255 * stds))
