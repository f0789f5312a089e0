"""Every place that is read or written.

One `Project` is made by the command line and handed down; nothing below it looks at the environment.

    <root>/experiments/*.toml, or else the paper's, which come with the package
    <results>/<preset>/<dataset>/<network>/<loss>[+name=value…]/seed<k>.json   one record per run
    <results>/<preset>/.work/<run id>/…   its attempts, lock, superseded and quarantined records
    <figures>/<preset>/
    <data>/<data set>/raw/ and <data>/<data set>/prepared/
"""

import errno
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from repro.errors import ProjectNotFoundError

NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")
"""What data sets, losses and tables may be called: names become folders."""

# A wheel has the checkout's folder below this name; see setup.cfg.
_IN_WHEEL = Path(__file__).parent / "paper_experiments"
PAPER_EXPERIMENTS = _IN_WHEEL if _IN_WHEEL.is_dir() else Path(__file__).parents[1] / "experiments"

PUBLISHED_SETS = ("cifar100", "tiny-imagenet", "facescrub")  # what `repro data fetch` takes

LARGEST_FILE = 256 << 20  # bytes; a record of 100,000 epochs has a tenth of it


def known_sets(data: Path) -> list[str]:
    """The data sets that are published, and all others that were prepared below the data folder."""
    own = (folder.parent.name for folder in data.glob("*/prepared"))
    return [
        *PUBLISHED_SETS,
        *sorted(name for name in own if name not in PUBLISHED_SETS and NAME.fullmatch(name)),
    ]


def read_file(path: Path) -> bytes:
    """The content of a regular file of at most LARGEST_FILE bytes.

    Raises OSError for anything else under that name: reading a pipe or a device would never end.
    """
    # O_NONBLOCK: opening a pipe must not wait for somebody who writes.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        if status.st_size > LARGEST_FILE:
            raise OSError(errno.EFBIG, f"it is larger than {LARGEST_FILE >> 20} MiB", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class RunPaths:
    """Where one run's record and everything that leads to it lie; `repro.storage` has the protocol."""

    record: Path
    work: Path

    @property
    def lock(self) -> Path:
        """Held by whoever trains this run or moves its record."""
        return self.work / "lock"

    @property
    def attempts(self) -> Path:
        """`attempts/1`, `attempts/2`, …: mkdir hands out the number."""
        return self.work / "attempts"

    @property
    def superseded(self) -> Path:
        """Valid records that a newer recipe, or `--stale rerun`, replaced."""
        return self.work / "superseded"

    @property
    def quarantine(self) -> Path:
        """Records that are not valid."""
        return self.work / "quarantine"


@dataclass(frozen=True)
class Project:
    """The folders of one reproduction; `results`, `figures` and `data` can be moved elsewhere."""

    root: Path
    results: Path
    figures: Path
    data: Path

    @classmethod
    def find(
        cls, start: Path | None = None, results: Path | None = None, data: Path | None = None
    ) -> "Project":
        """The project at REPRO_ROOT, else at the nearest parent of `start` that has `experiments/`.

        Without one, `start`, by default the working directory, is a project with the paper's experiments.

        `results` and `data` override `<root>/results` and REPRO_DATA or `<root>/data`. Figures of
        another results folder go beside it, so that they never replace the project's own.

        Raises ProjectNotFoundError if REPRO_ROOT has no experiments.
        """
        root = _find_root(start or Path.cwd())
        if data is None and (from_environment := os.environ.get("REPRO_DATA")):
            data = Path(from_environment)
        return cls(
            root=root,
            results=(results or root / "results").absolute(),
            figures=((results or root) / "figures").absolute(),
            data=(data or root / "data").expanduser().absolute(),
        )

    @property
    def experiments(self) -> Path:
        """The folder of the TOML files."""
        return self.root / "experiments" if self.has_experiments else PAPER_EXPERIMENTS

    @property
    def has_experiments(self) -> bool:
        """Whether `root` has experiments; else they are the paper's, which come with the package."""
        return _has_experiments(self.root)

    @property
    def supplied_results(self) -> bool:
        """Whether `results` is the folder of this package's own checkout, which comes with records."""
        return self.root / "experiments" == PAPER_EXPERIMENTS and self.results == self.root / "results"

    def preset_results(self, preset: str) -> Path:
        """The folder of one preset's records."""
        return self.results / preset

    def preset_figures(self, preset: str) -> Path:
        """The folder of one preset's figures."""
        return self.figures / preset

    def run(self, preset: str, run_id: str) -> RunPaths:
        """Where the run `run_id` (`dataset/network/loss/seedK`) of `preset` keeps its files."""
        base = self.results / preset
        return RunPaths(record=base / f"{run_id}.json", work=base / ".work" / run_id)

    def work(self, preset: str) -> Path:
        """The folder of one preset's attempts, locks and worker notes."""
        return self.results / preset / ".work"

    def host_salt(self, preset: str) -> Path:
        """What the names of hosts are hashed with in the preset's records; it never leaves this folder."""
        return self.work(preset) / "salt"

    def live_curves(self, preset: str, logger: str) -> Path:
        """The folder that a logger of live curves is given (`--log`)."""
        return self.work(preset) / logger

    def sweeps(self, preset: str) -> Path:
        """The folder of the lists of runs that workers share; see `repro.sweep`."""
        return self.work(preset) / "sweeps"

    def workers(self, preset: str) -> Path:
        """The folder where each worker says what it does, one file each."""
        return self.work(preset) / "workers"

    def device_lock(self, preset: str, device: str) -> Path:
        """Held by the worker that trains on the device: two sweeps must not share one by accident."""
        return self.work(preset) / "devices" / f"{device}.lock"

    def concurrency(self, preset: str) -> Path:
        """A cache of how many runs of a kind pay at once on a device."""
        return self.work(preset) / "concurrency.json"

    def logs(self, preset: str) -> Path:
        """The folder of the workers' logs."""
        return self.work(preset) / "logs"


def _find_root(start: Path) -> Path:
    if from_environment := os.environ.get("REPRO_ROOT"):
        root = Path(from_environment).expanduser().absolute()
        if not _has_experiments(root):
            raise ProjectNotFoundError(
                f"REPRO_ROOT is {root}, which has no experiments/presets.toml; "
                "set it to a folder that has, or unset it"
            )
        return root
    folders = (start.absolute(), *start.absolute().parents)
    return next(filter(_has_experiments, folders), folders[0])


def _has_experiments(folder: Path) -> bool:
    return (folder / "experiments" / "presets.toml").is_file()
