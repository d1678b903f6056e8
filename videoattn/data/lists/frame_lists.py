"""PySlowFast's lists of extracted frames, one frame a line."""

import os
import re

from videoattn.data.lists.list_lines import decoded
from videoattn.data.lists.video_list import AnnotationError

_HEADERS = (b"original_vido_id video_id frame_id path labels", b"original_video_id video_id frame_id path labels")
_MARK = b"\xef\xbb\xbf"
_NUMBERED = re.compile(rb"(.*?)([0-9]{1,18})(\.[A-Za-z]+)", re.DOTALL)


def is_frame_list(file: str) -> bool:
    """Return True if the first line is the header of a list of frames."""
    if not os.path.isfile(file):
        return False
    with open(file, "rb") as lines:
        return lines.readline().removeprefix(_MARK).strip() in _HEADERS


def read_frame_list(file: str) -> dict[str, tuple[int, str]]:
    """Return, for each video, its first line and its frames as one path `{id}/{id}_{000001..000120}.jpg`.

    The columns are `original_vido_id video_id frame_id path labels`; the first and the path are read. Raises
    AnnotationError if a line has other fields, is empty (except at the end of the file) or not UTF-8 text, if the
    numbers in the names have a gap, naming the file that was expected, or if the lines of a video do not follow each
    other.
    Source: PySlowFast, datasets/utils.py, load_image_lists.
    """
    videos: dict[str, tuple[int, str]] = {}
    begun: dict[bytes, int] = {}
    video, before, first, number, after = b"", b"", b"", -1, b""
    width = empty = 0

    def close() -> None:
        last = b"%0*d" % (width, number)
        videos[video.decode()] = (begun[video], (before + b"{" + first + b".." + last + b"}" + after).decode())

    try:
        with open(file, "rb") as lines:
            next(lines)
            for place, line in enumerate(lines, start=2):
                fields = line.split()
                if not fields:
                    empty = empty or place
                    continue
                if empty:
                    raise AnnotationError(f"{file}:{empty}: is an empty line, expected {_HEADERS[0].decode()}")
                if not line.isascii():
                    decoded(line, f"{file}:{place}")
                if len(fields) != 5:
                    raise AnnotationError(f"{file}:{place}: {len(fields)} fields, expected {_HEADERS[0].decode()}")
                path = fields[3].strip(b'"')
                if fields[0] == video:
                    number += 1
                    if path != b"%b%0*d%b" % (before, width, number, after):
                        expected = (b"%b%0*d%b" % (before, width, number, after)).decode()
                        raise AnnotationError(f"{file}:{place}: {path.decode()!r}, expected {expected!r} to follow")
                    continue
                if video:
                    close()
                video = fields[0]
                if video in begun:
                    raise AnnotationError(
                        f"{file}:{place}: video {video.decode()} again, which began at line {begun[video]}; expected "
                        "the lines of a video to follow each other"
                    )
                begun[video] = place
                match = _NUMBERED.fullmatch(path)
                if match is None:
                    raise AnnotationError(f"{file}:{place}: {path.decode()!r}, expected a name that ends in a number")
                before, first, after = match.groups()
                number, width = int(first), len(first) if first.startswith(b"0") else 0
    except OSError as error:
        raise AnnotationError(f"{file}: cannot be read: {error.strerror}") from error
    if not video:
        raise AnnotationError(f"{file}: has a header and no frames")
    close()
    return videos
