"""A real HTTP server on this machine with many small files, each of which may misbehave in its own way."""

import threading
import time
from collections import Counter
from http.server import ThreadingHTTPServer

from local_server import Answer, Handler


class SmallFilesHandler(Handler):
    """Answers each request for a path with that path's next planned answer, then with its last one."""

    server: "SmallFilesServer"

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        site, path = self.server, self.path
        with site.lock:
            site.requests.append(path)
            site.begun.append(time.monotonic())
            site.at_once += 1
            site.most_at_once = max(site.most_at_once, site.at_once)
            planned = site.answers.get(path, [])
            answer = planned.pop(0) if len(planned) > 1 else (planned[0] if planned else file_of_path)
        self.close_connection = True
        try:
            answer(self)
        finally:
            with site.lock:
                site.at_once -= 1
                site.answered.append(path)


class SmallFilesServer(ThreadingHTTPServer):
    """`files` maps path → bytes; `requests` holds every path asked for, in order."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__((host, port), SmallFilesHandler)
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[str] = []
        self.answered: list[str] = []
        self.begun: list[float] = []
        self.at_once = 0
        self.most_at_once = 0
        self.lock = threading.Lock()
        self.gate = threading.Event()
        self.base = f"http://{host}:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

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

    @property
    def content(self) -> bytes:
        raise AssertionError("the answers for one file ask for `content`; these here ask by path")

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what some tests are about."""


def file_of_path(handler: Handler) -> None:
    """The file, or 404."""
    content = handler.server.files.get(handler.path)
    if content is None:
        handler.begin(404, Content_Length=0)
        return
    handler.begin(200, Content_Type="image/jpeg", Content_Length=len(content))
    handler.wfile.write(content)


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


def cut_short(handler: Handler) -> None:
    """All headers, half of the file."""
    content = handler.server.files[handler.path]
    handler.begin(200, Content_Length=len(content))
    handler.wfile.write(content[: len(content) // 2])


def stalls(handler: Handler) -> None:
    """Some bytes, then nothing until the test ends."""
    content = handler.server.files[handler.path]
    handler.begin(200, Content_Length=len(content))
    handler.wfile.write(content[:2])
    handler.wfile.flush()
    handler.server.gate.wait(30)


def drips(handler: Handler) -> None:
    """A byte now and then, often enough never to look stalled."""
    handler.begin(200, Content_Length=10_000)
    while not handler.server.gate.wait(0.05):
        handler.wfile.write(b"x")
        handler.wfile.flush()


def header_drips(handler: Handler) -> None:
    """A status line that never ends."""
    handler.wfile.write(b"HTTP/1.1 200 ")
    while not handler.server.gate.wait(0.05):
        handler.wfile.write(b"O")
        handler.wfile.flush()


def endless(handler: Handler) -> None:
    """Bytes without end and without an announced length."""
    handler.begin(200)
    while not handler.server.gate.is_set():
        handler.wfile.write(b"x" * 65536)


def page(handler: Handler) -> None:
    text = b"<!DOCTYPE html><html><body>This domain is for sale.</body></html>"
    handler.begin(200, Content_Type="image/jpeg", Content_Length=len(text))
    handler.wfile.write(text)


def nonsense(handler: Handler) -> None:
    """What is not HTTP."""
    handler.wfile.write(b"220 mail.example ESMTP\r\n")


def hang_up(handler: Handler) -> None:
    """No answer at all."""
