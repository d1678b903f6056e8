"""Downloads: from several places, continued after a break, checked, and never left half done.

A file takes its name only after it was accepted: by its known SHA-256, or by a check that the caller gives.
"""

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from videoattn.files import atomic_write, file_sha256
from videoattn.zoo.hub import PREFIX, hub_transfer
from videoattn.zoo.transfer import RefusedError, drop_part, transfer


class DownloadError(Exception):
    """A file that could not be fetched, or is not the one expected; the message says what to do."""


def fetch(
    urls: Sequence[str],
    path: Path,
    sha256: str | None = None,
    accept: Callable[[Path], None] | None = None,
    progress: bool = True,
) -> Path:
    """Return `path`, fetched from the first of `urls` that gives the file unless it is there already.

    Where `sha256` is known, the file must have it. Otherwise `accept(file)` raises ValueError where it is not what is
    expected, and the checksum of the first accepted file is noted in `path`.sha256 and compared later. A transfer that
    breaks off is continued, also by the next call, if the server says that its file is still the same one (`path`.part
    and `path`.part.json hold it). Where several processes ask at once, one fetches and the others wait (an empty
    `path`.lock stays). Raises DownloadError, and OSError where the disk is at fault.
    """
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():
                _fetch_first(urls, path, sha256, accept, progress)
                return path
    _check_kept(path, sha256, accept)
    return path


def _check_kept(path: Path, sha256: str | None, accept: Callable[[Path], None] | None) -> None:
    note = _note(path)
    expected = sha256 or _noted(note)
    if expected is None:
        if accept is not None:
            try:
                accept(path)
            except ValueError as error:
                raise DownloadError(f"{path} is not the file that is wanted ({error}): remove it") from error
            with contextlib.suppress(OSError):  # a folder that others keep may be read-only
                _write_note(note, file_sha256(path))
        return
    found = file_sha256(path)
    if found != expected and sha256 is not None:
        raise DownloadError(f"{path} has sha256 {found}, expected {sha256}: remove it to fetch it again")
    if found != expected:
        raise DownloadError(
            f"{path} has sha256 {found}, but {note} noted {expected} when the file was first accepted: remove both to "
            "fetch it again, or the note alone if you replaced the file"
        )


def _fetch_first(
    urls: Sequence[str], path: Path, sha256: str | None, accept: Callable[[Path], None] | None, progress: bool
) -> None:
    partial, note = path.with_name(f"{path.name}.part"), _note(path)
    noted = _noted(note) if sha256 is None else None
    answers = []
    for url in urls:
        try:
            if url.startswith(PREFIX):
                hub_transfer(url, partial)
            else:
                transfer(url, partial, progress)
            found = file_sha256(partial)
            try:
                _check_fetched(partial, found, sha256, accept)
                if noted is not None and found != noted:
                    raise RefusedError(
                        f"what came has sha256 {found}, but {note} noted {noted} of an earlier file: "
                        f"remove {note} to accept the new one"
                    )
            except RefusedError:
                drop_part(partial)
                raise
        except RefusedError as reason:
            place = url if url.startswith(PREFIX) else urlsplit(url).netloc or url
            answers.append(f"{place}: {reason}")
            continue
        if sha256 is None:
            _write_note(note, found)
        os.replace(partial, path)
        drop_part(partial)
        return
    raise DownloadError("; ".join(answers) or "no address is known")


def _check_fetched(partial: Path, found: str, sha256: str | None, accept: Callable[[Path], None] | None) -> None:
    """Raise RefusedError unless what was fetched is the file that is wanted."""
    if partial.stat().st_size == 0:
        raise RefusedError("an empty file came")
    if sha256 is not None:
        if found != sha256:
            raise RefusedError(f"what came has sha256 {found}, expected {sha256}")
    elif accept is not None:
        try:
            accept(partial)
        except ValueError as error:
            raise RefusedError(f"what came is refused: {error}".replace(str(partial), partial.stem)) from error


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _noted(note: Path) -> str | None:
    if not note.is_file():
        return None
    found = re.match(rb"[0-9a-f]{64}\b", note.read_bytes())
    if found is None:
        raise DownloadError(f"{note} does not begin with a SHA-256: remove it")
    return found[0].decode()


def _write_note(note: Path, found: str) -> None:
    with atomic_write(note) as temporary:
        temporary.write_text(f"{found}  {note.name.removesuffix('.sha256')}\n", encoding="utf-8")
