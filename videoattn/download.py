"""Fetching files: from several places, continuing what was broken off, checked, and never half there."""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from videoattn.files import atomic_write

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30.0


class DownloadError(Exception):
    """A file that could not be fetched; the message says what each place answered."""


def fetch(urls: Sequence[str], path: Path, sha256: str | None = None, progress: bool = True) -> Path:
    """The file at `path`, fetched from the first of `urls` that gives it unless it is there already.

    Where several processes ask at once, one fetches and the others wait (an empty `path`.lock stays). A transfer that
    breaks off leaves `path`.part, which the next call continues where the server can. The checksum is compared with
    `sha256`, or where that is not known with what the first download noted in `path`.sha256. Raises DownloadError.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():
                _fetch_first(urls, path, sha256, progress)
                return path
    sha256 = sha256 or _noted(path)
    if sha256 is not None and (found := checksum(path)) != sha256:
        raise DownloadError(f"{path} has sha256 {found}, expected {sha256}: remove it to fetch it again")
    return path


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _noted(path: Path) -> str | None:
    note = _note(path)
    return note.read_text(encoding="utf-8").split()[0] if note.is_file() else None


def _fetch_first(urls: Sequence[str], path: Path, sha256: str | None, progress: bool) -> None:
    sha256 = sha256 or _noted(path)
    partial = path.with_name(f"{path.name}.part")
    answers = []
    for url in urls:
        try:
            _transfer(url, partial, progress)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            answers.append(f"{url.split('/')[2] if '//' in url else url}: {reason}")
            continue
        found = checksum(partial)
        if sha256 is not None and found != sha256:
            partial.unlink()
            answers.append(f"{url.split('/')[2]}: what came has sha256 {found}, expected {sha256}")
            continue
        os.replace(partial, path)
        if sha256 is None:
            with atomic_write(_note(path)) as temporary:
                temporary.write_text(f"{found}  {path.name}\n", encoding="utf-8")
        return
    raise DownloadError("; ".join(answers) or "no address is known")


def checksum(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _transfer(url: str, partial: Path, progress: bool) -> None:
    """Fetch `url` into `partial`, continuing what is there if the server can. Raises OSError or ValueError."""
    from tqdm import tqdm

    start = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left to fetch, or the part is of something else
            partial.unlink()
            return _transfer(url, partial, progress)
        raise
    with answer:
        kind = answer.headers.get("Content-Type", "")
        if kind.startswith("text/html"):
            raise ValueError("a web page came instead of the file")
        continued = answer.status == 206
        length = answer.headers.get("Content-Length")
        total = int(length) + (start if continued else 0) if length else None
        with (
            partial.open("ab" if continued else "wb") as file,
            tqdm(total=total, initial=start if continued else 0, unit="B", unit_scale=True, unit_divisor=1024,
                 desc=partial.stem, disable=not progress) as bar,
        ):  # fmt: skip
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and partial.stat().st_size != total:
        raise ValueError(f"{partial.stat().st_size} of {total} bytes came; the same command continues")
    return None
