"""A video inside a tar is read like the file that it was made from, wherever the tar is stored."""

import csv
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from tests.data.test_loader import contents, epoch, settings
from tests.shared_files import CLIPS, needs_clips
from videoattn.data.check.check import check_lists
from videoattn.data.check.checked_list import CheckedList
from videoattn.data.lists import read_kinetics_csv
from videoattn.data.prepare.pack import PackSettings, pack_list
from videoattn.data.readers.open_video import DecodeError, open_video
from videoattn.data.readers.packed import PackedVideo, is_url, parse_packed, read_packed, tar_members


def packed(shard: Path, files: list[Path]) -> list[str]:
    """A tar of some files, and the paths of its members."""
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for file in files:
            tar.add(file, file.name)
    return [str(PackedVideo(str(shard), m.name, m.offset_data, m.size)) for m, _ in tar_members(shard)]


@pytest.mark.parametrize(
    "path, expected",
    [
        ("a/train-000003.tar/00_x.mp4@512+99", PackedVideo("a/train-000003.tar", "00_x.mp4", 512, 99)),
        ("s3://b/t.tar/dir/x y@1.webm@0+7", PackedVideo("s3://b/t.tar", "dir/x y@1.webm", 0, 7)),
        ("old.tar/new.tar/x@1+2", PackedVideo("old.tar/new.tar", "x", 1, 2)),
        ("a/train.tar/x.mp4", None),
        ("a/train.tgz/x.mp4@1+2", None),
        ("a/train.tar/x.mp4@-1+2", None),
        ("a/x.mp4@1+2", None),
    ],
)
def test_a_path_into_a_tar_says_where_bytes_lie_and_is_written_as_it_is_read(path: str, expected: Any) -> None:
    assert parse_packed(path) == expected
    assert expected is None or str(expected) == path


def test_urls_are_distinguished_from_local_paths() -> None:
    assert all(is_url(path) for path in ("s3://b/k", "filecache::s3://b/k", "simplecache::zip::hf+x://b"))
    assert not any(is_url(path) for path in ("/a/b", "a/s3://b", "a::b/c", "C:/a", "://a", "video.mp4"))


@pytest.mark.parametrize("backend", ["auto", "pyav", "decord"])
def test_a_packed_video_gives_bit_for_bit_the_frames_of_its_file(
    rendered_videos: list[Path], tmp_path: Path, backend: Any
) -> None:
    for file, path in zip(rendered_videos, packed(tmp_path / "a.tar", rendered_videos), strict=True):
        with open_video(file, backend) as expected, open_video(path, backend) as found:
            assert (found.num_frames, found.fps, found.path) == (expected.num_frames, expected.fps, path)
            for wanted in ([7, 3, 3], [0, expected.num_frames - 1]):
                assert torch.equal(found.read(wanted), expected.read(wanted))


@needs_clips
def test_real_clips_decode_in_a_tar_as_they_do_outside(tmp_path: Path) -> None:
    names = ("decord_corrupted.mp4", "decord_video_90.mov", "made/trunc.avi", "made/vfr.webm", "made/zero.mp4")

    def fate(video: Any) -> tuple[Any, ...]:
        try:
            with open_video(video) as reader:
                return reader.num_frames, reader.read([reader.num_frames - 1]).numpy().tobytes()
        except DecodeError as error:
            return error.kind, str(error).split(": ", 1)[1]

    files = [CLIPS / name for name in names]
    fates = [fate(path) for path in packed(tmp_path / "a.tar", files)]
    assert fates == [fate(file) for file in files] and len({fate[0] for fate in fates}) > 3


def test_problems_of_a_shard_are_reported_with_their_kind(rendered_videos: list[Path], tmp_path: Path) -> None:
    shard = tmp_path / "a.tar"
    first, last = packed(shard, rendered_videos[:2])
    (tmp_path / "folder.tar").mkdir()
    with open(shard, "r+b") as stream:
        stream.truncate(parse_packed(last).offset + 5)  # type: ignore[union-attr]
    assert open_video(first).num_frames == 20
    for path, kind, message in [
        (last, "cut_short", "the shard has 5 of these"),
        (f"{shard}/x.mp4@999999999+{10**15}", "cut_short", "the shard has 0 of these"),
        (f"{tmp_path}/b.tar/x.mp4@0+1", "missing", "the shard does not exist"),
        (f"{tmp_path}/folder.tar/x.mp4@0+1", "unreadable", "the shard cannot be read: Is a directory"),
        (f"{shard}/x.mp4@0+512", "not_a_video", "cannot be opened as a video"),
        (f"{shard}/x.mp4@0+0", "not_a_video", "cannot be opened as a video"),
    ]:
        with pytest.raises(DecodeError) as caught:
            open_video(path)
        assert caught.value.kind == kind and str(caught.value).startswith(f"{path}: {message}")


@pytest.fixture
def bucket() -> Iterator[Callable[[Path], str]]:
    """Return a function that puts a file into fsspec's file system in memory and returns its URL."""
    memory = fsspec.filesystem("memory")

    def put(file: Path) -> str:
        memory.pipe(f"/bucket/{file.name}", file.read_bytes())
        return f"memory://bucket/{file.name}"

    yield put
    memory.store.clear()


@pytest.mark.parametrize("scheme", ["memory://", "simplecache::memory://", "file://"])
def test_a_shard_behind_a_url_gives_the_same_frames(
    rendered_videos: list[Path], tmp_path: Path, bucket: Callable[[Path], str], scheme: str
) -> None:
    local = packed(tmp_path / "a.tar", rendered_videos[:2])[1]
    url = bucket(tmp_path / "a.tar")
    path = local.replace(str(tmp_path / "a.tar"), f"file://{tmp_path}/a.tar" if scheme == "file://" else url)
    path = path.replace("memory://", scheme)
    with open_video(path) as found, open_video(rendered_videos[1]) as expected:
        assert found.path == path and torch.equal(found.read([2, 9]), expected.read([2, 9]))
    with pytest.raises(DecodeError, match="the shard has 0 of these 9 bytes"):
        open_video(f"{path.rsplit('/', 1)[0]}/x.mp4@999999999+9")
    with pytest.raises(DecodeError, match="the shard does not exist"):
        open_video(path.replace("a.tar", "b.tar"))


def test_only_the_bytes_of_a_video_are_requested_from_a_url_and_only_once(
    rendered_videos: list[Path], tmp_path: Path, bucket: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    member = parse_packed(packed(tmp_path / "a.tar", rendered_videos[:2])[1])
    assert member is not None
    remote = member._replace(shard=bucket(tmp_path / "a.tar"))
    memory, asked = type(fsspec.filesystem("memory")), []
    read = memory.cat_file

    def counted(self: Any, path: str, start: int, end: int) -> Any:
        asked.append((start, end - start))
        return read(self, path, start, end)

    monkeypatch.setattr(memory, "cat_file", counted)
    with open_video(str(remote), "decord") as reader:
        reader.read([0])
        reader.decode_all()
    assert asked == [(member.offset, member.size)]


def test_a_url_that_cannot_be_read_is_an_error_that_says_why(
    tmp_path: Path, bucket: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"nope://b/a.tar: expected a URL that fsspec can read: Protocol not known"):
        open_video("nope://b/a.tar/x.mp4@0+1")
    with pytest.raises(DecodeError, match=r"memory://bucket/x.mp4: is a URL, expected a member of a tar"):
        open_video("memory://bucket/x.mp4")

    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("the server is tired")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", fail)
    with pytest.raises(DecodeError, match=r"the shard cannot be read: the server is tired \(RuntimeError\)") as caught:
        read_packed(PackedVideo("memory://bucket/a.tar", "x.mp4", 0, 1))
    assert caught.value.kind == "unreadable"


def test_lists_keep_urls_whole_below_a_folder_and_a_url_may_be_the_folder(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("s3://b/k/t.tar/x.mp4@0+1 0\nt.tar/y.mp4@1+1 1\n")
    here = read_kinetics_csv(tmp_path / "train.csv")
    assert [here.path(0), here.path(1)] == ["s3://b/k/t.tar/x.mp4@0+1", f"{tmp_path}/t.tar/y.mp4@1+1"]
    there = read_kinetics_csv(tmp_path / "train.csv", prefix="filecache::s3://b/k")
    assert [there.path(0), there.path(1)] == [here.path(0), "filecache::s3://b/k/t.tar/y.mp4@1+1"]


@pytest.mark.parametrize("remote, workers", [(False, 0), (False, 2), (True, 0)])
def test_a_list_over_shards_gives_the_training_batches_of_the_list_over_files(
    video_folder: Callable[..., Path], tmp_path: Path, bucket: Callable[[Path], str], remote: bool, workers: int
) -> None:
    files, shards = video_folder(9, bad=(3,)), tmp_path / "shards"
    checked = CheckedList("train", read_kinetics_csv(files / "train.csv"))
    assert pack_list(checked, shards, PackSettings(shard_bytes=20_000)).num_shards > 2
    lines = (shards / "train.csv").read_text().splitlines()
    order = [int(line.split("/")[1].split("_")[0]) - 1 for line in lines]
    assert sorted(order) == list(range(9)) and order != sorted(order)
    (files / "train.csv").write_text("".join(f"clip{number}.mp4 {number % 3}\n" for number in order))

    workers_option = {"NUM_WORKERS": workers}
    expected = epoch(settings(files, DATA_LOADER=workers_option), 1)
    cfg = settings(shards, DATA_LOADER=workers_option)
    if remote:
        for shard in shards.glob("*.tar"):
            bucket(shard)
        prefix = cfg.data.model_copy(update={"path_prefix": "memory://bucket"})
        cfg = cfg.model_copy(update={"data": prefix})
    found = epoch(cfg, 1)
    assert [batch[0] for batch in contents(found)] == [batch[0] for batch in contents(expected)]
    failed = [[failure.index for batch in batches for failure in batch.failures] for batches in (found, expected)]
    assert failed[0] == failed[1] != []


@pytest.mark.parametrize("block", [0, 2])
def test_an_epoch_over_shards_resumes_midway_with_any_number_of_workers(
    video_folder: Callable[..., Path], tmp_path: Path, block: int
) -> None:
    shards = tmp_path / "shards"
    packed = pack_list(
        CheckedList("train", read_kinetics_csv(video_folder(9, bad=(3,)) / "train.csv")),
        shards,
        PackSettings(shard_bytes=20_000),
    )
    assert packed.num_shards > 2
    runs = [
        contents(epoch(settings(shards, DATA={"SHUFFLE_BLOCK": block}, DATA_LOADER={"NUM_WORKERS": workers}), 1, start))
        for workers, start in ((0, 0), (0, 1), (1, 2), (2, 3))
    ]
    assert len(runs[0]) == 4 and [run == runs[0][start:] for start, run in enumerate(runs)] == [True] * 4


def kinds(out: Path) -> list[tuple[str, str]]:
    with open(out / "bad_train.csv", newline="") as stream:
        return [(os.path.basename(row["path"]).split("@")[0], row["kind"]) for row in csv.DictReader(stream)]


def test_a_check_probes_tars_and_probes_them_again_when_they_change(
    rendered_videos: list[Path], tmp_path: Path, bucket: Callable[[Path], str]
) -> None:
    shard = tmp_path / "a.tar"
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(rendered_videos[0].read_bytes())
    paths = packed(shard, rendered_videos[:2])
    end = shard.stat().st_size
    url = paths[1].replace(str(shard), bucket(shard))
    rows = [*paths, str(copy), url, f"{shard}/beyond.mp4@{end}+9", f"{shard}/text.mp4@0+512", f"{shard}/none.mp4@0+0",
            f"{tmp_path}/b.tar/gone.mp4@0+1"]  # fmt: skip
    (tmp_path / "train.csv").write_text("".join(f"{path} 0\n" for path in rows))
    checked = CheckedList("train", read_kinetics_csv(tmp_path / "train.csv"))
    out = tmp_path / "out"
    check_lists([checked], out)
    expected = [("copy.mp4", "duplicate"), ("1.mp4", "duplicate"), ("beyond.mp4", "cut_short"),
                ("text.mp4", "not_a_video"), ("none.mp4", "empty"), ("gone.mp4", "missing")]  # fmt: skip
    assert kinds(out) == expected
    num_lines = len((out / "probes.jsonl").read_text().splitlines())
    check_lists([checked], out)  # the shard that is cut short and the missing one may be mended meanwhile
    assert len((out / "probes.jsonl").read_text().splitlines()) == num_lines + 2

    first = parse_packed(paths[0])
    assert first is not None
    content = bytearray(shard.read_bytes())
    content[first.offset : first.offset + first.size] = bytes(first.size)
    shard.write_bytes(content)
    check_lists([checked], out)
    assert kinds(out) == [("0.mp4", "not_a_video"), *expected[1:]]


def test_a_tar_that_is_cut_short_or_damaged_or_compressed_is_refused(
    rendered_videos: list[Path], tmp_path: Path
) -> None:
    shard = tmp_path / "a.tar"
    last = parse_packed(packed(shard, rendered_videos[:3])[2])
    assert last is not None
    whole = shard.read_bytes()
    header = last.offset - tarfile.BLOCKSIZE
    damaged = bytearray(whole)
    damaged[header : header + 100] = b"x" * 100
    for content, message in [
        (whole[: last.offset + 100], "cannot be read as an uncompressed tar"),
        (whole[:header], f"has no end mark at byte {header}"),
        (bytes(damaged), f"has no end mark at byte {header}"),
        (b"text", "cannot be read as an uncompressed tar"),
    ]:
        shard.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            list(tar_members(shard))
    with tarfile.open(shard, "w:gz") as tar:
        tar.add(rendered_videos[0])
    with pytest.raises(ValueError, match="cannot be read as an uncompressed tar"):
        list(tar_members(shard))
