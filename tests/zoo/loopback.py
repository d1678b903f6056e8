"""An HTTP server on 127.0.0.1 whose addresses answer as functions say, faults included."""

import http.server
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

Request = http.server.BaseHTTPRequestHandler
Answer = Callable[[Request], None]
ETAG = '"version-1"'


class Loopback:
    """The address of a running server, its `answers` by path, and which paths and ranges were `asked` for."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.answers: dict[str, Answer] = {}
        self.asked: list[tuple[str, str | None]] = []


@contextmanager
def loopback() -> Iterator[Loopback]:
    """Run a server until the block is left."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            server.asked.append((self.path, self.headers.get("Range")))
            answer = server.answers.get(self.path)
            try:
                if answer is None:
                    self.send_error(404, "no such file")
                else:
                    answer(self)
            except ConnectionError:  # the client has left
                pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        httpd.block_on_close = False
        server = Loopback(httpd.server_port)
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            httpd.shutdown()
            thread.join()


def send(
    request: Request, body: bytes, status: int = 200, headers: Mapping[str, str] | None = None, length: int | None = -1
) -> None:
    """Send headers and `body`; `length` is the Content-Length: -1 for the true one, None for none at all."""
    request.send_response(status)
    said = {"Content-Type": "application/octet-stream", **(headers or {})}
    if length is not None and "Transfer-Encoding" not in said:
        said["Content-Length"] = str(len(body) if length == -1 else length)
    for name, value in {**said, "Connection": "close"}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(body)


def send_file(
    request: Request, content: bytes, *, etag: str | None = ETAG, most: int | None = None, chunked: bool = False
) -> None:
    """Send a file as a good server does, ranges and If-Range included, but break off after `most` bytes."""
    wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    start = int(wanted[1]) if wanted and request.headers.get("If-Range", etag) == etag else 0
    headers = {} if etag is None else {"ETag": etag}
    if start >= len(content):
        send(request, b"", 416, {**headers, "Content-Range": f"bytes */{len(content)}"})
        return
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    rest = content[start:]
    if chunked:
        sent = rest[:most]
        body = b"%x\r\n%b\r\n" % (len(sent), sent) + (b"0\r\n\r\n" if len(sent) == len(rest) else b"")
        send(request, body, 206 if start else 200, {**headers, "Transfer-Encoding": "chunked"})
    else:
        send(request, rest[:most], 206 if start else 200, headers, length=len(rest))


def reset(request: Request) -> None:
    """Close the connection by a reset instead of an orderly end."""
    request.wfile.flush()
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.connection.close()
