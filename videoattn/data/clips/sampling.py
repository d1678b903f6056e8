"""Frame sampling: dense windows (Kinetics) and one frame per segment (Something-Something-V2)."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

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
    if not 0 <= clip < num_clips:
        raise ValueError(f"clip {clip} of {num_clips}, expected 0 to {num_clips - 1}")
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


@dataclass(frozen=True)
class ClipSampler:
    """Sampler of clips: `num_frames` indices per clip, for training or for a position in the test protocol.

    `sampling_rate`, `target_fps` and `use_offset` apply to dense clips only. With segments all test clips of a video
    are the same, as published, or, with `shifted`, each uses its own position in every segment.
    """

    kind: Literal["dense", "segments"]
    num_frames: int
    sampling_rate: int = 1
    target_fps: float = 30
    use_offset: bool = False
    shifted: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ("dense", "segments"):
            raise ValueError(f"kind {self.kind!r}, expected dense or segments")
        for name in ("num_frames", "sampling_rate", "target_fps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} {getattr(self, name)}, expected a positive number")

    def train(self, num_video_frames: int, fps: float, rng: random.Random) -> list[int]:
        """Draw the indices of one random clip."""
        _check_not_empty(num_video_frames)
        if self.kind == "segments":
            return segment_indices(num_video_frames, self.num_frames, rng)
        return self._dense(num_video_frames, fps, dense_train_start(num_video_frames, self._length(fps), rng))

    def test(self, num_video_frames: int, fps: float, clip: int = 0, num_clips: int = 1) -> list[int]:
        """Return the indices of test clip `clip` of `num_clips`."""
        _check_not_empty(num_video_frames)
        start = 0.0
        if self.kind == "dense":
            start = dense_test_start(num_video_frames, self._length(fps), clip, num_clips, use_offset=self.use_offset)
            return self._dense(num_video_frames, fps, start)
        if not 0 <= clip < num_clips:
            raise ValueError(f"clip {clip} of {num_clips}, expected 0 to {num_clips - 1}")
        if not self.shifted:
            clip, num_clips = 0, 1
        return segment_indices(num_video_frames, self.num_frames, clip=clip, num_clips=num_clips)

    def is_short(self, num_video_frames: int, fps: float) -> bool:
        """Return True if a clip is longer than the video, so that frames repeat."""
        if self.kind == "segments":
            return num_video_frames < self.num_frames
        return num_video_frames < self._length(fps) - _ROUNDING

    def _length(self, fps: float) -> float:
        return window_length(
            fps, num_frames=self.num_frames, sampling_rate=self.sampling_rate, target_fps=self.target_fps
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
