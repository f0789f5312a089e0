"""A fresh bench and fresh sweeps for each test."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pretended_environment import context_at
from real_sweep import RealSweep, clean_up
from smoke_project import PROJECT

from repro.cli.context import Context
from repro.registry import Registry


@pytest.fixture
def bench(tmp_path: Path) -> Context:
    registry = Registry.load(PROJECT / "experiments")
    made = context_at(tmp_path / "results")
    return replace(made, registry=registry, preset=registry.preset("smoke"))


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
