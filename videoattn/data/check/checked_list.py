"""Annotation files of a check: the lengths that they state, and clean lists without bad videos."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from videoattn.data.lists import AnnotationError, VideoList
from videoattn.data.lists.frame_lists import is_frame_list
from videoattn.data.lists.kinetics.rows import is_official_kinetics
from videoattn.data.lists.list_lines import format_line, read_lines
from videoattn.data.lists.ssv2 import find_labels
from videoattn.files import atomic_write

Lengths = Literal["names", "frames", "seconds", "ignore"]
_START_AND_END = re.compile(r"_(\d{6})_(\d{6})\.\w+$")


@dataclass(frozen=True)
class CheckedList:
    """A list of videos and the requirements on it.

    `split` is its name in the results. Labels have to be below `num_classes`, if that is known, and must exist if
    `needs_labels`. `is_short(num_frames, fps)` returns True if a video has fewer frames than a clip.
    """

    split: str
    videos: VideoList
    separator: str = " "
    num_classes: int | None = None
    needs_labels: bool = False
    is_short: Callable[[int, float], bool] | None = None

    @property
    def is_json(self) -> bool:
        """True for a list in the format of Something-Something-V2, which is no csv."""
        return self.videos.source.endswith(".json")

    @property
    def is_plain(self) -> bool:
        """True for a csv with a line `path label` for each video."""
        source = self.videos.source
        if self.is_json or os.path.isdir(source):
            return False
        return not is_official_kinetics(source) and not is_frame_list(source)


def stated_lengths(checked: CheckedList, lengths: Lengths) -> Iterator[float | None]:
    """Yield the length that the list states for each video, or None: in frames for `frames`, in seconds otherwise.

    `names`: from file names that end in _START_END, six digits each, as Kinetics' do. `frames` and `seconds`: the
    number between path and label; raises AnnotationError if a line has none.
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
    for line, _, fields in read_lines(checked.videos.source, checked.separator):
        try:
            _, number, _ = fields
            yield float(number)
        except ValueError:
            text = checked.separator.join(field.decode() for field in fields)
            raise AnnotationError(
                f"{checked.videos.source}:{line}: {text!r}, expected a path, the video's length as a number, and a "
                "label"
            ) from None


def clean_name(checked: CheckedList) -> str:
    """Return the file name under which training looks for the list."""
    name = os.path.basename(checked.videos.source)
    if checked.is_json:
        return name
    return (os.path.splitext(name)[0] if checked.is_plain else checked.split) + ".csv"


def write_clean(checked: CheckedList, bad: Iterable[int], folder: Path) -> Path:
    """Write the list without the videos numbered in `bad` (rising), all other lines unchanged; return its path.

    For class folders and other formats of csv, lines are `path<tab>label`, quoted if a path contains a tab, a line
    break or a quote, and `class_names.txt` is written if names are known.
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
            temporary.write_text(json.dumps(items, indent=0), encoding="utf-8")  # texts may hold lone surrogates
        labels = find_labels(os.path.dirname(source))
        with atomic_write(folder / os.path.basename(labels)) as temporary:
            shutil.copyfile(labels, temporary)
        return path
    if not checked.is_plain:
        _write_paths(checked.videos, {next_bad, *dropped}, path)
        return path
    with atomic_write(path) as temporary, open(temporary, "wb") as clean:
        for index, (_, content, _) in enumerate(read_lines(source, checked.separator)):
            if index == next_bad:
                next_bad = next(dropped, None)
            else:
                clean.write(content)
    return path


def list_line(path: str, label: int, separator: str) -> str:
    """Return a line of a plain list."""
    return format_line([path] if label < 0 else [path, str(label)], separator)


def write_class_names(videos: VideoList, folder: Path) -> None:
    """Write class_names.txt if the names are known."""
    if videos.class_names:
        with atomic_write(folder / "class_names.txt") as temporary:
            temporary.write_text("".join(f"{name}\n" for name in videos.class_names), encoding="utf-8")


def _write_paths(videos: VideoList, bad: set[int | None], path: Path) -> None:
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as clean:
        for index in range(len(videos)):
            if index not in bad:
                clean.write(list_line(os.path.abspath(videos.path(index)), videos.label(index), "\t"))
    write_class_names(videos, path.parent)
