"""Annotation files around a check of their videos: what they say of lengths, and what is left of them without some."""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from videoattn.data.annotations import AnnotationError, VideoList
from videoattn.data.annotations.frame_lists import is_frame_list
from videoattn.data.annotations.kinetics_rows import is_official_kinetics
from videoattn.data.annotations.ssv2 import find_labels
from videoattn.files import atomic_write

Lengths = Literal["names", "frames", "seconds", "ignore"]
_START_AND_END = re.compile(r"_(\d{6})_(\d{6})\.\w+$")


@dataclass(frozen=True)
class CheckedList:
    """One list of videos and what is asked of it.

    `split` is its name in the results. Labels are to be below `num_classes`, where that is known, and there is to be
    one where `needs_labels`. `is_short(num_frames, fps)` says whether a video has fewer frames than a clip.
    """

    split: str
    videos: VideoList
    separator: str = " "
    num_classes: int | None = None
    needs_labels: bool = False
    is_short: Callable[[int, float], bool] | None = None

    @property
    def is_json(self) -> bool:
        """Whether it is Something-Something-V2's kind of list, not a csv."""
        return self.videos.source.endswith(".json")

    @property
    def is_plain(self) -> bool:
        """Whether it is a csv with a line `path label` for each video."""
        source = self.videos.source
        if self.is_json or os.path.isdir(source):
            return False
        return not is_official_kinetics(source) and not is_frame_list(source)


def stated_lengths(checked: CheckedList, lengths: Lengths) -> Iterator[float | None]:
    """What the list says of each video's length, if anything, in frames for `frames` and in seconds else.

    `names`: from file names that end in _START_END, six digits each, as Kinetics' do. `frames` and `seconds`: the
    number between path and label; AnnotationError where a line has none.
    """
    videos = checked.videos
    if lengths in ("frames", "seconds"):
        yield from _numbers(checked)
        return
    for index in range(len(videos)):
        match = _START_AND_END.search(videos.path(index)) if lengths == "names" else None
        seconds = int(match[2]) - int(match[1]) if match else 0
        yield float(seconds) if seconds > 0 else None


def _numbers(checked: CheckedList) -> Iterator[float]:
    if not checked.is_plain:
        raise AnnotationError(f"{checked.videos.source}: has no numbers between path and label; expected a plain csv")
    with open(checked.videos.source, encoding="utf-8-sig", newline="") as lines:
        plain = csv.reader(lines, delimiter=checked.separator, quoting=csv.QUOTE_NONE)
        for line, fields in enumerate(csv.reader(lines) if checked.separator == "," else plain, start=1):
            try:
                _, number, _ = fields
                yield float(number)
            except ValueError:
                raise AnnotationError(
                    f"{checked.videos.source}:{line}: {checked.separator.join(fields)!r}, expected a path, the "
                    "video's length as a number, and a label"
                ) from None


def clean_name(checked: CheckedList) -> str:
    """The name under which training looks for the list."""
    name = os.path.basename(checked.videos.source)
    if checked.is_json:
        return name
    return (os.path.splitext(name)[0] if checked.is_plain else checked.split) + ".csv"


def write_clean(checked: CheckedList, bad: Iterable[int], folder: Path) -> Path:
    """The list without the videos numbered in `bad` (rising), every other line as it was. Returns its path.

    Of class folders and of other kinds of csv, lines `path<tab>label`, and `class_names.txt` where names are known.
    """
    source, path = checked.videos.source, folder / clean_name(checked)
    folder.mkdir(parents=True, exist_ok=True)
    dropped = iter(bad)
    next_bad = next(dropped, None)
    if checked.is_json:
        removed = {next_bad, *dropped}
        with open(source, encoding="utf-8") as stream:
            items = [item for index, item in enumerate(json.load(stream)) if index not in removed]
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(items, indent=0, ensure_ascii=False), encoding="utf-8")
        labels = find_labels(os.path.dirname(source))
        with atomic_write(folder / os.path.basename(labels)) as temporary:
            shutil.copyfile(labels, temporary)
        return path
    if not checked.is_plain:
        _write_paths(checked.videos, {next_bad, *dropped}, path)
        return path
    with atomic_write(path) as temporary, open(source, "rb") as lines, open(temporary, "wb") as clean:
        for index, line in enumerate(lines):
            if index == next_bad:
                next_bad = next(dropped, None)
            else:
                clean.write(line)
    return path


def _write_paths(videos: VideoList, bad: set[int | None], path: Path) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as clean:
        for index in range(len(videos)):
            if index not in bad:
                label = videos.label(index)
                clean.write(os.path.abspath(videos.path(index)) + (f"\t{label}" if label >= 0 else "") + "\n")
    if videos.class_names:
        with atomic_write(path.with_name("class_names.txt")) as temporary:
            temporary.write_text("".join(f"{name}\n" for name in videos.class_names), encoding="utf-8")
