"""Shards have the videos of their list and the same bytes after any interruption, and webdataset can read them."""

import csv
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from videoattn.cli import prepare as prepare_data
from videoattn.cli.run_tool import run_tool
from videoattn.data.check.checked_list import CheckedList
from videoattn.data.lists import AnnotationError, read_annotations, read_class_folders, read_kinetics_csv
from videoattn.data.prepare import pack as prepare_pack
from videoattn.data.prepare.index import index_shards
from videoattn.data.prepare.pack import PackSettings, pack_list, parse_bytes
from videoattn.data.prepare.shard import ShardSample, write_shard
from videoattn.data.readers.packed import parse_packed, read_packed, tar_members

SMALL = PackSettings(shard_bytes=20_000)


@pytest.fixture
def listed(tmp_path: Path) -> Callable[..., CheckedList]:
    """A list of files with contents of their own; `names` without an ending have no file."""

    def build(num_videos: int = 12, names: tuple[str, ...] = (), labelled: bool = True) -> CheckedList:
        folder = tmp_path / "videos"
        folder.mkdir(exist_ok=True)
        names = names or tuple(f"clip {number}.x.mp4" for number in range(num_videos))
        for number, name in enumerate(names):
            (folder / name).write_bytes(bytes([number]) * (4000 + 100 * number))
        rows = (f"{name}\t{number % 5}\n" if labelled else f"{name}\n" for number, name in enumerate(names))
        (folder / "train.csv").write_text("".join(rows))
        return CheckedList("train", read_kinetics_csv(folder / "train.csv", separator="\t"), " ")

    return build


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def content_at(path: str) -> bytes:
    packed = parse_packed(path)
    assert packed is not None
    return read_packed(packed)


def test_each_video_is_packed_once_with_its_label_under_a_key_that_webdataset_accepts(
    listed: Callable[..., CheckedList], tmp_path: Path
) -> None:
    checked, out = listed(), tmp_path / "out"
    result = pack_list(checked, out, SMALL)
    found = read_kinetics_csv(result.file)
    assert (result.num_listed, result.num_shards, result.bad) == (12, 4, {})
    numbers = [int(found.listed(index).split("/")[1].split("_")[0]) - 1 for index in range(12)]
    assert sorted(numbers) == list(range(12)) and numbers != sorted(numbers)
    for index, number in enumerate(numbers):
        assert found.label(index) == checked.videos.label(number)
        assert content_at(found.path(index)) == Path(checked.videos.path(number)).read_bytes()
        assert found.listed(index).split("/")[1].split("@")[0] == f"{number + 1:02d}_clip_{number}_x.mp4"
    shards = sorted(out.glob("*.tar"))
    assert all(shard.stat().st_size < 20_000 + tarfile.RECORDSIZE for shard in shards)
    for shard in shards:
        names = [member.name for member, _ in tar_members(shard)]
        assert names[1::2] == [name.removesuffix(".mp4") + ".cls" for name in names[::2]]


def test_the_order_depends_on_the_seed_and_the_split_alone(listed: Callable[..., CheckedList], tmp_path: Path) -> None:
    checked = listed()
    orders = []
    for name, settings in (("a", SMALL), ("b", SMALL), ("c", PackSettings(20_000, seed=1)), ("d", PackSettings())):
        pack_list(checked, tmp_path / name, settings)
        lines = (tmp_path / name / "train.csv").read_text().splitlines()
        orders.append([line.split("/")[1].split("_")[0] for line in lines])
    assert orders[0] == orders[1] == orders[3] != orders[2]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("stop", range(4))
def test_packing_resumed_at_any_shard_gives_the_same_bytes(
    listed: Callable[..., CheckedList], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    checked, out = listed(), tmp_path / "out"
    written: list[str] = []
    stopped: list[int] = []

    def stopping(file: Path, samples: Any) -> None:
        write_shard(file, samples)
        if len(written) == stop and not stopped:
            stopped.append(stop)
            raise KeyboardInterrupt
        written.append(file.name)

    monkeypatch.setattr(prepare_pack, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        pack_list(checked, out, SMALL)
    left = {f"train-{number:06d}.tar" for number in range(stop)}
    assert set(contents(out)) == {"train.shards.json", "bad_train.csv"} | left
    pack_list(checked, out, SMALL)
    assert len(written) == len(set(written)) == 4
    pack_list(checked, tmp_path / "whole", SMALL)
    assert contents(out) == contents(tmp_path / "whole")


def interrupted(file: Path, samples: Any) -> None:
    file.write_bytes(b"half of it")
    raise KeyboardInterrupt


def test_only_shards_that_are_missing_or_not_as_recorded_are_packed_again(
    listed: Callable[..., CheckedList], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked, out, written = listed(), tmp_path / "out", []
    pack_list(checked, out, SMALL)
    before = contents(out)

    def noting(file: Path, samples: Any) -> None:
        written.append(file.name.split(".")[1])
        write_shard(file, samples)

    monkeypatch.setattr(prepare_pack, "write_shard", noting)
    (out / "train-000001.tar").unlink()
    damaged = bytearray(before["train-000002.tar"])
    damaged[1000] ^= 1
    (out / "train-000002.tar").write_bytes(damaged)
    (out / ".unfinished-train").mkdir()
    (out / ".unfinished-train" / "train-000003.tar").write_bytes(b"left by a killed run")
    pack_list(checked, out, SMALL)
    assert written == ["train-000001", "train-000002"] and contents(out) == before

    written.clear()
    monkeypatch.setattr(prepare_pack, "write_shard", interrupted)
    (out / "train-000001.tar").unlink()
    with pytest.raises(KeyboardInterrupt):
        pack_list(checked, out, SMALL)
    assert not (out / "train.csv").exists()  # it might name places that are no longer right
    monkeypatch.setattr(prepare_pack, "write_shard", noting)
    pack_list(checked, out, SMALL)
    assert written == ["train-000001"] and contents(out) == before

    written.clear()
    last = read_kinetics_csv(out / "train.csv").listed(11)
    number = int(last.split("/")[1].split("_")[0]) - 1
    path = Path(checked.videos.path(number))
    path.write_bytes(b"x" * path.stat().st_size)
    os.utime(path, ns=(0, 0))
    pack_list(checked, out, SMALL)
    assert written == ["train-000003"] and content_at(str(out / last)) == path.read_bytes()


def test_unneeded_shards_are_removed_and_unrelated_ones_stay(
    listed: Callable[..., CheckedList], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pack_list(listed(), out, SMALL)
    pack_list(CheckedList("train-extra", listed().videos), out, SMALL)
    others = {name: content for name, content in contents(out).items() if "extra" in name}
    for number in range(6, 12):
        (tmp_path / "videos" / f"clip {number}.x.mp4").unlink()
    result = pack_list(listed_again(tmp_path), out, SMALL, skip_missing=True)
    assert result.num_shards == 2 and sorted(result.bad) == list(range(6, 12))
    found = contents(out)
    assert [name for name in sorted(found) if name.endswith(".tar") and "extra" not in name] == [
        "train-000000.tar", "train-000001.tar"
    ]  # fmt: skip
    assert others == {name: content for name, content in found.items() if "extra" in name}


def listed_again(tmp_path: Path) -> CheckedList:
    return CheckedList("train", read_kinetics_csv(tmp_path / "videos" / "train.csv", separator="\t"))


def test_other_settings_and_unrelated_files_are_refused_without_overwrite(
    listed: Callable[..., CheckedList], tmp_path: Path
) -> None:
    checked, out = listed(), tmp_path / "out"
    pack_list(checked, out, SMALL)
    with pytest.raises(ValueError, match=r"train.shards.json: seed was 0, now 1; expected the same, another --out"):
        pack_list(checked, out, PackSettings(20_000, seed=1))
    with pytest.raises(ValueError, match=r"shard_bytes was 20000, now 500000000"):
        pack_list(checked, out, PackSettings())
    pack_list(CheckedList("train-extra", checked.videos), tmp_path / "one", SMALL)
    pack_list(checked, tmp_path / "one", PackSettings())
    assert pack_list(checked, out, PackSettings(), overwrite=True).num_shards == 1
    ours = {name: content for name, content in contents(tmp_path / "one").items() if "extra" not in name}
    assert contents(out) == ours

    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "train-000000.tar").write_bytes(b"of somebody else")
    with pytest.raises(ValueError, match=r"train-000000.tar exists without train.shards.json beside it"):
        pack_list(checked, tmp_path / "others", SMALL)
    assert contents(tmp_path / "others") == {"train-000000.tar": b"of somebody else"}
    with pytest.raises(ValueError, match=r"train.csv: is the list that is read"):
        pack_list(checked, tmp_path / "videos", SMALL)


def test_videos_that_cannot_be_packed_are_listed_and_refused_or_left_out(
    listed: Callable[..., CheckedList], tmp_path: Path
) -> None:
    checked, out = listed(6), tmp_path / "out"
    folder = tmp_path / "videos"
    (folder / "clip 1.x.mp4").unlink()
    (folder / "clip 3.x.mp4").write_bytes(b"")
    (folder / "clip 4.x.mp4").unlink()
    (folder / "clip 4.x.mp4").mkdir()
    with pytest.raises(ValueError, match=r"3 of its 6 videos cannot be packed, first .*clip 1.x.mp4, which does not e"):
        pack_list(checked, out, SMALL)
    with open(out / "bad_train.csv", newline="") as stream:
        rows = [(row["kind"], row["number"]) for row in csv.DictReader(stream)]
    assert rows == [("missing", "2"), ("empty", "4"), ("not_a_file", "5")]
    assert not list(out.glob("*.tar"))
    result = pack_list(checked, out, SMALL, skip_missing=True)
    assert sorted(result.bad) == [1, 3, 4] and len(read_kinetics_csv(result.file)) == 3
    state = json.loads((out / "train.shards.json").read_text())
    assert state["num_left_out"] == 3 and sum(shard["count"] for shard in state["shards"]) == 3


def test_a_file_that_changes_while_it_is_packed_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    video = tmp_path / "a.mp4"
    video.write_bytes(bytes(1000))
    for size, message in ((999, "it has grown meanwhile"), (1001, "unexpected end of data")):
        with pytest.raises(OSError, match=rf"a.mp4 cannot be packed: {message}"):
            write_shard(tmp_path / "a.tar", [ShardSample("1", str(video), size, 0)])


def test_anything_but_local_video_files_is_refused(tmp_path: Path) -> None:
    for path, message in [
        ("a.tar/x.mp4@1+2", "is inside a tar"),
        ("s3://b/x.mp4", "is a URL"),
        ("f/{001..009}.jpg", "is a range of extracted frames"),
        ("none", "expected an ending such as .mp4"),
    ]:
        (tmp_path / "none").write_bytes(b"x")
        (tmp_path / "train.csv").write_text(f"{path} 0\n")
        with pytest.raises(ValueError, match=message):
            pack_list(CheckedList("train", read_kinetics_csv(tmp_path / "train.csv")), tmp_path / "out", SMALL)


def test_class_names_and_unlabelled_lists_are_kept(listed: Callable[..., CheckedList], tmp_path: Path) -> None:
    unlabelled = pack_list(listed(labelled=False), tmp_path / "out", SMALL)
    assert not read_kinetics_csv(unlabelled.file).is_labelled
    assert all(not m.name.endswith(".cls") for m, _ in tar_members(tmp_path / "out" / "train-000000.tar"))
    for name in ("jump high", "run"):
        (tmp_path / "classes" / "train" / name).mkdir(parents=True)
        (tmp_path / "classes" / "train" / name / "a b.avi").write_bytes(name.encode())
    classes = CheckedList("train", read_class_folders(str(tmp_path / "classes"), "train"))
    result = pack_list(classes, tmp_path / "c", SMALL)
    assert (tmp_path / "c" / "class_names.txt").read_text() == "jump high\nrun\n"
    found = read_kinetics_csv(result.file)
    assert {found.label(index): content_at(found.path(index)) for index in (0, 1)} == {0: b"jump high", 1: b"run"}


def test_a_packed_something_something_list_is_read_in_place_of_the_json_files(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    items = [{"id": str(number), "template": f"Doing [thing] {number % 2}"} for number in range(4)]
    for number in range(4):
        (tmp_path / "videos" / f"{number}.webm").write_bytes(bytes([number]) * 100)
    contents = {"train": items, "labels": {"Doing thing 0": "0", "Doing thing 1": "1"}}
    for name, content in contents.items():
        (tmp_path / f"something-something-v2-{name}.json").write_text(json.dumps(content))
    listed = read_annotations("ssv2", str(tmp_path), "train")
    pack_list(CheckedList("train", listed), tmp_path / "out", SMALL)
    assert (tmp_path / "out" / "class_names.txt").read_text() == "Doing thing 0\nDoing thing 1\n"
    found = read_annotations("ssv2", str(tmp_path / "out"), "train", num_classes=2)
    for index in range(4):
        number = content_at(found.path(index))[0]
        assert found.label(index) == number % 2 == listed.label(number)
    with pytest.raises(AnnotationError, match=r"something-something-v2-labels.json does not exist"):
        read_annotations("ssv2", str(tmp_path / "out"), "val")


def test_webdataset_reads_our_shards(listed: Callable[..., CheckedList], tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    checked = listed()
    result = pack_list(checked, tmp_path / "out", SMALL)
    shards = sorted(str(shard) for shard in (tmp_path / "out").glob("*.tar"))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    found = read_kinetics_csv(result.file)
    assert [sample["__key__"] + ".mp4" for sample in samples] == [
        found.listed(index).split("/")[1].split("@")[0] for index in range(12)
    ]
    assert [(sample["mp4"], int(sample["cls"])) for sample in samples] == [
        (content_at(found.path(index)), found.label(index)) for index in range(12)
    ]


def test_the_index_of_our_shards_is_our_list(listed: Callable[..., CheckedList], tmp_path: Path) -> None:
    result = pack_list(listed(), tmp_path / "out", SMALL)
    again = index_shards(tmp_path / "out", "train", tmp_path / "again.csv")
    assert again.file.read_bytes() == result.file.read_bytes()
    assert (again.num_videos, again.num_shards, again.separator) == (12, 4, " ")


@pytest.mark.parametrize("json_label", [False, True])
def test_shards_of_webdataset_are_indexed(tmp_path: Path, json_label: bool) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "train-%04d.tar"), maxcount=2, verbose=0) as writer:
        for number in range(5):
            label: dict[str, Any] = {"json": {"label": number, "text": "x"}} if json_label else {"cls": number}
            writer.write({"__key__": f"some dir/{number:03d}", "webm": bytes([number]) * 700, **label})
    result = index_shards(tmp_path, "train", tmp_path / "train.csv")
    assert (result.num_videos, result.num_shards, result.separator) == (5, 3, "\t")
    videos = read_kinetics_csv(result.file, separator="\t")
    assert [videos.label(index) for index in range(5)] == list(range(5))
    assert [content_at(videos.path(index)) for index in range(5)] == [bytes([n]) * 700 for n in range(5)]
    assert videos.listed(0).startswith("train-0000.tar/some dir/000.webm@")


def write_tar(file: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(file, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name.removesuffix("#2"))
            member.size = len(content)
            (file.parent / "content").write_bytes(content)
            with open(file.parent / "content", "rb") as stream:
                tar.addfile(member, stream)


@pytest.mark.parametrize(
    "members, message",
    [
        ({"1.cls": b"0", "1.txt": b"x"}, r"sample '1' has 0 videos \(cls, txt\), expected one of mp4, avi"),
        ({"1.mp4": b"x", "1.avi": b"x", "1.cls": b"0"}, r"sample '1' has 2 videos \(mp4, avi, cls\)"),
        ({"1.mp4": b"x", "1.txt": b"0"}, "sample '1' has no label, expected one, in 1.cls or as \"label\" of 1.json"),
        ({"1.mp4": b"x", "1.cls": b"0", "1.json": b'{"label": 1}'}, r"sample '1' has labels \[0, 1\]"),
        ({"1.mp4": b"x", "1.cls": b"dog"}, "1.cls: expected a whole number"),
        ({"1.mp4": b"x", "1.cls": b"1_0"}, "1.cls: expected a whole number: got '1_0'"),
        ({"1.mp4": b"x", "1.cls": "\uff11".encode()}, "1.cls: expected a whole number: got"),
        ({"1.mp4": b"x", "1.cls": b"2147483648"}, "1.cls: label 2147483648, expected a whole number from 0 on"),
        ({"1.mp4": b"x", "1.json": b"[" * 100_000}, "1.json: expected JSON"),
        ({os.fsdecode(b"\xff.mp4"): b"x"}, "train-0.tar: a member that is not UTF-8 text"),
        ({"1.mp4": b"x", "1.cls": b"-1"}, "1.cls: label -1, expected a whole number from 0 on"),
        ({"1.mp4": b"x", "1.json": b'{"label": "dog"}'}, "1.json: label 'dog', expected a whole number"),
        ({"1.mp4": b"x", "1.json": b'{"label": true}'}, "1.json: label True, expected a whole number"),
        ({"1.mp4": b"x", "1.json": b"{"}, "1.json: expected JSON"),
        ({"1.mp4": b"x", "2.mp4": b"x", "1.cls": b"0", "2.cls": b"0"}, "sample '1' has no label"),
        ({"1.mp4": b"x", "1.cls": b"0", "1.mp4#2": b"x"}, "sample '1' has 2 videos"),
        ({"1.mp4": b"x", "1.cls": b"0", "2.mp4": b"x", "2.cls": b"0", "1.mp4#2": b"x", "1.cls#2": b"0"}, "occurs tw"),
        ({"video": b"x"}, "member 'video', expected a name KEY.ENDING"),
        ({}, "have no members"),
    ],
)
def test_samples_that_are_not_one_labelled_video_are_refused_by_name(
    tmp_path: Path, members: dict[str, bytes], message: str
) -> None:
    write_tar(tmp_path / "train-0.tar", members)
    with pytest.raises(ValueError, match=message):
        index_shards(tmp_path, "train", tmp_path / "train.csv")
    assert not (tmp_path / "train.csv").exists()


def test_an_index_needs_tars_and_no_list_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no train-\*.tar"):
        index_shards(tmp_path / "none", "train", tmp_path / "train.csv")
    write_tar(tmp_path / "train-0.tar", {"__meta__/a.json": b"{}", "dir/1.MP4": b"x"})
    index_shards(tmp_path, "train", tmp_path / "train.csv", labelled=False)
    assert (tmp_path / "train.csv").read_text().startswith("train-0.tar/dir/1.MP4@")
    with pytest.raises(ValueError, match=r"train.csv exists; expected another --out, or --overwrite"):
        index_shards(tmp_path, "train", tmp_path / "train.csv")
    (tmp_path / "train-1.tar.gz").touch()
    with pytest.raises(ValueError, match=r"train-1.tar.gz: is compressed"):
        index_shards(tmp_path, "train", tmp_path / "other.csv")


@pytest.mark.parametrize(
    "text, expected",
    [("500MB", 5 * 10**8), ("1.5 GB", 15 * 10**8), ("12", 12), ("7kb", 7000), ("1TB", 10**12), ("8B", 8),
     ("1GiB", None), ("MB", None), ("-1MB", None), ("", None), ("1M", None)],
)  # fmt: skip
def test_sizes_have_decimal_units(text: str, expected: int | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="expected a number of bytes such as 500MB"):
            parse_bytes(text)
    else:
        assert parse_bytes(text) == expected


def test_the_tool_packs_and_indexes_and_its_status_says_whether_all_went_well(
    video_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        status = run_tool(prepare_data.main, [*map(str, arguments)])
        printed = capsys.readouterr()
        return status, printed.err or printed.out

    folder, out = video_folder(4), tmp_path / "out"
    pack = ("pack", "--list", folder / "train.csv", "--out", out)
    status, printed = run(*pack, "--shard-size", "10KB")
    assert status == 0 and "train: 4 of 4 videos, listed in" in printed and "in 4 shards" in printed
    status, printed = run("index", out, "--out", tmp_path / "index.csv")
    assert status == 0 and (tmp_path / "index.csv").read_bytes() == (out / "train.csv").read_bytes()
    (folder / "clip2.mp4").unlink()
    status, printed = run(*pack, "--shard-size", "10KB")
    assert status == 2 and printed.startswith("error: ") and "--skip-missing leaves them out" in printed
    status, printed = run(*pack, "--shard-size", "10KB", "--skip-missing")
    assert status == 1 and "train: 3 of 4 videos" in printed and "bad_train.csv" in printed
    settings = ("DATA.PATH_TO_DATA_DIR", folder, "MODEL.NUM_CLASSES", 3)
    status, printed = run("pack", "--out", tmp_path / "all", "--skip-missing", "--split", "train,val", *settings)
    assert status == 1 and "val: 3 of 4 videos" in printed
    assert {path.name for path in (tmp_path / "all").glob("*.tar")} == {"train-000000.tar", "val-000000.tar"}
    assert run(*pack, "--shard-size", "10 apples")[0] == run(*pack, "DATA.NUM_FRAMES", 8)[0] == 2
