"""Files that are written whole or not at all, what a file looks like, and the folder for what can be had again."""

import errno
import hashlib
import os
import re
import struct
import uuid
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What reading a zip archive with damaged headers raises.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, EOFError, ValueError, OverflowError)


def cache_folder() -> Path:
    """Return the folder of fetched weights and compiled kernels: VIDEOATTN_CACHE, else ~/.cache/videoattn."""
    return Path(os.environ.get("VIDEOATTN_CACHE") or Path.home() / ".cache/videoattn")


def shipped_folder(name: str) -> Path:
    """Return the folder `configs` or `model_zoo`: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).parent
    installed = package / "shipped" / name
    return installed if installed.is_dir() else package.parent / name


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal, as sha256sum prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file; of a folder, that of the sorted names and SHA-256 of the files in it."""
    if not os.path.isdir(path):
        return file_sha256(path)
    listed = [f"{file_sha256(file)}  {file.name}\n" for file in sorted(Path(path).iterdir()) if file.is_file()]
    return hashlib.sha256("".join(listed).encode()).hexdigest()


@contextmanager
def atomic_write(path: str | os.PathLike[str], unfinished: Path | None = None) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; on leaving, flush it to the disk and rename it to `path`.

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
            twice = [name for name, count in Counter(archive.namelist()).items() if count > 1]
            if twice:  # a program that reads the other of the two would read what is not checked here
                raise zipfile.BadZipFile(f"it holds {twice[0]} twice")
            damaged = archive.testzip()
    except (*_ZIP_ERRORS, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # an offset before the start of the file
            raise
        raise ValueError(f"{path} is damaged or cut short: {error}") from error
    if damaged is not None:
        member = damaged.partition("/")[2] or damaged  # the first folder is the name that the file was written under
        raise ValueError(f"{path} is damaged: the checksum (CRC-32) of {member} in it is wrong")


# How files begin that are often found in the place of another.
_STARTS: tuple[tuple[bytes, str], ...] = (
    (rb"version https://git-lfs", "a Git LFS pointer; `git lfs pull` fetches the file itself"),
    (rb"\x1f\x8b", "compressed with gzip; unpack it first"),
    (rb"BZh[1-9]", "compressed with bzip2; unpack it first"),
    (rb"\xfd7zXZ\x00", "compressed with xz; unpack it first"),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (rb".{257}ustar", "a tar archive; unpack it first"),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive"),
    (rb"\x89HDF\r\n", "an HDF5 file"),
    (rb"\x93NUMPY", "a NumPy file"),
    (rb"\x80[\x02-\x05]", "a pickle"),
    (rb"\x00{64}", "empty space, all zeros at its start"),
    (rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|\?xml.*<(!doctype\s+)?html|head|body)\b", "an HTML page"),
    (rb"(\xef\xbb\xbf)?\s*<[?!a-z]", "an XML document"),
    (rb"(\xef\xbb\xbf)?\s*[\[{]\s*[\]}\[{\"\w-]", "JSON"),
)
_TEXTS = ("an XML document", "JSON")  # their first words tell what went wrong


def describe_content(path: str | os.PathLike[str]) -> str | None:
    """Return what the first bytes of a file look like, such as "an HTML page"; None if they tell nothing."""
    with open(path, "rb") as file:
        start = file.read(1024)
    if not start:
        return "empty"
    line = re.sub(rb"^\xef\xbb\xbf", b"", start).strip()[:60].split(b"\n")[0]
    quoted = f"{line.decode()!r}" if re.fullmatch(rb"[\x20-\x7e]{4,}", line) else None
    for pattern, name in _STARTS:
        if re.match(pattern, start, re.DOTALL | re.IGNORECASE):
            return f"{name} that begins with {quoted}" if quoted and name in _TEXTS else name
    return quoted and f"text that begins with {quoted}"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
