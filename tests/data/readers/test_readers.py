"""Readers besides their frames: skipped pictures, open files, and reasons for sequential decoding."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.readers.test_decode import (
    B_FRAMES,
    BACKENDS,
    assert_frames_equal_sequential_decoding,
    decoded_frames,
    upright,
)
from videoattn.data.readers.open_video import DecodeError, open_video


def test_only_pyav_seeks_in_avi_without_reordered_pictures(make: Callable[..., Path]) -> None:
    path = make("plain.avi", codec="mpeg4")
    assert_frames_equal_sequential_decoding(path)
    frames = [upright(frame) for frame in decoded_frames(path)]
    with open_video(path) as reader:
        for index in reversed(range(40)):
            assert torch.equal(reader.read([index])[0], frames[index])
        assert not reader.sequential
    with open_video(path, "decord") as reader:
        assert reader.sequential_reason == "decord does not seek reliably in avi"
    if "torchcodec" in BACKENDS:
        assert open_video(path, "torchcodec").backend == "pyav"


@pytest.mark.parametrize("lost", [3, 12, 20])
def test_an_avi_whose_index_lacks_a_frame_still_gives_the_right_ones(make: Callable[..., Path], lost: int) -> None:
    path = make("plain.avi", codec="mpeg4")
    with open_video(path) as whole:
        expected = whole.read(range(40))
    data = path.read_bytes()
    start = data.index(b"idx1") + 8
    place = start + 16 * lost
    path.write_bytes(data[: start - 4] + (39 * 16).to_bytes(4, "little") + data[start:place] + data[place + 16 :])
    with open_video(path) as reader:
        for index in (30, 13, 39, 25, 2):
            image = reader.read([index])[0]
            assert torch.equal(image, expected[index])


def test_damage_in_an_unreferenced_picture_spares_all_others(make: Callable[..., Path]) -> None:
    import av

    path = make("b.mp4", x264=B_FRAMES + ":b-pyramid=none:slices=1")
    with open_video(path) as whole:
        expected = whole.read(range(40))
    with av.open(str(path)) as container:
        packet = next(p for p in container.demux(video=0) if p.pts and bytes(p)[4] >> 5 == 0)
        number = round(packet.pts * packet.time_base * 25)
        place, size = packet.pos, packet.size
    damaged = bytearray(path.read_bytes())
    damaged[place + 6 : place + size] = random.Random(0).randbytes(size - 6)
    path.write_bytes(damaged)
    others = [index for index in range(40) if index != number]
    with open_video(path) as reader:
        assert torch.equal(reader.read(others), expected[others])
        assert not reader.sequential
        with pytest.raises(DecodeError, match=f"frame {number} of 40 (cannot be decoded|is damaged)"):
            reader.read([number])
        assert reader.sequential_reason == "a seek did not reach every frame"


def test_a_video_whose_size_changes_is_an_error_that_names_the_frame(make: Callable[..., Path], tmp_path: Path) -> None:
    small, large = make("small.ts", size=(48, 64), num_frames=20), make("large.ts", size=(64, 96), num_frames=20)
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    with open_video(both) as reader:
        assert reader.read([3, 10]).shape == (2, 48, 64, 3)
        with pytest.raises(DecodeError, match=r"both.ts: frame 30 is 96x64, expected 64x48 as frame 3"):
            reader.read([30, 3])


def test_decoding_all_frames_finds_what_reading_each_would(make: Callable[..., Path]) -> None:
    path = make("b.mp4", x264=B_FRAMES)
    with open_video(path) as reader:
        expected = reader.read([39, 3])
        reader.decode_all()
        assert reader.sequential_reason == "all frames are decoded"
        assert torch.equal(reader.read([39, 3]), expected)
    content = path.read_bytes()
    third = len(content) // 3  # of pictures; the index lies behind them
    path.write_bytes(content[:third] + random.Random(0).randbytes(third // 2) + content[third + third // 2 :])
    with open_video(path) as reader, pytest.raises(DecodeError, match="cannot be decoded|is damaged"):
        reader.decode_all()


def test_readers_of_one_open_file_do_not_disturb_each_other(make: Callable[..., Path]) -> None:
    path = make("b.mp4", x264=B_FRAMES)
    with open_video(path) as reader:
        expected = reader.read([33, 5, 20])
    with path.open("rb") as file, open_video(file) as first, open_video(file) as second:
        for reader in (first, second, first):
            file.seek(100)
            assert torch.equal(reader.read([33, 5, 20]), expected)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="open files are counted in Linux only")
def test_closed_readers_and_refused_videos_leave_no_file_open(make: Callable[..., Path], tmp_path: Path) -> None:
    good, sequential, bad = make("b.mp4"), make("b.avi"), tmp_path / "bad.mp4"
    bad.write_bytes(good.read_bytes()[:1000])

    def read_all() -> None:
        for backend in BACKENDS:
            for path in (good, sequential):
                with open_video(path, backend) as reader:
                    reader.read([30, 1])
                    reader.read([2])
            with pytest.raises(DecodeError):
                open_video(bad, backend)

    read_all()  # what libraries keep open themselves, they have opened now
    before = len(os.listdir("/proc/self/fd"))
    read_all()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("name", "backend", "reason"),
    [
        ("b.mp4", "auto", ""),
        ("b.mp4", "decord", ""),
        ("b.mp4", "pyav", "pyav is always sequential"),
        ("b.avi", "auto", "container avi does not keep times reliably"),
        ("b.avi", "decord", "container avi does not keep times reliably"),
        ("open.mp4", "auto", "some keyframe does not restart decoding"),
    ],
)
def test_a_reader_states_why_it_is_sequential(make: Callable[..., Path], name: str, backend: Any, reason: str) -> None:
    with open_video(make(name, x264=B_FRAMES + ":open-gop=1" * name.startswith("open")), backend) as reader:
        reader.read([20])
        assert (reader.sequential_reason, reader.sequential) == (reason, bool(reason))


@pytest.mark.parametrize("name", ["plain.mp4", "plain.avi"])
def test_decord_gives_the_same_frames_whatever_type_others_have_set(make: Callable[..., Path], name: str) -> None:
    import decord

    path = make(name, codec="mpeg4")
    with open_video(path, "decord") as reader:
        expected = reader.read([3, 1])
    decord.bridge.set_bridge("torch")
    try:
        with open_video(path, "decord") as reader:
            assert torch.equal(reader.read([3, 1]), expected)
    finally:
        decord.bridge.reset_bridge()
