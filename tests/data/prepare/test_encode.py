"""Encoded videos have the frames of their source at the same times and seek fast, and no failure goes unnoticed."""

import csv
import errno
import json
import os
import signal
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.faulty_clips import ClipMaker
from tests.shared_files import CLIPS, needs_clips
from videoattn.cli import prepare as prepare_data
from videoattn.cli.run_tool import run_tool
from videoattn.data.check.checked_list import CheckedList
from videoattn.data.lists import read_class_folders, read_kinetics_csv, read_ssv2
from videoattn.data.lists.list_lines import format_line
from videoattn.data.prepare import encode as prepare_encode
from videoattn.data.prepare.encode import LOG_NAME, encode_lists
from videoattn.data.prepare.video import EncodeError, EncodeSettings, encode_video, small_size
from videoattn.data.readers.open_video import DecodeError, open_video

SETTINGS = EncodeSettings(short_side=64, keyint=8, crf=10, preset="ultrafast")
NUM_FRAMES, HEIGHT, WIDTH = 21, 96, 160
AT_MOST = 4.0  # grey levels, on average, that scaling and encoding change the soft pictures below by


def soft_picture(number: int) -> np.ndarray[Any, Any]:
    """Slow waves that differ in all four corners and move with the frame's number."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    red = 128 + 100 * np.sin((x + 6 * number) / 25)
    green = 255 * y / HEIGHT
    blue = 255 * (x / WIDTH) * (1 - y / HEIGHT)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def write_source(
    path: Path,
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    times: list[int] | None = None,
    colours: tuple[int, int] = (2, 0),
    num_frames: int = NUM_FRAMES,
) -> Path:
    """A soft video at 25 frames a second, or with frames at `times` in milliseconds; colours are space and range."""
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pixels
        if codec == "libx264":
            stream.options = {"crf": "5"}
        else:
            stream.codec_context.bit_rate = 4_000_000
        stream.codec_context.colorspace, stream.codec_context.color_range = colours
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(soft_picture(number), format="rgb24")
            frame = frame.reformat(format=pixels)
            frame.colorspace, frame.color_range = colours
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def turn(path: Path, degrees: int) -> None:
    """Mark an mp4 as rotated. Source: ISO/IEC 14496-12, 8.3.2: the matrix is 40 bytes into a track's header."""
    a, b = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    matrix = (a << 16, b << 16, 0, -b << 16, a << 16)
    content[place : place + 20] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(content)


def frame_times(path: Path) -> list[float]:
    """Return the times of frames, in seconds after the first."""
    import av

    with av.open(str(path)) as container:
        times = [float(frame.time or 0) for frame in container.decode(video=0)]
    return [time - times[0] for time in times]


def difference(source: Path, encoded: Path) -> float:
    """Return the mean difference, in grey levels, of two videos of equal length, at the size of the second."""
    with open_video(source) as first, open_video(encoded) as second:
        assert first.num_frames == second.num_frames
        ours, theirs = (reader.read(range(first.num_frames)).permute(0, 3, 1, 2).float() for reader in (first, second))
    scaled = torch.nn.functional.interpolate(ours, theirs.shape[-2:], mode="bicubic", antialias=True)
    return float((scaled - theirs).abs().mean())


def test_different_videos_differ_by_more_than_encoding_may_change_one(tmp_path: Path) -> None:
    source = write_source(tmp_path / "a.mp4")
    shifted = tmp_path / "b.mp4"
    encode_video(str(source), shifted, SETTINGS)
    with open_video(shifted) as reader:
        frames = reader.read(range(NUM_FRAMES)).float()
    assert (frames[1:] - frames[:-1]).abs().mean() > AT_MOST
    assert (frames - frames.flip(1)).abs().mean() > AT_MOST and (frames - frames.flip(2)).abs().mean() > AT_MOST


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_encoded_frames_are_the_source_frames_upright(tmp_path: Path, degrees: int) -> None:
    import av

    source, target = write_source(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    if degrees:
        turn(source, degrees)
    assert encode_video(str(source), target, SETTINGS) == NUM_FRAMES
    with open_video(target) as reader:
        assert reader.read([0]).shape == ((1, 106, 64, 3) if degrees % 180 else (1, 64, 106, 3))
    assert difference(source, target) < AT_MOST
    with av.open(str(target)) as container:
        assert next(container.decode(video=0)).rotation == 0


@pytest.mark.parametrize(
    "name, codec, pixels, colours",
    [
        ("bt709.mp4", "libx264", "yuv420p", (1, 1)),
        ("full_range.mp4", "libx264", "yuv420p", (1, 2)),
        ("bt601_full.mov", "mjpeg", "yuvj420p", (5, 2)),
        ("ten_bits.mp4", "libx264", "yuv422p10le", (9, 1)),
        ("rgb.mkv", "ffv1", "bgr0", (2, 0)),
        ("grey.mkv", "ffv1", "gray", (2, 0)),
        ("xvid.avi", "mpeg4", "yuv420p", (2, 0)),
        ("vp9.webm", "libvpx-vp9", "yuv444p", (1, 1)),
    ],
)
def test_colours_stay_as_a_reader_sees_them(
    tmp_path: Path, name: str, codec: str, pixels: str, colours: tuple[int, int]
) -> None:
    source = write_source(tmp_path / name, codec, pixels, colours=colours)
    encode_video(str(source), tmp_path / "b.mp4", EncodeSettings(short_side=HEIGHT, crf=3, preset="ultrafast"))
    assert difference(source, tmp_path / "b.mp4") < 2.0


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.mp4"])
def test_frames_of_a_variable_rate_keep_their_times(tmp_path: Path, name: str) -> None:
    times = [0, 40, 80, 90, 95, 300, 1000, 1001, 1500]
    codec = "libvpx-vp9" if name.endswith("webm") else "mpeg4"
    source = write_source(tmp_path / name, codec, times=times, num_frames=len(times))
    encode_video(str(source), tmp_path / "b.mp4", SETTINGS)
    assert frame_times(tmp_path / "b.mp4") == pytest.approx([time / 1000 for time in times], abs=1e-4)
    assert difference(source, tmp_path / "b.mp4") < AT_MOST


def test_frames_of_a_container_without_reliable_times_follow_at_the_average_rate(tmp_path: Path) -> None:
    source = write_source(tmp_path / "a.avi")
    encode_video(str(source), tmp_path / "b.mp4", SETTINGS)
    assert frame_times(tmp_path / "b.mp4") == pytest.approx([number / 25 for number in range(NUM_FRAMES)], abs=1e-4)
    assert open_video(tmp_path / "b.mp4").fps == 25


@pytest.mark.parametrize("keyint", [1, 8, 100])
def test_encoded_videos_are_quick_to_seek_and_hold_pictures_alone(tmp_path: Path, keyint: int) -> None:
    import av

    source, target = write_source(tmp_path / "a.mp4"), tmp_path / "b.mp4"
    encode_video(str(source), target, EncodeSettings(short_side=64, keyint=keyint, preset="ultrafast"))
    with open_video(target) as reader:
        scan = reader.scan
        assert scan is not None and scan.is_seekable and scan.codec == "h264"
        assert scan.keyframes == list(range(0, NUM_FRAMES, keyint))
    with av.open(str(target)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert all(packet.pts == packet.dts for packet in packets)
    content = target.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(
    "size, expected",
    [((340, 256), (340, 256)), ((341, 257), (338, 256)), ((1920, 1080), (454, 256)), ((1080, 1920), (256, 454)),
     ((341, 255), (338, 254)), ((64, 48), (64, 48)), ((257, 257), (256, 256)), ((3, 1), (6, 2)), ((1, 1), (2, 2))],
)  # fmt: skip
def test_sizes_become_even_keep_their_aspect_and_never_grow(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert small_size(*size, 256) == expected


def test_an_encoded_video_that_is_not_as_it_should_be_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(write_source(tmp_path / "a.mp4"))
    options = SETTINGS.as_options()
    for change, message in (({"g": "5", "keyint_min": "5"}, "keyframes are at"), ({"crf": "x"}, "cannot be encoded")):
        monkeypatch.setattr(EncodeSettings, "as_options", lambda _, change=change: options | change)
        with pytest.raises(EncodeError, match=message):
            encode_video(source, tmp_path / "b.mp4", SETTINGS)


@pytest.mark.slow
@needs_clips
def test_real_clips_are_encoded_exactly_where_they_decode(tmp_path: Path) -> None:
    names = [
        "decord_corrupted.mp4", "decord_unordered.mov", "decord_video_90.mov", "datumaro_video.avi", "made/bitflip.mp4",
        "made/audio_only.mp4", "made/oneframe.mp4", "made/odd444_340x255.mp4", "made/vfr.webm", "hiera_dog.mp4",
        "torchcodec_av1_video.mkv", "torchcodec_h265_video.mp4",
    ]  # fmt: skip
    with open(CLIPS / "MANIFEST.csv", newline="") as stream:
        decodes = {row["file"]: row["decodes"] == "yes" for row in csv.DictReader(stream)}
    settings = EncodeSettings(short_side=64, preset="ultrafast", crf=10)
    for name in names:
        try:
            encode_video(str(CLIPS / name), tmp_path / "b.mp4", settings)
        except DecodeError:
            assert not decodes[name]
        else:
            assert decodes[name] and difference(CLIPS / name, tmp_path / "b.mp4") < 6, name
            found, expected = frame_times(tmp_path / "b.mp4"), frame_times(CLIPS / name)
            assert found == pytest.approx(expected, abs=1e-3), name


Build = Callable[..., CheckedList]


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> ClipMaker:
    return ClipMaker(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def listed(maker: ClipMaker, tmp_path: Path) -> Build:
    """Videos with faults, below tmp_path/videos, and their list."""

    def build(faults: dict[str, str], text: str = "", separator: str = " ") -> CheckedList:
        folder = tmp_path / "videos"
        for name, fault in faults.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            maker.write(folder / name, fault)
        rows = "".join(f"{name}{separator}{number}\n" for number, name in enumerate(faults))
        (folder / "train.csv").write_text(text or rows)
        videos = read_kinetics_csv(folder / "train.csv", separator=separator, with_lengths=True)
        return CheckedList("train", videos, separator)

    return build


def problems(out: Path) -> list[tuple[str, str, str]]:
    with open(out / "bad_train.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert all(row["severity"] == "error" and row["detail"] for row in rows)
    return [(os.path.basename(row["path"]), row["kind"], row["number"]) for row in rows]


def test_sources_that_cannot_be_used_are_listed_with_the_reason_and_left_out(listed: Build, tmp_path: Path) -> None:
    faults = {"a/good.mp4": "", "cut.mp4": "cut_short", "damaged.mp4": "damaged", "sound.mp4": "no_video_stream",
              "text.mp4": "not_a_video", "empty.mp4": "empty", "gone.mp4": "missing", "folder.mp4": "missing",
              "b/good.mp4": ""}  # fmt: skip
    checked, out = listed(faults), tmp_path / "out"
    (tmp_path / "videos" / "folder.mp4").mkdir()
    (result,) = encode_lists([checked], out, SETTINGS, num_workers=2)
    expected = [(name, "not_a_file" if name == "folder.mp4" else fault, str(number))
                for number, (name, fault) in enumerate(faults.items(), start=1) if fault]  # fmt: skip
    assert problems(out) == expected
    assert result.file.read_text() == "a/good.mp4 0\nb/good.mp4 8\n" and len(result.bad) == 7
    videos = read_kinetics_csv(result.file)
    assert [open_video(videos.path(index)).num_frames for index in (0, 1)] == [24, 24]
    left = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert left == {"a/good.mp4", "b/good.mp4", "train.csv", "bad_train.csv", "encode.json", LOG_NAME}
    assert not (out / ".unfinished").exists()


def test_lines_of_a_list_change_in_nothing_but_their_path(maker: ClipMaker, listed: Build, tmp_path: Path) -> None:
    maker.write(tmp_path / "elsewhere.mp4")
    absolute = tmp_path / "videos" / "d.avi"
    text = f'\ufeff"a,1.avi",24,0\r\nb.mp4,7,1\ngone.mp4,1,2\n./c.mkv,1,3\n{absolute},5,4'
    checked = listed({"a,1.avi": "", "b.mp4": "", "c.mkv": "", "d.avi": ""}, text, ",")
    (result,) = encode_lists([checked], tmp_path / "out", SETTINGS)
    assert result.file.read_bytes() == b'"a,1.mp4",24,0\r\nb.mp4,7,1\nc.mp4,1,3\nd.mp4,5,4'
    assert len(read_kinetics_csv(result.file, separator=",", with_lengths=True)) == 4


def test_a_second_run_encodes_only_what_is_new_changed_or_half_noted(
    maker: ClipMaker, listed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {f"{number}.mp4": "damaged" if number == 3 else "" for number in range(6)}
    out, opened = tmp_path / "out", tmp_path / "opened"

    def noting(source: str, *arguments: Any) -> int:
        with open(opened, "a") as stream:
            stream.write(os.path.basename(source) + "\n")
        return encode_video(source, *arguments)

    def run(videos: CheckedList) -> list[str]:
        opened.write_text("")
        encode_lists([videos], out, SETTINGS)
        return sorted(opened.read_text().split())

    monkeypatch.setattr(prepare_encode, "encode_video", noting)
    assert run(listed(names)) == list(names)
    again = CheckedList("train", read_kinetics_csv(tmp_path / "videos" / "train.csv"))
    first = (out / "train.csv").read_bytes(), problems(out)
    assert run(again) == [] and ((out / "train.csv").read_bytes(), problems(out)) == first

    (out / "0.mp4").unlink()
    maker.write(tmp_path / "videos" / "1.mp4")
    maker.write(tmp_path / "videos" / "3.mp4")
    log = out / LOG_NAME
    lines = log.read_text().splitlines()
    half = next(line for line in lines if '"2.mp4"' in line)
    lines.remove(half)
    log.write_text("\n".join([*lines, half[: len(half) // 2]]))
    (out / ".unfinished").mkdir()
    (out / ".unfinished" / "left").touch()
    assert run(again) == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"] and problems(out) == []
    assert len(read_kinetics_csv(out / "train.csv")) == 6 and not (out / ".unfinished").exists()


def test_other_settings_are_refused_unless_all_is_to_be_encoded_anew(listed: Build, tmp_path: Path) -> None:
    checked, out = listed({"a.mp4": ""}), tmp_path / "out"
    encode_lists([checked], out, SETTINGS)
    other = EncodeSettings(short_side=64, keyint=4, crf=10, preset="ultrafast")
    with pytest.raises(ValueError, match=r"encode.json: keyint was 8, now 4; expected the same, another --out, or --o"):
        encode_lists([checked], out, other)
    encode_lists([checked], out, other, overwrite=True)
    scan = open_video(out / "a.mp4").scan
    assert scan is not None and scan.keyframes[:3] == [0, 4, 8]

    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "train.csv").write_text("of somebody else")
    with pytest.raises(ValueError, match=r"train.csv exists without encode.json beside it"):
        encode_lists([checked], tmp_path / "others", SETTINGS)
    assert (tmp_path / "others" / "train.csv").read_text() == "of somebody else"


def test_lists_whose_results_would_take_a_wrong_place_are_refused(listed: Build, tmp_path: Path) -> None:
    clash = listed({"a/x.avi": "", "a/x.mp4": ""})
    with pytest.raises(ValueError, match=r"a/x.avi and .*a/x.mp4 would both become a/x.mp4; expected names"):
        encode_lists([clash], tmp_path / "out", SETTINGS)
    with pytest.raises(ValueError, match=r"--out .*videos: is the folder of the videos of .*train.csv"):
        encode_lists([listed({"a.mp4": ""})], tmp_path / "videos", SETTINGS)
    (tmp_path / "videos" / "link").symlink_to(tmp_path / "videos")
    with pytest.raises(ValueError, match="is the folder of the videos"):
        encode_lists([listed({"a.mp4": ""})], tmp_path / "videos" / "link", SETTINGS)
    prefixed = CheckedList("train", read_kinetics_csv(tmp_path / "videos" / "train.csv", prefix=str(tmp_path / "x")))
    with pytest.raises(ValueError, match=r"train.csv: is the list that is read"):
        encode_lists([prefixed], tmp_path / "videos", SETTINGS)
    for path, message in [
        ("../x.mp4", "expected to lie below"),
        ("/elsewhere/x.mp4", "expected to lie below"),
        ("t.tar/x.mp4@1+2", "is inside a tar"),
        ("s3://b/x.mp4", "is a URL"),
        ("f/{001..009}.jpg", "is a range of extracted frames"),
    ]:
        with pytest.raises(ValueError, match=message):
            encode_lists([listed({}, f"{path} 0\n")], tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def failing_encoder(source: str, target: Path, settings: EncodeSettings) -> int:
    name = os.path.basename(source)
    target.write_bytes(b"half of it")
    if name.startswith("interrupts") and not os.path.exists(f"{source}.done"):
        Path(f"{source}.done").touch()
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
    if name.startswith("hangs"):
        time.sleep(60)
    if name.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if name.startswith("refused"):
        raise EncodeError("its size is odd")
    if name.startswith("disk_full"):
        raise OSError(errno.ENOSPC, "No space left on device")
    return encode_video(source, target, settings)


def test_encoders_that_hang_crash_or_fail_cost_one_video_and_leave_nothing(
    listed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_encode, "encode_video", failing_encoder)
    names = ("a.mp4", "hangs.mp4", "killed.mp4", "refused.mp4", "b.mp4")
    checked, out = listed(dict.fromkeys(names, "")), tmp_path / "out"
    encode_lists([checked], out, SETTINGS, limit_seconds=1.5)
    refused = ("refused.mp4", "not_encoded", "4")
    assert problems(out) == [("hangs.mp4", "hangs", "2"), ("killed.mp4", "crashes", "3"), refused]
    assert {path.name for path in out.glob("*.mp4")} == {"a.mp4", "b.mp4"} and not (out / ".unfinished").exists()
    monkeypatch.undo()
    encode_lists([checked], out, SETTINGS)
    assert problems(out) == [refused]  # the others may end otherwise


def test_a_full_disk_stops_the_run_and_blames_no_source(
    listed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_encode, "encode_video", failing_encoder)
    checked, out = listed({"disk_full.mp4": "", "a.mp4": ""}), tmp_path / "out"
    with pytest.raises(OSError, match=r"can't write .*disk_full.mp4: No space left on device"):
        encode_lists([checked], out, SETTINGS)
    assert {path.name for path in out.iterdir()} <= {"encode.json", LOG_NAME, "a.mp4"}
    monkeypatch.undo()
    encode_lists([checked], out, SETTINGS)
    assert problems(out) == []


def test_an_interrupted_run_leaves_whole_results_alone_and_goes_on(
    listed: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_encode, "encode_video", failing_encoder)
    checked, out = listed(dict.fromkeys(("a.mp4", "interrupts.mp4", "b.mp4"), "")), tmp_path / "out"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            encode_lists([checked], out, SETTINGS)
    finally:
        signal.signal(signal.SIGINT, before)
    assert {path.name for path in out.iterdir()} == {"a.mp4", "encode.json", LOG_NAME}
    encode_lists([checked], out, SETTINGS)
    assert len(read_kinetics_csv(out / "train.csv")) == 3 and problems(out) == []


def test_class_folders_and_json_lists_are_encoded_into_what_training_reads(maker: ClipMaker, tmp_path: Path) -> None:
    for name in ("jump high/a b.avi", "run/c.avi"):
        (tmp_path / "classes" / "train" / name).parent.mkdir(parents=True)
        maker.write(tmp_path / "classes" / "train" / name)
    classes = CheckedList("train", read_class_folders(str(tmp_path / "classes"), "train"))
    (result,) = encode_lists([classes], tmp_path / "out", SETTINGS)
    assert result.separator == "\t" and (tmp_path / "out" / "class_names.txt").read_text() == "jump high\nrun\n"
    videos = read_kinetics_csv(result.file, separator="\t")
    assert [(videos.listed(i), videos.label(i)) for i in (0, 1)] == [("jump high/a b.mp4", 0), ("run/c.mp4", 1)]
    assert all(os.path.exists(videos.path(index)) for index in (0, 1))

    (tmp_path / "ssv2" / "videos").mkdir(parents=True)
    for number, fault in ((1, ""), (2, "empty"), (3, "")):
        maker.write(tmp_path / "ssv2" / "videos" / f"{number}.webm", fault)
    names = {"labels": {"Doing something": "0"}}
    items = [{"id": str(number), "template": "Doing [something]", "label": "doing"} for number in (1, 2, 3)]
    for name, content in ({"train": items} | names).items():
        (tmp_path / "ssv2" / f"something-something-v2-{name}.json").write_text(json.dumps(content))
    checked = CheckedList("train", read_ssv2(str(tmp_path / "ssv2"), "train"))
    with pytest.raises(ValueError, match="is the folder of the videos"):
        encode_lists([checked], tmp_path / "ssv2", SETTINGS)
    encode_lists([checked], tmp_path / "small", SETTINGS)
    videos = read_ssv2(str(tmp_path / "small"), "train")
    assert [os.path.relpath(videos.path(i), tmp_path / "small") for i in (0, 1)] == ["videos/1.mp4", "videos/3.mp4"]
    assert open_video(videos.path(1)).num_frames == 24


def test_settings_out_of_range_are_refused_by_their_option() -> None:
    for name, value in (("short_side", 0), ("short_side", 255), ("keyint", 0), ("crf", 52), ("preset", "quick")):
        with pytest.raises(ValueError, match=f"--{name.replace('_', '-')} expects .* got '?{value}"):
            EncodeSettings(**{name: value})  # type: ignore[arg-type]


def test_the_tool_encodes_and_its_status_says_whether_all_went_well(
    video_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        status = run_tool(prepare_data.main, ["encode", *map(str, arguments)])
        printed = capsys.readouterr()
        return status, printed.err or printed.out

    folder, out = video_folder(3, bad=(1,)), tmp_path / "out"
    fast = ("--preset", "ultrafast", "--workers", 1)
    status, printed = run("--list", folder / "train.csv", "--out", out, *fast)
    assert status == 1 and "train: 2 of 3 videos, listed in" in printed and "1 could not be used:" in printed
    settings = ("DATA.PATH_TO_DATA_DIR", video_folder(3), "MODEL.NUM_CLASSES", 3)
    status, printed = run("--out", tmp_path / "all", *fast, *settings)
    assert status == 0 and all(f"{split}: 3 of 3 videos" in printed for split in ("train", "val", "test"))
    for wrong in (("--crf", 99), ("--workers", 0), ("--limit", 0), ("--split", "train")):
        status, printed = run("--list", folder / "train.csv", "--out", out, *wrong)
        assert status == 2 and printed.startswith("error: --")


def test_lists_of_results_read_back_whatever_names_hold(maker: ClipMaker, tmp_path: Path) -> None:
    names = ["a b.avi", "a\tb.avi", "a\nb.avi", 'a"b.avi', '"c" d.avi', "e,f.avi"]
    for name in names:
        (tmp_path / "classes/train/one").mkdir(parents=True, exist_ok=True)
        maker.write(tmp_path / "classes/train/one" / name)
    classes = CheckedList("train", read_class_folders(str(tmp_path / "classes"), "train"))
    (result,) = encode_lists([classes], tmp_path / "out", SETTINGS)
    videos = read_kinetics_csv(result.file, separator=result.separator)
    expected = sorted(f"one/{name.removesuffix('.avi')}.mp4" for name in names)
    assert sorted(videos.listed(i) for i in range(len(videos))) == expected
    assert all(os.path.isfile(videos.path(index)) for index in range(len(videos)))
    names = names[1:4]
    for separator in (" ", "\t"):
        file = tmp_path / "classes/train/one" / "train.csv"
        file.write_text("".join(format_line([name, "0"], separator) for name in names))
        plain = CheckedList("train", read_kinetics_csv(file, separator=separator), separator)
        (result,) = encode_lists([plain], tmp_path / f"out{ord(separator)}", SETTINGS)
        videos = read_kinetics_csv(result.file, separator=separator)
        assert [videos.listed(i) for i in range(len(videos))] == [f"{name.removesuffix('.avi')}.mp4" for name in names]


def test_a_missing_test_split_is_left_out_where_none_is_asked_for(
    video_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = video_folder(3)
    (folder / "test.csv").unlink()
    settings = ("DATA.PATH_TO_DATA_DIR", folder, "MODEL.NUM_CLASSES", 3)
    arguments = ["encode", "--out", tmp_path / "out", "--preset", "ultrafast", "--workers", 1, *settings]
    assert run_tool(prepare_data.main, [*map(str, arguments)]) == 0
    printed = capsys.readouterr()
    assert "val: 3 of 3 videos" in printed.out and "TEST.SPLIT" in printed.err and "--split" in printed.err
