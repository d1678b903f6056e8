"""Class folders instead of a list."""

import hashlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from videoattn.data.annotations import AnnotationError, check_same_order, read_annotations


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def build(**splits: dict[str, list[str]]) -> str:
        for split, classes in splits.items():
            for name, videos in classes.items():
                (tmp_path / split / name).mkdir(parents=True)
                for video in videos:
                    (tmp_path / split / name / video).touch()
        return str(tmp_path)

    return build


def test_class_is_the_folder_a_video_lies_in(make: Any) -> None:
    folder = make(
        train={"wave": ["b.avi", "a.MP4", ".hidden"], "clap hands": ["x.webm", "x.txt"]},
        validation={"wave": ["c.mov"], "clap hands": []},
    )
    (Path(folder) / "train/wave/frames").mkdir()
    train = read_annotations("kinetics", folder, "train", num_classes=2)
    assert [(train.path(i), train.label(i)) for i in range(len(train))] == [
        (f"{folder}/train/clap hands/x.webm", 0),
        (f"{folder}/train/wave/a.MP4", 1),
        (f"{folder}/train/wave/b.avi", 1),
        (f"{folder}/train/wave/frames", 1),
    ]
    assert train.class_names == ("clap hands", "wave") and train.source == f"{folder}/train"
    val = read_annotations("kinetics", "elsewhere", "val", prefix=folder, class_names=("wave", "clap hands"))
    assert (val.path(0), val.label(0), len(val)) == (f"{folder}/validation/wave/c.mov", 0, 1)


def test_list_comes_before_folders(make: Any) -> None:
    folder = make(train={"wave": ["a.mp4"]})
    (Path(folder) / "train.csv").write_text("b.mp4 3\n")
    assert read_annotations("kinetics", folder, "train").label(0) == 3


@pytest.mark.parametrize(
    ("splits", "options", "message"),
    [
        (
            {"train": {"a": ["1.mp4"], "b": ["1.mp4"]}, "val": {"a": ["1.mp4"], "c": ["1.mp4"]}},
            {},
            "/val and .*/train expect the same classes; 1 only in .*/val: 'c'; 1 only in .*/train: 'b'",
        ),
        (
            {"val": {"a": ["1.mp4"], "c d": ["1.mp4"]}},
            {"class_names": ("a", "c_d")},
            "1 only in .*/val: 'c d'; 1 only in DATA.CLASS_NAMES: 'c_d'",
        ),
        ({"val": {"a": ["1.mp4"]}}, {"num_classes": 2}, "/val: 1 class names, expected MODEL.NUM_CLASSES 2"),
        ({"val": {"a": ["1.mp3"]}}, {}, "/val/a: has files such as '1.mp3', expected videos"),
        ({"val": {"a": []}}, {}, "/val: its class folders are all empty"),
        ({"val": {"": ["1.mp4"]}}, {}, "/val: has no folders, expected one a class"),
        ({"train": {"a": ["1.mp4"]}}, {}, "val.csv does not exist; .* nor is there a folder val or validate"),
    ],
)
def test_classes_that_differ_are_named(make: Any, splits: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_annotations("kinetics", make(**splits), "val", **options)


def test_digest_tells_lists_apart(make: Any) -> None:
    folder = make(train={"a": ["1.mp4"], "b": ["2.mp4"]}, val={"a": ["1.mp4"], "b": ["3.mp4"]})
    train, val = (read_annotations("kinetics", folder, split) for split in ("train", "val"))
    assert train.digest() == read_annotations("kinetics", folder, "train").digest() != val.digest()
    (Path(folder) / "train.csv").write_text("a 0\n")
    listed = read_annotations("kinetics", folder, "train")
    assert listed.digest() == hashlib.sha256(b"a 0\n").hexdigest()


@pytest.mark.parametrize(
    ("names", "others", "differ"),
    [
        (("a b", "C"), ("a_b", "c"), False),
        (("c", "a_b"), ("A b", "c"), True),
        (("a", "b"), ("ah", "be"), False),
        (("a", "b"), ("a", "b", "c"), False),
        (None, ("a", "b"), False),
    ],
)
def test_same_names_in_another_order_are_an_error(names: Any, others: Any, differ: bool) -> None:
    with pytest.raises(AnnotationError, match="class 0 is 'c' in x and 'A b' in y") if differ else nullcontext():
        check_same_order(names, "x", others, "y")
