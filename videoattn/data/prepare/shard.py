"""One tar file of samples in the format of webdataset: written, read back and compared.

A sample is two members one after the other: KEY.mp4, or the ending of the video's file, and KEY.cls, its label as
decimal text, if there is one. The file contains only contents and names, so that the same videos give the same bytes
anywhere.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from videoattn.data.readers.packed import tar_members

LABEL_ENDING = ".cls"
_new_digest = partial(hashlib.blake2b, digest_size=16)


class ShardSample(NamedTuple):
    """A video to be packed: its key, its file of `size` bytes, and its label, or -1."""

    key: str
    path: str
    size: int
    label: int


class _Member(NamedTuple):
    name: str
    size: int
    digest: str


class _DigestingReader:
    """A reader of a file that computes the digest of the bytes that were read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = _new_digest()

    def read(self, size: int) -> bytes:
        content = self._stream.read(size)
        self.digest.update(content)
        return content


def tar_bytes(size: int, label: int) -> int:
    """Return the bytes of a sample in a tar: a header for each member, and whole blocks for its content."""
    block = tarfile.BLOCKSIZE
    return block + -(-size // block) * block + (2 * block if label >= 0 else 0)


def write_shard(file: Path, samples: Iterable[ShardSample]) -> None:
    """Write a tar file and compare it with its sources. Raises OSError if a video's file changes meanwhile."""
    written: list[_Member] = []
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
        for sample in samples:
            written.append(_add_video(tar, sample))
            if sample.label >= 0:
                content = str(sample.label).encode()
                member = tarfile.TarInfo(sample.key + LABEL_ENDING)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
                written.append(_Member(member.name, member.size, _new_digest(content).hexdigest()))
    if read_back(file) != written:
        raise OSError(f"{file}: the file differs from what was written; is the disk damaged?")


def _add_video(tar: tarfile.TarFile, sample: ShardSample) -> _Member:
    member = tarfile.TarInfo(sample.key + os.path.splitext(sample.path)[1])
    member.size = sample.size
    with open(sample.path, "rb") as stream:
        reader: Any = _DigestingReader(stream)
        try:
            tar.addfile(member, reader)
        except OSError as error:
            raise OSError(error.errno, f"{sample.path} cannot be packed: {error.strerror or error}") from error
        if stream.read(1):
            raise OSError(f"{sample.path} cannot be packed: it has grown meanwhile")
    return _Member(member.name, member.size, reader.digest.hexdigest())


def read_back(file: Path) -> list[_Member]:
    """Return names and digests of all members, read at the places that their headers give, as training does."""
    members: list[_Member] = []
    with open(file, "rb") as stream:
        for member, _ in tar_members(file):
            stream.seek(member.offset_data)
            members.append(_Member(member.name, member.size, _new_digest(stream.read(member.size)).hexdigest()))
    return members
