"""Class folders instead of a list."""

import hashlib
import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.readers.test_frame_files import write as write_frames
from videoattn.data.lists import AnnotationError, check_same_order, read_annotations
from videoattn.data.lists.video_files import VIDEO_ENDINGS
from videoattn.data.readers.open_video import open_video


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
        ({"val": {"a": ["1.mp4"], "b\nc": []}}, {}, "/val: class 'b.nc', expected a name without line breaks"),
        (
            {"val": {"a": ["1.mp4"], os.fsdecode(b"\xff"): []}},
            {},
            r"/val: a class folder that is not UTF-8 text, .*: '\\udcff'",
        ),
        (
            {"val": {"a": ["1.mp4", os.fsdecode(b"\xff.mp4"), os.fsdecode(b"\xfe.mp4")]}},
            {},
            r"/val: a path that is not UTF-8 text, .*: 'a/\\udcfe.mp4'; so have 1 others",
        ),
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


# For each ending, a codec that its container holds and, where FFmpeg does not know the ending as that of one, the
# container's name.
WRITTEN = {
    ".mp4": ("mpeg4", ""), ".m4v": ("mpeg4", "mp4"), ".mov": ("mpeg4", ""), ".qt": ("mpeg4", "mov"),
    ".3gp": ("mpeg4", ""), ".3g2": ("mpeg4", ""), ".f4v": ("libx264", ""), ".mkv": ("mpeg4", ""),
    ".webm": ("libvpx", ""), ".avi": ("mpeg4", ""), ".divx": ("mpeg4", "avi"), ".xvid": ("mpeg4", "avi"),
    ".wmv": ("wmv2", ""), ".asf": ("wmv2", ""), ".flv": ("flv", ""), ".mpg": ("mpeg1video", ""),
    ".mpeg": ("mpeg1video", ""), ".mpe": ("mpeg1video", "mpeg"), ".m1v": ("mpeg1video", "mpeg1video"),
    ".m2v": ("mpeg2video", "mpeg2video"), ".vob": ("mpeg2video", ""), ".ts": ("mpeg2video", ""),
    ".mts": ("mpeg2video", "mpegts"), ".m2ts": ("mpeg2video", ""), ".m2t": ("mpeg2video", "mpegts"),
    ".mod": ("mpeg2video", "mpeg"), ".tod": ("mpeg2video", "mpegts"), ".gif": ("gif", ""), ".rm": ("rv20", ""),
    ".rmvb": ("rv20", "rm"), ".wtv": ("mpeg2video", ""), ".nut": ("mpeg4", ""), ".ivf": ("libvpx", ""),
    ".y4m": ("rawvideo", ""), ".swf": ("flv", ""), ".h264": ("libx264", ""), ".264": ("libx264", "h264"),
    ".mjpeg": ("mjpeg", ""), ".apng": ("apng", ""), ".ismv": ("libx264", ""), ".insv": ("mpeg4", "mp4"),
}  # fmt: skip
_PIXELS = {"gif": "rgb8", "apng": "rgb24", "mjpeg": "yuvj420p"}


def write_as(path: Path, codec: str, container: str) -> None:
    import av

    with av.open(str(path), "w", format=container or None) as target:
        stream: Any = target.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 176, 144, _PIXELS.get(codec, "yuv420p")
        for number in range(3):
            picture = np.random.default_rng(number).integers(0, 256, (144, 176, 3), dtype=np.uint8)
            target.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=stream.pix_fmt)))
        target.mux(stream.encode())


def test_every_ending_that_the_decoder_opens_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    assert set(WRITTEN) <= set(VIDEO_ENDINGS)
    names = [f"v{ending.upper() if number % 2 else ending}" for number, ending in enumerate(WRITTEN)]
    for name, (codec, container) in zip(names, WRITTEN.values(), strict=True):
        write_as(folder / name, codec, container)
    videos = read_annotations("kinetics", str(tmp_path), "train")
    assert sorted(os.path.basename(videos.path(i)) for i in range(len(videos))) == sorted(names)
    assert videos.left_out == ()
    for index in range(len(videos)):
        with open_video(videos.path(index)) as reader:
            assert reader.read([0]).shape == (1, 144, 176, 3)


@pytest.mark.parametrize("split", ["train", "val"])
def test_files_without_a_video_ending_are_counted_by_their_ending(
    make: Any, caplog: pytest.LogCaptureFixture, split: str
) -> None:
    names = [
        "1.mp4",
        "2.GIF",
        "notes.txt",
        "x.TXT",
        "sound.ogg",
        "README",
        "Thumbs.db",
        "._1.mp4",
        ".DS_Store",
        "t.png",
    ]
    folder = make(**{split: {"a": names, "b": ["3.mp4", "y.txt"]}})
    (Path(folder) / split / "a" / "__MACOSX").mkdir()
    (Path(folder) / split / "a" / "__MACOSX" / "4.mp4").touch()
    with caplog.at_level(logging.WARNING, "videoattn"):
        videos = read_annotations("kinetics", folder, split)
    assert [videos.listed(i) for i in range(len(videos))] == ["a/1.mp4", "a/2.GIF", "b/3.mp4"]
    assert dict(videos.left_out) == {".txt": 3, ".ogg": 1, ".png": 1, "without an ending": 1}
    assert f"{folder}/{split}: 3 videos; left out because of their names or places: 3 .txt, 1 " in caplog.text


def test_videos_at_any_depth_have_the_class_of_the_folder_below_the_split(tmp_path: Path) -> None:
    for name in ("b/1.mp4", "a/anna/2.mp4", "a/anna/day 2/3.avi", "a/bert/4.mp4", "a/bert/notes.txt", "a/5.mp4"):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / name).touch()
    videos = read_annotations("kinetics", str(tmp_path), "train", num_classes=2)
    assert [(videos.listed(i), videos.label(i)) for i in range(len(videos))] == [
        ("a/5.mp4", 0), ("a/anna/2.mp4", 0), ("a/anna/day 2/3.avi", 0), ("a/bert/4.mp4", 0), ("b/1.mp4", 1),
    ]  # fmt: skip
    assert videos.class_names == ("a", "b") and videos.left_out == ((".txt", 1),)


def test_folders_of_frames_stand_for_videos_at_any_depth(tmp_path: Path) -> None:
    names = [f"img_{number:03d}.png" for number in range(1, 4)]
    for folder in ("a/clip", "a/anna/clip", "a/anna/film.mp4", "a/bert/clip/flow"):
        (tmp_path / "train" / folder).mkdir(parents=True)
        write_frames(tmp_path / "train" / folder, names)
    write_frames(tmp_path / "train/a/bert/clip", names)
    (tmp_path / "train/a/anna/thumbnail.jpg").touch()
    (tmp_path / "train/stray.mp4").touch()
    (tmp_path / "train/a/lost").mkdir()  # frames that were not extracted: they fail in the open when they are read
    videos = read_annotations("kinetics", str(tmp_path), "train")
    listed = [videos.listed(i) for i in range(len(videos))]
    assert listed == ["a/anna/clip", "a/anna/film.mp4", "a/bert/clip", "a/clip", "a/lost"]
    assert dict(videos.left_out) == {
        ".jpg": 1, "folders beside frames": 1, "videos beside the class folders": 1,
    }  # fmt: skip
    for index in range(4):
        with open_video(videos.path(index)) as reader:
            assert reader.num_frames == 3


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/1.mp4").touch()
    (tmp_path / "train/a/real").mkdir(parents=True)
    (tmp_path / "train/a/real/2.mp4").touch()
    (tmp_path / "train/a/linked").symlink_to(tmp_path / "videos")
    (tmp_path / "train/a/gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    videos = read_annotations("kinetics", str(tmp_path), "train")
    assert [videos.listed(i) for i in range(len(videos))] == ["a/gone.mp4", "a/linked/1.mp4", "a/real/2.mp4"]
    (tmp_path / "train/a/real/round").symlink_to(tmp_path / "train/a")
    with pytest.raises(AnnotationError, match="a/real/round: is a link to a folder that contains it"):
        read_annotations("kinetics", str(tmp_path), "train")
