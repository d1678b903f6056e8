"""The times of frames take precedence over a contradictory stated rate, with any container and reader."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.data.readers.test_decode import BACKENDS
from tests.shared_files import SHARED
from videoattn.data.augment.transforms import TestTransform
from videoattn.data.check.probe import Prober, ProbeTask
from videoattn.data.clips.dataset import ViewDataset
from videoattn.data.clips.sampling import ClipSampler, dense_indices
from videoattn.data.lists import read_annotations
from videoattn.data.prepare.video import EncodeSettings, encode_video
from videoattn.data.readers.frame_times import NO_TIME, frame_rate
from videoattn.data.readers.open_video import DecodeError, DecodeOptions, open_video

SLOW = list(range(0, 80, 2))  # in ticks of 1/25 s: 12.5 frames a second, where 25 are stated
TIMED = [
    {"name": "a.mkv"},
    {"name": "a.webm", "codec": "libvpx"},
    {"name": "a.avi", "codec": "mpeg4"},
    {"name": "a.flv", "codec": "flv"},
    {"name": "a.nut", "codec": "mpeg4"},
    {"name": "a.wmv", "codec": "wmv2"},
    {"name": "a.ts"},
    {"name": "a.gif", "codec": "gif", "pixels": "rgb8"},
]


@pytest.mark.parametrize("options", TIMED, ids=lambda options: options["name"])
def test_times_win_over_a_stated_rate_that_contradicts_them(make: Callable[..., Path], options: Any) -> None:
    path = make(times=SLOW, **options)
    for backend in BACKENDS:
        try:
            with open_video(path, backend) as reader:  # type: ignore[arg-type]
                assert reader.fps == pytest.approx(12.5, rel=0.01)
        except DecodeError as error:
            assert backend == "decord" and error.kind == "wrong_backend"
    probe = Prober()(ProbeTask(str(path)))
    assert probe is not None and probe.fps == pytest.approx(12.5, rel=0.01)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clip_spans_the_time_that_its_sampling_rate_asks_for(make: Callable[..., Path], backend: Any) -> None:
    path = make("a.mkv", times=SLOW)
    with open_video(path, backend) as reader:
        indices = reader.on_screen(ClipSampler("dense", 8, 4, 30).test(reader.num_frames, reader.fps))
    seconds = [SLOW[index] / 25 for index in indices]
    assert seconds[-1] - seconds[0] == pytest.approx(8 * 4 / 30 - 1 / 12.5, abs=1 / 12.5)


@pytest.mark.parametrize("rate", [25, Fraction(30000, 1001), 60])
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4", "a.webm", "a.avi", "a.ts", "a.flv"])
def test_a_rate_that_the_times_agree_with_stays_as_it_is_stated(
    make: Callable[..., Path], name: str, rate: Fraction | int
) -> None:
    import av

    codec = {"webm": "libvpx", "avi": "mpeg4", "flv": "flv"}.get(name[2:], "libx264")
    path = make(name, codec=codec, rate=rate, num_frames=50)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stated = stream.average_rate or stream.guessed_rate
    with open_video(path) as reader:
        assert stated is not None and reader.fps == float(stated)
        assert reader.fps == pytest.approx(float(rate), rel=0.02)


def test_a_last_frame_that_is_shown_for_long_does_not_slow_the_others(make: Callable[..., Path]) -> None:
    import av

    source, path = make("a.mp4"), make("a.mp4").with_name("held.mp4")
    with av.open(str(source)) as plain, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(plain.streams.video[0])
        for number, packet in enumerate(packet for packet in plain.demux(video=0) if packet.size):
            if number == 39:
                packet.duration = 50 * (packet.duration or 0)
            packet.stream = stream
            target.mux(packet)
    with av.open(str(path)) as container:
        assert float(container.streams.video[0].average_rate or 0) < 15
    for backend in BACKENDS:
        with open_video(path, backend) as reader:  # type: ignore[arg-type]
            assert reader.fps == pytest.approx(25)


@pytest.mark.parametrize("name", ["a.ts", "a.flv"])
def test_encoded_anew_a_video_is_as_long_as_it_was(make: Callable[..., Path], name: str) -> None:
    path = make(name, codec="flv" if name == "a.flv" else "libx264", times=SLOW)
    encode_video(str(path), path.with_name("small.mp4"), EncodeSettings())
    with open_video(path.with_name("small.mp4")) as reader:
        assert reader.num_frames == 40 and reader.fps == pytest.approx(12.5, rel=0.02)


SECOND = Fraction(1, 1000)


@pytest.mark.parametrize(
    ("times", "stated", "exact", "sloppy"),
    [
        ([0, 33, 67, 100], 30, 30, 30),
        ([0, 66, 132, 198], 30, 1000 / 66, 1000 / 66),
        ([0, 34, 68, 102, 136], 30, 30, 30),  # 10 ms late after four frames: no other one's turn
        (list(range(0, 3400, 34)), 30, 1000 / 34, 30),  # 66 ms late in the end, that is two frames
        ([0, 66, 132, 198], 0, 1000 / 66, 1000 / 66),
        ([0, 40, 80, 3_600_080, 3_600_120], 25, 4000 / 3_600_120, 25),  # a splice, or a pause
        ([5], 30, 30, 30),
        ([5, 5, 5], 30, 30, 30),
        ([NO_TIME, 40], 30, 30, 30),
        ([NO_TIME], 0, 0, 0),
    ],
)
def test_rates_are_those_of_the_times_where_both_cannot_be(
    times: list[int], stated: float, exact: float, sloppy: float
) -> None:
    assert frame_rate(times, SECOND, stated, are_exact=True) == pytest.approx(exact)
    assert frame_rate(times, SECOND, stated, are_exact=False) == pytest.approx(sloppy)
    assert frame_rate(times, None, stated, are_exact=True) == stated


def test_a_video_of_one_frame_plays(make: Callable[..., Path]) -> None:
    for options in [{"name": "a.mp4"}, *TIMED]:
        with open_video(make(num_frames=1, **options)) as reader:  # type: ignore[arg-type]
            assert reader.num_frames == 1 and reader.fps > 0 and reader.read([0]).shape == (1, 48, 64, 3)


@pytest.mark.skipif(not (SHARED / "cases/stated_rate").is_dir(), reason="the reported video is not at hand")
@pytest.mark.parametrize("backend", BACKENDS)
def test_reported_video_has_the_rate_of_its_times(backend: Any) -> None:
    with open_video(SHARED / "cases/stated_rate/claims30.mkv", backend) as reader:
        assert reader.fps == pytest.approx(1000 / 66)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clips_longer_than_their_video_are_counted_whatever_the_reader(make: Callable[..., Path], backend: Any) -> None:
    """40 frames at 12.5 a second, where 25 are stated, are as long as 96 frames at 30; folders have 30 a second."""
    folder = make("slow.mkv", times=SLOW).parent
    for name, options in (("plain.mp4", {}), ("plain.webm", {"codec": "libvpx"})):
        make(name, **options)
    (folder / "frames").mkdir()
    for number in range(40):
        Image.new("RGB", (64, 48)).save(folder / f"frames/{number}.png")
    (folder / "test.csv").write_text("slow.mkv 0\nplain.mp4 0\nplain.webm 0\nframes 0\n")
    videos = read_annotations("kinetics", str(folder), "test", separator=" ", prefix=str(folder), num_classes=1)
    transform = TestTransform(short_side=48, crop_size=48)
    lengths = {"slow.mkv": 96, "plain.mp4": 48, "plain.webm": 48, "frames": 40}  # in frames at 30 a second
    decoding = DecodeOptions(backend)
    for window in (40, 42, 48, 50, 96, 98):
        sampler = ClipSampler("dense", 2, window // 2, 30)
        dataset = ViewDataset(videos, sampler, transform, num_clips=2, decoding=decoding)
        counted = [dataset[number].num_short for number in range(4)]
        assert counted == [2 * (length < window) for length in lengths.values()], window
    segments = [ViewDataset(videos, ClipSampler("segments", count), transform, decoding=decoding) for count in (40, 41)]
    assert [[dataset[number].num_short for number in range(4)] for dataset in segments] == [[0] * 4, [1] * 4]


def test_a_window_that_the_video_just_fills_is_not_short() -> None:
    for rate in (29.97, 23.976, 14.985, 59.94, 1 / 3):
        for count in range(1, 200):
            sampler = ClipSampler("dense", count, 3, rate)
            assert not sampler.is_short(3 * count, rate) and sampler.is_short(3 * count - 1, rate)


def test_a_window_shorter_than_a_frame_is_that_frame() -> None:
    indices = dense_indices(9, 0.25, num_frames=8, sampling_rate=4, target_fps=30, start=5.1)
    assert indices == [5] * 8
