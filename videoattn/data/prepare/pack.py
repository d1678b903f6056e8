"""Packing of the videos of a list into tar files ("shards") in a random order, and the list of their places there.

The order is drawn once, from the seed: neighbours in a shard, and in the new list, are unrelated videos, so that
reading shards block by block still shuffles. `{split}.shards.json` has the settings and, for each shard, its digest and
that of its sources; a later run continues at the first shard that differs from it.
"""

import hashlib
import os
import random
import re
import stat
from array import array
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from videoattn.data.check.checked_list import CheckedList, list_line, write_class_names
from videoattn.data.prepare.lists import (
    check_sources,
    keep_settings,
    refuse_own_list,
    separator_for,
    unfinished_folder,
    write_bad_list,
    write_json,
)
from videoattn.data.prepare.shard import LABEL_ENDING, ShardSample, tar_bytes, write_shard
from videoattn.data.readers.packed import PackedVideo, shard_names, tar_members
from videoattn.files import atomic_write, file_sha256
from videoattn.seeding import derive_seed

Shard = dict[str, Any]  # what {split}.shards.json says of one
_FORMAT = 1  # of shards, their names and their order
_MOST_OF_NAME = 60  # characters of a file's name that a key keeps
_ENDING = re.compile(r"\.[A-Za-z0-9]+")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True)
class PackSettings:
    """Settings on which shards depend besides the list: their approximate size, and the seed of their order."""

    shard_bytes: int = 500 * 10**6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.shard_bytes < 1:
            raise ValueError(f"--shard-size expects at least 1 byte, got {self.shard_bytes}")


class PackedList(NamedTuple):
    """A list written to `file`; `bad` has those of `num_listed` videos that were left out, by number from 0."""

    file: Path
    num_listed: int
    num_shards: int
    bad: dict[int, tuple[str, str]]
    separator: str


def parse_bytes(text: str) -> int:
    """Return a number of bytes with an optional decimal unit: 500MB, 1.5 GB, 1000000. Raises ValueError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?B?)", text.upper())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"size {text!r}, expected a number of bytes such as 500MB, 1GB or 1000000")
    return int(float(match[1]) * _UNITS[match[2]])


def pack_list(
    checked: CheckedList,
    folder: Path,
    settings: PackSettings,
    *,
    skip_missing: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> PackedList:
    """Pack the videos of a list into `folder`, and write the list of their places once all shards exist.

    Videos that are missing, empty or unreadable are listed in `bad_{split}.csv`, and are left out if `skip_missing`.
    Raises ValueError otherwise, if the list is not of local video files, or if `folder` contains anything else (unless
    `overwrite`, which replaces it); OSError if a file cannot be read or written, or changes meanwhile.
    """
    videos, split = checked.videos, checked.split
    target, state_file = folder / f"{split}.csv", folder / f"{split}.shards.json"
    refuse_own_list(checked, target)
    check_sources(videos)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"format": _FORMAT, "list_sha256": videos.digest(), "num_videos": len(videos)} | asdict(settings)
    products = [target, *_own_shards(folder, split)]
    state = keep_settings(state_file, facts, products, overwrite=overwrite)
    packing = _Packing(checked, settings, progress)
    _report_bad(checked, packing.bad, folder / f"bad_{split}.csv", skip_missing)
    shards = {shard["name"]: shard for shard in state.get("shards", [])}
    with closing(_write_shards(packing, target, dict(shards), progress)) as written:
        for shard in written:
            shards[shard["name"]] = shard
            write_json(state_file, {"settings": facts, "shards": list(shards.values())})
    names = [name for name, _ in packing.shards()]
    for file in _own_shards(folder, split):
        if file.name not in names:  # there were more videos, or smaller shards, when it was packed
            file.unlink()
    finished = {"num_left_out": len(packing.bad), "shards": [shards[name] for name in names]}
    write_json(state_file, {"settings": facts} | finished)
    separator = separator_for(checked, split.encode())
    with atomic_write(target) as temporary, open(temporary, "w", encoding="utf-8", newline="") as lines:
        for name, samples in packing.shards():
            for path, (_, sample) in zip(_places(folder, name), samples, strict=True):
                lines.write(list_line(path, sample.label, separator))
    write_class_names(videos, folder)
    return PackedList(target, len(videos), len(names), packing.bad, separator)


def _own_shards(folder: Path, split: str) -> list[Path]:
    """Return the files with names that shards of this split have."""
    pattern = re.compile(re.escape(split) + r"-[0-9]{6}\.tar")
    return [folder / name for name in shard_names(folder, split) if pattern.fullmatch(name)]


def _write_shards(packing: "_Packing", target: Path, recorded: Mapping[str, Shard], progress: bool) -> Generator[Shard]:
    """Write shards that are missing or differ from their record, and yield their new records."""
    from tqdm import tqdm

    folder = target.parent
    with (
        unfinished_folder(folder / f".unfinished-{target.stem}") as unfinished,
        tqdm(total=packing.num_bytes, desc="packing", unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        for name, samples in packing.shards():
            made_of = _digest_of(samples)
            if not _is_as_recorded(folder / name, recorded.get(name), made_of):
                target.unlink(missing_ok=True)  # an earlier list would name places that are no longer right
                with atomic_write(folder / name, unfinished) as temporary:
                    write_shard(temporary, [sample for _, sample in samples])
                    size, digest = temporary.stat().st_size, file_sha256(temporary)
                yield {"name": name, "count": len(samples), "bytes": size, "sha256": digest, "sources": made_of}
            bar.update(sum(sample.size for _, sample in samples))


def _report_bad(checked: CheckedList, bad: dict[int, tuple[str, str]], file: Path, skip_missing: bool) -> None:
    write_bad_list(checked, bad, file)
    if len(bad) == len(checked.videos):
        raise ValueError(f"{checked.videos.source}: none of its videos can be packed; {file} says why")
    if bad and not skip_missing:
        index, (_, detail) = next(iter(bad.items()))
        raise ValueError(
            f"{checked.videos.source}: {len(bad)} of its {len(checked.videos)} videos cannot be packed, first "
            f"{checked.videos.path(index)}, which {detail}; {file} has them all, --skip-missing leaves them out"
        )


def _is_as_recorded(file: Path, shard: Shard | None, made_of: str) -> bool:
    """Return True if a shard exists, was made from the same sources, and has the recorded bytes."""
    if shard is None or shard.get("sources") != made_of or not file.exists():
        return False
    return file.stat().st_size == shard["bytes"] and file_sha256(file) == shard["sha256"]


def _places(folder: Path, name: str) -> Iterator[str]:
    """Yield the paths of a shard's videos, for a list in its folder."""
    for member, _ in tar_members(folder / name):
        if not member.name.endswith(LABEL_ENDING):
            yield str(PackedVideo(name, member.name, member.offset_data, member.size))


def _digest_of(samples: "list[_Stamped]") -> str:
    digest = hashlib.sha256()
    for mtime_ns, (key, path, size, label) in samples:
        digest.update(f"{key}{os.path.splitext(path)[1]} {size} {mtime_ns} {label}\n".encode())
    return digest.hexdigest()


class _Stamped(NamedTuple):
    """A sample and the time at which its file was last changed."""

    mtime_ns: int
    sample: ShardSample


class _Packing:
    """The distribution of videos to shards of about equal size, in a random order, without `bad` ones."""

    def __init__(self, checked: CheckedList, settings: PackSettings, progress: bool) -> None:
        from tqdm import tqdm

        self._checked, self._settings = checked, settings
        self._sizes, self._times = array("q"), array("q")
        self.bad: dict[int, tuple[str, str]] = {}
        for index in tqdm(range(len(checked.videos)), desc="reading sizes", unit="video", disable=not progress):
            path = checked.videos.path(index)
            size, mtime_ns, kind, detail = _look_at(path)
            self._sizes.append(size)
            self._times.append(mtime_ns)
            if kind:
                self.bad[index] = (kind, detail)
            elif not _ENDING.fullmatch(os.path.splitext(path)[1]):
                raise ValueError(f"{checked.videos.source}: video {index + 1}, {path}, expected an ending such as .mp4")
        self._order = array("q", range(len(checked.videos)))
        random.Random(derive_seed(settings.seed, "pack", checked.split)).shuffle(self._order)
        self.num_bytes = sum(size for index, size in enumerate(self._sizes) if index not in self.bad)

    def shards(self) -> Iterator[tuple[str, list[_Stamped]]]:
        """Yield each shard's name and samples."""
        number, num_bytes = 0, 0
        samples: list[_Stamped] = []
        for index in self._order:
            if index in self.bad:
                continue
            more = tar_bytes(self._sizes[index], self._checked.videos.label(index))
            if samples and num_bytes + more > self._settings.shard_bytes:
                yield self._name(number), samples
                number, num_bytes, samples = number + 1, 0, []
            samples.append(self._sample(index))
            num_bytes += more
        yield self._name(number), samples

    def _name(self, number: int) -> str:
        return f"{self._checked.split}-{number:06d}.tar"

    def _sample(self, index: int) -> _Stamped:
        """Return a sample keyed by its number in the list, from 1, and its name without webdataset's special signs."""
        videos = self._checked.videos
        path = videos.path(index)
        stem = re.sub(r"[^A-Za-z0-9-]+", "_", os.path.splitext(os.path.basename(path))[0])[:_MOST_OF_NAME].strip("_")
        key = f"{index + 1:0{len(str(len(videos)))}d}" + (f"_{stem}" if stem else "")
        return _Stamped(self._times[index], ShardSample(key, path, self._sizes[index], videos.label(index)))


def _look_at(path: str) -> tuple[int, int, str, str]:
    """Return size and time of change of a file, with kind and detail of its problem, if any."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return 0, 0, "missing", "does not exist"
    except OSError as error:
        return 0, 0, "unreadable", f"cannot be read: {error.strerror}"
    if not stat.S_ISREG(status.st_mode):
        return 0, 0, "not_a_file", "is a folder (extracted frames are not packed), a pipe or a device"
    if not status.st_size:
        return 0, 0, "empty", "has 0 bytes"
    if not os.access(path, os.R_OK):
        return 0, 0, "unreadable", "may not be read"
    return status.st_size, status.st_mtime_ns, "", ""
