"""Text of plain lists: one video a line, with fields quoted as in csv files where necessary."""

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from videoattn.data.lists.video_list import AnnotationError

Line = tuple[int, bytes, list[bytes]]  # the number of its first line in the file, from 1, its bytes, and its fields
_MARK, _UTF_16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_BLOCK_BYTES = 2**16
_LONGEST = 8192  # bytes of a line with a quoted line break: twice what Linux takes for a path


def parse_separator(text: str, setting: str = "DATA.PATH_LABEL_SEPARATOR") -> str:
    r"""Return the character between fields; `\t`, as a shell passes it on, is a tab. Raises ValueError."""
    separator = "\t" if text == r"\t" else text
    if len(separator) != 1 or separator in '\r\n"\0' or separator.isalnum():
        raise ValueError(f"{setting}: separator {text!r}, expected one character such as a space, a comma or \\t")
    return separator


def read_lines(file: str | os.PathLike[str], separator: str) -> Iterator[Line]:
    """Yield the lines of a list, without a byte order mark and empty lines at the end.

    Raises AnnotationError, naming the line, on an empty line before others, and on a line that is not UTF-8 text or
    whose quotes are not closed; also if the file cannot be read. Source of the quoting: RFC 4180.
    """
    source, delimiter, number, empty = os.fspath(file), separator.encode(), 0, 0
    try:
        with open(source, "rb") as stream:
            while block := stream.readlines(_BLOCK_BYTES):
                if not number:
                    block[0] = _without_mark(block[0], source)
                is_plain = _is_plain(b"".join(block))  # asked of many lines at a time, which is quicker
                lines = iter(block)
                for line in lines:
                    number += 1
                    body = line.rstrip(b"\r\n")
                    fields = body.split(delimiter)
                    if (len(fields) < 2 or not fields[0]) and (not body or body.isspace()):
                        empty = empty or number
                        continue
                    if empty:
                        raise AnnotationError(
                            f"{source}:{empty}: is an empty line, expected path{separator}label; only at the end of a "
                            "list may lines be empty"
                        )
                    if is_plain or _is_plain(body):
                        yield number, line, fields
                        continue
                    special, num_lines = _special_line(number, line, chain(lines, stream), separator, source)
                    yield special
                    number += num_lines - 1
    except OSError as error:
        raise AnnotationError(f"{source}: cannot be read: {error.strerror}") from error


def _is_plain(text: bytes) -> bool:
    """Return True if fields can be split without looking at the characters."""
    return text.isascii() and b'"' not in text and b"\r" not in text and b"\0" not in text


def format_line(fields: Sequence[str], separator: str, end: str = "\n") -> str:
    """Return the line of a list that `read_lines` reads as `fields`."""
    return separator.join(_quoted(field, separator) for field in fields) + end


def _quoted(field: str, separator: str) -> str:
    is_plain = not any(sign in field for sign in (separator, '"', "\r", "\n"))
    is_plain = is_plain and field == field.strip().strip("\ufeff")
    return field if is_plain else '"' + field.replace('"', '""') + '"'


def _without_mark(line: bytes, source: str) -> bytes:
    if line.startswith(_UTF_16):
        raise AnnotationError(f"{source}:1: is UTF-16 text, as Excel and PowerShell write it; expected UTF-8")
    return line.removeprefix(_MARK)


def _special_line(number: int, line: bytes, more: Iterator[bytes], separator: str, source: str) -> tuple[Line, int]:
    """Read a line with non-ASCII characters, quotes, or characters that no line should have.

    A quoted line break continues it on the lines after it. Returns also the number of lines of the file that it spans.
    """
    place = f"{source}:{number}"
    if b"\0" in line:
        raise AnnotationError(f"{place}: {line[:60]!r} contains a zero byte, expected text")
    text = decoded(line, place)
    if text.startswith("\ufeff"):
        raise AnnotationError(f"{place}: begins with a byte order mark, expected one at most, at the start of the file")
    if '"' not in text:
        if "\r" in text.rstrip("\r\n"):
            raise AnnotationError(
                f"{place}: {text[:60]!r} contains a carriage return, expected lines that end in a newline, and quotes "
                "around a path with such a character"
            )
        return (number, line, [field.encode() for field in text.rstrip("\r\n").split(separator)]), 1
    taken = [line]
    try:
        fields = next(csv.reader(_texts(text, more, taken, place), delimiter=separator, strict=True))
    except csv.Error as error:
        raise AnnotationError(
            f"{place}: {text.rstrip()[:200]!r}: {error}; expected quoted fields to end on their line, and a name that "
            'begins with a quote as """x"".mp4"'
        ) from error
    return (number, b"".join(taken), [field.encode() for field in fields]), len(taken)


def _texts(text: str, more: Iterable[bytes], taken: list[bytes], place: str) -> Iterator[str]:
    """Yield a line, and those after it that a quoted line break requires, which are appended to `taken`."""
    yield text
    for line in more:
        taken.append(line)
        if sum(map(len, taken)) > _LONGEST:
            raise csv.Error(f"a quoted field is longer than {_LONGEST} bytes")
        if b"\0" in line:
            raise csv.Error("a quoted field contains a zero byte")
        yield decoded(line, place)


def decoded(line: bytes, place: str) -> str:
    """Return the text of a line. Raises AnnotationError unless it is UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{place}: {line.strip()!r} is not UTF-8 text: byte {error.start + 1}") from error


def undecodable_place(file: str) -> str:
    """Return the line and byte (from 1) at which a file is not UTF-8 text."""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"line {number}, byte {error.start + 1}: {line.strip()[:60]!r}"
    return "at its end"
