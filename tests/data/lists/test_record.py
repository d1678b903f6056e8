"""The record of a list depends on its paths, labels and order alone, not on the place of its videos."""

import gzip
from pathlib import Path

import pytest

from videoattn.data.lists.missing import check_videos
from videoattn.data.lists.record import describe_change, list_record, write_list
from videoattn.data.lists.video_list import VideoList, pack

NAMES = ["a/x.mp4", "a/y.mp4", "b/tab\tand\nline.mp4", 'b/\u00fc,"quoted".mp4', "c/z.mp4"]


def listed(names: list[str], root: str = "/", labels: list[int] | None = None) -> VideoList:
    return pack(names, list(range(len(names))) if labels is None else labels, root, f"{root}/train.csv")


def below(folder: str) -> VideoList:
    return listed([f"{folder}/{name}" for name in NAMES])


@pytest.mark.parametrize("folder", ["/data/old", "/", "/new/place/of/all", "s3://bucket/k400"])
def test_the_common_folder_of_all_paths_does_not_matter(tmp_path: Path, folder: str) -> None:
    videos, moved = below("/data/old"), below(folder)
    write_list(videos, tmp_path / "list.csv.gz")
    assert list_record(moved) == list_record(videos)
    assert describe_change(moved, list_record(videos), tmp_path / "list.csv.gz") == ""


def test_the_root_of_relative_paths_does_not_matter_and_their_folders_do() -> None:
    record = list_record(listed(NAMES, "/data"))
    assert list_record(listed(NAMES, "/elsewhere")) == record
    assert list_record(listed([f"old/{name}" for name in NAMES], "/data")) != record


def test_a_moved_list_with_one_other_label_names_that_video(tmp_path: Path) -> None:
    videos = below("/data/old")
    write_list(videos, tmp_path / "list.csv.gz")
    moved = listed([f"/new/{name}" for name in NAMES], labels=[0, 1, 2, 0, 4])
    text = describe_change(moved, list_record(videos), tmp_path / "list.csv.gz")
    assert text == "video 4, '/new/b/\u00fc,\"quoted\".mp4', has label 0 instead of 3"


def test_paths_with_equal_concatenations_are_told_apart() -> None:
    assert list_record(listed(["ab", "c"])) != list_record(listed(["a", "bc"]))


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip", gzip.compress(b"a,b,c\n"), gzip.compress(b"x.mp4,0\n")],
    ids=["empty", "no gzip", "three columns", "another list"],
)
def test_a_copy_that_is_damaged_or_of_another_list_names_no_video(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "list.csv.gz").write_bytes(content)
    text = describe_change(listed(NAMES[:3]), list_record(listed(NAMES)), tmp_path / "list.csv.gz")
    assert text == "it lists 3 videos instead of 5"


def test_missing_videos_are_counted_before_any_is_opened(tmp_path: Path) -> None:
    for name in ("a.mp4", "shard.tar"):
        (tmp_path / name).touch()
    there = ["a.mp4", "shard.tar/x.mp4@512+10", "s3://bucket/x.tar/x.mp4@0+1"]
    check_videos(listed(there, str(tmp_path)), 0.0)
    with pytest.raises(ValueError, match=r"1 of 4 videos of .*train.csv do not exist, e.g. .*/b.mp4, more than"):
        check_videos(listed([*there, "b.mp4"], str(tmp_path)), 0.1)
    check_videos(listed([*there, "b.mp4"], str(tmp_path)), 0.25)
    with pytest.raises(ValueError, match="2 of 2 videos .* do not exist, .*DATA.PATH_PREFIX"):
        check_videos(listed(["b.mp4", "gone.tar/x.mp4@512+10"], str(tmp_path)), 1.0)
    check_videos(listed(["b.mp4"], str(tmp_path)), None)


def test_only_part_of_a_long_list_is_looked_up(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    names = ["a.mp4", "b.mp4"] * 5000
    check_videos(listed(names, str(tmp_path)), 0.1)  # ten steps apart, all that is looked at is there
    with pytest.raises(ValueError, match="1000 of 1000 videos"):
        check_videos(listed(names[1:], str(tmp_path)), 0.1)
