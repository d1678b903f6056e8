"""Frames are compared with PyAV's sequential decoding of all frames from the start of a file."""

import io
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from tests.shared_files import CLIPS, needs_clips
from videoattn.config.data import Data
from videoattn.data.readers.open_video import Backend, DecodeError, check_backend, open_video


def has_torchcodec() -> bool:
    try:
        check_backend("torchcodec")
    except ValueError:
        return False
    return True


BACKENDS = ("auto", "pyav", "decord", *(["torchcodec"] if has_torchcodec() else []))
NOT_A_VIDEO = "cannot be opened as a video: Invalid data found"
# file: what each backend says on opening it, where not all backends open it
REFUSED = {
    "made/audio_only.mp4": dict.fromkeys(BACKENDS, "has no video stream"),
    "made/random.mp4": dict.fromkeys(BACKENDS, NOT_A_VIDEO),
    "made/text.mp4": dict.fromkeys(BACKENDS, NOT_A_VIDEO),
    "made/trunc100.mp4": dict.fromkeys(BACKENDS, NOT_A_VIDEO),
    "made/trunc_head.mp4": dict.fromkeys(BACKENDS, NOT_A_VIDEO),
    "made/zero.mp4": dict.fromkeys(BACKENDS, NOT_A_VIDEO),
    "made/odd227x171.avi": {"decord": "decord does not support this type of video"},
    "torchcodec_h264_10bits.mp4": {"decord": "decord does not support this type of video"},
    "moviepy_no_duration.webm": {"decord": "decord cannot open it"},
    "torchcodec_av1_video.mkv": {"decord": "decord cannot open it"},
}
DAMAGED = ("decord_corrupted.mp4", "made/bitflip.mp4")
IN_ORDER = (
    "datumaro_video.avi",
    "made/cutcopy_editlist.mp4",
    "made/trunc.avi",
    "mmaction2_S001C001P001R001A001_rgb.avi",
    "torchcodec_av1_video.mkv",
    "torchcodec_h265_video.mp4",
)
LAST_PACKET_CUT = ("made/trunc.avi",)  # its last frame is part made up, and does not count
SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm")


def clip_names() -> list[Any]:
    files = [*CLIPS.glob("*"), *CLIPS.glob("made/*"), *sorted(CLIPS.glob("fight2/*/*"))[::30]]
    names = sorted(str(file.relative_to(CLIPS)) for file in files if file.suffix in SUFFIXES)
    quick = {*REFUSED, *DAMAGED}  # the others are slow; what they are is generated below
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def decoded_frames(path: Path) -> list[Any]:
    import av

    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        stream.codec_context.thread_count = 1
        return list(container.decode(stream))


def upright(frame: Any) -> torch.Tensor:
    return torch.from_numpy(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90).copy())


def requests(num_frames: int) -> Iterator[list[int]]:
    """The first 16, every k-th, unsorted with duplicates, the last, and single ones in falling order."""
    rng = random.Random(num_frames)
    yield list(range(min(16, num_frames)))
    yield list(range(0, num_frames, max(1, num_frames // 6)))
    drawn = [rng.randrange(num_frames) for _ in range(5)]
    yield [*drawn, *drawn[::2], num_frames - 1, 0]
    for index in sorted({num_frames - 1, *(rng.randrange(num_frames) for _ in range(2))}, reverse=True):
        yield [index]


def assert_frames_equal_sequential_decoding(path: Path, backends: tuple[str, ...] = BACKENDS) -> None:
    frames = decoded_frames(path)
    if path.name in {Path(name).name for name in LAST_PACKET_CUT}:
        frames.pop()
    wanted = list(requests(len(frames)))
    expected = {index: upright(frames[index]) for index in {index for part in wanted for index in part}}
    for backend in backends:
        with open_video(path, backend) as reader:  # type: ignore[arg-type]
            assert reader.num_frames == len(frames), backend
            for indices in wanted[1:3] if backend == "pyav" else wanted:
                clip = reader.read(indices)
                assert clip.dtype == torch.uint8 and clip.shape == (len(indices), *expected[indices[0]].shape)
                for index, image in zip(indices, clip, strict=True):
                    difference = (image.int() - expected[index].int()).abs().max()
                    assert difference <= 2, f"{backend}, sequential {reader.sequential}: frame {index} of {indices}"


@needs_clips
@pytest.mark.parametrize("name", clip_names())
def test_clip_decodes_to_the_same_frames_or_gives_its_error(name: str) -> None:
    refused = REFUSED.get(name, {})
    for backend, message in refused.items():
        with pytest.raises(DecodeError, match=message) as caught:
            open_video(CLIPS / name, backend)  # type: ignore[arg-type]
        assert str(CLIPS / name) in str(caught.value)
    if name in DAMAGED:
        for backend in ("auto", "pyav"):
            with open_video(CLIPS / name, backend) as reader, pytest.raises(DecodeError, match="cannot be decoded"):
                reader.read(range(reader.num_frames))
        return
    backends = tuple(backend for backend in BACKENDS if backend not in refused)
    if backends:
        assert_frames_equal_sequential_decoding(CLIPS / name, backends)
        with open_video(CLIPS / name) as reader:
            assert reader.backend == "pyav" and reader.sequential == (name in IN_ORDER)


@needs_clips
def test_damaged_data_is_never_passed_off_as_a_frame() -> None:
    original = decoded_frames(CLIPS / "mmaction2_demo_arm_wrestling.mp4")
    num_read = 0
    with open_video(CLIPS / "made" / "bitflip.mp4") as reader:
        for index in range(0, 280, 20):
            try:
                image = reader.read([index])[0]
            except DecodeError:
                continue
            num_read += 1
            assert torch.equal(image, upright(original[index])), index
    assert num_read <= 2  # 400 flipped bytes leave little


B_FRAMES = "keyint=12:min-keyint=12:bframes=3:b-adapt=0:scenecut=0"
PYRAMID = "keyint=20:min-keyint=20:bframes=7:b-adapt=0:scenecut=0:ref=5"
IRREGULAR = [number * 3 + number % 3 for number in range(40)]


@pytest.mark.parametrize(
    ("options", "seeks"),
    [
        ({"name": "b.mp4", "x264": B_FRAMES}, True),
        ({"name": "b.mkv", "x264": B_FRAMES}, True),
        ({"name": "fragments.mp4", "x264": B_FRAMES, "movflags": "frag_keyframe+empty_moov"}, True),
        ({"name": "irregular.mp4", "x264": B_FRAMES, "times": IRREGULAR}, True),
        ({"name": "late.mkv", "x264": B_FRAMES, "times": [number + 50 for number in range(40)]}, True),
        ({"name": "short.mp4", "x264": "keyint=2:min-keyint=1:bframes=3:b-adapt=0"}, True),
        ({"name": "pyramid.mp4", "x264": PYRAMID + ":b-pyramid=normal:weightp=2"}, True),
        ({"name": "strict.mkv", "x264": PYRAMID + ":b-pyramid=strict:cabac=0:direct=temporal"}, True),
        ({"name": "leaves.mp4", "x264": PYRAMID + ":b-pyramid=none:direct=spatial:slices=3"}, True),
        ({"name": "444.mp4", "x264": B_FRAMES, "pixels": "yuv444p", "size": (47, 65)}, True),
        ({"name": "plain.mp4", "codec": "mpeg4"}, True),
        ({"name": "open.mp4", "x264": B_FRAMES + ":open-gop=1"}, False),
        ({"name": "open.mkv", "x264": B_FRAMES + ":open-gop=1"}, False),
        ({"name": "refresh.mp4", "x264": "keyint=12:bframes=0:intra-refresh=1"}, False),
        ({"name": "b_mpeg4.mp4", "codec": "mpeg4", "b_frames": 2}, False),
        ({"name": "b_short.mp4", "codec": "mpeg4", "b_frames": 2, "group": 3}, False),
        ({"name": "b.avi", "codec": "mpeg4", "b_frames": 2}, False),
        ({"name": "h264.avi", "x264": B_FRAMES}, False),
        ({"name": "mpeg2.mkv", "codec": "mpeg2video", "b_frames": 2}, False),
        ({"name": "one.mp4", "num_frames": 1}, True),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_every_frame_is_right_when_seeking_and_when_sequential(make: Any, options: Any, seeks: bool) -> None:
    path = make(**options)
    assert_frames_equal_sequential_decoding(path)
    frames = [upright(frame) for frame in decoded_frames(path)]
    with open_video(path) as fast, open_video(path, "decord") as other:
        assert fast.sequential == other.sequential == (not seeks)
        for index in reversed(range(len(frames))):
            assert torch.equal(fast.read([index])[0], frames[index])
            if not index % 5:
                assert (other.read([index])[0].int() - frames[index].int()).abs().max() <= 2


@pytest.mark.parametrize(
    "options",
    [
        {"name": "odd.mp4", "codec": "mpeg4", "size": (47, 65)},
        {"name": "deep.mp4", "pixels": "yuv420p10le"},
        {"name": "interlaced.mp4", "x264": "interlaced=1"},
        {"name": "fields.mp4", "x264": PYRAMID + ":interlaced=1"},
        {"name": "stream.ts"},
    ],
    ids=lambda value: value["name"],
)
def test_videos_that_decord_decodes_wrong_are_refused_by_it_and_read_by_pyav(make: Any, options: Any) -> None:
    path = make(**options)
    with pytest.raises(DecodeError, match="decord does not support this type of video; use auto or pyav"):
        open_video(path, "decord")
    assert_frames_equal_sequential_decoding(path, ("auto", "pyav"))


def remuxed(source: Path, target: Path, dropped: Callable[[int], bool] = lambda place: False, **options: str) -> Path:
    import av

    with av.open(str(source)) as old, av.open(str(target), "w", options=options) as new:
        stream = old.streams.best("video")
        copy = new.add_stream_from_template(stream)
        for place, packet in enumerate(packet for packet in old.demux(stream) if packet.size):
            if not dropped(place):
                packet.stream = copy
                new.mux(packet)
    return target


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_frames_before_the_first_keyframe_do_not_count(make: Any, tmp_path: Path, ending: str) -> None:
    source = make(f"b.{ending}", x264=B_FRAMES)
    cut = remuxed(source, tmp_path / f"cut.{ending}", dropped=lambda place: place < 5)
    assert_frames_equal_sequential_decoding(cut, ("auto", "pyav"))
    with open_video(cut) as reader, open_video(source) as whole:
        assert reader.num_frames == 28
        assert torch.equal(reader.read([0, 27]), whole.read([12, 39]))
    with pytest.raises(DecodeError, match="decord does not support"):
        open_video(cut, "decord")


def test_a_missing_keyframe_is_an_error_and_not_another_frame(make: Any, tmp_path: Path) -> None:
    source = make("b.mp4", x264=B_FRAMES)
    cut = remuxed(source, tmp_path / "cut.mp4", dropped=lambda place: place == 12)
    with open_video(cut) as reader, open_video(source) as whole:
        assert reader.num_frames == 39
        assert torch.equal(reader.read([0, 5, 38]), whole.read([0, 5, 39]))
        with pytest.raises(DecodeError, match="frame 14 of 39 cannot be decoded"):
            reader.read([2, 14])


def test_mp4_cut_short_keeps_its_count_and_names_the_missing_frame(make: Any, tmp_path: Path) -> None:
    source = make("b.mp4", x264=B_FRAMES, movflags="faststart")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    with open_video(cut) as reader, open_video(source) as whole:
        assert reader.num_frames == 40
        with pytest.raises(
            DecodeError, match="frame 39 of 40 is missing: the file is cut short, only the first"
        ) as caught:
            reader.read([3, 39])
        present = int(str(caught.value).split("first ")[1].split()[0])
        assert 12 < present < 36
        assert torch.equal(reader.read(range(present)), whole.read(range(present)))
        with pytest.raises(DecodeError, match=f"frame {present} of 40"):
            reader.read([present])
    with pytest.raises(DecodeError, match="decord cannot open it"):
        open_video(cut, "decord")


@pytest.mark.parametrize("name", ["b.mkv", "b.avi"])
def test_other_containers_cut_short_are_shorter_videos(make: Any, tmp_path: Path, name: str) -> None:
    source = make(name, codec="mpeg4")
    cut = tmp_path / f"cut_{name}"
    cut.write_bytes(source.read_bytes()[: source.stat().st_size * 7 // 10])
    with open_video(cut) as reader, open_video(source) as whole:
        assert 5 < reader.num_frames < 39
        everything = range(reader.num_frames)
        assert torch.equal(reader.read(everything), whole.read(everything))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_that_is_no_video_is_an_error_that_names_it(tmp_path: Path, backend: Any) -> None:
    contents = {"empty.mp4": b"", "text.mp4": b"not a video, sorry\n", "noise.avi": random.Random(0).randbytes(5000)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DecodeError, match=f"{name}: cannot be opened as a video"):
            open_video(tmp_path / name, backend)
    with pytest.raises(DecodeError, match="nowhere.mp4: does not exist"):
        open_video(tmp_path / "nowhere.mp4", backend)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(DecodeError, match="folder.mp4: contains no frames"):
        open_video(tmp_path / "folder.mp4", backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bytes_and_open_files_give_the_frames_of_the_file(make: Any, backend: Any) -> None:
    wanted = [33, 5, 5, 39, 0]
    for name in ("b.mp4", "b.mkv"):
        path = make(name)
        with open_video(path, backend) as reader:
            expected, facts = reader.read(wanted), (reader.num_frames, reader.fps, reader.sequential)
        with path.open("rb") as file:
            for video in (path.read_bytes(), io.BytesIO(path.read_bytes()), file):
                with open_video(video, backend) as reader:
                    assert (reader.num_frames, reader.fps, reader.sequential) == facts
                    assert torch.equal(reader.read(wanted), expected) and torch.equal(
                        reader.read([7]), reader.read([7])
                    )
            assert not file.closed
    with pytest.raises(DecodeError, match="a video of 9 bytes: cannot be opened as a video"):
        open_video(b"not video", backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_sound_alone_is_an_error(tmp_path: Path, backend: Any) -> None:
    import av

    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        samples = np.zeros((1, 44100), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(DecodeError, match="sound.mp4: has no video stream"):
        open_video(path, backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_requests_outside_the_video_are_index_errors(make: Any, backend: Any) -> None:
    with open_video(make("b.mp4"), backend) as reader:
        assert (reader.num_frames, reader.fps) == (40, 25.0)
        for index in (40, -1):
            with pytest.raises(IndexError, match=f"frame {index} of .*b.mp4, which has 40"):
                reader.read([0, index])
        with pytest.raises(ValueError, match="expects at least one frame index"):
            reader.read([])
        assert reader.read(np.array([39, 0])).shape == (2, 48, 64, 3)  # type: ignore[arg-type]
        reader.close()
        reader.close()


def test_settings_offer_every_backend() -> None:
    assert get_args(Data.model_fields["decoding_backend"].annotation) == get_args(Backend)


def test_unknown_backend_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="decoding backend 'opencv', expected auto, decord, pyav or torchcodec"):
        open_video(make("b.mp4"), "opencv")  # type: ignore[arg-type]


def test_decode_error_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4: does not exist", "missing")))
    assert isinstance(error, DecodeError) and (str(error), error.kind) == ("a.mp4: does not exist", "missing")


@pytest.mark.skipif(has_torchcodec(), reason="torchcodec can be imported here")
def test_backend_whose_library_is_missing_is_refused_before_a_video_is_opened() -> None:
    with pytest.raises(ValueError, match="DATA.DECODING_BACKEND torchcodec expects the library torchcodec, which also"):
        check_backend("torchcodec")
    for backend in ("auto", "pyav", "decord"):
        check_backend(backend)


@pytest.mark.skipif(not has_torchcodec(), reason="torchcodec is not installed, or has no FFmpeg")
def test_torchcodec_reads_files_that_seek_right_and_pyav_the_others(make: Any) -> None:
    for name, x264, expected in (
        ("b.mp4", B_FRAMES, "torchcodec"),
        ("open.mp4", B_FRAMES + ":open-gop=1", "pyav"),
        ("b.avi", B_FRAMES, "pyav"),
    ):
        with open_video(make(name, x264=x264), "torchcodec") as reader:
            assert reader.backend == expected
