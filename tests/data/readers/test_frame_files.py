"""Extracted frames replace the video that they were extracted from."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.test_loader import contents, epoch, settings
from videoattn.data.lists import AnnotationError, read_annotations
from videoattn.data.readers.open_video import DecodeError, open_video


def write(folder: Path, names: list[str], size: tuple[int, int] = (8, 6)) -> Path:
    """Pictures in one grey each, 10 times their place in the list."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for place, name in enumerate(names):
        Image.new("RGB", size, (10 * place,) * 3).save(folder / name)
    return folder


def extract(video: Path, folder: Path, name: str = "{:06d}.png") -> int:
    from PIL import Image

    folder.mkdir(parents=True)
    with open_video(video, "pyav") as reader:
        frames = reader.read(range(reader.num_frames))
    for number, frame in enumerate(frames, start=1):
        Image.fromarray(frame.numpy()).save(folder / name.format(number), quality=95)
    return len(frames)


@pytest.mark.parametrize(
    "names",
    [
        [f"img_{i:05d}.jpg" for i in range(1, 13)],
        [f"{i:06d}.jpg" for i in range(12)],
        [f"frame_{i:04d}.png" for i in range(1, 13)],
        [f"1234_{i:06d}.jpeg" for i in range(1, 13)],
        [f"{i}.png" for i in range(1, 13)],
        [f"frame{i}.PNG" for i in range(12)],
    ],
)
def test_frames_come_in_natural_order_by_whatever_names(tmp_path: Path, names: list[str]) -> None:
    folder = write(tmp_path / "video", names)
    (folder / "flow_x_00001.jpg").touch()
    (folder / "notes.txt").touch()
    with open_video(folder) as reader:
        assert (reader.num_frames, reader.fps) == (12, 30.0)
        frames = reader.read([11, 0, 3, 3])
    assert frames.shape == (4, 6, 8, 3) and frames.dtype == torch.uint8
    assert (frames[:, 0, 0, 0].int() - torch.tensor([110, 0, 30, 30])).abs().max() <= 2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["1.png", "2.png", "4.png"], "video: 3.png is missing; expected frames from 1.png to 4.png"),
        (["img_00000.jpg", "img_00002.jpg"], "img_00001.jpg is missing"),
        (["img_00002.jpg", "img_00003.jpg"], "img_00001.jpg is missing"),
        (["37.png", "38.png"], "01.png is missing; expected frames from 01.png to 38.png"),
        (["1.png", "2.jpg"], "2.png is missing, there is 2.jpg"),
        (["01.png", "2.png"], "02.png is missing, there is 2.png"),
        (["1.png", "01.png"], "have the same number"),
        (["a_1.png", "b_1.png"], "several names, a_1.png and b_1.png"),
        (["1.png", "cover.png"], "cover.png, expected names of frames that end in a number"),
        (["flow_x_1.png"], "contains no frames"),
    ],
)
def test_frames_that_form_no_sequence_are_refused_by_name(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        open_video(write(tmp_path / "video", names))


def test_only_wanted_frames_are_opened_and_bad_ones_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "video", [f"{i}.png" for i in range(1, 6)])
    write(folder, ["4.png"], size=(9, 6))
    (folder / "2.png").write_bytes((folder / "1.png").read_bytes()[:40])
    with open_video(folder, frames_fps=12.5) as reader:
        assert reader.fps == 12.5 and reader.read([0, 2, 4]).shape == (3, 6, 8, 3)
        with pytest.raises(DecodeError, match="2.png: cannot be decoded"):
            reader.read([1])
        with pytest.raises(DecodeError, match="4.png: is 9x6, expected 8x6 as .*3.png"):
            reader.read([2, 3])
        with pytest.raises(IndexError, match="frame 5 of .*video, which has 5"):
            reader.read([5])
    with pytest.raises(ValueError, match="fps 0"):
        open_video(folder, frames_fps=0)


def test_a_range_is_the_files_that_a_shell_would_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "video", [f"a_{i:03d}.png" for i in range(1, 6)])
    with open_video(folder / "a_{002..004}.png") as part, open_video(folder) as whole:
        assert part.num_frames == 3
        assert torch.equal(part.read([0, 2]), whole.read([1, 3]))
    with (
        open_video(folder / "a_{004..007}.png") as reader,
        pytest.raises(DecodeError, match="a_006.png: does not exist"),
    ):
        reader.read([0, 2])
    with pytest.raises(DecodeError, match="ends at 1, before it begins at 2"):
        open_video(folder / "a_{2..1}.png")
    unpadded = write(tmp_path / "unpadded", [f"{i}.png" for i in range(9, 12)])
    with open_video(unpadded / "{9..11}.png") as reader:
        assert reader.read([0, 1, 2])[:, 0, 0, 0].tolist() == [0, 10, 20]


def test_png_frames_are_those_of_the_video_and_jpeg_close(rendered_videos: list[Path], tmp_path: Path) -> None:
    count = extract(rendered_videos[0], tmp_path / "png")
    extract(rendered_videos[0], tmp_path / "jpg", "img_{:05d}.jpg")
    wanted = [count - 1, 0, 7, 7, 12]
    with open_video(rendered_videos[0]) as video, open_video(tmp_path / "png") as png:
        assert png.num_frames == video.num_frames
        expected = video.read(wanted).int()
        assert (png.read(wanted).int() - expected).abs().max() <= 2
    with open_video(tmp_path / "jpg") as jpg:
        assert (jpg.read(wanted).int() - expected).abs().float().mean() < 12


@pytest.fixture
def ssv2(rendered_videos: list[Path], tmp_path: Path) -> Callable[[str], Path]:
    """Build Something-Something-V2 of four videos, kept as `kind`: videos, frames in folders, or a list of frames."""

    def build(kind: str) -> Path:
        folder = tmp_path / kind
        folder.mkdir()
        items = [{"id": str(7 + n), "template": f"Moving [something] {'up' if n % 2 else 'down'}"} for n in range(4)]
        labels = {"Moving something up": "0", "Moving something down": "1"}
        for name, content in (("labels", labels), ("train", items), ("validation", items), ("test", items)):
            (folder / f"something-something-v2-{name}.json").write_text(json.dumps(content))
        lines = ["original_vido_id video_id frame_id path labels"]
        for number, video in enumerate(rendered_videos):
            name = str(7 + number)
            if kind == "videos":
                (folder / "videos").mkdir(exist_ok=True)
                (folder / f"videos/{name}.mp4").write_bytes(video.read_bytes())
                continue
            place = folder / ("videos" if kind == "folders" else "") / name
            count = extract(video, place, name + "_{:06d}.png")
            lines += [f'{name} {number} {i} {name}/{name}_{i + 1:06d}.png ""' for i in range(count)]
        if kind == "list":
            for split in ("train", "val"):
                (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
        return folder

    return build


def test_ssv2_gives_the_same_batches_from_videos_folders_of_frames_and_lists_of_frames(ssv2: Any) -> None:
    batches = {}
    for kind in ("videos", "folders", "list"):
        cfg = settings(
            ssv2(kind), DATA={"PATH_PREFIX": ""}, TRAIN={"DATASET": "ssv2"}, MODEL={"NUM_CLASSES": 2}, RNG_SEED=3
        )
        batches[kind] = [contents(epoch(cfg, 1, split=split)) for split in ("train", "val")]
    assert len(batches["videos"][0]) == 2 and len(batches["videos"][1]) == 2
    assert batches["videos"] == batches["folders"] == batches["list"]


def test_frame_rate_is_the_one_set_else_the_target(ssv2: Any) -> None:
    folder = ssv2("folders")
    dense = {"PATH_PREFIX": "", "SAMPLING": "dense", "TARGET_FPS": 20, "NUM_FRAMES": 4, "SAMPLING_RATE": 5}
    options: dict[str, Any] = {"TRAIN": {"DATASET": "ssv2"}, "MODEL": {"NUM_CLASSES": 2}}
    short = [
        sum(batch.num_short for batch in epoch(settings(folder, DATA={**dense, "FRAMES_FPS": fps}, **options)))
        for fps in (0, 20, 40)
    ]
    assert short == [0, 0, 4]  # a window is 20 frames, as many as there are, and 40 of twice as many a second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda lines: [*lines, '99 4 0 99/99_000001.jpg ""'],
            "train.csv:82: video 99, which .*train.json does not have",
        ),
        (lambda lines: [*lines, lines[1]], "train.csv:82: video 7 again, which began at line 2"),
        (lambda lines: lines[:5] + lines[6:], "train.csv:6: '7/7_000006.png', expected '7/7_000005.png' to follow"),
        (lambda lines: [lines[0], "7 0 0"], "train.csv:2: 3 fields, expected original_vido_id"),
        (lambda lines: [lines[0], "7 0 0 7/first.jpg 0"], "train.csv:2: '7/first.jpg', expected a name that ends in a"),
        (lambda lines: lines[:1], "train.csv: has a header and no frames"),
    ],
)
def test_wrong_line_of_a_list_of_frames_is_named(ssv2: Any, change: Any, message: str) -> None:
    folder = ssv2("list")
    lines = (folder / "train.csv").read_text().splitlines()
    (folder / "train.csv").write_text("\n".join(change(lines)))
    with pytest.raises(AnnotationError, match=message):
        read_annotations("ssv2", str(folder), "train")


def test_videos_without_listed_frames_are_named_and_fail_only_in_evaluation(
    ssv2: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = ssv2("list")
    lines = [line for line in (folder / "train.csv").read_text().splitlines() if not line.startswith("8 ")]
    for split in ("train", "val"):
        (folder / f"{split}.csv").write_text("\n".join(lines))
    videos = read_annotations("ssv2", str(folder), "train")
    assert len(videos) == 3 and videos.labels.tolist() == [1, 1, 0]
    assert videos.path(1) == f"{folder}/9/9_{{000001..000020}}.png"
    assert "has no frames of 1 of the 4 videos" in caplog.text and caplog.text.rstrip().endswith(": 8")
    cfg = settings(folder, DATA={"PATH_PREFIX": ""}, TRAIN={"DATASET": "ssv2"}, MODEL={"NUM_CLASSES": 2})
    (folder / "8").rename(folder / "elsewhere")
    (failure,) = [failure for batch in epoch(cfg, split="val") for failure in batch.failures]
    assert failure.index == 1 and failure.reason == f"{folder}/8: does not exist"
    with pytest.raises(AnnotationError, match="is a list of frames .*, expected TRAIN.DATASET ssv2"):
        read_annotations("kinetics", str(folder), "train")


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("", "\n \r\n", ""),
        ("\ufeff", "", ""),
        ("", "\n\n8 8 20 8/8_000021.png 0\n", "train.csv:82: is an empty line"),
        ("", "\n8 8 20 8/\udcff_000021.png 0\n", "train.csv:82: .*is not UTF-8 text"),
    ],
)
def test_empty_end_lines_and_byte_order_marks_are_ignored_and_bad_lines_named(
    ssv2: Any, before: str, after: str, message: str
) -> None:
    file = ssv2("list") / "train.csv"
    expected = read_annotations("ssv2", str(file.parent), "train")
    file.write_bytes((before + file.read_text().rstrip("\n") + after).encode(errors="surrogateescape"))
    if message:
        with pytest.raises(AnnotationError, match=message):
            read_annotations("ssv2", str(file.parent), "train")
    else:
        assert read_annotations("ssv2", str(file.parent), "train").paths == expected.paths


def test_messages_about_non_utf_8_names_of_frames_can_be_written(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.png")).touch()
    with pytest.raises(DecodeError, match=r"\\udcff.png, expected names") as caught:
        open_video(tmp_path)
    assert str(caught.value).encode()


def test_newer_names_of_the_json_files_are_read(ssv2: Any) -> None:
    folder = ssv2("videos")
    before = read_annotations("ssv2", str(folder), "val")
    for name in ("labels", "validation"):
        (folder / f"something-something-v2-{name}.json").rename(folder / f"{name}.json")
    after = read_annotations("ssv2", str(folder), "val")
    assert (before.paths, before.labels.tolist()) == (after.paths, after.labels.tolist())


def test_class_names_in_another_order_than_the_labels_file_are_refused(ssv2: Any) -> None:
    names = ("Moving something down", "Moving something up")
    message = "class 0 is 'Moving something up' in .*labels.json and 'Moving something down' in DATA.CLASS_NAMES"
    with pytest.raises(AnnotationError, match=message):
        read_annotations("ssv2", str(ssv2("videos")), "train", class_names=names)
    assert np.array_equal(
        read_annotations("ssv2", str(ssv2("folders")), "train", class_names=names[::-1]).labels, [1, 0, 1, 0]
    )
