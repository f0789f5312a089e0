"""A fresh bench for each test."""

from pathlib import Path

import pytest
from sweep_bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench.at(tmp_path / "results")
