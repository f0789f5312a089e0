"""What a chaos test found, for people and for programs, and what so many faults without harm allow."""

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass

from chaos.audit import HARMS, Finding
from repro.errors import IntegrityError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Report:
    """One chaos test. `calls` counts kills at each system call of a commit or a checkpoint's write.

    `calls_left_out` are those that an undisturbed run makes and at which nobody was killed; `undone` the
    committed records that the test itself damaged, so that they were committed once more.
    """

    faults: int
    seed: int
    by_kind: dict[str, int]
    calls: dict[str, int]
    calls_left_out: tuple[str, ...]
    rounds: int
    runs: int
    workers: int
    training: int
    supervisors: int
    attempts: int
    checkpoints: int
    checkpoints_undisturbed: int
    commits: int
    undone: int
    shapes: dict[str, int]
    exits: dict[str, int]
    tracebacks: dict[str, int]
    small_disk: bool
    findings: tuple[Finding, ...]
    seconds: float
    kept: str | None = None

    @property
    def exit_code(self) -> int:
        """0, or 4 if the audit found anything."""
        return IntegrityError.exit_code if self.findings else 0

    def counts(self) -> dict[str, int]:
        """Findings by kind of harm, in a fixed order."""
        count = Counter(finding.harm for finding in self.findings)
        return {harm: count[harm] for harm in HARMS}

    def to_json(self) -> str:
        """Everything, with the counts and the bound."""
        content = asdict(self)
        content["audit"] = self.counts()
        content["harm_per_fault_at_most"] = upper_bound(len(self.findings), self.faults)
        content["exit_code"] = self.exit_code
        return json.dumps(content, indent=1, ensure_ascii=False)

    def to_text(self) -> str:
        """A page for people."""
        minutes = f"{self.seconds / 60:.0f} min" if self.seconds > 120 else f"{self.seconds:.0f} s"
        lines = [
            f"{self.faults} faults, seed {self.seed}, in {minutes}",
            f"{self.workers} worker processes, {self.training} of which came to train, under "
            f"{self.supervisors} supervisors",
            f"{_count(self.rounds, 'round')} with {self.runs} runs in all, "
            f"{self.attempts} attempts, {self.checkpoints} checkpoints "
            f"(an undisturbed run writes {self.checkpoints_undisturbed})",
            f"{self.commits} commits (links to a record's name), {self.undone} of them damaged afterwards "
            "on purpose",
            "",
            "faults by kind",
            *_table(self.by_kind),
            "",
            "kills by system call",
            *_table(self.calls),
        ]
        if 0 < len(self.calls_left_out) <= 6:
            lines += ["", "nobody was killed at: " + "; ".join(self.calls_left_out)]
        elif self.calls_left_out:
            lines += ["", f"nobody was killed at {len(self.calls_left_out)} others of a commit or checkpoint"]
        if not self.small_disk:
            lines += ["", "no small file system could be mounted here: a full disk was pretended only"]
        lines += ["", "sweeps by what they were given", *_table(self.shapes)]
        lines += ["", "exit codes of the supervisors", *_table(self.exits)]
        if self.tracebacks:
            lines += ["", "tracebacks in the logs", *_table(self.tracebacks)]
        lines += ["", "audit", *_table(self.counts()), ""]
        lines += [f"{finding.harm}: {finding.what}" for finding in self.findings]
        if self.kept:
            lines += [f"kept for a look: {self.kept}"]
        return "\n".join([*lines, self._bound()])

    def _bound(self) -> str:
        harmful = len(self.findings)
        bound = upper_bound(harmful, self.faults)
        return (
            f"{harmful} in {self.faults}: with {CONFIDENCE:.0%} confidence, less than {100 * bound:.2g} % of "
            "faults drawn like these do harm (one-sided, exact)"
        )


def upper_bound(harmful: int, faults: int) -> float:
    """The largest share p for which at most `harmful` of `faults` still has a probability of 5 %.

    Clopper and Pearson's one-sided upper limit; for none it is 1 − 0.05^(1/faults), about 3 / faults.
    """
    if harmful >= faults:
        return 1.0
    if harmful == 0:
        return 1 - (1 - CONFIDENCE) ** (1 / faults)
    low, high = harmful / faults, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(harmful, faults, middle) > 1 - CONFIDENCE:
            low = middle
        else:
            high = middle
    return high


def _at_most(harmful: int, faults: int, share: float) -> float:
    """P(X ≤ harmful) of a binomial, term by term in logarithms."""
    if share >= 1:
        return 0.0
    return sum(
        math.exp(
            math.lgamma(faults + 1)
            - math.lgamma(k + 1)
            - math.lgamma(faults - k + 1)
            + k * math.log(share)
            + (faults - k) * math.log1p(-share)
        )
        for k in range(harmful + 1)
    )


def _table(counts: dict[str, int]) -> list[str]:
    width = max((len(name) for name in counts), default=0)
    return [f"  {name:<{width}}  {count:>5}" for name, count in counts.items()]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
