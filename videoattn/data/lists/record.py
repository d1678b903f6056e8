"""Records of a list of videos, which tell later whether the list is still the same, even if the videos have moved."""

import csv
import gzip
import hashlib
import itertools
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videoattn.data.lists import VideoList
from videoattn.data.readers.packed import is_url
from videoattn.files import atomic_write

_TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


def list_record(videos: VideoList) -> dict[str, Any]:
    """Return the number of videos and a digest of their paths and labels, in order, as plain values.

    It does not depend on the folder of the data: the folder that all absolute paths or URLs have in common is left out.
    """
    return _record(_paths(videos), videos.labels.tolist())


def write_list(videos: VideoList, file: Path) -> None:
    """Write paths, as listed, and labels to a gzipped csv file, whole or not at all."""
    paths = (path.decode(_TEXT["encoding"], _TEXT["errors"]) for path in _paths(videos))
    with atomic_write(file) as temporary, gzip.open(temporary, "wt", 1, **_TEXT) as stream:
        csv.writer(stream).writerows(zip(paths, videos.labels.tolist(), strict=True))


def describe_change(videos: VideoList, record: dict[str, Any], file: Path) -> str:
    """Return how a list differs from the one of `record`, or "" if it does not.

    If `write_list` has written that list to `file`, the first video that differs is named.
    """
    now = list_record(videos)
    if now == record:
        return ""
    before = record.get("videos")
    counts = f"{now['videos']} videos instead of {before}" if now["videos"] != before else ""
    old = _read_list(file)
    if old is None or _record(*old) != record:
        return f"it lists {counts}" if counts else "its paths, labels or order differ"
    first = _first_difference(*old, _paths(videos), videos.labels.tolist())
    return first + (f"; it lists {counts}" if counts else "")


def _paths(videos: VideoList) -> list[bytes]:
    return [videos.paths[start:end] for start, end in itertools.pairwise(videos.offsets.tolist())]


def _record(paths: Sequence[bytes], labels: Sequence[int]) -> dict[str, Any]:
    digest = hashlib.sha256(np.array(labels, "<i4").tobytes())
    for path in _without_root(paths):
        digest.update(b"%d:%b" % (len(path), path))
    return {"videos": len(labels), "digest": digest.hexdigest()}


def _without_root(paths: Sequence[bytes]) -> Sequence[bytes]:
    """Return absolute paths and URLs without the folder that they have in common, and relative paths unchanged."""
    ends = [path.decode("latin-1") for path in (min(paths), max(paths))] if paths else []  # a character for each byte
    if not ends or not all(os.path.isabs(path) or is_url(path) for path in ends):
        return paths
    start = os.path.commonprefix(ends).rfind("/") + 1
    return [path[start:] for path in paths]


def _read_list(file: Path) -> tuple[list[bytes], list[int]] | None:
    """Read paths and labels that `write_list` wrote; return None if they can't be read."""
    paths, labels = [], []
    try:
        with gzip.open(file, "rt", **_TEXT) as stream:
            for path, label in csv.reader(stream):
                paths.append(path.encode(_TEXT["encoding"], _TEXT["errors"]))
                labels.append(int(label))
    except (OSError, EOFError, ValueError, zlib.error, csv.Error):
        return None
    return paths, labels


def _first_difference(
    old_paths: Sequence[bytes], old_labels: Sequence[int], paths: Sequence[bytes], labels: Sequence[int]
) -> str:
    def differing(old: Sequence[bytes], new: Sequence[bytes]) -> int:
        pairs = zip(zip(old, old_labels, strict=True), zip(new, labels, strict=True), strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(old), len(new)))

    old_names, names = _without_root(old_paths), _without_root(paths)
    number = max(differing(old_paths, paths), differing(old_names, names))
    if number == len(paths):
        return f"video {number + 1}, {_show(old_paths[number])}, has been removed"
    if number == len(old_paths):
        return f"video {number + 1}, {_show(paths[number])}, is new"
    if old_paths[number] == paths[number] or old_names[number] == names[number]:
        return f"video {number + 1}, {_show(paths[number])}, has label {labels[number]} instead of {old_labels[number]}"
    was = f"{_show(old_paths[number])} with label {old_labels[number]}"
    return f"video {number + 1} is {_show(paths[number])} with label {labels[number]} instead of {was}"


def _show(path: bytes) -> str:
    return repr(path.decode(errors="backslashreplace"))
