"""Kinetics' official csv, and the usual layouts of its videos."""

import logging
from pathlib import Path
from typing import Any

import pytest

from videoattn.data.lists import AnnotationError, VideoList, read_annotations

HEADER = "label,youtube_id,time_start,time_end,split\n"
VIDEOS = [("zumba", "-aaaaaaaaaa", 2), ("arm wrestling", "bbbbbbbbbbb", 10), ("zumba", "ccccccccccc", 123456)]


def write_list(folder: Path, name: str = "train.csv", split: str = "train", header: str = HEADER) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{label},{name},{start},{start + 10},{split}\n" for label, name, start in VIDEOS)
    (folder / name).write_text(header + rows)
    return folder


def touch(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


def listed(videos: VideoList) -> list[tuple[str, int]]:
    return [(videos.path(i), videos.label(i)) for i in range(len(videos))]


@pytest.mark.parametrize("ending", ["mp4", "mkv", "webm"])
@pytest.mark.parametrize(
    "layout",
    [
        "{label}/{name}_{start:06d}_{end:06d}",
        "{under}/{name}_{start:06d}_{end:06d}",
        "train/{label}/{name}_{start:06d}_{end:06d}",
        "train/{under}/{name}_{start:06d}_{end:06d}",
        "train/{name}_{start:06d}_{end:06d}",
        "{name}_{start:06d}_{end:06d}",
        "train/{name}",
        "{name}",
        "videos/train/{label}/{name}_{start:06d}_{end:06d}",
    ],
)
def test_videos_are_found_in_the_usual_layouts(tmp_path: Path, layout: str, ending: str) -> None:
    write_list(tmp_path)
    paths = [
        touch(
            tmp_path
            / (layout.format(label=label, under=label.replace(" ", "_"), name=name, start=s, end=s + 10) + f".{ending}")
        )
        for label, name, s in VIDEOS
    ]
    videos = read_annotations("kinetics", str(tmp_path), "train")
    assert listed(videos) == list(zip(paths, [1, 0, 1], strict=True))
    assert videos.class_names == ("arm wrestling", "zumba") and videos.source == str(tmp_path / "train.csv")


def test_layout_is_that_of_the_videos_that_exist_and_others_stay_listed(tmp_path: Path) -> None:
    write_list(tmp_path)
    touch(tmp_path / "train/zumba/-aaaaaaaaaa_000002_000012.mp4")  # says nothing about spaces
    touch(tmp_path / "train/arm_wrestling/bbbbbbbbbbb_000010_000020.mp4")
    videos = read_annotations("kinetics", str(tmp_path), "train")
    assert [Path(path).name for path, _ in listed(videos)][2] == "ccccccccccc_123456_123466.mp4"
    assert all(Path(path).exists() for path, _ in listed(videos)[:2])


def test_a_few_videos_of_a_long_list_are_enough_to_find_the_layout(tmp_path: Path) -> None:
    rows = "".join(f"class {i % 7},{i:011d},0,10,train\n" for i in range(5000))
    (tmp_path / "train.csv").write_text(HEADER + rows)
    for i in range(0, 5000, 100):
        touch(tmp_path / f"train/class_{i % 7}/{i:011d}_000000_000010.mkv")
    videos = read_annotations("kinetics", str(tmp_path), "train", num_classes=7)
    assert videos.path(4999) == str(tmp_path / "train/class_1/00000004999_000000_000010.mkv")
    assert videos.labels.tolist() == [i % 7 for i in range(5000)]


def test_downloads_of_other_names_and_places_are_recognised(tmp_path: Path) -> None:
    header = '"label","youtube_id","time_start","time_end","split","is_cc"\n'
    annotations = write_list(tmp_path / "annotations", "validate.csv", "validate")
    (annotations / "validate.csv").write_text(header + '"tap, dancing","ddddddddddd",1,11,"validate",0\n')
    path = touch(tmp_path / "validate/ddddddddddd_000001_000011.mp4")
    assert listed(read_annotations("kinetics", str(tmp_path), "val")) == [(path, 0)]
    elsewhere = touch(tmp_path / "disk/tap, dancing/ddddddddddd_000001_000011.mp4")
    assert listed(read_annotations("kinetics", str(tmp_path), "val", prefix=str(tmp_path / "disk"))) == [(elsewhere, 0)]


def test_classes_are_numbered_by_the_names_given_else_by_the_alphabet_of_the_train_list(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_list(tmp_path)
    (tmp_path / "val.csv").write_text(HEADER + "zumba,ddddddddddd,1,11,val\n")
    touch(tmp_path / "val/ddddddddddd_000001_000011.mp4")
    with caplog.at_level(logging.INFO, "videoattn"):
        assert read_annotations("kinetics", str(tmp_path), "val", num_classes=2).labels.tolist() == [1]
    assert f"the 2 labels of {tmp_path}/train.csv in alphabetical order, 0 arm wrestling to 1 zumba" in caplog.text
    assert (
        f"videos are {tmp_path}/val/{{youtube_id}}_{{start:06d}}_{{end:06d}}.mp4; 1 of 1 looked for exist"
        in caplog.text
    )
    names = ("zumba", "arm wrestling", "yoga")
    videos = read_annotations("kinetics", str(tmp_path), "val", num_classes=3, class_names=names)
    assert videos.labels.tolist() == [0] and videos.class_names == names


def test_test_list_without_labels_is_unlabelled(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\naaaaaaaaaaa,1,11,test\n")
    path = touch(tmp_path / "test/aaaaaaaaaaa_000001_000011.mp4")
    videos = read_annotations("kinetics", str(tmp_path), "test")
    assert listed(videos) == [(path, -1)] and videos.class_names is None
    write_list(tmp_path)
    assert read_annotations("kinetics", str(tmp_path), "test").class_names == ("arm wrestling", "zumba")


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (HEADER, {}, "train.csv: has a header and no videos"),
        ("label,youtube_id,time_start\n", {}, "train.csv:1: columns .*, expected also time_end"),
        (HEADER + "a,b,1,2\n", {}, "train.csv:2: 4 fields, expected 5: label,youtube_id"),
        (HEADER + "a,b,1,2,train\nc,d,x,11,train\n", {}, "train.csv:3: id 'd' from 'x' to '11', expected an id"),
        (HEADER + "a,,1,2,train\n", {}, "train.csv:2: id ''"),
        (HEADER + ",b,1,2,train\n", {}, "train.csv:2: has no label"),
        (HEADER + "a,b,1,2,train\na,c,1,2,val\n", {}, "train.csv:3: has split 'val', unlike .* with 'train'"),
        (HEADER + "a,b,1,2,train\n", {"num_classes": 400}, "1 class names, expected MODEL.NUM_CLASSES 400"),
        (
            HEADER + "zumba,b,1,2,train\nzumbaa,c,1,2,train\n",
            {"class_names": ("yoga", "zumba")},
            "train.csv:3: unknown label 'zumbaa', expected one of DATA.CLASS_NAMES; the nearest is 'zumba'",
        ),
        (
            HEADER + "a,b,1,2,train\n",
            {"prefix": "/nowhere"},
            "train.csv: none of 1 videos looked for exists, e.g. b_000001_000002; expected them below /nowhere",
        ),
        (b"label,youtube_id,time_start,time_end\n\xff,b,1,2\n", {}, "train.csv: is not UTF-8 text: line 2, byte 1"),
        (HEADER.replace("split", "label") + "a,b,1,2,a\n", {}, "train.csv:1: column label occurs twice"),
        (HEADER + 'a,b,1,2,train\n"a,c,1,2,train\nd",e,1,2,train\n', {}, "train.csv:3: .* continues on the next line"),
        (HEADER + '"a,b,1,2,train\n', {}, "train.csv:2: is no line of a csv file"),
        (HEADER + "a,b,\u0661,2,train\n", {}, "train.csv:2: id 'b' from '\u0661'"),
        (HEADER + "a,b,1_0,2,train\n", {}, "train.csv:2: id 'b' from '1_0' to '2'"),
        (HEADER + "a,b,,2,train\n", {}, "train.csv:2: id 'b' from '' to '2', expected an id and two whole numbers"),
        (HEADER + "a,b,1,2,\na,c,1,2,train\n", {}, "train.csv:3: has split 'train', unlike .* with ''"),
        (HEADER + "a,b\0,1,2,train\n", {}, "train.csv:2: id"),
        (HEADER + "a\0,b,1,2,train\n", {}, "train.csv:2: label 'a.x00' contains a zero byte"),
    ],
)  # fmt: skip
def test_official_list_mistakes_are_named(tmp_path: Path, content: Any, options: dict[str, Any], message: str) -> None:
    (tmp_path / "train.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AnnotationError, match=message):
        read_annotations("kinetics", str(tmp_path), "train", **options)


@pytest.mark.slow
def test_a_million_lines_take_seconds_and_little_memory(tmp_path: Path) -> None:
    import time
    import tracemalloc

    file = tmp_path / "train.csv"
    file.write_text("".join(f"train/class_{i % 700}/{i:011d}_000000_000010.mp4 {i % 700}\n" for i in range(10**6)))
    began = time.process_time()
    videos = read_annotations("kinetics", str(tmp_path), "train", num_classes=700)
    assert len(videos) == 10**6 and time.process_time() - began < 3
    del videos
    tracemalloc.start()
    read_annotations("kinetics", str(tmp_path), "train", num_classes=700)
    assert tracemalloc.get_traced_memory()[1] < 300e6
    tracemalloc.stop()
