import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videoattn.data.lists import (
    AnnotationError,
    read_annotations,
    read_class_names,
    read_kinetics_csv,
    read_ssv2,
)
from videoattn.data.lists.oddities import find_oddities


@pytest.fixture
def ssv2(tmp_path: Path) -> Any:
    def write(**changed: Any) -> str:
        files: dict[str, Any] = {
            "labels": {"Putting something on something": "1", "Closing something": "0"},
            "train": [
                {"id": "7", "label": "putting a cup on a table", "template": "Putting [something] on [something]"},
                {"id": "12", "label": "closing a box", "template": "Closing [something]"},
            ],
            "validation": [{"id": "9", "template": "Closing [something]"}],
            "test": [{"id": "3"}, {"id": "4"}],
        }
        for name, content in (files | changed).items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / f"something-something-v2-{name}.json").write_text(text)
        return str(tmp_path)

    return write


def listed(videos: Any) -> list[tuple[str, int]]:
    return [(videos.path(i), videos.label(i)) for i in range(len(videos))]


def test_csv_gives_paths_and_labels_in_order(csv: Any, tmp_path: Path) -> None:
    videos = read_kinetics_csv(csv("a/x.mp4 3\nb.mp4 0\r\n/c/d.mp4 12"))
    assert listed(videos) == [(f"{tmp_path}/a/x.mp4", 3), (f"{tmp_path}/b.mp4", 0), ("/c/d.mp4", 12)]
    assert videos.labels.tolist() == [3, 0, 12] and videos.is_labelled
    assert videos.source == f"{tmp_path}/train.csv" and videos.class_names is None
    assert listed(pickle.loads(pickle.dumps(videos))) == listed(videos)


def test_prefix_stands_before_relative_paths(csv: Any) -> None:
    assert listed(read_kinetics_csv(csv("a.mp4 3\n/b.mp4 1\n"), prefix="/data")) == [("/data/a.mp4", 3), ("/b.mp4", 1)]
    assert listed(read_kinetics_csv(csv("a.mp4 3\n"), prefix="data")) == [("data/a.mp4", 3)]


def test_number_between_path_and_label_is_that_of_the_frames_in_a_folder(csv: Any) -> None:
    assert listed(read_kinetics_csv(csv("/a 300 3\n/b.mp4 4\n"))) == [("/a", 3), ("/b.mp4", 4)]
    assert listed(read_kinetics_csv(csv("/a,300,3\n"), separator=",")) == [("/a", 3)]
    of_videos = read_kinetics_csv(csv("/a.mp4,2.5,3\n"), separator=",", with_lengths=True)
    assert listed(of_videos) == [("/a.mp4", 3)]


def test_lines_without_label_are_unlabelled(csv: Any) -> None:
    videos = read_kinetics_csv(csv("/a.mp4\n/b.mp4\n"))
    assert videos.labels.tolist() == [-1, -1] and not videos.is_labelled


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_paths_with_spaces_work_with_another_separator(csv: Any, separator: str) -> None:
    videos = read_kinetics_csv(csv(f"/arm wrestling/été 1.mp4{separator}3\n/b.mp4{separator}1\n"), separator=separator)
    assert listed(videos) == [("/arm wrestling/été 1.mp4", 3), ("/b.mp4", 1)]


def test_commas_may_be_quoted_and_a_byte_order_mark_is_skipped(csv: Any) -> None:
    videos = read_kinetics_csv(csv(b'\xef\xbb\xbf"/a, b.mp4",3\n"/say ""hi"".mp4",1\n'), separator=",")
    assert listed(videos) == [("/a, b.mp4", 3), ('/say "hi".mp4', 1)]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "train.csv: is empty, expected one video a line: path label"),
        ("/a 1\n\n/b 2\n", {}, "train.csv:2: is an empty line"),
        ("/a 1\n 2\n", {}, "train.csv:2: ' 2' has no path"),
        ("/a 1\n/b x\n", {}, "train.csv:2: label 'x' of '/b', expected a whole number 0 or more"),
        ("/a -1\n", {}, "train.csv:1: label '-1' of '/a'"),
        ("/a 1.0\n", {}, "label '1.0'"),
        ("/a 1_0\n", {}, "label '1_0'"),
        ("/a 99999999999\n", {}, "label '99999999999'"),
        ("/a \n", {}, "label ''"),
        ("/a 3\n/b 5\n", {"num_classes": 5}, "train.csv:2: label '5' of '/b', expected a whole number from 0 to 4"),
        ("/a b c d 1\n", {}, "has 5 fields, .*separator ' '.*a path with spaces needs another separator"),
        ("/arm wrestling.mp4 1\n", {}, "has 3 fields.*a path with spaces needs another separator"),
        ("/a,1,2,3\n", {"separator": ","}, "has 4 fields, expected path,label"),
        ("/a 1\n/b\n", {}, "train.csv:2: '/b' lacks a label, unlike the lines before"),
        ("/a\n/b 1\n", {}, "train.csv:2: '/b 1' has a label, unlike the lines before"),
        ("/a 1\n/b,2\n", {}, "train.csv:2: '/b,2' lacks a label"),
        (b"/a 1\n/\xff\xfe 2\n", {}, "train.csv:2: .*is not UTF-8 text"),
        ('"/a,1\n', {"separator": ","}, "train.csv:1: .*expected quoted fields to end on their line"),
    ],
)
def test_bad_line_is_named(csv: Any, content: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_kinetics_csv(csv(content), **options)


def test_missing_file_names_those_that_are_there(csv: Any, tmp_path: Path) -> None:
    csv("/a 1\n", "val.csv")
    csv("/a 1\n", "train.csv")
    with pytest.raises(
        AnnotationError, match="test.csv does not exist; the folder's .csv files are: train.csv, val.csv"
    ):
        read_annotations("kinetics", str(tmp_path), "test")
    with pytest.raises(AnnotationError, match="there is no folder"):
        read_annotations("kinetics", str(tmp_path / "nowhere"), "test")
    with pytest.raises(AnnotationError, match="cannot be read"):
        read_kinetics_csv(tmp_path / "test.csv")
    assert len(read_annotations("kinetics", str(tmp_path), "val")) == 1


def test_lists_are_small_and_cannot_be_changed(csv: Any) -> None:
    videos = read_kinetics_csv(csv("".join(f"class_{i % 400}/video_{i:06d}.mp4 {i % 400}\n" for i in range(20000))))
    assert len(videos) == 20000 and videos.path(19999).endswith("class_399/video_019999.mp4")
    assert len(videos.paths) + videos.offsets.nbytes + videos.labels.nbytes < 20000 * 45
    with pytest.raises(ValueError, match="read-only"):
        videos.labels[0] = 1
    for index in (20000, -1):
        with pytest.raises(IndexError, match=f"video {index} of .*lists 20000"):
            videos.path(index)


def test_ssv2_reads_the_published_files(ssv2: Any, tmp_path: Path) -> None:
    folder = ssv2()
    train = read_annotations("ssv2", folder, "train")
    assert listed(train) == [(f"{tmp_path}/videos/7.webm", 1), (f"{tmp_path}/videos/12.webm", 0)]
    assert train.class_names == ("Closing something", "Putting something on something")
    assert listed(read_ssv2(folder, "val", prefix="/data")) == [("/data/9.webm", 0)]
    assert listed(read_ssv2(folder, "test")) == [(f"{tmp_path}/videos/3.webm", -1), (f"{tmp_path}/videos/4.webm", -1)]


def test_ssv2_takes_mp4_where_the_first_video_is_one(ssv2: Any, tmp_path: Path) -> None:
    folder = ssv2()
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "7.mp4").touch()
    assert [path for path, _ in listed(read_ssv2(folder, "train"))] == [
        f"{tmp_path}/videos/7.mp4",
        f"{tmp_path}/videos/12.mp4",
    ]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"train": [{"id": "7", "template": "Closng [something]"}]},
            r"item 0 \(id 7\): unknown template 'Closng something', .*labels.json; the nearest is 'Closing something'",
        ),
        ({"train": [{"id": "7"}]}, r"train.json: item 0 \(id 7\): has no template"),
        ({"train": [{"template": "Closing [something]"}]}, "item 0: expected an object with an id"),
        ({"train": {}}, "expected a list of videos, got dict"),
        ({"train": []}, "expected a list of videos"),
        ({"train": "[\n{]"}, "train.json:2: is not JSON"),
        ({"labels": {"a": "0", "b": "0"}}, "class '0' of 'b', expected each number from 0 to 1 once"),
        ({"labels": {"a": "x"}}, "class 'x' of 'a'"),
        ({"labels": []}, "labels.json: expected an object"),
    ],
)
def test_mistakes_in_ssv2_files_are_named(ssv2: Any, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_ssv2(ssv2(**changed), "train")


def test_ssv2_names_a_missing_file_and_a_split_it_does_not_have(ssv2: Any, tmp_path: Path) -> None:
    folder = ssv2()
    with pytest.raises(AnnotationError, match="labels reach 1, expected less than NUM_CLASSES 1"):
        read_annotations("ssv2", folder, "train", num_classes=1)
    with pytest.raises(ValueError, match="unknown split 'valid'"):
        read_ssv2(folder, "valid")
    (tmp_path / "something-something-v2-labels.json").unlink()
    with pytest.raises(AnnotationError, match="labels.json does not exist; .*something-something-v2-test.json"):
        read_ssv2(folder, "train")


def test_unknown_data_set_and_separator_are_refused(csv: Any) -> None:
    with pytest.raises(ValueError, match="unknown data set 'hmdb'"):
        read_annotations("hmdb", ".", "train")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="separator ', ', expected one character"):
        read_kinetics_csv(csv("/a, 1\n"), separator=", ")


def test_class_names_are_lines(csv: Any) -> None:
    assert read_class_names(csv("arm wrestling\nzumba\r\n", "names.txt")) == ("arm wrestling", "zumba")
    with pytest.raises(AnnotationError, match="names.txt:2: is empty"):
        read_class_names(csv("a\n\nb\n", "names.txt"))
    with pytest.raises(AnnotationError, match="names.txt: is empty"):
        read_class_names(csv("", "names.txt"))
    with pytest.raises(AnnotationError, match="is not UTF-8"):
        read_class_names(csv(b"\xff\n", "names.txt"))


def test_labels_are_32_bit_and_offsets_64_bit(csv: Any) -> None:
    videos = read_kinetics_csv(csv("/a 1\n"))
    assert videos.labels.dtype == np.int32 and videos.offsets.dtype == np.int64


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train": '[{"id": "7\\ud800", "template": "Closing [something]"}]'}, "item 0: an id that is not UTF-8 text"),
        ({"train": '[{"id": "7\\u0000", "template": "Closing [something]"}]'}, "item 0: an id that .*zero byte"),
        ({"train": [{"id": True, "template": "Closing [something]"}]}, "item 0: expected an object with an id"),
        (
            {"train": '[{"id": "7", "id": "12", "template": "Closing [something]"}]'},
            "train.json: item 0: key 'id' occurs twice",
        ),
        ({"train": "[" * 100_000}, "train.json: can't be read as JSON"),
        ({"train": f'[{{"id": {"9" * 5000}}}]'}, "train.json: item 0 .*has no template"),
        ({"labels": '{"a": "0", "b": "1", "a": "1"}'}, "labels.json: template 'a' occurs twice"),
        ({"labels": {"a": "9" * 5000}}, "labels.json: class '9999.* expected each number"),
        ({"labels": {"a": "\uff10"}}, "labels.json: class '\uff10' of 'a'"),
        ({"labels": {"a": True, "b": "0"}}, "labels.json: class 'True' of 'a'"),
        (
            {"labels": {"Closing something": "0", "Putting something on something": "1", "a\nb": "2"}},
            "class 'a.nb', expected a name without line breaks",
        ),
    ],
)
def test_ssv2_refuses_what_json_permits_but_no_list_can_mean(ssv2: Any, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_ssv2(ssv2(**changed), "train")


def test_ssv2_names_the_line_that_is_not_utf_8_and_skips_a_byte_order_mark(ssv2: Any, tmp_path: Path) -> None:
    folder = ssv2()
    file = tmp_path / "something-something-v2-train.json"
    content = file.read_bytes()
    file.write_bytes(b"\xef\xbb\xbf" + content)
    assert len(read_ssv2(folder, "train")) == 2
    file.write_bytes(content.replace(b"cup", b"\n\xff"))
    with pytest.raises(AnnotationError, match="train.json: is not UTF-8 text: line 2, byte 1"):
        read_ssv2(folder, "train")


def test_classes_without_videos_and_videos_with_two_labels_are_reported(csv: Any) -> None:
    videos = read_kinetics_csv(csv("a.mp4 0\nb.mp4 1\na.mp4 3\nb.mp4 1\n"))
    absent, repeated = find_oddities(videos, num_classes=6)
    assert absent.endswith("train.csv: 3 of MODEL.NUM_CLASSES 6 have no video: 2, 4, 5")
    assert "train.csv: 2 of 4 entries repeat a video of an earlier entry, 1 of them with another label" in repeated
    assert "first a.mp4 with 0 (entry 1) and 3 (entry 3)" in repeated
    assert find_oddities(read_kinetics_csv(csv("a.mp4 0\nb.mp4 1\n")), num_classes=2) == []
    assert find_oddities(read_kinetics_csv(csv("a.mp4\nb.mp4\n"))) == []
