"""Fetching files from a server in this process: whole, continued, checked, and from the next place."""

import hashlib
import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from videoattn.download import DownloadError, checksum, fetch

CONTENT = bytes(range(256)) * 40_000  # 10 MB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """/whole ignores ranges, /ranged honours them, /broken stops half-way, /page is a web page; no others are."""

    asked: list[tuple[str, str | None]] = []

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        Handler.asked.append((self.path, wanted))
        if self.path not in ("/whole", "/ranged", "/broken", "/page"):
            self.send_error(404, "no such file")
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.path == "/ranged" else 0
        if start >= len(CONTENT):
            self.send_error(416, "nothing left")
            return
        body = CONTENT[start:] if self.path != "/page" else b"<html>quota exceeded</html>"
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/html" if self.path == "/page" else "application/octet-stream")
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/broken" else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Handler.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def test_of_several_that_ask_at_once_one_fetches(server: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pyth"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: fetch([f"{server}/ranged"], path, progress=False), range(4)))
    assert found == [path] * 4 and len(Handler.asked) == 1
    assert path.read_bytes() == CONTENT


def test_a_file_is_fetched_once_and_its_checksum_noted(server: str, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.pyth"
    assert fetch([f"{server}/whole"], path, progress=False) == path
    assert path.read_bytes() == CONTENT and checksum(path) == SHA256
    assert (tmp_path / "deep/a.pyth.sha256").read_text() == f"{SHA256}  a.pyth\n"
    fetch([f"{server}/whole"], path, progress=False)
    assert len(Handler.asked) == 1
    assert sorted(p.name for p in path.parent.iterdir()) == ["a.pyth", "a.pyth.lock", "a.pyth.sha256"]


def test_a_file_that_has_changed_since_is_refused(server: str, tmp_path: Path) -> None:
    path = tmp_path / "a.pyth"
    fetch([f"{server}/whole"], path, progress=False)
    path.write_bytes(b"something else")
    with pytest.raises(DownloadError, match=f"a.pyth has sha256 .* expected {SHA256}: remove it"):
        fetch([f"{server}/whole"], path, progress=False)


@pytest.mark.parametrize("place", ["whole", "ranged"])
def test_a_transfer_that_broke_off_is_continued_or_begun_anew(server: str, tmp_path: Path, place: str) -> None:
    path = tmp_path / "a.pyth"
    with pytest.raises(DownloadError, match="bytes came; the same command continues|IncompleteRead|retrieval"):
        fetch([f"{server}/broken"], path, SHA256, progress=False)
    assert not path.exists() and (tmp_path / "a.pyth.part").stat().st_size == len(CONTENT) // 2
    fetch([f"{server}/{place}"], path, SHA256, progress=False)
    assert path.read_bytes() == CONTENT
    assert Handler.asked[-1] == (f"/{place}", f"bytes={len(CONTENT) // 2}-")


def test_a_part_that_is_longer_than_the_file_is_begun_anew(server: str, tmp_path: Path) -> None:
    (tmp_path / "a.pyth.part").write_bytes(CONTENT + b"more")
    assert fetch([f"{server}/ranged"], tmp_path / "a.pyth", SHA256, progress=False).read_bytes() == CONTENT


def test_the_next_place_is_tried(server: str, tmp_path: Path) -> None:
    urls = [f"{server}/nowhere", "http://127.0.0.1:9/closed", f"{server}/page", f"{server}/whole"]
    assert fetch(urls, tmp_path / "a.pyth", SHA256, progress=False).read_bytes() == CONTENT


def test_what_each_place_answered_is_told(server: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="no such file.*; .*a web page came instead of the file"):
        fetch([f"{server}/nowhere", f"{server}/page"], tmp_path / "a.pyth", progress=False)
    with pytest.raises(DownloadError, match="no address is known"):
        fetch([], tmp_path / "a.pyth")


def test_a_file_with_another_checksum_is_not_kept(server: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"what came has sha256 {SHA256}, expected {'0' * 64}"):
        fetch([f"{server}/whole"], tmp_path / "a.pyth", "0" * 64, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a.pyth.lock"]
