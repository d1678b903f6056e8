"""Videos inside tar files, named by their place: `FOLDER/train-000003.tar/MEMBER@OFFSET+SIZE`.

OFFSET and SIZE are decimal numbers that give the place of the member's bytes, so that a reader requests them alone,
without the tar's headers; the member's name is for people. Lists accept such a path wherever they accept a file, so
videos of shards are drawn, skipped and resumed like files. A shard may lie wherever fsspec reads: a path that begins
like a URL (`s3://bucket/k400/train-000003.tar/...`, also chained, `filecache::s3://...`) goes to the file system of
that name. Only uncompressed tars can be read this way.
"""

import io
import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from videoattn.data.readers.decode_error import DecodeError, reason_of

_LOCAL = (OSError, ValueError)  # ValueError: no file can have such a name
_PACKED = re.compile(r"(.+\.tar)/(.+)@([0-9]+)\+([0-9]+)", re.DOTALL)
_URL = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]*://")


class PackedVideo(NamedTuple):
    """A member of a tar: `size` bytes of the file `shard` from `offset` on."""

    shard: str
    member: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.member}@{self.offset}+{self.size}"


class NamedBytes(io.BytesIO):
    """Bytes as an open file, with a name for messages."""

    def __init__(self, name: str, content: bytes) -> None:
        super().__init__(content)
        self.name = name


def is_url(path: str) -> bool:
    """Return True if a path is a URL, `s3://...`, or a chain of them, `filecache::s3://...`."""
    return _URL.match(path) is not None


def parse_packed(path: str) -> PackedVideo | None:
    """Parse a path `SHARD.tar/MEMBER@OFFSET+SIZE`; return None for any other path."""
    match = _PACKED.fullmatch(path)
    return None if match is None else PackedVideo(match[1], match[2], int(match[3]), int(match[4]))


def read_packed(video: PackedVideo) -> bytes:
    """Return all bytes of the member.

    Raises DecodeError if the shard does not exist, cannot be read, or ends before the member does: it is then cut
    short, since the list was made from more bytes. Raises ValueError if fsspec does not know the protocol of a URL, or
    lacks the library for it.
    """
    if is_url(video.shard):
        files, path = _file_system(video)
        with _failures_named(video, Exception):  # each protocol's library has its own, without a common base
            content: bytes = files.cat_file(path, start=video.offset, end=video.offset + video.size)
    else:
        with _failures_named(video, *_LOCAL), open(video.shard, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size  # asked first: no memory is taken for what is not there
            stream.seek(min(video.offset, size))
            content = stream.read(min(video.size, max(0, size - video.offset)))
    if len(content) > video.size:
        raise DecodeError(
            f"{video}: the file system returned {len(content)} bytes, expected a range of {video.size}",
            "unreadable",
        )
    if len(content) < video.size:
        raise DecodeError(
            f"{video}: the shard has {len(content)} of these {video.size} bytes: it is cut short, or is not the one "
            "from which the list was made",
            "cut_short",
        )
    return content


def shard_state(video: PackedVideo) -> tuple[int, int]:
    """Return size and time of change (in nanoseconds) of the shard, each -1 if a file system keeps no such time.

    Raises DecodeError and ValueError as `read_packed` does.
    """
    if not is_url(video.shard):
        with _failures_named(video, *_LOCAL):
            status = os.stat(video.shard)
        return status.st_size, status.st_mtime_ns
    files, path = _file_system(video)
    with _failures_named(video, Exception):
        try:
            return int(files.size(path)), int(files.modified(path).timestamp() * 1e9)
        except NotImplementedError:
            return -1, -1


@contextmanager
def _failures_named(video: PackedVideo, *expected: type[Exception]) -> Iterator[None]:
    """Turn errors of a file system into DecodeError."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DecodeError(f"{video}: the shard does not exist", "missing") from error
    except expected as error:
        raise DecodeError(f"{video}: the shard cannot be read: {reason_of(error)}", "unreadable") from error


def _file_system(video: PackedVideo) -> tuple[Any, str]:
    """Return fsspec's file system of a shard's URL, which fsspec caches in this process, and the path there."""
    import fsspec

    try:
        with _failures_named(video, OSError):
            files, path = fsspec.core.url_to_fs(video.shard)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{video.shard}: expected a URL that fsspec can read: {error}") from error
    return files, path


def shard_names(folder: Path, split: str, endings: tuple[str, ...] = (".tar",)) -> list[str]:
    """Return the sorted names of the files `{split}-*.tar`, or with other endings, of a folder, if it exists."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(name for name in names if name.startswith(f"{split}-") and name.endswith(endings))


def tar_members(file: str | os.PathLike[str]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """Yield the regular files of a local tar in its order, each with the open tar, whose `extractfile` reads it.

    Only headers are read. Raises ValueError if the file is no uncompressed tar, has links or sparse files (their bytes
    are elsewhere), or does not end as a whole tar does.
    """
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.islnk() or member.issym() or member.issparse():
                    raise ValueError(f"{file}: {member.name} is a link or a sparse file, expected regular files")
                if member.isreg():
                    yield member, tar
            with open(file, "rb") as stream:  # tarfile takes any damaged header for the end
                stream.seek(tar.offset)
                if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise ValueError(f"{file}: has no end mark at byte {tar.offset}: it is cut short or damaged")
    except tarfile.TarError as error:
        raise ValueError(f"{file}: cannot be read as an uncompressed tar: {error}") from error
