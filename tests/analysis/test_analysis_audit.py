"""The audit against the same numbers computed another way, from the tables' files or the paper's own list."""

import csv
import math
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
from analysis_records import EXPERIMENTS
from scipy import stats

from repro.analysis.audit import PaperAudit, audit_paper
from repro.analysis.rules import read_rules
from repro.analysis.verdict_text import audit_json, audit_text
from repro.errors import RegistryError
from repro.registry import Registry

TITLES = {1: "cifar100", 2: "tiny-imagenet", 3: "facescrub"}


def from_files() -> dict[tuple[str, str], dict[str, tuple[float, float]]]:
    """(data set, network) → row → (mean, std), read without the registry."""
    columns: dict = {}
    for number, dataset in TITLES.items():
        table = tomllib.loads((EXPERIMENTS / f"table{number}.toml").read_text())
        for row in table["rows"]:
            for network, value in row["reported"].items():
                columns.setdefault((dataset, network), {})[row["name"]] = (value["mean"], value["std"])
    return columns


def from_paper() -> dict[tuple[str, str], dict[str, tuple[float, float]]]:
    """The same from the list beside the project; skips where it is not."""
    shared = Path(os.environ.get("REPRO_SHARED", EXPERIMENTS.parent.parent / "shared"))
    path = shared / "paper" / "reported.csv"
    if not path.is_file():
        pytest.skip(f"the paper's numbers as a file are not here: {path}")
    names = {"tinyimagenet": "tiny-imagenet", "vgg": "vgg16"}
    columns: dict = {}
    with path.open() as file:
        for line in csv.DictReader(file):
            name = line["loss"] + "".join(f"-{key}{line[key]}" for key in ("s", "m") if line[key])
            column = (
                names.get(line["dataset"], line["dataset"]),
                names.get(line["network"], line["network"]),
            )
            columns.setdefault(column, {})[name] = (float(line["mean_pct"]), float(line["std_pct"]))
    return columns


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load(EXPERIMENTS)


@pytest.fixture(scope="module")
def audit(registry) -> PaperAudit:
    return audit_paper(registry, read_rules(EXPERIMENTS / "claims.toml"))


@pytest.mark.parametrize("source", [from_files, pytest.param(from_paper, marks=pytest.mark.shared)])
def test_the_wins_and_their_p_are_those_of_scipys_welch_test(audit, source):
    found = {(win.dataset, win.network, win.row): win for win in audit.wins}
    expected = 0
    for (dataset, network), rows in source().items():
        rival = max((name for name in rows if not name.startswith("scaled")), key=lambda name: rows[name][0])
        for name in (name for name in rows if name.startswith("scaled")):
            win = found[dataset, network, name]
            expected += 1
            assert win.rival == rival
            assert win.difference == pytest.approx(rows[name][0] - rows[rival][0])
            for test, factor in zip(win.tests, (1.0, math.sqrt(1.5)), strict=True):
                a, b = rows[name], rows[rival]
                reference = stats.ttest_ind_from_stats(
                    a[0], a[1] * factor, 3, b[0], b[1] * factor, 3, equal_var=False
                )
                assert test.p == pytest.approx(reference.pvalue, rel=1e-9)
                assert test.t == pytest.approx(reference.statistic, rel=1e-9)
    assert expected == len(audit.wins) == 27


def test_every_column_s_best_is_scaled_bn_and_not_every_win_is_beyond_noise(audit):
    assert all(win.difference > 0 for win in audit.wins)
    within = {f"{w.dataset}/{w.network}/{w.row}" for w in audit.wins if w.within_noise[0]}
    assert within == {
        "cifar100/vgg16/scaled-bn-m1",
        "cifar100/resnet50/scaled-bn-m1",
        "tiny-imagenet/vgg16/scaled-bn-m0.8",
        "tiny-imagenet/vgg16/scaled-bn-m0.9",
        "facescrub/vgg16/scaled-bn-m1",
        "facescrub/resnet50/scaled-bn-m0.8",
        "facescrub/resnet50/scaled-bn-m0.9",
        "facescrub/resnet50/scaled-bn-m1",
    }
    wider = {f"{w.dataset}/{w.network}/{w.row}" for w in audit.wins if w.within_noise[1]}
    assert within < wider
    assert all(all(w.within_noise_holm) for w in audit.wins)


def test_holm_over_the_27_multiplies_the_smallest_p_by_27(audit):
    for place in (0, 1):
        smallest = min((win.tests[place] for win in audit.wins), key=lambda test: test.p)
        assert smallest.p_holm == pytest.approx(27 * smallest.p)
        assert all(win.tests[place].p_holm >= win.tests[place].p for win in audit.wins)


def test_the_pooled_p_uses_the_tables_spread_with_48_degrees_of_freedom(audit):
    columns = from_files()
    for win in audit.wins:
        stds = [std for (name, _), rows in columns.items() if name == win.dataset for _, std in rows.values()]
        error = math.sqrt(2 / 3 * np.mean(np.square(stds)))
        assert win.tests[0].p_pooled == pytest.approx(2 * stats.t.sf(win.difference / error, 48), rel=1e-9)


def test_vgg_is_ahead_of_both_resnets_in_every_row_of_facescrub_alone(audit):
    assert [(order.rows_ahead, order.rows) for order in audit.depth] == [(0, 8), (0, 8), (8, 8)]
    facescrub = audit.depth[2]
    columns = from_files()
    leads = [
        columns["facescrub", "vgg16"][row][0] - columns["facescrub", network][row][0]
        for row in columns["facescrub", "vgg16"]
        for network in ("resnet18", "resnet50")
    ]
    assert (facescrub.smallest_lead, facescrub.largest_lead) == pytest.approx((min(leads), max(leads)))


def test_the_worked_example_is_computed(audit):
    softmax = [np.exp(z)[-1] / np.exp(z).sum() for z in ([1, 1, 2], [2, 2, 4])]
    assert audit.example.computed == pytest.approx(softmax)
    assert [round(p, 4) for p in audit.example.computed] == [0.5761, 0.7870]
    assert round(audit.example.computed_gain, 2) == 21.09
    assert audit.example.printed == (0.6769, 0.8481)


def test_the_split_of_facescrub_cannot_be_literal(audit):
    split = audit.split
    assert (split.train_of_smallest, split.test_of_smallest) == (63, 7)
    assert not split.literal


def test_which_m_wins_where(audit):
    columns = from_files()
    for scale in audit.scales:
        rows = columns[scale.dataset, scale.network]
        means = {name: rows[name][0] for name in rows if name.startswith("scaled")}
        assert scale.best == max(means, key=means.get)
        assert scale.worst == min(means, key=means.get)
    best = [scale.best for scale in audit.scales]
    assert sorted(best.count(name) for name in set(best)) == [3, 3, 3]


def test_the_stds_spread_no_more_than_chance_allows(audit):
    columns = from_files()
    for spread, dataset in zip(audit.spreads, TITLES.values(), strict=True):
        stds = np.array(
            [std for (name, _), rows in columns.items() if name == dataset for _, std in rows.values()]
        )
        assert (spread.cells, spread.degrees) == (24, 48)
        assert spread.pooled_ddof1 == pytest.approx(math.sqrt((stds**2).mean()))
        assert spread.pooled_ddof0 == pytest.approx(math.sqrt(1.5 * (stds**2).mean()))
        low, high = spread.pooled_ddof1 * np.sqrt(stats.chi2.ppf((0.025, 0.975), 2) / 2)
        assert (spread.expected_low, spread.expected_high) == pytest.approx((low, high))
        assert spread.outside == int(((stds < low) | (stds > high)).sum())
        reference = stats.bartlett(*([70 - s, 70.0, 70 + s] for s in stds))
        assert spread.p == pytest.approx(reference.pvalue, rel=1e-6)


def test_both_claims_of_accuracy_hold_in_the_printed_means(audit):
    assert [claim.name for claim in audit.claims] == ["beats-cross-entropy", "beats-margin-losses"]
    for claim in audit.claims:
        assert (claim.ahead, len(claim.effects), claim.p) == (9, 9, 1 / 512)
    rows = from_files().values()
    gains = [
        np.mean([row[f"scaled-bn-m{m}"][0] for m in ("0.8", "0.9", "1")]) - row["cross-entropy"][0]
        for row in rows
    ]
    assert audit.claims[0].mean == pytest.approx(np.mean(gains))


def test_the_text_says_each_finding(audit, registry):
    text = audit_text(audit, registry)
    for words in (
        "ahead of the best other loss in 27 of 27 comparisons",
        "8 / 11 of them are within the paper's own noise",
        "FaceScrub: VGG is ahead of ResNet-18 and ResNet-50 in 8 of 8 rows, by 1.89 to 3.89 points.",
        "softmax of [1, 1, 2] gives 0.5761, printed 0.6769; softmax of [2, 2, 4] gives 0.7870, printed 0.8481",
        "The gain is 21.09 points",
        "FaceScrub's split cannot be literal",
        audit.rules_sha256,
    ):
        assert words in " ".join(text.split()), words
    assert text.count("within noise") == 11
    assert '"rules_sha256"' in audit_json(audit)


def test_other_numbers_give_another_audit(registry):
    """Nothing of it is written down: a FaceScrub whose VGG is behind has no finding there."""
    tables = []
    for table in registry.tables:
        if table.name == 3:
            rows = [
                row.model_copy(
                    update={
                        "reported": {
                            **row.reported,
                            "vgg16": row.reported["vgg16"].model_copy(update={"mean": 80.0}),
                        }
                    }
                )
                for row in table.rows
            ]
            table = table.model_copy(update={"rows": tuple(rows)})
        tables.append(table)
    changed = audit_paper(Registry(tables, registry.presets), read_rules(EXPERIMENTS / "claims.toml"))
    assert changed.depth[2].rows_ahead == 0
    assert sum(win.difference > 0 for win in changed.wins) == 24


def test_a_table_without_its_counts_cannot_be_audited_for_its_split(registry):
    tables = [
        table.model_copy(update={"reported_data": None}) if table.name == 3 else table
        for table in registry.tables
    ]
    with pytest.raises(RegistryError, match="reported_data"):
        audit_paper(Registry(tables, registry.presets), read_rules(EXPERIMENTS / "claims.toml"))
