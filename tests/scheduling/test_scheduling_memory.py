"""A run that cannot fit a device's memory is refused with the reason; one that can is not."""

from dataclasses import replace

import pytest
import torch
from smoke_project import smoke_context
from sweep_bench import Bench
from test_scheduling_plan import missing, plan_of

from repro import models
from repro.commands.run import RunOptions, run_sweep
from repro.config import Recipe
from repro.implementations import NETWORKS
from repro.registry import Selection
from repro.scheduling.device_memory import KEPT, least_bytes, why_unfit
from repro.scheduling.probes import Work
from repro.scheduling.slots import Slot

GIB = 2**30


def gpu(name="NVIDIA GeForce GTX 1080 Ti", memory=11 * GIB, capability=(6, 1), co_tenants=0) -> Slot:
    return Slot("cuda", 0, name, "GPU-a", memory, co_tenants, {}, capability=capability)


def recipe_of(bench, **changes) -> Recipe:
    return bench.registry.preset("paper").recipe.model_copy(update=changes)


def kept_by(network, size, width, pool) -> float:
    """Bytes an image that autograd really keeps, without the weights, from a pass without numbers."""
    module = models.build(network, size, width, pool).to("meta").train()
    seen: dict[int, int] = {}
    kept = []

    def keep(tensor):
        seen[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(torch.empty(16, 3, size, size, device="meta"))
    for parameter in module.parameters():
        seen.pop(parameter.untyped_storage()._cdata, None)
    return sum(seen.values()) / 16


@pytest.mark.parametrize("network", sorted(KEPT))
@pytest.mark.parametrize(("size", "pool"), [(32, "never"), (64, "never"), (64, "auto")])
def test_the_estimate_is_what_autograd_keeps_to_a_tenth(bench, network, size, pool):
    recipe = recipe_of(bench)
    work = Work(network, size, 1.0, pool)
    without_maps = least_bytes(work, recipe.model_copy(update={"batch_size": 0}), 0, half=False)
    an_image = (least_bytes(work, recipe, 0, half=False) - without_maps) / recipe.batch_size
    assert an_image == pytest.approx(kept_by(network, size, 1.0, pool), rel=0.1)


def test_every_network_of_the_project_has_an_estimate():
    assert set(KEPT) == set(NETWORKS)


def test_resnet50_on_64_pixels_without_a_max_pool_does_not_fit_a_1080_ti_and_the_reason_says_why(bench):
    """About 13 GB in float32; with the max-pool of the default stem it fits, and so it does on a newer card."""
    recipe = recipe_of(bench, stem_pool="never")
    work = Work("resnet50", 64, 1.0, "never")
    reason = why_unfit(gpu(), work, recipe, 110_000)
    assert reason.startswith(
        "resnet50 on images of 64 px in batches of 128 needs at least 15 GB of memory in float32"
    )
    assert reason.endswith(
        "NVIDIA GeForce GTX 1080 Ti has 12 GB; the batch size is the recipe's and is never changed"
    )
    assert why_unfit(gpu(), replace(work, stem_pool="auto"), recipe, 110_000) is None
    newer = gpu("NVIDIA GeForce RTX 2080 Ti", capability=(7, 5))
    assert why_unfit(newer, work, recipe, 110_000) is None
    assert "in float32" in why_unfit(newer, work, recipe, 110_000, precision="fp32")


def test_runs_that_share_a_device_must_fit_together(bench):
    recipe = recipe_of(bench)
    work = Work("resnet50", 64, 1.0, "auto")
    assert why_unfit(gpu(co_tenants=1), work, recipe, 110_000) is None
    assert "and 3 are to share it" in why_unfit(gpu(co_tenants=2), work, recipe, 110_000)


def test_what_is_not_known_is_not_refused(bench):
    recipe = recipe_of(bench)
    of_a_cluster = Slot("cuda", 0, "slurm", None, 0, 0, {}, host="slurm")
    assert why_unfit(of_a_cluster, Work("resnet50", 64, 1.0, "never"), recipe, 0) is None
    assert why_unfit(gpu(), Work("one-of-my-own", 64, 1.0, "never"), recipe, 0) is None


@pytest.fixture
def table2(bench: Bench):
    runs = bench.runs(24, dataset="tiny-imagenet", network="resnet50", seeds=(0,))
    return [run for run in runs if not run.cell.axes]


def test_the_plan_gives_a_refused_column_no_time_and_says_why(bench, table2):
    small = replace(gpu(), memory_bytes=2 * GIB)
    plan = plan_of(bench, missing(table2), [small], bench.registry.preset("paper"))
    (column,) = plan.columns
    assert column.duration is None
    assert column.source.startswith("refused: resnet50 on images of 64 px")
    assert column.source in plan.to_text()
    other = plan_of(
        bench, missing(table2), [small, gpu("NVIDIA H200", 140 * GIB, (9, 0))], bench.registry.preset("paper")
    )
    assert not other.columns[0].source.startswith("refused")


def test_a_sweep_leaves_out_what_cannot_fit_says_why_and_ends_with_3(monkeypatch, tmp_path, capsys):
    context = smoke_context(monkeypatch, tmp_path)
    monkeypatch.setattr("repro.scheduling.slots.memory_bytes", lambda: 2**20)
    selected = Selection(tables=(1,), networks=("resnet18",), losses=("scaled-bn-m1", "cross-entropy"))
    assert run_sweep(context, selected, RunOptions()) == 3
    said = capsys.readouterr().err
    assert "2 runs are left out: resnet18 on images of 32 px in batches of 32 needs at least" in said
    assert not list(tmp_path.rglob("seed0.json"))
