"""Rows of Kinetics' official lists: a YouTube id, times and the name of a class each.

Source: the csv files of Kinetics-400, 600 and 700, with columns `label,youtube_id,time_start,time_end,split`, sometimes
`is_cc` as well; the test list of Kinetics-400 has no label.
"""

import csv
from array import array
from dataclasses import dataclass, field
from typing import Any

from videoattn.data.lists.list_lines import undecodable_place
from videoattn.data.lists.video_list import AnnotationError

_NEEDED = ("youtube_id", "time_start", "time_end")
_COLUMNS = (*_NEEDED, "label", "split")
_ZERO = "\0"
TIMES = len("_000000_000010")


def is_official_kinetics(file: str) -> bool:
    """Return True if the first line is the header of an official list."""
    with open(file, encoding="utf-8-sig", errors="replace") as lines:
        return "youtube_id" in _fields(lines.readline())


@dataclass
class KineticsRows:
    """The rows of a list in a few buffers: `{youtube_id}_{start:06d}_{end:06d}`, and the index of each row's label."""

    source: str
    labels: dict[str, int] = field(default_factory=dict)  # and the line where each stands first
    split: str = ""
    stems: bytearray = field(default_factory=bytearray)
    ends: "array[int]" = field(default_factory=lambda: array("q", [0]))
    label_of: "array[int]" = field(default_factory=lambda: array("i"))
    _numbers: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def add(self, stem: str, label: str | None, line: int) -> None:
        """Append a row; the label is None in all rows or in none."""
        if label is not None and label not in self.labels:
            if not label:
                raise AnnotationError(f"{self.source}:{line}: has no label, expected one in column label")
            if _ZERO in label:
                raise AnnotationError(f"{self.source}:{line}: label {label!r} contains a zero byte, expected text")
            self._numbers[label] = len(self.labels)
            self.labels[label] = line
        self.label_of.append(0 if label is None else self._numbers[label])
        self.stems += stem.encode()
        self.ends.append(len(self.stems))

    def set_split(self, split: str, line: int) -> None:
        """Set the value of the split column, which must be the same in all rows."""
        if len(self):
            raise AnnotationError(
                f"{self.source}:{line}: has split {split!r}, unlike the lines before it with {self.split!r}; expected "
                "one split per file"
            )
        self.split = split

    def stem(self, index: int) -> str:
        """Return `{youtube_id}_{start:06d}_{end:06d}` of a row."""
        return self.stems[self.ends[index] : self.ends[index + 1]].decode()


def read_rows(file: str) -> KineticsRows:
    """Read the rows of an official list. Raises AnnotationError, naming the line, on an invalid one."""
    rows = KineticsRows(file)
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            try:
                _fill(rows, reader)
            except csv.Error as error:
                raise AnnotationError(f"{file}:{reader.line_num}: is no line of a csv file: {error}") from error
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{file}: is not UTF-8 text: {undecodable_place(file)}") from error
    except OSError as error:
        raise AnnotationError(f"{file}: cannot be read: {error.strerror}") from error
    if not len(rows):
        raise AnnotationError(f"{file}: has a header and no videos")
    return rows


def _fill(rows: KineticsRows, lines: Any) -> None:
    header = [name.strip().lower() for name in next(lines)]
    twice = [name for name in _COLUMNS if header.count(name) > 1]
    if twice:
        raise AnnotationError(f"{rows.source}:1: column {twice[0]} occurs twice, expected once")
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        raise AnnotationError(f"{rows.source}:1: columns {', '.join(header)}, expected also {', '.join(missing)}")
    video, start, end = (header.index(name) for name in _NEEDED)
    label, split = (header.index(name) if name in header else None for name in ("label", "split"))
    before = lines.line_num
    for fields in lines:
        number, before = before + 1, lines.line_num
        if not fields:
            continue
        if lines.line_num > number:
            raise AnnotationError(
                f"{rows.source}:{number}: {','.join(fields)[:200]!r} continues on the next line because of a quote; "
                "expected quotes to be closed"
            )
        if len(fields) != len(header):
            raise AnnotationError(
                f"{rows.source}:{lines.line_num}: {len(fields)} fields, expected {len(header)}: {','.join(header)}"
            )
        times = f"_{fields[start]:0>6}_{fields[end]:0>6}"
        are_times = len(times) == TIMES and times.isascii() and fields[start].isdigit() and fields[end].isdigit()
        if not are_times or not fields[video] or _ZERO in fields[video]:
            raise AnnotationError(
                f"{rows.source}:{lines.line_num}: id {fields[video]!r} from {fields[start]!r} to {fields[end]!r}, "
                "expected an id and two whole numbers of seconds"
            )
        if split is not None and (fields[split] != rows.split or not len(rows)):
            rows.set_split(fields[split], lines.line_num)
        rows.add(fields[video] + times, None if label is None else fields[label], lines.line_num)


def _fields(line: str) -> list[str]:
    return [name.strip().strip('"').lower() for name in line.split(",")]
