"""Whether two ways to train the same runs end in the same accuracy: `python tools/parity.py A B`.

A and B are results folders, as `--results` takes them. Runs that both have, of one recipe and one data set,
are compared in pairs: a seed has the same weights, order and augmentation in both, so that only arithmetic
differs.
"""

import math
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from repro.errors import ReproError, UsageError
from repro.records import RunRecord, parse_record


@dataclass(frozen=True)
class Parity:
    """Pairs of records of the same run, made in two ways."""

    pairs: tuple[tuple[RunRecord, RunRecord], ...]

    @property
    def differences(self) -> list[float]:
        """Last-epoch accuracy, second less first, in points, where neither run diverged."""
        return [
            other.result.accuracy - one.result.accuracy
            for one, other in self.pairs
            if one.result.accuracy is not None and other.result.accuracy is not None
        ]

    def lines(self) -> list[str]:
        """One line per run, then the mean difference with its 95 % interval (Student's t over the pairs)."""
        lines = [f"{one.run}: {_accuracy(one)} → {_accuracy(other)}" for one, other in self.pairs]
        for name, records in zip(("first", "second"), zip(*self.pairs, strict=True), strict=True):
            ways = {f"{r.provenance.precision}, {'+'.join(r.provenance.accelerations)}" for r in records}
            lines.append(f"{name}: {'; '.join(sorted(ways))}")
        differences = self.differences
        if len(differences) < 2:
            return [*lines, "an interval needs two pairs or more"]
        mean, sd = statistics.mean(differences), statistics.stdev(differences)
        half = float(stats.t.ppf(0.975, len(differences) - 1)) * sd / math.sqrt(len(differences))
        verdict = "does not exclude" if abs(mean) <= half else "excludes"
        return [
            *lines,
            f"second − first: {mean:+.2f} points, 95 % interval {mean - half:+.2f} to {mean + half:+.2f} "
            f"(n = {len(differences)} pairs, sd {sd:.2f}): it {verdict} no difference",
        ]


def compare(first: Path, second: Path) -> Parity:
    """The pairs below two results folders; UsageError where there is none or a pair differs in its recipe."""
    pairs = []
    for path in sorted(first.rglob("seed*.json")):
        twin = second / path.relative_to(first)
        if not twin.is_file():
            continue
        one, other = (parse_record(each.read_text(), str(each)) for each in (path, twin))
        if (one.signature.config, one.signature.data) != (other.signature.config, other.signature.data):
            raise UsageError(f"{one.run}: the two records are of different recipes or data")
        pairs.append((one, other))
    if not pairs:
        raise UsageError(f"{first} and {second} have no run in common")
    return Parity(tuple(pairs))


def _accuracy(record: RunRecord) -> str:
    accuracy = record.result.accuracy
    return "diverged" if accuracy is None else f"{accuracy:.2f} %"


def main() -> int:
    """Prints the comparison of the two folders named on the command line."""
    if len(sys.argv) != 3:
        print("usage: python tools/parity.py RESULTS RESULTS", file=sys.stderr)
        return UsageError.exit_code
    try:
        print("\n".join(compare(Path(sys.argv[1]), Path(sys.argv[2])).lines()))
    except ReproError as error:
        print(f"repro: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
