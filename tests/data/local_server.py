"""A real HTTP server on this machine that serves one file and misbehaves on request."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers each request with the next planned answer, then always honestly."""

    server: "LocalServer"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        with self.server.lock:
            self.server.ranges.append(self.headers.get("Range"))
            answer = self.server.answers.pop(0) if self.server.answers else honest
        self.close_connection = True
        answer(self)

    def begin(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """The tests' output stays theirs."""


class LocalServer(ThreadingHTTPServer):
    """`ranges` holds the Range header of each request so far, None where it had none."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.answers: list[Answer] = []
        self.ranges: list[str | None] = []
        self.lock = threading.Lock()
        self.gate = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/set.tar.gz"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""


Answer = Callable[[Handler], None]


def honest(handler: Handler) -> None:
    """The file, or the range of it that was asked for."""
    content, wanted = handler.server.content, handler.headers.get("Range")
    if wanted is None:
        handler.begin(200, Content_Length=len(content))
        handler.wfile.write(content)
        return
    first = int(wanted.removeprefix("bytes=").removesuffix("-"))
    if first >= len(content):
        handler.begin(416, Content_Length=0, Content_Range=f"bytes */{len(content)}")
        return
    answer_range(handler, first)


def answer_range(handler: Handler, first: int) -> None:
    content = handler.server.content
    where = f"bytes {first}-{len(content) - 1}/{len(content)}"
    handler.begin(206, Content_Length=len(content) - first, Content_Range=where)
    handler.wfile.write(content[first:])


def whole(handler: Handler) -> None:
    """The whole file with status 200, whatever range was asked for."""
    handler.begin(200, Content_Length=len(handler.server.content))
    handler.wfile.write(handler.server.content)


def wrong_range(handler: Handler) -> None:
    """A range that begins somewhere else than asked."""
    answer_range(handler, 7)


def cut_after(count: int) -> Answer:
    """The whole file's headers, but only `count` bytes of it."""

    def answer(handler: Handler) -> None:
        handler.begin(200, Content_Length=len(handler.server.content))
        handler.wfile.write(handler.server.content[:count])

    return answer


def status(code: int, **headers: object) -> Answer:
    def answer(handler: Handler) -> None:
        handler.begin(code, Content_Length=0, **headers)

    return answer


def html(handler: Handler) -> None:
    page = b"<!DOCTYPE html><html><body>Please log in.</body></html>"
    handler.begin(200, Content_Type="text/html; charset=utf-8", Content_Length=len(page))
    handler.wfile.write(page)


def disguised_html(handler: Handler) -> None:
    page = b"\n<html><body>Please log in.</body></html>"
    handler.begin(200, Content_Type="application/gzip", Content_Length=len(page))
    handler.wfile.write(page)


def stalled(handler: Handler) -> None:
    """Some bytes, then nothing until the test ends."""
    handler.begin(200, Content_Length=len(handler.server.content))
    handler.wfile.write(handler.server.content[:10])
    handler.wfile.flush()
    handler.server.gate.wait(30)


def gated(handler: Handler) -> None:
    """An honest answer, once the test opens the gate."""
    handler.server.gate.wait(30)
    honest(handler)


def unannounced(handler: Handler) -> None:
    """The whole file without saying how long it is."""
    handler.begin(200)
    handler.wfile.write(handler.server.content)
