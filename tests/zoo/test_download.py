"""Fetching files from a server in this process: whole, continued, checked, and from the next place."""

import hashlib
import json
import resource
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.zoo.loopback import Loopback, Request, loopback, reset, send, send_file
from videoattn.files import file_sha256
from videoattn.zoo import transfer
from videoattn.zoo.download import DownloadError, fetch

CONTENT = b"WEIGHTS " + bytes(range(256)) * 4_000  # 1 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


@pytest.fixture
def server() -> Iterator[Loopback]:
    """A server of /whole, which ignores ranges, /ranged, which knows them, and /page, which is a web page."""
    with loopback() as running:
        running.answers["/whole"] = lambda request: send(request, CONTENT)
        running.answers["/ranged"] = lambda request: send_file(request, CONTENT)
        running.answers["/page"] = lambda request: send(
            request, b"<html>quota exceeded</html>", headers={"Content-Type": "text/html"}
        )
        yield running


def is_content(path: Path) -> None:
    """Accept CONTENT alone, by its beginning and size."""
    content = path.read_bytes()
    if not content.startswith(b"WEIGHTS "):
        raise ValueError(f"{path} holds no weights")
    if len(content) != len(CONTENT):
        raise ValueError(f"{path} is cut short")


def leave_part(path: Path, content: bytes, **note: Any) -> None:
    path.with_name(f"{path.name}.part").write_bytes(content)
    if note:
        path.with_name(f"{path.name}.part.json").write_text(json.dumps(note))


def files_beside(path: Path) -> set[str]:
    return {other.name.removeprefix(path.name) for other in path.parent.iterdir()}


def test_of_several_that_ask_at_once_one_fetches(server: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "a.pyth"
    with ThreadPoolExecutor(4) as pool:
        urls = [f"{server.url}/ranged"]
        found = list(pool.map(lambda _: fetch(urls, path, None, is_content, progress=False), range(4)))
    assert found == [path] * 4 and len(server.asked) == 1
    assert path.read_bytes() == CONTENT


def test_a_file_is_fetched_once_and_its_checksum_noted(server: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.pyth"
    assert fetch([f"{server.url}/whole"], path, progress=False) == path
    assert path.read_bytes() == CONTENT and file_sha256(path) == SHA256
    assert (tmp_path / "deep/a.pyth.sha256").read_text() == f"{SHA256}  a.pyth\n"
    fetch([f"{server.url}/whole"], path, progress=False)
    assert len(server.asked) == 1
    assert files_beside(path) == {"", ".lock", ".sha256"}


@pytest.mark.parametrize(
    "body",
    [b"<!DOCTYPE html><html>", b"<?xml version='1.0'?><Error/>", b'{"error": 1}', b"", CONTENT[:HALF]],
    ids=["html", "xml", "json", "empty", "half"],
)
def test_what_is_not_accepted_is_neither_kept_nor_noted(server: Loopback, tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "a.pyth"
    server.answers["/other"] = lambda request: send(request, body, length=None)
    with pytest.raises(DownloadError, match="an empty file came|what came is refused: a.pyth (holds no|is cut short)"):
        fetch([f"{server.url}/other"], path, None, is_content, progress=False)
    assert files_beside(path) == {".lock"}
    fetch([f"{server.url}/other", f"{server.url}/whole"], path, None, is_content, progress=False)
    assert path.read_bytes() == CONTENT


def test_a_file_that_has_changed_since_is_refused_and_its_note_named(server: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "a.pyth"
    fetch([f"{server.url}/whole"], path, progress=False)
    path.write_bytes(b"something else")
    with pytest.raises(DownloadError, match=f"a.pyth has sha256 .* but .*a.pyth.sha256 noted {SHA256} .* remove both"):
        fetch([f"{server.url}/whole"], path, progress=False)
    with pytest.raises(DownloadError, match=f"a.pyth has sha256 .*, expected {SHA256}: remove it to fetch it again"):
        fetch([f"{server.url}/whole"], path, SHA256, progress=False)


def test_a_note_of_another_file_is_named_and_removing_it_helps(server: Loopback, tmp_path: Path) -> None:
    path, note = tmp_path / "a.pyth", tmp_path / "a.pyth.sha256"
    note.write_text("0" * 64 + "  a.pyth\n")
    with pytest.raises(DownloadError, match=f"has sha256 {SHA256}, but {note} noted 0000.*: remove {note} to accept"):
        fetch([f"{server.url}/whole"], path, None, is_content, progress=False)
    note.unlink()
    assert fetch([f"{server.url}/whole"], path, None, is_content, progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("text", ["", "x", "\xff"])
def test_a_damaged_note_is_named(server: Loopback, tmp_path: Path, text: str) -> None:
    (tmp_path / "a.pyth.sha256").write_bytes(text.encode("latin-1"))
    for _ in range(2):  # without the file and with it
        with pytest.raises(DownloadError, match=r"a\.pyth\.sha256 does not begin with a SHA-256: remove it"):
            fetch([f"{server.url}/whole"], tmp_path / "a.pyth", progress=False)
        (tmp_path / "a.pyth").write_bytes(CONTENT)


def test_a_file_that_somebody_put_there_is_noted_only_if_accepted(tmp_path: Path) -> None:
    path = tmp_path / "a.pyth"
    path.write_bytes(b"<html>")
    with pytest.raises(DownloadError, match=r"a\.pyth is not the file that is wanted .*holds no weights\): remove it"):
        fetch([], path, None, is_content)
    assert files_beside(path) == {""}
    path.write_bytes(CONTENT)
    fetch([], path, None, is_content)
    assert (tmp_path / "a.pyth.sha256").read_text().startswith(SHA256)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_transfer_that_breaks_is_continued(server: Loopback, tmp_path: Path, chunked: bool) -> None:
    path, most = tmp_path / "a.pyth", len(CONTENT) // 3 + 1
    server.answers["/broken"] = lambda request: send_file(request, CONTENT, most=most, chunked=chunked)
    fetch([f"{server.url}/broken"], path, SHA256, progress=False)
    assert path.read_bytes() == CONTENT
    assert server.asked == [("/broken", None), ("/broken", f"bytes={most}-"), ("/broken", f"bytes={2 * most}-")]
    assert files_beside(path) == {"", ".lock"}


def test_the_next_call_continues_where_the_last_gave_up(server: Loopback, tmp_path: Path) -> None:
    path, size = tmp_path / "a.pyth", 100_000
    server.answers["/file"] = lambda request: send_file(request, CONTENT, most=size)
    with pytest.raises(DownloadError, match=f"500000 of {len(CONTENT)} bytes came; the same command continues"):
        fetch([f"{server.url}/file"], path, None, is_content, progress=False)
    server.answers["/file"] = lambda request: send_file(request, CONTENT)
    fetch([f"{server.url}/file"], path, None, is_content, progress=False)
    assert path.read_bytes() == CONTENT
    assert server.asked[-1] == ("/file", "bytes=500000-")


def test_a_reset_connection_is_continued(server: Loopback, tmp_path: Path) -> None:
    def answer(request: Request) -> None:
        if request.headers.get("Range"):
            return send_file(request, CONTENT)
        send_file(request, CONTENT, most=HALF)
        return reset(request)

    server.answers["/file"] = answer
    fetch([f"{server.url}/file"], tmp_path / "a.pyth", SHA256, progress=False)
    assert (tmp_path / "a.pyth").read_bytes() == CONTENT


def test_a_server_that_names_no_version_is_not_continued(server: Loopback, tmp_path: Path) -> None:
    server.answers["/file"] = lambda request: send_file(request, CONTENT, etag=None, most=HALF)
    with pytest.raises(DownloadError, match=f"{HALF} of {len(CONTENT)} bytes came; the same command begins anew"):
        fetch([f"{server.url}/file"], tmp_path / "a.pyth", SHA256, progress=False)
    assert server.asked == [("/file", None)]


STALE = b"of an older file" * 1000


@pytest.mark.parametrize("noted", [{}, {"url": "elsewhere"}, {"version": '"older"'}, {"total": 5}, {"version": 3}])
def test_a_part_of_another_file_is_not_continued(server: Loopback, tmp_path: Path, noted: dict[str, Any]) -> None:
    path, url = tmp_path / "a.pyth", f"{server.url}/ranged"
    note = {"url": url, "version": '"version-1"', "total": len(CONTENT), **noted} if noted else {}
    leave_part(path, STALE, **note)
    assert fetch([url], path, SHA256, progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "content_range", [None, f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}", f"bytes {HALF}-{HALF + 7}/{HALF + 8}"]
)
def test_a_rest_that_is_not_the_one_asked_for_is_not_appended(
    server: Loopback, tmp_path: Path, content_range: str | None
) -> None:
    def answer(request: Request) -> None:
        if not request.headers.get("Range"):
            return send_file(request, CONTENT)
        return send(request, CONTENT, 206, {"Content-Range": content_range} if content_range else {})

    path, url = tmp_path / "a.pyth", f"{server.url}/file"
    server.answers["/file"] = answer
    leave_part(path, CONTENT[:HALF], url=url, version='"version-1"', total=len(CONTENT))
    assert fetch([url], path, SHA256, progress=False).read_bytes() == CONTENT
    assert server.asked == [("/file", f"bytes={HALF}-"), ("/file", None)]


def test_a_part_that_is_longer_than_the_file_is_begun_anew(server: Loopback, tmp_path: Path) -> None:
    path, url = tmp_path / "a.pyth", f"{server.url}/ranged"
    leave_part(path, CONTENT + b"more", url=url, version='"version-1"', total=None)
    assert fetch([url], path, SHA256, progress=False).read_bytes() == CONTENT


def test_a_transfer_that_hardly_moves_is_given_up(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_SLOW_SECONDS", 0.0)
    server.answers["/file"] = lambda request: send(request, b"WEIGHTS ", length=len(CONTENT))
    with pytest.raises(DownloadError, match="only 8 bytes came in 0 seconds; the same command tries again"):
        fetch([f"{server.url}/file"], tmp_path / "a.pyth", progress=False)


def test_a_redirect_leads_from_https_to_https_alone(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_tls(self: Any, request: Any) -> Any:
        return self.do_open(HTTPConnection, request)

    monkeypatch.setattr(urllib.request.HTTPSHandler, "https_open", without_tls)
    secure = server.url.replace("http:", "https:")
    for name, place in (("down", server.url), ("across", secure), ("ftp", "ftp://127.0.0.1:9")):
        send_it = {"Location": f"{place}/whole"}
        server.answers[f"/{name}"] = lambda request, headers=send_it: send(request, b"", 302, headers)  # type: ignore
    path = tmp_path / "a.pyth"
    for url, text in ((f"{secure}/down", "https .* to http"), (f"{server.url}/ftp", "http .* to ftp")):
        with pytest.raises(DownloadError, match=text.replace(".*", "is redirected")):
            fetch([url], path, progress=False)
    assert [place for place, _ in server.asked] == ["/down", "/ftp"]
    assert fetch([f"{secure}/across"], path, SHA256, progress=False).read_bytes() == CONTENT
    path.unlink()
    assert fetch([f"{server.url}/down"], path, SHA256, progress=False).read_bytes() == CONTENT


def test_the_next_place_is_tried(server: Loopback, tmp_path: Path) -> None:
    urls = [f"{server.url}/nowhere", "http://127.0.0.1:9/closed", f"{server.url}/page", f"{server.url}/whole"]
    assert fetch(urls, tmp_path / "a.pyth", SHA256, progress=False).read_bytes() == CONTENT


def test_what_each_place_answered_is_told(server: Loopback, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="answers 404 no such file; .*a web page came instead of the file"):
        fetch([f"{server.url}/nowhere", f"{server.url}/page"], tmp_path / "a.pyth", progress=False)
    with pytest.raises(DownloadError, match="no address is known"):
        fetch([], tmp_path / "a.pyth")


def test_a_file_with_another_checksum_is_not_kept(server: Loopback, tmp_path: Path) -> None:
    path = tmp_path / "a.pyth"
    with pytest.raises(DownloadError, match=f"what came has sha256 {SHA256}, expected {'0' * 64}"):
        fetch([f"{server.url}/whole"], path, "0" * 64, progress=False)
    assert files_beside(path) == {".lock"}


def test_a_full_disk_is_no_fault_of_the_server_and_names_the_file(server: Loopback, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"can't write .*a\.pyth\.part: File too large"):
            fetch([f"{server.url}/ranged", f"{server.url}/whole"], tmp_path / "a.pyth", progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(server.asked) == 1
    fetch([f"{server.url}/ranged"], tmp_path / "a.pyth", SHA256, progress=False)
    assert server.asked[-1] == ("/ranged", "bytes=100000-")
