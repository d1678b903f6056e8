"""Files that are written whole or not at all, and where those are kept that can be had again."""

import os
import struct
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What reading a zip archive with damaged headers raises.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, EOFError, ValueError, OverflowError)


def cache_folder() -> Path:
    """Where fetched weights and compiled kernels are kept: VIDEOATTN_CACHE, else ~/.cache/videoattn."""
    return Path(os.environ.get("VIDEOATTN_CACHE") or Path.home() / ".cache/videoattn")


@contextmanager
def atomic_write(path: str | os.PathLike[str], unfinished: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path` to write to; on leaving, it is flushed to the disk and takes the name `path`.

    On any error, Ctrl-C included, the temporary file is removed and an older `path` stays as it was. Raises OSError
    naming `path` where it can't be written. Killing the process leaves at worst a hidden `.NAME.*.tmp` behind, in the
    folder `unfinished` where one (of the same disk) is given.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"can't write {path}: there is no folder {path.parent}")
    temporary = (unfinished or path.parent) / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        if os.name == "posix":
            _flush(path.parent)
    except OSError as error:
        raise OSError(error.errno, f"can't write {path}: {error.strerror or error}") from error
    except RuntimeError as error:  # torch.save reports a failed write only so
        if "inline_container" not in str(error):
            raise
        raise OSError(f"can't write {path}, is the disk full? {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_archive(path: str | os.PathLike[str]) -> None:
    """Raise ValueError if a zip archive, such as a file of `torch.save`, is damaged.

    Read every member and compare its CRC-32 with the stored one. `torch.load` does not: a flipped bit in a tensor
    loads as another number.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except _ZIP_ERRORS as error:
        raise ValueError(f"{path} is damaged or cut short: {error}") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged: the checksum (CRC-32) of {damaged} in it is wrong")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
