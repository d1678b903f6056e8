"""Frame sampling: dense windows in seconds or in frame numbers (Kinetics), and one frame per segment (SSv2)."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

Kind = Literal["dense", "segments", "by_index", "interleaved"]

_ROUNDING = 1e-6  # of a window's length in frames


def window_length(fps: float, *, num_frames: int, sampling_rate: int, target_fps: float) -> float:
    """Return the number of frames, not rounded, that a dense clip spans: as many seconds as at `target_fps`."""
    if not fps > 0 or math.isinf(fps):
        raise ValueError(f"fps {fps}, expected a positive number")
    return sampling_rate * num_frames * fps / target_fps


def dense_indices(
    num_video_frames: int, fps: float, *, num_frames: int, sampling_rate: int, target_fps: float, start: float
) -> list[int]:
    """Return `num_frames` indices, evenly from `start` to the window's end, clamped to the video, truncated.

    A video shorter than the window repeats its last frame; a window shorter than a frame repeats that frame. Raises
    ValueError on an empty video.
    Source: PySlowFast, datasets/decoder.py, temporal_sampling (torch.linspace in float32, then truncation).
    """
    _check_not_empty(num_video_frames)
    length = window_length(fps, num_frames=num_frames, sampling_rate=sampling_rate, target_fps=target_fps)
    positions = torch.linspace(start, start + max(length, 1) - 1, num_frames)
    return positions.clamp(0, num_video_frames - 1).long().tolist()


def dense_train_start(num_video_frames: int, length: float, rng: random.Random) -> float:
    """Draw the start of a training window of `length` frames: any position that fits, not only whole frames.

    Source: PySlowFast, datasets/decoder.py, get_start_end_idx.
    """
    return rng.uniform(0, max(num_video_frames - length, 0))


def dense_test_start(
    num_video_frames: int, length: float, clip: int, num_clips: int, *, use_offset: bool = False
) -> float:
    """Return the start of test window `clip` of `num_clips`.

    Without `use_offset` (SlowFast, TimeSformer) the last window ends before the video does, and a single window is the
    first, not the centre. With it (MViT) windows reach both ends in whole frames, and a single window is centred.
    Source: PySlowFast, datasets/decoder.py, get_start_end_idx.
    """
    _check_clip(clip, num_clips)
    slack = max(num_video_frames - length, 0)
    if not use_offset:
        return slack * clip / num_clips
    if num_clips == 1:
        return math.floor(slack / 2)
    return clip * math.floor(slack / (num_clips - 1))


def segment_indices(
    num_video_frames: int, num_segments: int, rng: random.Random | None = None, *, clip: int = 0, num_clips: int = 1
) -> list[int]:
    """Return one index from each of `num_segments` parts of the video: random with `rng`, else that of a test clip.

    Test clip `clip` of `num_clips` uses the point (clip + 1/2) / num_clips of each part, rounded down: a single clip
    uses the middle. Neighbouring parts share their border frame. Videos shorter than `num_segments` repeat frames.
    Raises ValueError on an empty video.
    Source: PySlowFast and TimeSformer, datasets/ssv2.py, get_seq_frames, which have a single clip only.
    """
    _check_not_empty(num_video_frames)
    if num_segments < 1:
        raise ValueError(f"{num_segments} segments, expected at least one")
    size = (num_video_frames - 1) / num_segments
    borders = [round(size * i) for i in range(num_segments + 1)]
    pairs: Sequence[tuple[int, int]] = list(zip(borders, borders[1:], strict=False))
    if rng:
        return [rng.randint(low, high) for low, high in pairs]
    return [low + (high - low) * (2 * clip + 1) // (2 * num_clips) for low, high in pairs]


def strided_indices(
    num_video_frames: int, *, num_frames: int, step: int, clip: int = 0, num_clips: int = 1
) -> list[int]:
    """Return test clip `clip` of `num_clips`: `num_frames` neighbours among the frames 0, step, 2·step ... of a video.

    Frames are counted by their numbers, whatever the video's rate. Clips reach from the first of these frames to the
    last, and a single clip is centred. A video that has too few repeats the last one.
    Source: VideoMAE, kinetics.py, mode test, which has several clips only.
    """
    _check_not_empty(num_video_frames)
    _check_clip(clip, num_clips)
    frames = list(range(0, num_video_frames, step))
    frames += [frames[-1]] * (num_frames - len(frames))
    slack = len(frames) - num_frames
    start = slack // 2 if num_clips == 1 else int(clip * (slack / (num_clips - 1)))
    return frames[start : start + num_frames]


def window_indices(
    num_video_frames: int, *, num_frames: int, step: int, draw: Callable[[int], int], num_segments: int = 1
) -> list[int]:
    """Return a window of `num_frames` indices from each of `num_segments` equal parts of a video, one after another.

    A window spans step·num_frames frames, counted by their numbers, whatever the video's rate. In a longer part it
    begins at `draw(places)`, a number below `places`. In shorter parts windows overlap: they begin at equal distances
    from the video's first frame to its end. A video shorter than a window repeats its last frame.
    Source: V-JEPA 2, src/datasets/video_dataset.py, and, for a single segment, VideoMAE, kinetics.py, mode train.
    """
    _check_not_empty(num_video_frames)
    length, part = num_frames * step, num_video_frames // num_segments
    if part > length:
        starts = [draw(part - length) for _ in range(num_segments)]
        windows = [np.linspace(start, start + length, num_frames).clip(start, start + length - 1) for start in starts]
        distance = part
    else:
        reach = num_video_frames if num_segments == 1 else min(length, num_video_frames) - 1
        positions = np.linspace(0, reach, reach // step)
        positions = np.concatenate([positions, np.full(num_frames - len(positions), reach)])
        windows = [positions.clip(0, max(reach - 1, 0))] * num_segments
        distance = (num_video_frames - length) // (num_segments - 1) if num_video_frames > length else 0
    return [number * distance + int(index) for number, window in enumerate(windows) for index in window]


def interleaved_indices(num_video_frames: int, num_segments: int, *, clip: int = 0, num_clips: int = 1) -> list[int]:
    """Return one index from each of `num_segments` parts of a video, for test clip `clip` of `num_clips`.

    Clip k of n uses the point k / n of each part, so all clips together are evenly spaced; a single clip uses the
    middle. Parts may be fractions of a frame: videos shorter than `num_segments` repeat frames.
    Source: VideoMAE, ssv2.py, mode test, which has two clips.
    """
    _check_not_empty(num_video_frames)
    _check_clip(clip, num_clips)
    size = num_video_frames / num_segments
    point = size / 2 if num_clips == 1 else size * clip / num_clips
    return [int(point + size * number) for number in range(num_segments)]


def random_interleaved_indices(num_video_frames: int, num_segments: int, rng: random.Random) -> list[int]:
    """Draw one index from each of `num_segments` parts of as many whole frames; what is left at the end is not drawn.

    Source: VideoMAE, ssv2.py, mode train. Differs: a video shorter than `num_segments` is spread over the clip; there
    its first frame is repeated.
    """
    size = num_video_frames // num_segments
    if not size:
        return interleaved_indices(num_video_frames, num_segments)
    return [number * size + rng.randrange(size) for number in range(num_segments)]


@dataclass(frozen=True)
class ClipSampler:
    """Sampler of clips: `num_frames` indices per clip, for training or for a position in the test protocol.

    `sampling_rate` applies to dense clips and those by index, `target_fps` and `use_offset` to dense clips only. With
    segments all test clips of a video are the same, as published, or, with `shifted`, each uses its own position in
    every segment. By index, a clip may be `num_segments` windows of the video one after another.
    """

    kind: Kind
    num_frames: int
    sampling_rate: int = 1
    target_fps: float = 30
    use_offset: bool = False
    shifted: bool = False
    num_segments: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind {self.kind!r}, expected one of {', '.join(get_args(Kind))}")
        for name in ("num_frames", "sampling_rate", "target_fps", "num_segments"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)}, expected a positive number")
        if self.num_segments > 1 and (self.kind != "by_index" or self.num_frames % self.num_segments):
            raise ValueError(
                f"num_segments {self.num_segments}, expected 1, or a divisor of num_frames {self.num_frames} for clips "
                "by index"
            )

    def train(self, num_video_frames: int, fps: float, rng: random.Random) -> list[int]:
        """Draw the indices of one random clip."""
        _check_not_empty(num_video_frames)
        if self.kind == "segments":
            return segment_indices(num_video_frames, self.num_frames, rng)
        if self.kind == "interleaved":
            return random_interleaved_indices(num_video_frames, self.num_frames, rng)
        if self.kind == "by_index":
            return self._windows(num_video_frames, rng.randrange)
        return self._dense(num_video_frames, fps, dense_train_start(num_video_frames, self._length(fps), rng))

    def test(self, num_video_frames: int, fps: float, clip: int = 0, num_clips: int = 1) -> list[int]:
        """Return the indices of test clip `clip` of `num_clips`."""
        _check_not_empty(num_video_frames)
        _check_clip(clip, num_clips)
        if self.kind == "dense":
            start = dense_test_start(num_video_frames, self._length(fps), clip, num_clips, use_offset=self.use_offset)
            return self._dense(num_video_frames, fps, start)
        if self.kind == "interleaved":
            return interleaved_indices(num_video_frames, self.num_frames, clip=clip, num_clips=num_clips)
        if self.kind == "by_index" and self.num_segments > 1:
            return self._windows(num_video_frames, lambda places: places * (2 * clip + 1) // (2 * num_clips))
        if self.kind == "by_index":
            return strided_indices(
                num_video_frames,
                num_frames=self.num_frames,
                step=self.sampling_rate,
                clip=clip,
                num_clips=num_clips,
            )
        if not self.shifted:
            clip, num_clips = 0, 1
        return segment_indices(num_video_frames, self.num_frames, clip=clip, num_clips=num_clips)

    def is_short(self, num_video_frames: int, fps: float) -> bool:
        """Return True if a clip is longer than the video, so that frames repeat."""
        if self.kind in ("segments", "interleaved"):
            return num_video_frames < self.num_frames
        if self.kind == "by_index":
            return num_video_frames <= (self.num_frames // self.num_segments - 1) * self.sampling_rate
        return num_video_frames < self._length(fps) - _ROUNDING

    def _length(self, fps: float) -> float:
        return window_length(
            fps, num_frames=self.num_frames, sampling_rate=self.sampling_rate, target_fps=self.target_fps
        )

    def _windows(self, num_video_frames: int, draw: Callable[[int], int]) -> list[int]:
        return window_indices(
            num_video_frames,
            num_frames=self.num_frames // self.num_segments,
            step=self.sampling_rate,
            draw=draw,
            num_segments=self.num_segments,
        )

    def _dense(self, num_video_frames: int, fps: float, start: float) -> list[int]:
        return dense_indices(
            num_video_frames,
            fps,
            num_frames=self.num_frames,
            sampling_rate=self.sampling_rate,
            target_fps=self.target_fps,
            start=start,
        )


def _check_not_empty(num_video_frames: int) -> None:
    if num_video_frames < 1:
        raise ValueError(f"a video of {num_video_frames} frames, expected at least one")


def _check_clip(clip: int, num_clips: int) -> None:
    if not 0 <= clip < num_clips:
        raise ValueError(f"clip {clip} of {num_clips}, expected 0 to {num_clips - 1}")
