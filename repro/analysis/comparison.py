"""What the paper's Figures 2 and 3 compare: ResNet-18 on CIFAR-100, cross-entropy against scaled BN m = 1."""

from collections.abc import Sequence
from dataclasses import dataclass

from repro.analysis.layout import loss_label, network_label
from repro.analysis.style import line_styles
from repro.records import RunRecord
from repro.registry import Registry

FIGURE_CELLS = ("cifar100/resnet18/cross-entropy", "cifar100/resnet18/scaled-bn-m1")


@dataclass(frozen=True)
class Side:
    """One of the two losses: its label, colour, and the records that have probes, by ascending seed."""

    label: str
    colour: str
    records: tuple[RunRecord, ...]


@dataclass(frozen=True)
class Comparison:
    """Two losses on one network and data set, labelled as in the table."""

    network: str
    dataset: str
    sides: tuple[Side, Side]

    @property
    def generated(self) -> bool:
        """Whether any of it was trained on generated data."""
        return any(record.data.generated for side in self.sides for record in side.records)

    def one_seed(self) -> tuple[RunRecord, RunRecord]:
        """A record of each side: of the lowest seed that both have, else of each one's lowest."""
        first, second = self.sides
        shared = {record.config.seed for record in first.records} & {
            record.config.seed for record in second.records
        }
        return _lowest(first, shared), _lowest(second, shared)


def make_comparison(registry: Registry, records: Sequence[Sequence[RunRecord]]) -> Comparison:
    """The comparison of FIGURE_CELLS, given each cell's records that have probes, at least one a cell."""
    cells = [registry.parse(f"{cell}/seed0").cell for cell in FIGURE_CELLS]
    table = registry.table(cells[0].table)
    first, second = (
        Side(
            loss_label(table, cell.row, cell.axes),
            line_styles(table)[cell.row].colour,
            tuple(sorted(of_cell, key=lambda record: record.config.seed)),
        )
        for cell, of_cell in zip(cells, records, strict=True)
    )
    return Comparison(network_label(table, cells[0].network), table.title, (first, second))


def _lowest(side: Side, seeds: set[int]) -> RunRecord:
    return next((record for record in side.records if record.config.seed in seeds), side.records[0])
