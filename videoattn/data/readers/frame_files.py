"""Extracted frames, one picture each: a folder of them, or a numbered range of files."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from videoattn.data.readers.base import Image, VideoReader
from videoattn.data.readers.decode_error import DecodeError, reason_of
from videoattn.data.readers.pictures import read_picture

_ENDINGS = (".jpg", ".jpeg", ".png")
_NUMBERED = re.compile(r"(.*?)([0-9]+)\.[A-Za-z]+", re.DOTALL)
_RANGE = re.compile(r"(.*)\{([0-9]+)\.\.([0-9]+)\}([^{}/]*)", re.DOTALL)
_FLOW = ("flow_", "flow-")  # optical flow that lies beside the frames


def is_frame_range(path: str) -> bool:
    """Return True if a path has the form `folder/name_{00001..00120}.jpg`."""
    return _RANGE.fullmatch(path) is not None


class FrameReader(VideoReader):
    """The frames of a folder, or of a range `folder/name_{00001..00120}.jpg`, both ends included, as in a shell.

    A folder contains jpg or png files whose names end in numbers from 0 or 1 on, in natural order: img_00001.jpg,
    000001.jpg, frame_1.png. Only the wanted frames are opened. `fps` is the rate at which they were extracted. Raises
    DecodeError if the names do not form one sequence, naming a missing file, and on pictures that cannot be decoded or
    differ in size.
    """

    backend = "pillow"

    def __init__(self, path: str, fps: float, *, short_side: int = 0) -> None:
        if not fps > 0:
            raise ValueError(f"fps {fps} of {path}, expected a positive number")
        self._frames = _expand(path) if is_frame_range(path) and not os.path.isdir(path) else _list_frames(path)
        super().__init__(path, self._frames.count, fps, short_side=short_side)

    def close(self) -> None:
        """Do nothing: no file stays open between reads."""

    def _images(self, wanted: list[int]) -> Iterator[tuple[int, Image]]:
        expected: tuple[int, int] | None = None
        for number in wanted:
            image, size = self._decode(number)
            if size != (expected := expected or size):
                raise DecodeError(
                    f"{self._frames.file(number)}: is {size[0]}x{size[1]}, expected "
                    f"{expected[0]}x{expected[1]} as {self._frames.file(wanted[0])}"
                )
            yield number, image

    def _decode(self, number: int) -> tuple[Image, tuple[int, int]]:
        """Return a frame, upright and scaled, with its width and height before scaling."""
        file = self._frames.file(number)
        try:
            stream = open(file, "rb")
        except FileNotFoundError as error:
            raise DecodeError(f"{file}: does not exist, frame {number} of {self.num_frames} of {self.path}") from error
        except (OSError, ValueError) as error:
            raise DecodeError(f"{file}: cannot be read: {reason_of(error)}", "unreadable") from error
        with stream:
            return read_picture(file, stream, self._scaled_size)


class _Frames(NamedTuple):
    """Files `{before}{number}{after}` for `count` numbers from `first` on, with at least `width` digits."""

    before: str
    first: int
    width: int
    after: str
    count: int  # type: ignore[assignment]  # hides the method of tuples, which nobody needs here

    def file(self, number: int) -> str:
        return f"{self.before}{self.first + number:0{self.width}d}{self.after}"


def _expand(path: str) -> _Frames:
    match = _RANGE.fullmatch(path)
    assert match is not None
    before, first, last, after = match.groups()
    if int(last) < int(first):
        raise DecodeError(f"{path}: the range ends at {last}, before it begins at {first}")
    padded = any(number.startswith("0") and len(number) > 1 for number in (first, last))
    width = max(len(first), len(last)) if padded else 0
    return _Frames(before, int(first), width, after, int(last) - int(first) + 1)


def _list_frames(folder: str) -> _Frames:
    """Return the only sequence of a folder."""
    sequences: dict[str, dict[int, str]] = defaultdict(dict)  # by the part of names before their number
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise DecodeError(f"{folder}: cannot be read: {error.strerror}") from error
    for name in names:
        if name.startswith(".") or not name.lower().endswith(_ENDINGS):
            continue
        match = _NUMBERED.fullmatch(name)
        if match is None:
            raise DecodeError(f"{folder}: {name}, expected names of frames that end in a number")
        sequence, number = sequences[match[1]], int(match[2])
        if number in sequence:
            raise DecodeError(f"{folder}: {sequence[number]} and {name} have the same number, expected one of them")
        sequence[number] = name
    chosen = [before for before in sequences if not before.startswith(_FLOW)]
    if not chosen:
        raise DecodeError(f"{folder}: contains no frames, expected numbered files ending in {', '.join(_ENDINGS)}")
    if len(chosen) > 1:
        some = " and ".join(next(iter(sequences[before].values())) for before in sorted(chosen)[:2])
        raise DecodeError(f"{folder}: contains frames with several names, {some}, expected one sequence")
    return _check_sequence(folder, chosen[0], sequences[chosen[0]])


def _check_sequence(folder: str, before: str, names: dict[int, str]) -> _Frames:
    start, last = min(names), max(names)
    first, ending = 0 if start == 0 else 1, os.path.splitext(names[start])[1]
    digits = names[start][len(before) : -len(ending)]
    frames = _Frames(os.path.join(folder, before), first, len(digits), ending, last - first + 1)
    for number in range(frames.count):
        expected = os.path.basename(frames.file(number))
        if names.get(first + number) != expected:
            found = names.get(first + number)
            raise DecodeError(
                f"{folder}: {expected} is missing" + (f", there is {found}" if found else "")
                + f"; expected frames from {os.path.basename(frames.file(0))} to {names[last]} without gaps"
            )  # fmt: skip
    return frames
