"""Dense clips of videos whose frame rate varies are cut by time; those of a constant rate, as they always were."""

import random
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.shared_files import CLIPS, needs_clips
from videoattn.data.augment.transforms import TestTransform, TrainTransform
from videoattn.data.clips.dataset import Draw, VideoDataset, ViewDataset
from videoattn.data.clips.sampling import ClipSampler
from videoattn.data.lists import read_annotations
from videoattn.data.readers.open_video import open_video
from videoattn.data.readers.packet_scan import PacketScan
from videoattn.seeding import derive_seed

# in ticks of 1/25 s: twenty frames in quick succession, then twenty slow ones
SPEEDING = [*range(20), *range(20, 120, 5)]
# 25 frames a second with some jitter and with every time rounded
JITTERED = [2 * number + number % 2 for number in range(40)]


def seconds(path: Path) -> list[float]:
    """Return the time at which each frame is shown, by decoding the file."""
    import av

    with av.open(str(path)) as container:
        return [float(frame.time) for frame in container.decode(video=0) if frame.time is not None]


def unevenness(times: list[float], frames: Iterable[int], numbers: Iterable[int]) -> float:
    """Return the distance of the times of `frames` from those of `numbers` at a constant rate, up to a common shift."""
    interval = (times[-1] - times[0]) / (len(times) - 1)
    shifts = [times[frame] - number * interval for frame, number in zip(frames, numbers, strict=True)]
    return (max(shifts) - min(shifts)) / 2


def assert_evenly_spaced(path: Path, numbers: range) -> None:
    times = seconds(path)
    half = max(later - earlier for earlier, later in zip(times, times[1:], strict=False)) / 2
    with open_video(path) as reader:
        assert unevenness(times, reader.on_screen(numbers), numbers) <= half + 1e-3
    assert unevenness(times, numbers, numbers) > 1.2 * half, "this video does not tell the difference"


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
def test_frames_of_a_variable_rate_are_sampled_at_even_times(make: Callable[..., Path], name: str) -> None:
    codec = "libvpx" if name.endswith("webm") else "libx264"
    path = make(name, codec=codec, times=SPEEDING)
    times = seconds(path)
    with open_video(path) as reader:
        assert reader.scan is not None and reader.scan.has_variable_rate
        assert reader.fps == pytest.approx(39 / (times[-1] - times[0]), rel=1e-3)
        for backend in ("pyav", "decord"):
            with open_video(path, backend) as other:  # type: ignore[arg-type]
                assert other.on_screen(range(40)) == reader.on_screen(range(40)) and other.fps == reader.fps
    assert_evenly_spaced(path, range(0, 40, 3))


@needs_clips
def test_a_real_video_of_variable_rate_is_sampled_at_even_times() -> None:
    path = CLIPS / "made" / "vfr.webm"
    times = seconds(path)
    with open_video(path) as reader:
        assert reader.fps == pytest.approx(121 / (times[-1] - times[0]), rel=1e-3)  # the file says 28
    assert_evenly_spaced(path, range(0, 122, 11))


def test_a_frame_stands_for_the_time_that_it_is_shown() -> None:
    scan = PacketScan(5, 5, 1.0, 0, [0, 1, 2, 3, 16], [], [0], "", True, "h264", 8, 8, has_variable_rate=True)
    # frames of a constant rate would begin every 4 ticks: their middles are 2, 6, 10, 14 and 18
    assert scan.on_screen([0, 1, 2, 3, 4]) == [2, 3, 3, 3, 4]
    assert scan.on_screen([4, 0, 0]) == [4, 2, 2]


@pytest.mark.parametrize(
    "options",
    [
        {"name": "constant.mp4"},
        {"name": "constant.mkv", "rate": Fraction(30000, 1001)},  # whole milliseconds: 33, 33 and 34
        {"name": "constant.webm", "codec": "libvpx", "rate": 30},
        {"name": "late.mp4", "times": [number + 50 for number in range(40)]},
        {"name": "jitter.mp4", "times": JITTERED},
        {"name": "untimed.avi", "codec": "mpeg4"},
        {"name": "one.mp4", "num_frames": 1},
        {"name": "two.mp4", "num_frames": 2},
    ],
    ids=lambda options: options["name"],
)
def test_constant_rates_and_unknown_times_leave_every_index_alone(make: Callable[..., Path], options: Any) -> None:
    with open_video(make(**options)) as reader:
        everything = list(range(reader.num_frames))
        assert reader.scan is not None and not reader.scan.has_variable_rate
        assert reader.on_screen(everything) == everything


@needs_clips
def test_real_videos_of_constant_rate_leave_every_index_alone() -> None:
    for name in ("decord_flipping_a_pancake.mkv", "mmaction2_test.mp4", "moviepy_no_duration.webm"):
        with open_video(CLIPS / name) as reader:
            assert reader.on_screen(range(reader.num_frames)) == list(range(reader.num_frames))


def test_only_dense_clips_are_cut_by_time(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make("a.mp4", times=SPEEDING)
    (tmp_path / "test.csv").write_text("a.mp4 0\n")
    videos = read_annotations("kinetics", str(tmp_path), "test", separator=" ", prefix=str(tmp_path), num_classes=1)
    with open_video(path) as reader:
        everything, fps = reader.read(range(40)).permute(0, 3, 1, 2), reader.fps
        dense, segments = ClipSampler("dense", 8, 4, fps), ClipSampler("segments", 8)
        numbers = dense.test(40, fps)
        by_time = reader.on_screen(numbers)
    assert by_time != numbers
    transform = TestTransform(short_side=48, crop_size=48)
    for sampler, frames in ((dense, by_time), (segments, segments.test(40, fps))):
        (view,) = ViewDataset(videos, sampler, transform)[0].clips
        assert torch.equal(view.transpose(0, 1), transform(everything[frames])[0])


def test_training_clips_are_cut_by_time(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make("a.mp4", times=SPEEDING, size=(64, 64))
    (tmp_path / "train.csv").write_text("a.mp4 0\n")
    videos = read_annotations("kinetics", str(tmp_path), "train", separator=" ", prefix=str(tmp_path), num_classes=1)
    dense = ClipSampler("dense", 8, 3, 30)
    with open_video(path) as reader:
        numbers = dense.train(40, reader.fps, random.Random(derive_seed(3, "clip", 0, 0, 0)))
        expected = reader.read(reader.on_screen(numbers)).permute(3, 0, 1, 2)
        by_number = reader.read(numbers).permute(3, 0, 1, 2)
    transform = TrainTransform(crop_size=64, jitter_scales=(64, 64), flip=False)
    (clip,) = VideoDataset(videos, dense, transform, seed=3)[Draw(0, 0)].clips
    assert torch.equal(clip, expected) and not torch.equal(clip, by_number)
