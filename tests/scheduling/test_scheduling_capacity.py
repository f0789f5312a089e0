"""A run that cannot fit a device's memory is refused with the reason; one that can is not."""

from dataclasses import replace

import pytest
import torch
from pretended_environment import first_runs
from test_scheduling_plan import missing, plan_of

from repro import models
from repro.config import Recipe
from repro.network_facts import NETWORK_FACTS
from repro.scheduling.devices import Device
from repro.scheduling.estimate import Work, least_bytes, why_unfit

GIB = 2**30
GPU = Device("cuda", 0, "NVIDIA GeForce GTX 1080 Ti", "GPU-a", 11 * GIB, 1, {}, capability=(6, 1))
NEWER = replace(GPU, name="NVIDIA GeForce RTX 2080 Ti", capability=(7, 5))


@pytest.fixture
def recipe(bench) -> Recipe:
    return bench.registry.preset("paper").recipe


def kept_by(network, size, width, pool) -> float:
    """Bytes per image that autograd really keeps, without the weights, from a pass without numbers."""
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


@pytest.mark.parametrize("network", sorted(NETWORK_FACTS))
def test_the_estimate_is_what_autograd_keeps_to_a_tenth(recipe, network):
    for size, pool in ((32, "never"), (64, "never"), (64, "auto")):
        work = Work(network, size, 1.0, pool)
        without_maps = least_bytes(work, recipe.model_copy(update={"batch_size": 0}), 0, half=False)
        an_image = (least_bytes(work, recipe, 0, half=False) - without_maps) / recipe.batch_size
        assert an_image == pytest.approx(kept_by(network, size, 1.0, pool), rel=0.1)


def test_resnet50_on_64_pixels_without_a_max_pool_does_not_fit_a_1080_ti_and_the_reason_says_why(recipe):
    """About 13 GB in float32; with the max-pool of the default stem it fits, and so it does on a newer card."""
    work = Work("resnet50", 64, 1.0, "never")
    assert why_unfit(GPU, work, recipe, 110_000) == (
        "resnet50 on images of 64 px in batches of 128 needs at least 15 GB of memory in float32, NVIDIA "
        "GeForce GTX 1080 Ti has 12 GB; the batch size is the recipe's and is never changed"
    )
    assert why_unfit(GPU, replace(work, stem_pool="auto"), recipe, 110_000) is None
    assert why_unfit(NEWER, work, recipe, 110_000) is None
    assert "in float32" in why_unfit(NEWER, work, recipe, 110_000, precision="fp32")


def test_runs_that_share_a_device_must_fit_together(recipe):
    work = Work("resnet50", 64, 1.0, "auto")
    assert why_unfit(replace(GPU, runs_at_once=2), work, recipe, 110_000) is None
    assert "and 3 are meant to share it" in why_unfit(replace(GPU, runs_at_once=3), work, recipe, 110_000)
    assert why_unfit(replace(GPU, runs_at_once=None), work, recipe, 110_000) is None


def test_what_is_not_known_is_not_refused(recipe):
    of_a_cluster = Device("cuda", 0, "slurm", None, 0, 1, {}, host="slurm")
    assert why_unfit(of_a_cluster, Work("resnet50", 64, 1.0, "never"), recipe, 0) is None
    assert why_unfit(GPU, Work("one-of-my-own", 64, 1.0, "never"), recipe, 0) is None


def test_the_plan_gives_a_refused_column_no_time_and_says_why(bench):
    runs = [run for run in first_runs(bench, 24, "tiny-imagenet", "resnet50") if not run.cell.axes]
    small, paper = replace(GPU, memory_bytes=2 * GIB), bench.registry.preset("paper")
    plan = plan_of(bench, missing(runs), [small], paper)
    (column,) = plan.columns
    assert column.estimate.duration is None
    assert column.estimate.source.startswith("refused: resnet50 on images of 64 px")
    assert column.estimate.source in plan.to_text()
    h200 = replace(GPU, name="NVIDIA H200", memory_bytes=140 * GIB, capability=(9, 0))
    assert (
        not plan_of(bench, missing(runs), [small, h200], paper)
        .columns[0]
        .estimate.source.startswith("refused")
    )
