"""Datasets of videos: one random clip per draw for training, all views of a video for evaluation."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from videoattn.data.augment.transforms import TestTransform, TrainTransform
from videoattn.data.clips.batch import ClipSample, Failure
from videoattn.data.clips.sampling import ClipSampler
from videoattn.data.lists import VideoList
from videoattn.data.readers.open_video import DecodeError, DecodeOptions
from videoattn.seeding import derive_seed

MAX_REPLACEMENTS = 10


@dataclass(frozen=True, slots=True)
class Draw:
    """One random clip of training: all that its randomness depends on besides the run's seed."""

    epoch: int
    index: int


@dataclass(frozen=True)
class Watch:
    """A hook that is called before a video is opened, and the videos that are not opened again.

    `begin` gets the index of each video; `failed` has the reason by index.
    """

    begin: Callable[[int], None] | None = None
    failed: Mapping[int, str] = field(default_factory=dict)

    def announce(self, index: int, path: str) -> None:
        """Announce that a video is about to be opened. Raises DecodeError if it is one of `failed`."""
        if index in self.failed:
            raise DecodeError(f"{path}: {self.failed[index]}")
        if self.begin is not None:
            self.begin(index)


class VideoDataset(Dataset[ClipSample]):
    """Training dataset: a random clip of a video for each `Draw`, in `num_copies` augmentations.

    A clip is a function of seed and draw, the same in any process. It is decoded once; its copies differ in
    augmentation alone. A video that cannot be decoded is listed in the sample's failures and replaced by another one,
    at most ten times; if all fail, the sample has no clip. `decoding` opens the videos.

    Source: PySlowFast, datasets/kinetics.py (copies of one decoded clip as AUG.NUM_SAMPLE).
    """

    def __init__(
        self,
        videos: VideoList,
        sampler: ClipSampler,
        transform: TrainTransform,
        *,
        seed: int,
        num_copies: int = 1,
        decoding: DecodeOptions | None = None,
    ) -> None:
        self.videos = videos
        self.sampler = sampler
        self.transform = transform
        self.seed = seed
        self.num_copies = num_copies
        self.decoding = decoding or DecodeOptions()

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def clips_shape(self) -> tuple[int, ...]:
        """Shape of a sample's clips."""
        return (self.num_copies, 3, self.sampler.num_frames, self.transform.crop_size, self.transform.crop_size)

    def path(self, draw: Draw) -> str:
        """Return the path of the video of a draw."""
        return self.videos.path(draw.index)

    def __getitem__(self, draw: Draw) -> ClipSample:
        return self.sample(draw)

    def sample(self, draw: Draw, watch: Watch = Watch()) -> ClipSample:
        """Return the sample of a draw, reporting each video that is opened to `watch`."""
        failures: list[Failure] = []
        for attempt, index in enumerate(self._candidates(draw)):
            rng = random.Random(derive_seed(self.seed, "clip", draw.epoch, draw.index, attempt))
            path = self.videos.path(index)
            try:
                watch.announce(index, path)
                read = self._read(path, rng)
            except DecodeError as error:
                failures.append(Failure(index, path, str(error)))
                continue
            parts = (self.seed, "transform", draw.epoch, draw.index, attempt)
            label = self.videos.label(index)
            clip = read.clip(0)
            copies = [self.transform(clip, derive_seed(*parts, copy), label) for copy in range(self.num_copies)]
            return ClipSample(
                clips=rearrange([frames for frames, _ in copies], "b t c h w -> b c t h w"),
                label=label,
                labels=tuple(label for _, label in copies),
                video=index,
                views=(0,) * self.num_copies,
                failures=tuple(failures),
                num_short=self.num_copies * read.is_short,
                sequential_reason=read.sequential_reason,
            )
        return _no_clip(self.sampler, self.transform.crop_size, self.videos.label(draw.index), draw.index, failures)

    def _read(self, path: str, rng: random.Random) -> "_Read":
        def choose(num_frames: int, fps: float) -> list[Sequence[int]]:
            return [self.sampler.train(num_frames, fps, rng)]

        return _read(self.decoding, path, self.sampler, choose)

    def _candidates(self, draw: Draw) -> list[int]:
        """Return the drawn index, then different ones to replace it."""
        rng = random.Random(derive_seed(self.seed, "replacement", draw.epoch, draw.index))
        others = rng.sample(range(len(self.videos)), min(len(self.videos), MAX_REPLACEMENTS + 1))
        return [draw.index, *[index for index in others if index != draw.index][:MAX_REPLACEMENTS]]


class ViewDataset(Dataset[ClipSample]):
    """Evaluation dataset: all views of a video, `num_clips` in time times the transform's crops in space.

    A video is opened once. A view's number is clip * num_crops + crop. A video that cannot be decoded is never
    replaced: its sample has no clips, and the reason.
    """

    def __init__(
        self,
        videos: VideoList,
        sampler: ClipSampler,
        transform: TestTransform,
        *,
        num_clips: int = 1,
        decoding: DecodeOptions | None = None,
    ) -> None:
        self.videos = videos
        self.sampler = sampler
        self.transform = transform
        self.num_clips = num_clips
        self.decoding = decoding or DecodeOptions()

    @property
    def num_views(self) -> int:
        """Number of views of each video."""
        return self.num_clips * self.transform.num_crops

    def __len__(self) -> int:
        return len(self.videos)

    @property
    def clips_shape(self) -> tuple[int, ...]:
        """Shape of a sample's clips."""
        return (self.num_views, 3, self.sampler.num_frames, self.transform.crop_size, self.transform.crop_size)

    def path(self, index: int) -> str:
        """Return the path of a video."""
        return self.videos.path(index)

    def __getitem__(self, index: int) -> ClipSample:
        return self.sample(index)

    def sample(self, index: int, watch: Watch = Watch()) -> ClipSample:
        """Return the sample of a video, reporting to `watch` that it is opened."""
        path, label = self.videos.path(index), self.videos.label(index)
        try:
            watch.announce(index, path)
            read = _read(self.decoding, path, self.sampler, self._choose)
        except DecodeError as error:
            failure = Failure(index, path, str(error))
            return _no_clip(self.sampler, self.transform.crop_size, label, index, [failure])
        crops = self.transform(read.frames)  # [num_crops, frames, 3, S, S]: each frame is resized once
        views = torch.cat([crops[:, chosen] for chosen in read.rows]).transpose(1, 2)
        return ClipSample(
            views,
            label,
            index,
            tuple(range(self.num_views)),
            num_short=self.num_views * read.is_short,
            sequential_reason=read.sequential_reason,
        )

    def _choose(self, num_frames: int, fps: float) -> list[Sequence[int]]:
        return [self.sampler.test(num_frames, fps, clip, self.num_clips) for clip in range(self.num_clips)]


class _Read(NamedTuple):
    """The frames that some clips need, each once, as [n, 3, H, W], and the rows of each clip there."""

    frames: Tensor
    rows: list[Tensor]
    is_short: bool
    sequential_reason: str

    def clip(self, number: int) -> Tensor:
        """Return a clip's frames; they are not copied if it needs each frame once and in order, as most clips do."""
        rows = self.rows[number]
        return self.frames if torch.equal(rows, torch.arange(len(self.frames))) else self.frames[rows]


def _read(
    decoding: DecodeOptions,
    path: str,
    sampler: ClipSampler,
    choose: Callable[[int, float], list[Sequence[int]]],
) -> _Read:
    with decoding.open(path) as reader:
        if reader.num_frames < 1:
            raise DecodeError(f"{path}: expected at least one frame, the video has none")
        clips = choose(reader.num_frames, reader.fps)
        if sampler.kind == "dense":  # a window is a time; segments are made of frames
            clips = [reader.on_screen(clip) for clip in clips]
        short = sampler.is_short(reader.num_frames, reader.fps)
        needed, rows = torch.unique(torch.tensor(clips), return_inverse=True)
        frames: Tensor = reader.read(needed.tolist())
        return _Read(rearrange(frames, "t h w c -> t c h w"), list(rows), short, reader.sequential_reason)


def _no_clip(sampler: ClipSampler, crop_size: int, label: int, index: int, failures: Sequence[Failure]) -> ClipSample:
    clips = torch.empty(0, 3, sampler.num_frames, crop_size, crop_size, dtype=torch.uint8)
    return ClipSample(clips, label, index, views=(), failures=tuple(failures))
