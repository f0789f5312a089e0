"""Figure 3: the norms of the class weights under both losses."""

import numpy as np
from matplotlib.figure import Figure

from repro.analysis.comparison import Comparison
from repro.analysis.layout import preset_sentence, qualified_title
from repro.analysis.style import (
    Margins,
    label_ends,
    label_room,
    make_page,
    sample_size,
)
from repro.config import Preset
from repro.records import RunRecord

_CLASSES = 10  # as many as the paper shows
_BAR = 0.38


def draw_figure3(comparison: Comparison, preset: Preset) -> Figure:
    """‖w_k‖₂ of the classifier's rows of classes 0–9 after the last epoch: bars of means, a dot a seed.

    A dashed line is the mean over all classes. Raises ValueError for a record without weight norms.
    """
    norms = [np.array([_norms(record) for record in side.records]) for side in comparison.sides]
    classes = min(_CLASSES, *(norm.shape[1] for norm in norms))
    counts = [len(side.records) for side in comparison.sides]
    labels = [
        f"{side.label}\nmean {norm.mean():.2f}" for side, norm in zip(comparison.sides, norms, strict=True)
    ]
    width = 4.9
    figure, (panel,) = make_page(
        qualified_title(
            f"Figure 3: norms of the class weights, {comparison.network} on {comparison.dataset}",
            preset,
            comparison.generated,
        ),
        "The ℓ₂ norm of each class's row of the last linear layer, after the last epoch; "
        f"{'the mean over seeds, with a dot for each' if max(counts) > 1 else 'one seed'} "
        f"({sample_size(counts)}). Dashed, and beside the labels: the mean over all {norms[0].shape[1]} "
        f"classes. {preset_sentence(preset)}",
        panels=((width, 2.6),),
        margins=Margins(right=label_room(labels, width)),
    )
    ends = []
    for side, norm, label, shift in zip(comparison.sides, norms, labels, (-_BAR / 2, _BAR / 2), strict=True):
        places = np.arange(classes) + shift
        panel.bar(places, norm[:, :classes].mean(axis=0), _BAR * 0.94, color=side.colour, alpha=0.78, lw=0)
        if len(norm) > 1:
            for row in norm[:, :classes]:
                panel.plot(
                    places, row, "o", ms=2.6, mfc="white", mec=side.colour, mew=0.7, ls="none", zorder=3
                )
        overall = float(norm.mean())
        panel.axhline(overall, color=side.colour, lw=0.9, dashes=(4, 2), zorder=2.5)
        ends.append((classes - 0.4, overall, label, side.colour))
    panel.set_xlim(-0.6, classes - 0.4)
    panel.set_ylim(0, 1.08 * max(float(norm[:, :classes].max()) for norm in norms))
    panel.set_xticks(range(classes))
    panel.set_xlabel("class k")
    panel.set_ylabel(r"$\Vert w_k\Vert_2$")
    label_ends(panel, ends)
    return figure


def _norms(record: RunRecord) -> tuple[float, ...]:
    if record.probes.weight_norms is None:
        raise ValueError(f"{record.run}: expected weight norms, the record has none: it diverged")
    return record.probes.weight_norms
