"""Plain lists, one `path label` a line."""

import csv
import os
from array import array
from collections.abc import Sequence

import numpy as np

from videoattn.data.annotations.video_list import UNLABELLED, AnnotationError, VideoList

_MAX_LABEL = 2**31 - 1
_QUOTE = b'"'


def read_kinetics_csv(
    file: str | os.PathLike[str], *, separator: str = " ", prefix: str = "", num_classes: int | None = None
) -> VideoList:
    """A file without header, one video a line: `path`, `path label` or `path number label` (the number is ignored).

    Either all lines have a label or none. With a comma, fields may be quoted. A path with spaces needs another
    separator. Raises AnnotationError at the first line that is not as described.
    Source: PySlowFast, datasets/kinetics.py. Differs: a video without a label gets -1, not class 0.
    """
    source = os.fspath(file)
    if len(separator) != 1 or separator in '\r\n"':
        raise ValueError(f"separator {separator!r}, expected one character")
    blob, ends, labels = bytearray(), array("q", [0]), array("i")
    delimiter = separator.encode()
    limit = _MAX_LABEL if num_classes is None else num_classes - 1
    labelled: bool | None = None
    try:
        with open(source, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                fields = line.rstrip(b"\r\n").split(delimiter)
                if not line.isascii() or _QUOTE in line:
                    fields = _slow_fields(line, separator, f"{source}:{number}")
                count = len(fields)
                path, label = fields[0], fields[-1]
                if not path or count > 3 or (count == 3 and separator == " " and not fields[1].isdigit()):
                    raise AnnotationError(f"{source}:{number}: {_wrong_fields(line, fields, separator)}")
                if count == 1:
                    value = UNLABELLED
                elif label.isdigit() and len(label) < 11 and (value := int(label)) <= limit:
                    pass
                else:
                    expected = "0 or more" if num_classes is None else f"from 0 to {num_classes - 1}"
                    raise AnnotationError(
                        f"{source}:{number}: label {label.decode()!r} of {path.decode()!r}, "
                        f"expected a whole number {expected}"
                    )
                if (count > 1) is not labelled:
                    if labelled is not None:
                        raise AnnotationError(
                            f"{source}:{number}: {line.decode().strip()!r} {'lacks' if labelled else 'has'} a label, "
                            f"unlike the lines before it; expected labels (after {separator!r}) in all lines or in none"
                        )
                    labelled = count > 1
                blob += path
                ends.append(len(blob))
                labels.append(value)
    except OSError as error:
        raise AnnotationError(f"{source}: cannot be read: {error.strerror}") from error
    if not labels:
        raise AnnotationError(f"{source}: is empty, expected one video a line: path{separator}label")
    root = prefix or os.path.dirname(os.path.abspath(source))
    return VideoList(bytes(blob), np.frombuffer(ends, np.int64), np.frombuffer(labels, np.int32), root, source)


def _slow_fields(line: bytes, separator: str, place: str) -> list[bytes]:
    """The fields of a line that is not plain ASCII or may hold quoted fields."""
    try:
        text = line.decode().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{place}: {line.strip()!r} is not UTF-8 text: byte {error.start + 1}") from error
    if separator != "," or '"' not in text:
        return [field.encode() for field in text.split(separator)]
    try:
        return [field.encode() for field in next(csv.reader([text], strict=True))]
    except csv.Error as error:
        raise AnnotationError(f"{place}: {text!r}: {error}; expected quoted fields to end on their line") from error


def _wrong_fields(line: bytes, fields: Sequence[bytes], separator: str) -> str:
    text = line.decode().rstrip("\r\n")
    expected = f"expected path{separator}label with separator {separator!r}"
    if not text.strip():
        return f"is an empty line, {expected}"
    if not fields[0]:
        return f"{text!r} has no path, {expected}"
    hint = "; a path with spaces needs another separator" if separator == " " else ""
    return f"{text!r} has {len(fields)} fields, {expected}, or a number between the two{hint}"
