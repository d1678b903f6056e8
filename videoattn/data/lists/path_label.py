"""Plain lists, one `path label` a line."""

import os
from array import array
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from videoattn.data.lists.list_lines import parse_separator, read_lines
from videoattn.data.lists.list_mistakes import (
    contradiction,
    fitting_separator,
    is_header,
    is_number,
    is_whole_number,
    path_mistake,
)
from videoattn.data.lists.video_files import is_video_name
from videoattn.data.lists.video_list import MAX_LABEL, UNLABELLED, AnnotationError, VideoList
from videoattn.data.readers.packed import parse_packed

_MOST_DIGITS = 10


def read_kinetics_csv(
    file: str | os.PathLike[str],
    *,
    separator: str = " ",
    prefix: str = "",
    num_classes: int | None = None,
    with_lengths: bool = False,
    setting: str = "DATA.PATH_LABEL_SEPARATOR",
) -> VideoList:
    r"""Read a file of lines `path`, `path label`, or, for a folder of frames, `path number label`, without header.

    Either all lines have a label or none. The number of frames is not used; it is compared with some of the folders.
    With `with_lengths`, a number before the label states the length of videos, too. Fields may be quoted as in csv
    files; a path that contains the separator has to be. `\t` as separator is a tab; `setting` is its name in messages.
    Raises AnnotationError at the first invalid line; empty lines at the end are ignored.
    Source: PySlowFast, datasets/kinetics.py. Differs: a video without a label gets -1, not class 0.
    """
    source = os.fspath(file)
    separator = parse_separator(separator, setting)
    root = prefix or os.path.dirname(os.path.abspath(source))
    check = _LineCheck(source, root, separator, num_classes, with_lengths, setting)
    blob, ends, labels = bytearray(), array("q", [0]), array("i")
    limit = MAX_LABEL if num_classes is None else num_classes - 1
    labelled: bool | None = None
    for number, _, fields in read_lines(source, separator):
        count = len(fields)
        path, label = fields[0], fields[-1]
        value = UNLABELLED
        if count > 1:
            value = int(label) if label.isdigit() and len(label) <= _MOST_DIGITS else limit + 1
        if (count > 1) is not labelled:
            if labelled is not None:
                check.refuse(number, fields, f"{'lacks' if labelled else 'has'} a label, unlike the lines before it; "
                             f"expected labels (after {separator!r}) in all lines or in none")  # fmt: skip
            labelled = count > 1
        is_usual = count == 2 and value <= limit and path and len(path) < 256 and b"\n" not in path
        if not is_usual or (b"@" in path and _is_far(path)):
            check(number, fields, in_range=value <= limit)
        blob += path
        ends.append(len(blob))
        labels.append(value)
    if not labels:
        raise AnnotationError(f"{source}: is empty, expected one video a line: path{separator}label")
    return VideoList(bytes(blob), np.frombuffer(ends, np.int64), np.frombuffer(labels, np.int32), root, source)


@dataclass
class _LineCheck:
    """A closer check of lines that are not simply a path and a label; refuses those that are no line of a list."""

    source: str
    root: str
    separator: str
    num_classes: int | None
    with_lengths: bool
    setting: str
    num_with_frames: int = 0

    def __call__(self, number: int, fields: list[bytes], *, in_range: bool) -> None:
        texts = [field.decode() for field in fields]
        expected = f"expected path{self.separator}label with separator {self.separator!r}"
        if number == 1 and is_header(texts):
            self.refuse(number, fields, f"is a header; expected none, but path{self.separator}label in every line")
        if not texts[0]:
            self.refuse(number, fields, f"has no path, {expected}")
        if len(texts) > 3:
            self.refuse(number, fields, f"has {len(texts)} fields, {expected}{self._several_labels(texts[1:])}")
        if not in_range:
            self._refuse_label(number, fields, texts)
        mistake = path_mistake(texts[0], self.root)
        if mistake:
            self.refuse(number, fields, mistake)
        if len(texts) == 3:
            self._check_number(number, fields, texts, expected)
        elif len(texts) == 1 and self._fitting(fields) and not os.path.lexists(os.path.join(self.root, texts[0])):
            self.refuse(number, fields, f"has no label, {expected}")

    def refuse(self, number: int, fields: list[bytes], reason: str) -> NoReturn:
        """Raise AnnotationError, naming the separator that would fit, if there is one."""
        text = self.separator.join(field.decode() for field in fields)
        fitting = self._fitting(fields)
        hint = f"; separator {fitting!r} fits: {self.setting} {_shell(fitting)}" if fitting else ""
        raise AnnotationError(f"{self.source}:{number}: {text[:500]!r} {reason}{hint}")

    def _fitting(self, fields: list[bytes]) -> str | None:
        return fitting_separator(self.separator.join(field.decode() for field in fields), self.separator)

    def _refuse_label(self, number: int, fields: list[bytes], texts: list[str]) -> NoReturn:
        label = texts[-1]
        if len(texts) == 3 and self.separator == " " and not is_number(texts[1]):
            self.refuse(number, fields, f"has 3 fields, expected path label{_WITH_SPACES}")
        expected = "0 or more" if self.num_classes is None else f"from 0 to {self.num_classes - 1}"
        hint = ""
        if not label:
            hint = "; the line ends with the separator"
        elif self.num_classes is not None and label == str(self.num_classes):
            hint = " (MODEL.NUM_CLASSES is one more): labels count from 0"
        elif any(is_whole_number(part) for part in label.replace(";", ",").replace("|", ",").split(",")[1:]):
            hint = _ONE_LABEL
        fitting = self._fitting(fields)
        if fitting:
            hint += f"; separator {fitting!r} fits: {self.setting} {_shell(fitting)}"
        raise AnnotationError(
            f"{self.source}:{number}: label {label!r} of {texts[0]!r}, expected a whole number {expected}{hint}"
        )

    def _check_number(self, number: int, fields: list[bytes], texts: list[str], expected: str) -> None:
        """Refuse `path number label` if the number can't be that of the frames in a folder."""
        path, middle, _ = texts
        if self.with_lengths and is_number(middle):
            return
        if not is_whole_number(middle) or len(middle) > _MOST_DIGITS:
            spaces = _WITH_SPACES if self.separator == " " else ""
            self.refuse(number, fields, f"has 3 fields, {expected}, or a number of frames between the two{spaces}")
        place = os.path.join(self.root, path)
        if (is_video_name(path) or parse_packed(path)) and not os.path.isdir(place):
            reason = f"has 3 fields for a video file, {expected}{_ONE_LABEL}"
            self.refuse(number, fields, f"{reason}, and a number of frames may follow only a folder of frames")
        self.num_with_frames += 1
        is_looked_for = self.num_with_frames & (self.num_with_frames - 1) == 0  # the 1st, 2nd, 4th, 8th, ...
        reason = contradiction(place, int(middle), look=is_looked_for)
        if reason:
            self.refuse(number, fields, f"{reason}, expected a number of frames before the label{_ONE_LABEL}")

    def _several_labels(self, texts: list[str]) -> str:
        if all(is_whole_number(text) for text in texts):
            return _ONE_LABEL
        return f", or a number of frames between the two{_WITH_SPACES if self.separator == ' ' else ''}"


def _is_far(path: bytes) -> bool:
    """Return True if the part after the last @, in a tar's member `@OFFSET+SIZE`, is unusually long."""
    return len(path) - path.rindex(b"@") > 20


_ONE_LABEL = "; a video has one label, several are not supported"
_WITH_SPACES = "; a path with spaces needs another separator, or quotes"


def _shell(separator: str) -> str:
    """Return a separator as it is written on a command line."""
    return r'"\t"' if separator == "\t" else f'"{separator}"'
