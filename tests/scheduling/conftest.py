"""A fresh bench and fresh sweeps for each test."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pretended_environment import context_at
from real_sweep import RealSweep, clean_up

from repro.cli.context import Context


@pytest.fixture
def bench(tmp_path: Path) -> Context:
    return context_at(tmp_path / "results")


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Callable[..., RealSweep]]:
    """Starts a RealSweep below the test's folder; nothing of it outlives the test."""
    started: list[RealSweep] = []

    def begin(*arguments, **options) -> RealSweep:
        folder = tmp_path / f"sweep{len(started)}"
        folder.mkdir()
        started.append(RealSweep(options.pop("folder", folder), *arguments, **options))
        return started[-1]

    yield begin
    for each in started:
        clean_up(each)
