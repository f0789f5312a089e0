from pathlib import Path

import pytest
from analysis_records import CODE, EXPERIMENTS, write_experiments

from repro.analysis.rules import Rules, read_rules
from repro.config import Preset
from repro.paths import Project
from repro.registry import Registry


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with the small table, whose training code has the hash CODE."""
    monkeypatch.delenv("REPRO_ROOT", raising=False)
    monkeypatch.delenv("REPRO_DATA", raising=False)
    monkeypatch.setattr("repro.record_state.code_hash", lambda config: CODE)
    write_experiments(tmp_path / "experiments")
    return Project.find(tmp_path)


@pytest.fixture
def registry(project: Project) -> Registry:
    return Registry.load(project.experiments)


@pytest.fixture
def paper(registry: Registry) -> Preset:
    return registry.preset("paper")


@pytest.fixture(scope="session")
def real() -> Registry:
    """The project's own registry."""
    return Registry.load(EXPERIMENTS)


@pytest.fixture(scope="session")
def rules() -> Rules:
    """The project's own rules."""
    return read_rules(EXPERIMENTS / "claims.toml")
