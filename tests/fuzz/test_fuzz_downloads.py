"""Faults of servers and of what they send: each ends with the right file, or with one error and nothing kept."""

import dataclasses
import gzip
import io
import os
import pickle
import random
import tarfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch

from tests.zoo.loopback import Answer, Loopback, Request, loopback, reset, send, send_file
from videoattn.models.weights.files import read_weight_file
from videoattn.models.weights.load import save_weights
from videoattn.zoo import transfer
from videoattn.zoo.protocol import ZooRow, locate_weights
from videoattn.zoo.rows import find_row

pytestmark = pytest.mark.slow
ZOO = Path(__file__).parents[2] / "model_zoo"
SECONDS = 60.0  # far more than any fault takes; a download that is not over by then hangs
Make = Callable[[Loopback, bytes], Answer | None]


def answer_with(body: bytes, status: int = 200, length: int | None = -1, **headers: str) -> Make:
    """Always answer with the same."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda server, right: lambda request: send(request, body, status, named, length)


def as_bytes(change: Callable[[bytes], bytes], length: int | None = -1, **headers: str) -> Make:
    """Answer with the right file, changed."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda server, right: lambda request: send(request, change(right), 200, named, length)


def redirect_to(place: str, status: int = 302) -> Make:
    """Redirect to `place`, in which HOST stands for the server's address."""
    return lambda server, right: (
        lambda request: send(request, b"moved", status, {"Location": place.replace("HOST", server.url)})
    )


def raw(*lines: bytes, then: float = 0.0) -> Make:
    """Answer with bytes that need not be HTTP, and wait before closing."""

    def answer(request: Request) -> None:
        request.wfile.write(b"\r\n".join(lines))
        request.wfile.flush()
        time.sleep(then)

    return lambda server, right: answer


def file_in_pieces(**options: Any) -> Make:
    """Serve the right file well, but break off each time."""
    return lambda server, right: lambda request: send_file(request, right, **options)


def rest_as(body: Callable[[bytes, int], bytes], said: str | None, status: int = 206, **headers: str) -> Make:
    """Break off once; then send a rest with the Content-Range `said` (START, LAST and ALL filled in)."""

    def make(server: Loopback, right: bytes) -> Answer:
        def answer(request: Request) -> None:
            asked = request.headers.get("Range")
            if asked is None:
                return send_file(request, right, most=None if len(server.asked) > 1 else len(right) // 2)
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            places = {"START": start, "LAST": len(right) - 1, "ALL": len(right)}
            content_range = said
            for name, value in places.items():
                content_range = content_range and content_range.replace(name, str(value))
            named = {"ETag": '"version-1"', **({"Content-Range": content_range} if content_range else {}), **headers}
            return send(request, body(right, start), status, named)

        return answer

    return make


def changing_versions(server: Loopback, right: bytes) -> Answer:
    """Name another version at every request and break off each time."""
    return lambda request: send_file(request, right, etag=f'"{len(server.asked)}"', most=len(right) // 2)


def broken_by_reset(server: Loopback, right: bytes) -> Answer:
    def answer(request: Request) -> None:
        send_file(request, right, most=len(right) // 3 + 1)
        reset(request)

    return answer


def dripping(server: Loopback, right: bytes) -> Answer:
    """Send one byte at a time, for as long as somebody listens."""

    def answer(request: Request) -> None:
        send(request, b"", length=len(right))
        for byte in right:
            request.wfile.write(bytes([byte]))
            time.sleep(0.05)

    return answer


def flip(content: bytes) -> bytes:
    damaged = bytearray(content)
    damaged[random.Random(1).randrange(len(content) // 2, len(content) * 3 // 4)] ^= 16
    return bytes(damaged)


def in_tar(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("weights")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def evil(content: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model_state": {}, "more": Payload()}, buffer)
    return buffer.getvalue()


OTHER = (ZOO / "motion_timesformer_lisa.safetensors").read_bytes()
HTML = b"<!DOCTYPE html><html><body>Quota exceeded</body></html>"
CHUNKED = (b"HTTP/1.1 200 OK", b"Transfer-Encoding: chunked", b"")
# What happens, by the name of the fault: "refused", or "right" where the right file must come in spite of it.
FAULTS: dict[str, tuple[str, Make]] = {
    "html": ("refused", answer_with(HTML, Content_Type="text/html; charset=utf-8")),
    "html as octets": ("refused", answer_with(HTML)),
    "html, no length": ("refused", answer_with(HTML, length=None)),
    "xml": ("refused", answer_with(b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>")),
    "json": ("refused", answer_with(b'{"error": "not found"}', Content_Type="application/json")),
    "text": ("refused", answer_with(b"Access denied\n", Content_Type="text/plain")),
    "empty": ("refused", answer_with(b"")),
    "empty, no length": ("refused", answer_with(b"", length=None)),
    "zeros": ("refused", as_bytes(lambda right: bytes(len(right)))),
    "lfs pointer": ("refused", answer_with(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n")),
    "half, no length": ("refused", as_bytes(lambda right: right[: len(right) // 2], None)),
    "all but a byte, no length": ("refused", as_bytes(lambda right: right[:-1], None)),
    "half, its own length": ("refused", as_bytes(lambda right: right[: len(right) // 2])),
    "length too large": ("refused", as_bytes(lambda right: right, 10_000_000)),
    "length too small": ("refused", as_bytes(lambda right: right, 100_000)),
    "length huge": ("refused", as_bytes(lambda right: right, 10**17)),
    "length negative": ("right", as_bytes(lambda right: right, None, Content_Length="-5")),
    "length no number": ("right", as_bytes(lambda right: right, None, Content_Length="many")),
    "length of many digits": ("right", as_bytes(lambda right: right, None, Content_Length="9" * 5000)),
    "a flipped bit": ("refused", as_bytes(flip)),
    "compressed unasked": ("refused", as_bytes(gzip.compress, Content_Encoding="gzip")),
    "a gz file": ("refused", as_bytes(gzip.compress)),
    "a tar file": ("refused", as_bytes(in_tar)),
    "a pickle": ("refused", as_bytes(lambda right: pickle.dumps({"w": right}))),
    "a pickle with code": ("refused", as_bytes(evil)),
    "another row": ("refused", answer_with(OTHER)),
    "another model": ("refused", answer_with((ZOO / "motion_mvit_fibonacci.safetensors").read_bytes())),
    "401": ("refused", answer_with(b"who?", 401)),
    "403": ("refused", answer_with(HTML, 403)),
    "404": ("refused", answer_with(HTML, 404)),
    "404, address gone": ("refused", lambda server, right: None),
    "416 at once": ("refused", answer_with(b"", 416)),
    "500": ("refused", answer_with(b"Traceback", 500)),
    "503": ("refused", answer_with(b"later", 503, Retry_After="3600")),
    "204": ("refused", raw(b"HTTP/1.1 204 No Content", b"", b"")),
    "202": ("refused", as_bytes(lambda right: right[:0], Retry_After="5")),
    "206 unasked": ("refused", lambda server, right: lambda request: send(request, right, 206)),
    "status 999": ("refused", raw(b"HTTP/1.1 999 What", b"Content-Length: 0", b"", b"")),
    "redirected to itself": ("refused", redirect_to("HOST/weights")),
    "redirected in a circle": ("refused", redirect_to("HOST/circle")),
    "redirected to nowhere": ("refused", answer_with(b"", 302)),
    "redirected to ftp": ("refused", redirect_to("ftp://127.0.0.1:9/weights")),
    "redirected to a file": ("refused", redirect_to("file:///etc/hostname")),
    "redirected to a bad port": ("refused", redirect_to("http://127.0.0.1:99999/weights")),
    "redirected to no port": ("refused", redirect_to("http://127.0.0.1:http/weights")),
    "redirected to no address": ("refused", redirect_to("http://[::1/weights")),
    "redirected to an empty label": ("refused", redirect_to("http://a..b/weights")),
    "redirected to a closed port": ("refused", redirect_to("http://127.0.0.1:9/weights")),
    "redirected to the file": ("right", redirect_to("HOST/right", 307)),
    "redirected by a path": ("right", redirect_to("/right", 308)),
    "redirected from https to http": ("refused", redirect_to("HOST/right")),
    "closed at once": ("refused", raw(b"")),
    "no HTTP": ("refused", raw(b"SSH-2.0-OpenSSH_9.6", b"")),
    "a long header": ("refused", raw(b"HTTP/1.1 200 OK", b"X: " + b"x" * 70_000, b"", b"")),
    "many headers": ("refused", raw(b"HTTP/1.1 200 OK", *[b"X: x"] * 200, b"", b"")),
    "half a header": ("refused", raw(b"HTTP/1.1 200 OK", b"Content-Le")),
    "silence": ("refused", raw(b"", then=2.0)),
    "silence after headers": ("refused", raw(b"HTTP/1.1 200 OK", b"Content-Length: 9", b"", b"", then=2.0)),
    "slow drip": ("refused", dripping),
    "closed early": ("refused", file_in_pieces(etag=None, most=200_000)),
    "closed early, continued": ("right", file_in_pieces(most=200_000)),
    "closed early again and again": ("refused", file_in_pieces(most=1000)),
    "closed before the first byte": ("refused", file_in_pieces(most=0)),
    "reset, continued": ("right", broken_by_reset),
    "chunks cut short": ("refused", file_in_pieces(etag=None, most=200_000, chunked=True)),
    "chunks cut short, continued": ("right", file_in_pieces(most=200_000, chunked=True)),
    "chunk of no size": ("refused", raw(*CHUNKED, b"zz", b"abc", b"0", b"")),
    "chunk of negative size": ("refused", raw(*CHUNKED, b"-5", b"abc", b"")),
    "the version changes each time": ("refused", changing_versions),
    "rest: range ignored": ("right", rest_as(lambda right, start: right, None, 200)),
    "rest: begins at 0": ("right", rest_as(lambda right, start: right, "bytes 0-LAST/ALL")),
    "rest: no range said": ("right", rest_as(lambda right, start: right[start:], None)),
    "rest: range is no range": ("right", rest_as(lambda right, start: right[start:], "pages 1-2/3")),
    "rest: another size": ("right", rest_as(lambda right, start: right[start:], "bytes START-LAST/9999999")),
    "rest: another version": ("right", rest_as(lambda right, start: right[start:], "bytes START-LAST/ALL", ETag='"2"')),
    "rest: other bytes": ("refused", rest_as(lambda right, start: right[: len(right) - start], "bytes START-LAST/ALL")),
    "rest: compressed": ("refused", rest_as(lambda right, start: gzip.compress(right[start:]), "bytes START-LAST/ALL",
                                            **{"Content-Encoding": "gzip"})),
    "rest: refused": ("right", rest_as(lambda right, start: b"", "bytes */ALL", 416)),
    "rest: an error": ("refused", rest_as(lambda right, start: HTML, None, 500)),
}  # fmt: skip


@pytest.fixture
def quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_TIMEOUT_SECONDS", 0.7)
    monkeypatch.setattr(transfer, "_SLOW_SECONDS", 0.5)
    # what is https to the client comes without TLS from this server
    monkeypatch.setattr(
        urllib.request.HTTPSHandler, "https_open", lambda self, request: self.do_open(HTTPConnection, request)
    )


def attempt(row: ZooRow) -> Path | ValueError:
    """Return what locate_weights gives; an error of another type, or none at all in time, fails the test."""
    found: list[Path | BaseException] = []

    def run() -> None:
        try:
            found.append(locate_weights(row))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert found, "hangs"
    if isinstance(found[0], Path | ValueError):
        return found[0]
    raise found[0]


@pytest.mark.parametrize("suffix", [".safetensors", ".pyth"])
def test_a_fault_ends_with_the_right_file_or_with_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_limits: None, suffix: str
) -> None:
    ours = find_row("motion_timesformer_dense")
    source = ZOO / ours.file
    if suffix == ".pyth":
        source = tmp_path / "right.pyth"
        save_weights(read_weight_file(ZOO / ours.file).tensors, source)
    right = source.read_bytes()
    monkeypatch.chdir(tmp_path)
    counts: Counter[str] = Counter()
    for number, (name, (expected, make)) in enumerate(FAULTS.items()):
        cache = tmp_path / str(number)
        monkeypatch.setenv("VIDEOATTN_CACHE", str(cache))
        with loopback() as server:
            url = server.url.replace("http:", "https:") if "https" in name else server.url
            row = dataclasses.replace(
                ours, clips_from=(), sha256=None, file=f"weights{suffix}", urls=(f"{url}/weights",)
            )
            answer = make(server, right)
            server.answers = {"/right": lambda request: send(request, right)}
            server.answers["/circle"] = lambda request, to=server.url: send(  # type: ignore[misc]
                request, b"", 302, {"Location": f"{to}/weights"}
            )
            if answer is not None:
                server.answers["/weights"] = answer
            found = attempt(row)
            if isinstance(found, ValueError):
                counts["refused"] += 1
                assert expected == "refused", f"{name}: {found}"
                assert str(found).startswith(f"{row.name} needs {row.file}, which is not at {cache}"), name
                left = {path.name.removeprefix(row.file) for path in cache.iterdir()}
                assert left <= {".lock", ".part", ".part.json"}, name
            else:
                counts["right" if found.read_bytes() == right else "silent"] += 1
                assert found.read_bytes() == right and expected == "right", name
                found.unlink()
            # what a fault leaves behind does not stand in the way of the right file
            server.answers["/weights"] = lambda request: send_file(request, right)
            again = dataclasses.replace(row, urls=(f"{server.url}/weights",))
            assert locate_weights(again).read_bytes() == right, name
    print(f"{len(FAULTS)} faults of downloads, {suffix}: {dict(counts)}")
    assert len(FAULTS) >= 40 and counts["silent"] == 0 and sum(counts.values()) == len(FAULTS)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("left", ["page", "older", "other address", "garbage note", "longer", "whole"])
def test_what_an_earlier_call_left_is_not_mixed_into_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_limits: None, left: str
) -> None:
    ours = find_row("motion_timesformer_dense")
    right = (ZOO / ours.file).read_bytes()
    monkeypatch.setenv("VIDEOATTN_CACHE", str(tmp_path))
    part, note = tmp_path / f"{ours.file}.part", tmp_path / f"{ours.file}.part.json"
    with loopback() as server:
        row = dataclasses.replace(ours, clips_from=(), sha256=None, urls=(f"{server.url}/weights",))
        server.answers["/weights"] = lambda request: send_file(request, right)
        address, version = row.urls[0], '"version-1"'
        if left == "other address":
            address = "http://127.0.0.1:9/weights"
        if left == "older":
            version = '"version-0"'
        part.write_bytes({"longer": right + b"more", "whole": right}.get(left, HTML))
        if left != "page":
            said = f'{{"url": "{address}", "version": {version!r}, "total": {len(right)}}}'
            note.write_text("[1, 2" if left == "garbage note" else said.replace("'", '"').replace('""', r"\""))
        found = attempt(row)
    assert isinstance(found, Path) and found.read_bytes() == right
    with safetensors.safe_open(found, framework="pt") as file:
        assert len(list(file.keys())) > 10
