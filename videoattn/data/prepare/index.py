"""Index of the videos inside tar files that others made, such as webdataset's ShardWriter; only headers are read."""

import json
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from videoattn.data.check.checked_list import list_line
from videoattn.data.lists.list_lines import parse_separator
from videoattn.data.lists.video_files import VIDEO_ENDINGS
from videoattn.data.lists.video_list import MAX_LABEL, check_names
from videoattn.data.readers.packed import PackedVideo, shard_names, tar_members
from videoattn.files import atomic_write

_PREVIEWS = (".gif", ".apng")  # pictures beside a video rather than the video
_VIDEOS = tuple(ending.removeprefix(".") for ending in VIDEO_ENDINGS if ending not in _PREVIEWS)
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_NOT_A_SAMPLE = re.compile(r"__[^/]*__(?:/.*)?")  # what webdataset, too, passes over
_NUMBER = re.compile(r"-?[0-9]{1,18}")
_MEMBER = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", re.DOTALL)


class IndexedList(NamedTuple):
    """A list written to `file`."""

    file: Path
    num_videos: int
    num_shards: int
    separator: str


def index_shards(
    folder: Path, split: str, file: Path, *, separator: str = " ", labelled: bool = True, overwrite: bool = False
) -> IndexedList:
    """Write the list of the videos in `{split}-*.tar` of `folder` to `file`, in the order of the tars.

    A label is the number in KEY.cls, or "label" of the object in KEY.json; without `labelled` none is needed. If a name
    contains the separator, the list uses tabs. Raises ValueError, naming shard and sample, on a sample without a video
    or a label, or with two videos; on tars that are compressed, cut short or damaged; and if `file` exists (unless
    `overwrite`, which replaces it).
    """
    separator = parse_separator(separator, "--separator")
    if file.exists() and not overwrite:
        raise ValueError(f"{file} exists; expected another --out, or --overwrite")
    compressed = shard_names(folder, split, _COMPRESSED)
    if compressed:
        raise ValueError(f"{folder / compressed[0]}: is compressed, so videos have no offset; expected .tar files")
    shards = shard_names(folder, split)
    if not shards:
        raise ValueError(f"{folder}: has no {split}-*.tar")
    videos = [video for name in shards for video in _videos_of(folder, name, labelled)]
    if not videos:
        raise ValueError(f"{folder}: its {split}-*.tar have no members")
    if any(separator in path for path, _ in videos):
        separator = "\t"
    with atomic_write(file) as temporary, open(temporary, "w", encoding="utf-8", newline="") as lines:
        for path, label in videos:
            lines.write(list_line(path, label, separator))
    return IndexedList(file, len(videos), len(shards), separator)


class _Part(NamedTuple):
    """A member of a sample; `label` is the label that it gives, if it is a file of labels."""

    key: str
    ending: str
    video: PackedVideo
    label: int | None


def _videos_of(folder: Path, name: str, labelled: bool) -> Iterator[tuple[str, int]]:
    """Yield place and label of each sample's video; members of a sample follow each other."""
    seen: set[str] = set()
    for key, group in groupby(_parts_of(folder, name), lambda part: part.key):
        parts, sample = list(group), f"{folder / name}: sample {key!r}"
        found = [part.video for part in parts if part.ending in _VIDEOS]
        if key in seen:
            raise ValueError(f"{sample} occurs twice, or its members do not follow each other")
        seen.add(key)
        if len(found) != 1:
            endings = ", ".join(part.ending for part in parts)
            raise ValueError(
                f"{sample} has {len(found)} videos ({endings}), expected one of {', '.join(_VIDEOS[:5])} and others"
            )
        labels = {part.label for part in parts if part.label is not None}
        if labelled and len(labels) != 1:
            wrong = f"labels {sorted(labels)}" if labels else "no label"
            raise ValueError(f'{sample} has {wrong}, expected one, in {key}.cls or as "label" of {key}.json')
        yield str(found[0]), labels.pop() if labelled else -1


def _parts_of(folder: Path, name: str) -> Iterator[_Part]:
    for member, tar in tar_members(folder / name):
        if _NOT_A_SAMPLE.fullmatch(member.name):
            continue
        match = _MEMBER.fullmatch(member.name)
        if match is None or any(sign in member.name for sign in "\t\r\n"):
            raise ValueError(f"{folder / name}: member {member.name!r}, expected a name KEY.ENDING without tabs")
        check_names((member.name,), f"{folder / name}: a member")
        ending = match[2].lower()
        video = PackedVideo(name, member.name, member.offset_data, member.size)
        yield _Part(match[1], ending, video, _label_in(tar, member, ending, f"{folder / name}: {member.name}"))


def _label_in(tar: tarfile.TarFile, member: tarfile.TarInfo, ending: str, place: str) -> int | None:
    if ending not in ("cls", "json"):
        return None
    stream = tar.extractfile(member)
    assert stream is not None  # a regular file
    try:
        text = stream.read().decode()
        value = json.loads(text) if ending == "json" else _whole_number(text.strip())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: expected {'JSON' if ending == 'json' else 'a whole number'}: {error}") from error
    if ending == "json":
        value = value.get("label") if isinstance(value, dict) else None
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_LABEL:
        raise ValueError(f"{place}: label {value!r}, expected a whole number from 0 on, below 2^31")
    return value


def _whole_number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"got {text[:60]!r}")
    return int(text)
