"""One transfer over HTTP into a partial file, which the next transfer continues if the server still has that file."""

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from videoattn.files import atomic_write

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30.0  # of one read
_SLOW_SECONDS, _SLOW_BYTES = 60.0, 1 << 16  # less than this in that time is a transfer that stands still
_TRIES = 5  # of one address whose transfers break, as long as each brings something
_VERSION = re.compile(r"[ -~]+")  # an ETag or a date that can be sent back
# What a server's answer can raise besides, such as an address in a redirect that is none.
_ANSWER_ERRORS = (OSError, http.client.HTTPException, ValueError, OverflowError)


class RefusedError(Exception):
    """An address that does not give the file; the message says why."""


class _BrokenError(RefusedError):
    """A transfer that broke; the next may continue it."""


def transfer(url: str, partial: Path, progress: bool) -> None:
    """Fetch `url` into `partial`, continuing what is there of the same file. Raises RefusedError."""
    for tried in range(1, _TRIES + 1):
        part = _find_part(partial, url)
        before = partial.stat().st_size if part else 0
        try:
            _transfer_once(url, partial, part, progress)
            return
        except _BrokenError as error:
            continues = _find_part(partial, url) is not None
            if tried == _TRIES or not continues or partial.stat().st_size <= before:
                again = "continues" if continues else "begins anew, as the server can't continue"
                raise RefusedError(f"{error}; the same command {again}") from error


def drop_part(partial: Path) -> None:
    """Remove a partial file and its note."""
    partial.unlink(missing_ok=True)
    _part_note(partial).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Part:
    """Notes on a partial file: its address, its version (an ETag or a date) and the size of the whole."""

    url: str
    version: str
    total: int | None


def _part_note(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _find_part(partial: Path, url: str) -> _Part | None:
    """Return what is known of `partial` if a transfer of `url` can continue it; otherwise remove it."""
    try:
        part = _Part(**json.loads(_part_note(partial).read_text(encoding="utf-8")))
        if part.url == url and _VERSION.fullmatch(part.version) and partial.stat().st_size > 0:
            return part
    except (FileNotFoundError, ValueError, TypeError):  # of another program, or damaged
        pass
    drop_part(partial)
    return None


def _transfer_once(url: str, partial: Path, part: _Part | None, progress: bool) -> None:
    answer = _open(url, partial, part)
    rest = _find_rest(answer, partial, part) if part else None
    if part and rest is None and answer.status != 200:  # not the rest that was asked for, so ask for the whole
        answer.close()
        answer = _open(url, partial, None)
    with answer:
        if rest is None and answer.status != 200:
            raise RefusedError(f"the server answers with status {answer.status}, expected 200")
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise RefusedError("the file comes compressed, which was not asked for")
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise RefusedError("a web page came instead of the file")
        total = answer.length if rest is None else rest.total
        if rest is None:
            drop_part(partial)
            with atomic_write(_part_note(partial)) as temporary:
                temporary.write_text(json.dumps(asdict(_Part(url, _version(answer), total))), encoding="utf-8")
        _save(answer, partial, total, progress)


def _save(answer: Any, partial: Path, total: int | None, progress: bool) -> None:
    """Append what comes to `partial`. Raises _BrokenError where not all of it comes."""
    try:
        with (
            partial.open("ab") as file,
            tqdm(total=total, initial=file.tell(), unit="B", unit_scale=True, unit_divisor=1024, desc=partial.stem,
                 disable=not progress) as bar,
        ):  # fmt: skip
            for chunk in _chunks(answer):
                file.write(chunk)
                bar.update(len(chunk))
    except OSError as error:
        raise OSError(error.errno, f"can't write {partial}: {error.strerror}") from error
    size = partial.stat().st_size
    if total is not None and size != total:
        raise _BrokenError(f"{size} of {total} bytes came")


def _chunks(answer: Any) -> Iterator[bytes]:
    """Give the bytes of an answer as they come. Raises _BrokenError where the connection breaks or stands still."""
    since, count = time.monotonic(), 0
    while True:
        try:
            chunk = answer.read1(_CHUNK)
        except _ANSWER_ERRORS as error:
            raise _BrokenError(f"the transfer broke ({_words(error)})") from error
        if not chunk:
            return
        yield chunk
        count += len(chunk)
        if time.monotonic() - since > _SLOW_SECONDS:
            if count < _SLOW_BYTES:
                raise RefusedError(
                    f"only {count} bytes came in {_SLOW_SECONDS:g} seconds; the same command tries again"
                )
            since, count = time.monotonic(), 0


def _open(url: str, partial: Path, part: _Part | None) -> Any:
    """Return the server's answer: the rest of `part`, if that is given and the server can, else the whole file."""
    headers = {"User-Agent": "videoattn"}
    if part is not None:
        headers |= {"Range": f"bytes={partial.stat().st_size}-", "If-Range": part.version}
    try:
        request = urllib.request.Request(url, headers=headers)
        return urllib.request.build_opener(_Redirects).open(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416 and part is not None:
            return error  # it is an answer, too
        with error:
            raise RefusedError(f"the server answers {error.code} {_words(error.reason)}") from error
    except urllib.error.URLError as error:
        raise RefusedError(_words(error.reason)) from error
    except _ANSWER_ERRORS as error:
        raise RefusedError(_words(error)) from error


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but never from https to a connection that others can read and change."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new != "https" and (old, new) != ("http", "http"):
            fp.close()
            raise RefusedError(f"{old} is redirected to {new}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _version(answer: Any) -> str:
    """Return a file's version: its strong ETag, else the date of its last change, else nothing."""
    etag, date = answer.headers.get("ETag", ""), answer.headers.get("Last-Modified", "")
    version = etag if etag.startswith('"') else date
    return version if _VERSION.fullmatch(version) else ""


def _find_rest(answer: Any, partial: Path, part: _Part) -> _Part | None:
    """Return `part`, with the size that the answer says, if the answer is the rest of it."""
    said = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", answer.headers.get("Content-Range", "").strip())
    if answer.status != 206 or said is None or int(said[1]) != partial.stat().st_size:
        return None
    total = part.total if said[2] == "*" else int(said[2])
    if part.total not in (None, total) or _version(answer) not in ("", part.version):
        return None
    return replace(part, total=total)


def _words(error: object) -> str:
    """Return an error's message, or its type where it has none, in one line of bounded length."""
    return " ".join(str(error).split())[:200] or type(error).__name__
