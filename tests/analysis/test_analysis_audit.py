"""The audit against the same numbers computed another way, from the tables' files."""

import json
import math
import tomllib
from dataclasses import replace

import numpy as np
import pytest
from analysis_records import EXPERIMENTS
from scipy import stats

from repro.analysis.audit import PaperAudit, audit_json, audit_paper, audit_text
from repro.errors import RegistryError

TITLES = {1: "cifar100", 2: "tiny-imagenet", 3: "facescrub"}


def from_files() -> dict[tuple[str, str], dict[str, tuple[float, float]]]:
    """(data set, network) → row → (mean, std), read without the real."""
    columns: dict = {}
    for number, dataset in TITLES.items():
        table = tomllib.loads((EXPERIMENTS / f"table{number}.toml").read_text())
        for row in table["rows"]:
            for network, value in row["reported"].items():
                columns.setdefault((dataset, network), {})[row["name"]] = (value["mean"], value["std"])
    return columns


@pytest.fixture(scope="module")
def audit(real, rules) -> PaperAudit:
    return audit_paper(real, rules)


def test_the_wins_and_their_p_are_those_of_scipy(audit):
    """Welch's test on the two printed stds, and Student's with the spread pooled over the table's 24."""
    columns = from_files()
    wins = audit.wins.set_index(["dataset", "network", "row"])
    assert len(wins) == 27
    assert (wins["difference"] > 0).all()
    assert (wins["p_welch_holm_ddof1"].min()) == pytest.approx(27 * wins["p_welch_ddof1"].min())
    for (dataset, network), rows in columns.items():
        rival = max((name for name in rows if not name.startswith("scaled")), key=lambda name: rows[name][0])
        stds = [std for (name, _), each in columns.items() if name == dataset for _, std in each.values()]
        for name in (name for name in rows if name.startswith("scaled")):
            win, a, b = wins.loc[dataset, network, name], rows[name], rows[rival]
            assert win["rival"] == rival
            assert win["difference"] == pytest.approx(a[0] - b[0])
            for ddof, factor in ((1, 1.0), (0, math.sqrt(1.5))):
                sides = (a[0], a[1] * factor, 3, b[0], b[1] * factor, 3)
                reference = stats.ttest_ind_from_stats(*sides, equal_var=False)
                assert win[f"p_welch_ddof{ddof}"] == pytest.approx(reference.pvalue, rel=1e-9)
                assert win[f"t_ddof{ddof}"] == pytest.approx(reference.statistic, rel=1e-9)
                t = (a[0] - b[0]) / (factor * math.sqrt(2 / 3 * np.mean(np.square(stds))))
                assert win[f"p_pooled_ddof{ddof}"] == pytest.approx(2 * stats.t.sf(t, 48), rel=1e-9)


def test_vgg_is_ahead_of_both_resnets_in_every_row_of_facescrub_alone(audit):
    assert list(zip(audit.depth["rows_ahead"], audit.depth["rows"], strict=True)) == [(0, 8), (0, 8), (8, 8)]
    columns = from_files()
    leads = [
        columns["facescrub", "vgg16"][row][0] - columns["facescrub", network][row][0]
        for row in columns["facescrub", "vgg16"]
        for network in ("resnet18", "resnet50")
    ]
    found = audit.depth.loc[2, ["smallest_lead", "largest_lead"]]
    assert list(found) == pytest.approx([min(leads), max(leads)])


def test_the_worked_example_is_computed_and_the_split_is_not_literal(audit):
    softmax = [np.exp(z)[-1] / np.exp(z).sum() for z in ([1, 1, 2], [2, 2, 4])]
    assert audit.example["computed"] == pytest.approx(softmax)
    assert audit.example["printed"] == (0.6769, 0.8481)
    assert (audit.split["train_of_smallest"], audit.split["test_of_smallest"]) == (63, 7)
    assert not audit.split["literal"]


def test_which_m_wins_where(audit):
    columns = from_files()
    for scale in audit.scales.to_dict("records"):
        rows = columns[scale["dataset"], scale["network"]]
        means = {name: rows[name][0] for name in rows if name.startswith("scaled")}
        assert scale["row"] == max(means, key=means.get)
        assert scale["rival"] == min(means, key=means.get)
    assert list(audit.scales["row"].value_counts()) == [3, 3, 3]


def test_a_tables_spread_is_pooled_and_tested_by_bartlett(audit):
    columns = from_files()
    for spread, dataset in zip(audit.spreads.to_dict("records"), TITLES.values(), strict=True):
        stds = np.array(
            [std for (name, _), rows in columns.items() if name == dataset for _, std in rows.values()]
        )
        assert (spread["cells"], spread["degrees"]) == (24, 48)
        assert spread["pooled_ddof1"] == pytest.approx(math.sqrt((stds**2).mean()))
        assert spread["pooled_ddof0"] == pytest.approx(math.sqrt(1.5 * (stds**2).mean()))
        reference = stats.bartlett(*([70 - s, 70.0, 70 + s] for s in stds))
        assert spread["p"] == pytest.approx(reference.pvalue, rel=1e-6)


def test_both_claims_of_accuracy_hold_in_the_printed_means(audit):
    assert list(audit.claims["name"]) == ["beats-cross-entropy", "beats-margin-losses"]
    assert (audit.claims[["ahead", "columns", "p"]] == [9, 9, 1 / 512]).all(axis=None)
    gains = [
        np.mean([row[f"scaled-bn-m{m}"][0] for m in ("0.8", "0.9", "1")]) - row["cross-entropy"][0]
        for row in from_files().values()
    ]
    assert audit.claims["mean"][0] == pytest.approx(np.mean(gains))


def test_the_text_is_one_page_that_leads_with_the_pooled_test(audit):
    text = audit_text(audit)
    assert len(text.splitlines()) < 60
    for words in (
        "ahead of the best other loss in 27 of 27 comparisons. With the spread pooled over a table, 18 / 16 of "
        "the 27 are shown (p ≤ 0.05), after Holm 14 / 12; the others are not shown",
        "Welch's t, which is weak with 3 runs on each side, shows 19 / 16 and decides 5 / 4 differently.",
        "FaceScrub: VGG is ahead of ResNet-18 and ResNet-50 in 8 of 8 rows, by 1.89 to 3.89 points.",
        "softmax of [1, 1, 2] gives 0.5761, printed 0.6769; softmax of [2, 2, 4] gives 0.7870, printed 0.8481",
        "The gain is 21.09 points",
        "FaceScrub's split cannot be literal",
        audit.rules_sha256,
    ):
        assert words in text, words
    assert "noise" not in text
    rows = [line for line in text.splitlines() if " scaled-bn-m" in line and " / " in line]
    assert (len(rows), sum("not shown" in row for row in rows)) == (27 + 1, 11)
    content = json.loads(audit_json(audit))
    assert [win["row"] for win in content["wins"]] == list(audit.wins["row"])


def test_other_numbers_give_another_audit(real, rules):
    """Nothing of it is written down: a FaceScrub whose VGG is behind has no finding there."""
    (*others, table) = (table for table in real.tables if table.of_paper)
    behind = {"vgg16": table.rows[0].reported["vgg16"].model_copy(update={"mean": 80.0})}
    rows = tuple(row.model_copy(update={"reported": {**row.reported, **behind}}) for row in table.rows)
    tables = [*others, table.model_copy(update={"rows": rows})]
    changed = audit_paper(replace(real, tables=tables), rules)
    assert changed.depth["rows_ahead"][2] == 0
    assert (changed.wins["difference"] > 0).sum() == 24
    without = [*others, table.model_copy(update={"reported_data": None})]
    with pytest.raises(RegistryError, match="reported_data"):
        audit_paper(replace(real, tables=without), rules)
