"""Probes of video files: existence, integrity, length, size, codec and content, as one line of JSON a file."""

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from videoattn.data.readers.frame_files import is_frame_range
from videoattn.data.readers.open_video import DecodeError, DecodeOptions
from videoattn.data.readers.packed import NamedBytes, PackedVideo, parse_packed, read_packed, shard_state

Decode = Literal["none", "sample", "all"]


@dataclass(frozen=True)
class ProbeOptions:
    """Options that decide the probe of a given file.

    `decode`: no frame, the first, middle and last frame, or all of them. `decoding` opens files as training does.
    """

    decode: Decode = "sample"
    decoding: DecodeOptions = DecodeOptions()

    def __str__(self) -> str:
        return f"{self.decode} {self.decoding.backend}"


class Probe(NamedTuple):
    """The facts of one file; `problem` is the kind of problem that makes it unusable, or "".

    `size` in bytes and `mtime_ns` are -1 if there is no file, or if the next probe of the same file may give another
    result; for a video inside a tar they are the tar's. `digest` is that of all bytes of a video; for extracted frames
    it is their path. Width and height are as stored, before any rotation. `sequential_reason` is the reason for
    sequential decoding, "" if the reader can seek.
    """

    path: str
    options: str
    size: int = -1
    mtime_ns: int = -1
    digest: str = ""
    num_frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0
    codec: str = ""
    sequential_reason: str = ""
    problem: str = ""
    detail: str = ""

    def to_json(self) -> str:
        """Return the line that `read_probe` reads."""
        return json.dumps(self._asdict())  # in ASCII: names of files may be no UTF-8


def read_probe(line: str) -> Probe | None:
    """Return the probe of a line of JSON, or None if the line is cut off or is no probe."""
    try:
        return Probe(**json.loads(line))
    except (ValueError, TypeError):
        return None


@dataclass(frozen=True)
class ProbeTask:
    """A file to probe, with size and time of change as of an earlier probe, or -1."""

    path: str
    size: int = -1
    mtime_ns: int = -1


@dataclass(frozen=True)
class Prober:
    """A function that probes one file, or returns None if it has not changed since an earlier probe.

    Extracted frames are probed anew each time. A file that training could not use is a problem, whatever is wrong with
    it; any error but DecodeError and OSError is raised.
    """

    options: ProbeOptions = ProbeOptions()

    def __call__(self, task: ProbeTask) -> Probe | None:
        make = partial(Probe, task.path, str(self.options))
        packed = parse_packed(task.path)
        if packed is not None:
            return self._probe_packed(packed, task, make)
        try:
            status = os.stat(task.path)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file can have such a name
            if is_frame_range(task.path):
                return self._probe_frames(task.path, make, "missing")
            return make(problem="missing", detail="does not exist")
        except OSError as error:
            return make(problem="unreadable", detail=str(error.strerror))
        if (status.st_size, status.st_mtime_ns) == (task.size, task.mtime_ns):
            return None
        if stat.S_ISDIR(status.st_mode):
            return self._probe_frames(task.path, make, "not_a_file")
        make = partial(make, size=status.st_size, mtime_ns=status.st_mtime_ns)
        if not stat.S_ISREG(status.st_mode):
            return make(problem="not_a_file", detail="is a folder, a pipe or a device")
        if not status.st_size:
            return make(problem="empty", detail="has 0 bytes")
        try:
            make = partial(make, digest=content_digest(task.path))
        except OSError as error:
            return make(problem="unreadable", detail=str(error.strerror), mtime_ns=-1)
        return self._probe_video(task.path, make)

    def _probe_packed(self, packed: PackedVideo, task: ProbeTask, make: Callable[..., Probe]) -> Probe | None:
        try:
            size, mtime_ns = shard_state(packed)
            if mtime_ns >= 0 and (size, mtime_ns) == (task.size, task.mtime_ns):
                return None
            content = read_packed(packed)
        except DecodeError as error:
            return make(problem=error.kind, detail=str(error).removeprefix(f"{packed}: "))
        make = partial(make, size=size, mtime_ns=mtime_ns)
        if not content:
            return make(problem="empty", detail="has 0 bytes")
        make = partial(make, digest=_new_digest(content).hexdigest())
        return self._probe_video(NamedBytes(task.path, content), make)

    def _probe_frames(self, path: str, make: Callable[..., Probe], unusable: str) -> Probe:
        make = partial(make, digest=f"path {path}", codec="frames")
        try:
            with self.options.decoding.open(path) as reader:
                first, *_ = reader.read([0])
                make, unusable = partial(make, num_frames=reader.num_frames, fps=reader.fps), "damaged"
                make = partial(make, height=first.shape[0], width=first.shape[1])
                self._decode(reader)
        except DecodeError as error:
            return make(problem=unusable, detail=str(error).removeprefix(f"{os.path.abspath(path)}: "))
        return make()

    def _decode(self, reader: Any) -> None:
        if self.options.decode == "all":
            reader.decode_all()
        elif self.options.decode == "sample":
            reader.read([0, reader.num_frames // 2, reader.num_frames - 1])

    def _probe_video(self, video: str | NamedBytes, make: Callable[..., Probe]) -> Probe:
        try:
            with self.options.decoding.open(video) as reader:
                scan = reader.scan
                assert scan is not None  # the video is a file
                make = partial(
                    make, num_frames=scan.num_frames, fps=scan.fps, width=scan.width, height=scan.height,
                    codec=scan.codec, sequential_reason=scan.sequential_reason,
                )  # fmt: skip
                if scan.num_present < scan.num_frames:
                    detail = f"its index lists {scan.num_frames} frames, {scan.num_present} are there"
                    return make(problem="cut_short", detail=detail)
                if not scan.width or not scan.height:
                    return make(problem="zero_size", detail=f"its frames are {scan.width}x{scan.height}")
                self._decode(reader)
        except DecodeError as error:
            name = os.path.abspath(video) if isinstance(video, str) else video.name
            return make(problem=error.kind, detail=str(error).removeprefix(f"{name}: "))
        return make()


def content_digest(path: str) -> str:
    """Return 128 bits of BLAKE2b of the whole file. It is read just before decoding, so the disk is read once."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, _new_digest).hexdigest()


_new_digest = partial(hashlib.blake2b, digest_size=16)
