"""The report's plain lists of numbers: what runs cost, and what stands behind Figures 2 and 3."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from repro.analysis.comparison import Comparison
from repro.records import RunRecord


@dataclass(frozen=True)
class CostRow:
    """What the runs of one network on one data set and device took."""

    dataset: str
    network: str
    device: str
    runs: int
    images_per_second: str
    hours: str
    memory: str


def cost_rows(records: Sequence[RunRecord]) -> tuple[CostRow, ...]:
    """Time and speed by data set, network and device, in the order in which they come."""
    groups: dict[tuple[str, str, str], list[RunRecord]] = {}
    for record in records:
        made = record.provenance
        device = f"{made.device}, {made.precision}"
        if made.runs_on_device > 1:
            device += f", shared with {made.runs_on_device - 1} more"
        groups.setdefault((record.data.title, record.config.network, device), []).append(record)
    return tuple(
        CostRow(
            dataset=dataset,
            network=network,
            device=device,
            runs=len(group),
            images_per_second=f"{statistics.median(r.provenance.images_per_second for r in group):,.0f}",
            hours=hours(sum((busy(record) for record in group), timedelta())),
            memory=f"{max(r.provenance.peak_memory_bytes for r in group) / 2**30:.1f} GiB",
        )
        for (dataset, network, device), group in groups.items()
    )


def busy(record: RunRecord) -> timedelta:
    """How long the run's attempts took together; one that was killed has no end and is not counted."""
    return sum(
        (attempt.ended - attempt.started for attempt in record.provenance.attempts if attempt.ended),
        timedelta(),
    )


def logit_rows(comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    """The numbers behind Figure 2: loss, seed, mean, std, quantiles 2.5, 25, 50, 75, 97.5 %."""
    rows = []
    for side, record in zip(comparison.sides, comparison.one_seed(), strict=True):
        logits = record.probes.logits
        assert logits is not None, "a comparison is of records with probes"
        numbers = (logits.mean, logits.std, *(logits.quantiles[q] for q in ("2.5", "25", "50", "75", "97.5")))
        rows.append((side.label, str(record.config.seed), *(f"{n:.2f}".replace("-", "−") for n in numbers)))
    return tuple(rows)


def weight_rows(comparison: Comparison) -> tuple[tuple[str, ...], ...]:
    """The numbers behind Figure 3: a class, then each loss's mean over its seeds; the last row is of all."""
    means = []
    for side in comparison.sides:
        norms = [record.probes.weight_norms or () for record in side.records]
        means.append([statistics.mean(values) for values in zip(*norms, strict=True)])
    shown = min(10, *(len(values) for values in means))
    rows = [(f"class {k}", *(f"{values[k]:.3f}" for values in means)) for k in range(shown)]
    return (*rows, ("all classes", *(f"{statistics.mean(values):.3f}" for values in means)))


def hours(duration: timedelta) -> str:
    """`2.3 h`, `41 min`."""
    count = duration.total_seconds() / 3600
    return f"{count:.1f} h" if count >= 1 else f"{60 * count:.0f} min"
