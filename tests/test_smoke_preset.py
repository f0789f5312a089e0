"""The smoke preset as it comes: its runs are short, and yet they learn. `test_run_all.py` trains all of them."""

import json
from pathlib import Path

from smoke_project import ROOT, repro


def test_the_cheapest_cells_of_table_1_learn_their_digits_and_the_table_says_what_they_are(
    tmp_path: Path,
) -> None:
    """The margin losses, which learn slowest."""
    words = ("--preset", "smoke", "--results", tmp_path, "--table", "1")
    losses = ("am-softmax-s10-m0.5", "pedcc-s7.5-m0.35")
    chosen = [word for loss in losses for word in ("--loss", loss)]
    repro("run", *words, "--network", "vgg16", *chosen, cwd=ROOT, check=0)
    records = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.rglob("seed0.json")}
    assert set(records) == set(losses)
    accuracies = {loss: record["result"]["accuracy"] for loss, record in records.items()}
    assert min(accuracies.values()) >= 85, accuracies
    table = repro("aggregate", *words, cwd=ROOT, check=0).stdout
    assert table.startswith("### SMOKE Table 1")
    assert "SMOKE: handwritten digits (scikit-learn), resized to 32 px, in place of each table's" in table
