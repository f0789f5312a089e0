"""What a chaos test found, for people and for programs, and what so many faults without harm allow."""

import json
from collections import Counter
from dataclasses import asdict, dataclass

from scipy.stats import binomtest

from chaos.audit import HARMS, Finding
from repro.errors import IntegrityError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Report:
    """One chaos test: `counts` of everything by name, and `tables` of counts by their heading.

    `calls_left_out` are the system calls of an undisturbed commit or checkpoint at which nobody was killed.
    """

    faults: int
    seed: int
    counts: dict[str, int]
    tables: dict[str, dict[str, int]]
    calls_left_out: tuple[str, ...]
    small_disk: bool
    findings: tuple[Finding, ...]
    seconds: float
    kept: str | None = None

    @property
    def exit_code(self) -> int:
        """0, or 4 if the audit found anything."""
        return IntegrityError.exit_code if self.findings else 0

    @property
    def audit(self) -> dict[str, int]:
        """Findings by kind of harm, in a fixed order."""
        count = Counter(finding.harm for finding in self.findings)
        return {harm: count[harm] for harm in HARMS}

    def to_json(self) -> str:
        """Everything, with the audit and the bound."""
        bound = upper_bound(len(self.findings), self.faults)
        more = {"audit": self.audit, "harm_per_fault_at_most": bound, "exit_code": self.exit_code}
        return json.dumps({**asdict(self), **more}, indent=1, ensure_ascii=False)

    def to_text(self) -> str:
        """A page for people."""
        lines = [f"{self.faults} faults, seed {self.seed}, in {self.seconds / 60:.1f} min"]
        lines += [", ".join(f"{count} {what}" for what, count in self.counts.items())]
        for heading, table in {**self.tables, "audit": self.audit}.items():
            width = max(map(len, table), default=0)
            lines += ["", heading, *(f"  {name:<{width}}  {count:>5}" for name, count in table.items())]
        lines += [
            "",
            f"nobody was killed at {len(self.calls_left_out)} other calls of a commit or checkpoint",
        ]
        lines += [f"  {call}" for call in self.calls_left_out[:6]]
        if not self.small_disk:
            lines += ["no small file system could be mounted here: a full disk was pretended only"]
        lines += [f"{finding.harm}: {finding.what}" for finding in self.findings]
        lines += [f"kept for a look: {self.kept}"] if self.kept else []
        harmful = len(self.findings)
        bound = f"{100 * upper_bound(harmful, self.faults):.2g} % of faults drawn like these do harm"
        return "\n".join(
            [*lines, f"{harmful} in {self.faults}: with {CONFIDENCE:.0%} confidence, less than {bound}"]
        )


def upper_bound(harmful: int, faults: int) -> float:
    """The largest share for which at most `harmful` of `faults` still has a probability of 5 %.

    Clopper and Pearson's one-sided upper limit; for none it is 1 − 0.05^(1/faults), about 3 / faults.
    """
    harmful = min(harmful, faults)  # one fault may do harm twice
    test = binomtest(harmful, faults, alternative="less")
    return float(test.proportion_ci(CONFIDENCE, method="exact").high)
