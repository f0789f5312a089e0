import itertools

import matplotlib
import pytest
from analysis_records import EXPERIMENTS

from repro.analysis.style import figure_style, line_styles, push_apart
from repro.registry import Registry


def test_labels_with_room_stay_where_they_are():
    assert push_apart([0.1, 0.5, 0.9], 0.1, 0.0, 1.0) == pytest.approx([0.1, 0.5, 0.9])


@pytest.mark.parametrize(
    "wanted", [[0.5] * 6, [0.0, 0.0, 1.0], [0.98, 0.99, 1.0], [0.2, 0.21, 0.22, 0.8, 0.81]]
)
def test_labels_are_pushed_apart_and_stay_inside_in_their_order(wanted):
    places = push_apart(wanted, 0.08, 0.0, 1.0)
    assert all(b - a >= 0.08 - 1e-12 for a, b in itertools.pairwise(places))
    assert places[0] >= 0
    assert places[-1] <= 1 + 1e-12


def test_labels_that_collide_move_as_little_as_can_be():
    assert push_apart([0.5, 0.5], 0.1, 0.0, 1.0) == pytest.approx([0.45, 0.55])


def test_labels_that_have_no_room_share_what_there_is():
    assert push_apart([0.5] * 5, 0.4, 0.0, 1.0) == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_every_loss_of_the_paper_has_a_line_of_its_own():
    for table in Registry.load(EXPERIMENTS).tables:
        styles = line_styles(table)
        assert len(set(styles.values())) == len(table.rows)


def test_the_style_ends_with_its_block():
    before = matplotlib.rcParams.copy()
    with figure_style():
        assert matplotlib.rcParams["font.size"] == 8
    assert matplotlib.rcParams.copy() == before
