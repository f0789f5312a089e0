"""A real HTTP server on this machine: many small files or one large one, each of which may misbehave."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers a request for a path with its next planned answer, or with the file."""

    server: "SmallFilesServer"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        site, path = self.server, self.path
        with site.lock:
            site.requests.append(path)
            site.ranges.append(self.headers.get("Range"))
            site.begun.append(time.monotonic())
            site.at_once += 1
            site.most_at_once = max(site.most_at_once, site.at_once)
            answer = site.next_answer(path)
        self.close_connection = True
        try:
            answer(self)
        finally:
            with site.lock:
                site.at_once -= 1
                site.answered.append(path)

    @property
    def content(self) -> bytes:
        return self.server.content_of(self.path)

    @property
    def first(self) -> int:
        """The first byte that is asked for."""
        return int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))

    def begin(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """The tests' output stays theirs."""


Answer = Callable[[Handler], None]


class SmallFilesServer(ThreadingHTTPServer):
    """`files` maps path → bytes, `answers` path → what is said instead, the last for ever.

    `requests` holds every path asked for, `ranges` the Range header of each request, None where it had none.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), Handler)
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[str] = []
        self.answered: list[str] = []
        self.ranges: list[str | None] = []
        self.begun: list[float] = []
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.gate = threading.Event()
        self.base = f"http://{host}:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def __exit__(self, *args: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.gate.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def add(self, path: str, content: bytes, *answers: Answer) -> str:
        """Publish `content` at `path`; where `answers` are given, those are what the server says instead."""
        self.files[path] = content
        if answers:
            self.answers[path] = list(answers)
        return self.base + path

    def times(self) -> Counter[str]:
        """How often each path was asked for."""
        with self.lock:
            return Counter(self.requests)

    def next_answer(self, path: str) -> Answer:
        planned = self.answers.get(path, [])
        return planned.pop(0) if len(planned) > 1 else (planned[0] if planned else file_of_path)

    def content_of(self, path: str) -> bytes | None:
        return self.files.get(path)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""


class OneFileServer(SmallFilesServer):
    """Serves `content` at every path; each of `answers` is given once, the file afterwards."""

    answers: list[Answer]

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content, self.answers, self.url = content, [], f"{self.base}/set.tar.gz"

    def next_answer(self, path: str) -> Answer:
        return self.answers.pop(0) if self.answers else file_of_path

    def content_of(self, path: str) -> bytes:
        return self.content


def file_of_path(handler: Handler) -> None:
    """The file, or the range of it that was asked for, or 404."""
    if handler.content is None:
        handler.begin(404, Content_Length=0)
    elif not handler.first:
        whole(handler)
    elif handler.first >= len(handler.content):
        handler.begin(416, Content_Length=0, Content_Range=f"bytes */{len(handler.content)}")
    else:
        begin_range(handler, handler.first)
        handler.wfile.write(handler.content[handler.first :])


def begin_range(handler: Handler, first: int) -> None:
    total, status = len(handler.content), 206 if handler.first else 200
    handler.begin(status, Content_Length=total - first, Content_Range=f"bytes {first}-{total - 1}/{total}")


def whole(handler: Handler) -> None:
    """The whole file with status 200, whatever range was asked for."""
    handler.begin(200, Content_Type="image/jpeg", Content_Length=len(handler.content))
    handler.wfile.write(handler.content)


def wrong_range(handler: Handler) -> None:
    """A range that begins somewhere else than asked."""
    begin_range(handler, 7)
    handler.wfile.write(handler.content[7:])


def held(handler: Handler) -> None:
    """The file, once the test opens the gate."""
    handler.server.gate.wait(30)
    file_of_path(handler)


def after(seconds: float) -> Answer:
    """The file, a little later."""

    def answer(handler: Handler) -> None:
        handler.server.gate.wait(seconds)
        file_of_path(handler)

    return answer


def cut_after(count: int) -> Answer:
    """The whole file's headers, but only `count` bytes of it."""

    def answer(handler: Handler) -> None:
        handler.begin(200, Content_Length=len(handler.content))
        handler.wfile.write(handler.content[:count])

    return answer


def stalls(handler: Handler) -> None:
    """Some bytes, then nothing until the test ends."""
    cut_after(10)(handler)
    handler.wfile.flush()
    handler.server.gate.wait(30)


def drips(handler: Handler) -> None:
    """A byte now and then, often enough never to look stalled."""
    handler.begin(200, Content_Length=10_000)
    while not handler.server.gate.wait(0.05):
        handler.wfile.write(b"x")
        handler.wfile.flush()


def paced(count: int) -> Answer:
    """The file from where it was asked for, `count` bytes twenty times a second."""

    def answer(handler: Handler) -> None:
        begin_range(handler, handler.first)
        for at in range(handler.first, len(handler.content), count):
            handler.wfile.write(handler.content[at : at + count])
            handler.server.gate.wait(0.05)

    return answer


def header_drips(handler: Handler) -> None:
    """A status line that never ends."""
    handler.wfile.write(b"HTTP/1.1 200 ")
    while not handler.server.gate.wait(0.05):
        handler.wfile.write(b"O")
        handler.wfile.flush()


def unannounced(handler: Handler) -> None:
    """The whole file without saying how long it is."""
    handler.begin(200)
    handler.wfile.write(handler.content)


def endless(handler: Handler) -> None:
    """Bytes without end and without an announced length."""
    handler.begin(200)
    while not handler.server.gate.is_set():
        handler.wfile.write(b"x" * 65536)


def status(code: int, **headers: object) -> Answer:
    return lambda handler: handler.begin(code, Content_Length=0, **headers)


def page(handler: Handler, kind: str = "image/jpeg") -> None:
    text = b"\n<html><body>This domain is for sale.</body></html>"
    handler.begin(200, Content_Type=kind, Content_Length=len(text))
    handler.wfile.write(text)


def nonsense(handler: Handler) -> None:
    """What is not HTTP."""
    handler.wfile.write(b"220 mail.example ESMTP\r\n")


def hang_up(handler: Handler) -> None:
    """No answer at all."""
