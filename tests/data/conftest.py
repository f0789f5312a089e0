"""Fixtures of the data tests: a local server, a small full disk."""

import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from local_server import OneFileServer, SmallFilesServer


@pytest.fixture(autouse=True)
def _without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever proxy this machine has, the tests' servers are reached directly."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("REPRO_CIFAR100_URL", raising=False)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What `repro.data` logs, message by message."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logger = logging.getLogger("repro.data")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield messages
    logger.setLevel(before)
    logger.removeHandler(handler)


@pytest.fixture
def server() -> Iterator[OneFileServer]:
    """A server of 3 MB on this machine."""
    with OneFileServer(bytes(range(256)) * 12_000) as running:
        yield running


@pytest.fixture
def second_server() -> Iterator[OneFileServer]:
    """Another server of the same file."""
    with OneFileServer(bytes(range(256)) * 12_000) as running:
        yield running


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    with mounted(tmp_path / "small-disk", "size=1m") as folder:
        yield folder


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder in which nobody can write; permissions don't stop root, a read-only file system does."""
    if os.geteuid() == 0:
        with mounted(tmp_path / "read-only", "ro") as folder:
            yield folder
        return
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    yield folder
    folder.chmod(0o755)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """`folder` as a temporary file system of its own; skips the test where mounting is not allowed."""
    folder.mkdir()
    tried = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    if tried.returncode:
        pytest.skip(f"cannot mount a file system here: {tried.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.fixture
def site() -> Iterator[SmallFilesServer]:
    """A server of many small files on this machine."""
    with SmallFilesServer() as running:
        yield running
