"""Likely mistakes in a line of a plain list: a header, another separator, several labels."""

import csv
import os
import re

from videoattn.data.readers.decode_error import DecodeError
from videoattn.data.readers.frame_files import FrameReader, is_frame_range
from videoattn.data.readers.packed import is_url, parse_packed

_SEPARATORS = ("\t", ",", ";", " ", "|")
_MOST_BYTES = 4095  # of a path, on Linux
_MAX_PLACE = 2**63 - 1  # in a file
_PATH_NAMES = {"path", "paths", "video_path", "file_path", "filepath", "filename", "file_name", "video_name", "file"}
_NAMES = _PATH_NAMES | {
    "video", "video_id", "id", "name", "clip", "label", "labels", "class", "class_id", "class_name", "target",
    "category", "num_frames", "frames", "n_frames", "length", "duration", "split", "youtube_id", "time_start",
    "time_end", "is_cc",
}  # fmt: skip


def is_whole_number(text: str) -> bool:
    """Return True if a text is a whole number in ASCII digits."""
    return text.isascii() and text.isdigit()


def is_number(text: str) -> bool:
    """Return True if a text is a whole number or a decimal fraction in ASCII digits, such as 2.5."""
    whole, _, part = text.partition(".")
    return is_whole_number(whole) and (not part or is_whole_number(part))


def is_header(fields: list[str]) -> bool:
    """Return True if fields name columns, with any usual separator."""
    names = re.split(r"[\s,;|]+", " ".join(fields).lower().replace('"', ""))
    if len(names) > 1:
        return set(names) <= _NAMES
    return names[0] in _PATH_NAMES


def fitting_separator(line: str, separator: str) -> str | None:
    """Return the separator, other than `separator`, that divides a line into a path and a label, or None."""
    for other in _SEPARATORS:
        if other == separator or other not in line:
            continue
        try:
            fields = next(csv.reader([line], delimiter=other, strict=True))
        except csv.Error:
            continue
        if len(fields) == 2 and fields[0] and is_whole_number(fields[1]):
            return other
    return None


def path_mistake(path: str, root: str) -> str:
    """Return the problem of a path that is visible without reading the file, or ""."""
    packed = parse_packed(path)
    if packed is not None and packed.offset + packed.size > _MAX_PLACE:
        return "names a place beyond the end of any file"
    if is_url(path):
        return "is a URL with a line break" if "\n" in path else ""
    if len(os.fsencode(path)) > _MOST_BYTES:
        return f"has a path of {len(os.fsencode(path))} bytes, expected at most {_MOST_BYTES}"
    if "\n" in path and not os.path.lexists(os.path.join(root, path)):
        return "continues on the next line because of a quote, but there is no such file; expected quotes to be closed"
    return ""


def contradiction(place: str, number: int, *, look: bool) -> str:
    """Return the reason why `number` can't be that of the frames at `place`, or ""; read the disk only if `look`.

    Frames may have been left out or extracted at another rate, so up to twice or half as many are accepted.
    """
    if not number:
        return "has 0 between path and label"
    if not is_frame_range(place):
        if not look or is_url(place) or not os.path.exists(place):
            return ""
        if not os.path.isdir(place):
            return f"has {number} between the path of a file and its label"
    try:
        num_frames = FrameReader(place, 1.0).num_frames
    except DecodeError:  # a folder without frames, which reading it will say
        return ""
    if num_frames / 2 <= number <= num_frames * 2:
        return ""
    return f"has {number} between path and label, but {num_frames} frames are there"
