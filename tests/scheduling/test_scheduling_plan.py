"""The plan: what is counted, how long the rest takes, and what a time budget buys."""

import json
from dataclasses import replace

import pytest
from pretended_environment import first_runs, make_record, with_row_recipe

from repro.cli.context import Context
from repro.config import Preset
from repro.errors import UsageError
from repro.record_state import RecordState, RunState
from repro.scheduling.devices import Device
from repro.scheduling.durations import format_seconds, parse_duration
from repro.scheduling.estimate import DataSize, Duration, Estimate, Survey
from repro.scheduling.plan import START_UP, make_plan, spend

SIZES = {
    "cifar100": DataSize(50_000, 10_000, 100, 32),
    "tiny-imagenet": DataSize(100_000, 10_000, 200, 64),
    "facescrub": DataSize(50_000, 5_000, 361, 64),
}
CPU = Device("cpu", 0, "a bench", None, 80 << 30, 1, {})
GPU = Device("cuda", 0, "NVIDIA H200", "GPU-a", 80 << 30, 1, {})


def plan_of(bench: Context, states, devices, preset: Preset | None = None, **options):
    survey = Survey.of(states, SIZES)
    return make_plan(survey, bench.registry, preset or bench.preset, bench.project, devices, **options)


def missing(runs):
    return [RunState(run, RecordState.MISSING, reason="not run yet") for run in runs]


def first_of(bench, count, **changes):
    """The first run recorded, the `count` others missing."""
    runs = first_runs(bench, count + 1)
    return [recorded(bench, runs[0], **changes), *missing(runs[1:])]


def recorded(bench, run, record_state=RecordState.DONE, **changes):
    record = make_record(bench, run, "0" * 64, **{"images_per_second": 100.0, **changes})
    return RunState(run, record_state, record, reason=f"{record_state}")


def paper_runs(bench, dataset="cifar100", network="resnet18"):
    return first_runs(bench, 24, dataset=dataset, network=network, seeds=(0, 1, 2))


def test_every_record_state_is_counted(bench):
    runs = first_runs(bench, 6)
    states = [
        recorded(bench, runs[0]),
        recorded(bench, runs[1], RecordState.OLDER_CODE),
        recorded(bench, runs[2], RecordState.OTHER_RECIPE),
        RunState(runs[3], RecordState.CORRUPT, reason="torn"),
        RunState(runs[4], RecordState.MISPLACED, reason="moved"),
        RunState(runs[5], RecordState.MISSING),
    ]
    plan = plan_of(bench, states, [CPU])
    (column,) = plan.columns
    assert column.counts == {
        "cells": 6,
        "runs": 6,
        "done": 1,
        "older_code": 1,
        "stale": 1,
        "damaged": 2,
        "to_do": 4,
    }
    assert plan.reasons == dict.fromkeys(("older code", "other recipe", "torn", "moved"), 1)
    (column,) = plan_of(bench, states, [CPU], stale="rerun").columns
    assert column.counts["to_do"] == 5


# Time


def test_time_is_images_over_the_measured_speed_and_as_wide_as_the_speeds(bench):
    runs = first_runs(bench, 5)
    (column,) = plan_of(bench, first_of(bench, 2), [CPU]).columns
    # Two runs of 3 epochs, each 160 training images and 80 test images at a third.
    images = 2 * 3 * (160 + 80 / 3)
    assert column.estimate.duration.low == pytest.approx(images / 110)
    assert column.estimate.duration.high == pytest.approx(images / 90)
    assert column.estimate.source == "measured by 1 record"
    three = [recorded(bench, run, images_per_second=s) for run, s in zip(runs, (50, 100, 200), strict=False)]
    (column,) = plan_of(bench, [*three, *missing(runs[3:])], [CPU]).columns
    assert column.estimate.duration.high / column.estimate.duration.low == pytest.approx(4)


def test_devices_share_the_work_but_a_run_has_only_one(bench):
    states = first_of(bench, 2)
    one, two, many = (plan_of(bench, states, [CPU] * count).duration for count in (1, 2, 50))
    assert two.low == pytest.approx(one.low / 2)
    assert many == two


def test_runs_that_shared_a_gpu_shared_its_speed(bench):
    states = first_of(bench, 1, at_once=4, device="NVIDIA H200")
    for at_once in (None, 1, 4):
        plan = plan_of(bench, states, [replace(GPU, runs_at_once=at_once)])
        assert plan.duration.low == pytest.approx(3 * (160 + 80 / 3) / 440)


@pytest.mark.parametrize(
    ("name", "dataset", "network", "rate"),
    [
        ("NVIDIA H200", "cifar100", "resnet18", 127e3),
        ("NVIDIA H100 80GB HBM3", "tiny-imagenet", "vgg16", 57e3),
        ("NVIDIA GeForce RTX 4090", "facescrub", "resnet50", 6.9e3),
        ("NVIDIA GeForce GTX 1080 Ti", "tiny-imagenet", "resnet18", 2.9e3),
    ],
)
def test_a_known_device_is_estimated_from_its_roofline(bench, name, dataset, network, rate):
    states = missing(paper_runs(bench, dataset, network))
    preset = bench.registry.preset("paper")
    (column,) = plan_of(bench, states, [replace(GPU, name=name)], preset).columns
    images = 24 * 100 * (SIZES[dataset].train + SIZES[dataset].test / 3)
    assert column.estimate.duration.low == pytest.approx(images / (0.7 * rate))
    assert column.estimate.duration.high == pytest.approx(images / (0.3 * rate))
    assert "roofline" in column.estimate.source


def test_a_stem_without_a_pool_costs_four_times_as_much_at_64_px(bench):
    paper = bench.registry.preset("paper")
    never = paper.model_copy(update={"recipe": paper.recipe.model_copy(update={"stem_pool": "never"})})
    states = missing(paper_runs(bench, "tiny-imagenet"))
    pooled, unpooled = (plan_of(bench, states, [GPU], preset).duration for preset in (paper, never))
    assert unpooled.low == pytest.approx(4 * pooled.low)


def test_a_card_of_another_model_borrows_no_roofline(bench):
    """Its name holds that of a known card, its bandwidth is another."""
    states = missing(paper_runs(bench))
    models = ("GH200 480GB", "H100 PCIe", "H100 NVL", "GeForce RTX 3090 Ti", "GeForce RTX 4090 D",
              "GeForce RTX 4090 Laptop GPU", "Unheard-Of 9")  # fmt: skip
    for model in models:
        device = replace(GPU, name=f"NVIDIA {model}")
        plan = plan_of(bench, states, [device], bench.registry.preset("paper"))
        assert plan.duration is None
        why = f"no run of {plan.columns[0].network} at this size has been recorded on {device.name} yet"
        assert plan.columns[0].estimate.source == f"no estimate: {why}"


def test_what_tells_nothing_about_the_work_is_not_estimated_from(bench):
    assert (
        plan_of(bench, missing(first_runs(bench, 1)), [GPU], bench.registry.preset("quick")).duration is None
    )
    assert plan_of(bench, first_of(bench, 1, device="another bench"), [CPU]).duration is None


def test_a_preset_that_takes_few_images_needs_less_time(bench):
    paper = bench.registry.preset("paper")
    reduced = {"images_per_class": 100, "epochs": 30, "lr_drops": (), "evaluate_every": 4}
    quick = paper.model_copy(update={"recipe": paper.recipe.model_copy(update=reduced)})
    runs = first_runs(bench, 2)
    record = make_record(bench, runs[0], images_per_second=100.0)
    config = record.config.model_copy(update={"recipe": quick.recipe})
    other = RunState(runs[0], RecordState.OTHER_RECIPE, record.model_copy(update={"config": config}))
    plan = plan_of(bench, [other, *missing(runs[1:])], [CPU], quick)
    # 100 of 500 images per class for 30 epochs, evaluated after every fourth and the last.
    assert plan.duration.low == pytest.approx(2 * (30 * 10_000 + 8 * 10_000 / 3) / 110)


def test_a_run_with_a_checkpoint_needs_only_the_rest(bench):
    states = first_of(bench, 1)
    whole = plan_of(bench, states, [CPU]).duration
    half = plan_of(bench, states, [CPU], begun={states[1].run.id: 0.5}).duration
    assert half.low == pytest.approx(whole.low / 2)


def test_gpu_hours_are_of_every_gpu_that_is_kept_busy(bench):
    states, preset = missing(paper_runs(bench)), bench.registry.preset("paper")
    one, two = (plan_of(bench, states, [GPU] * count, preset) for count in (1, 2))
    assert (one.busy, one.busy_unit) == (one.duration, "GPU")
    assert two.busy.low == pytest.approx(one.busy.low)
    assert two.duration.low == pytest.approx(one.duration.low / 2)


# Text


def test_the_plan_as_text(bench):
    runs = first_runs(bench, 4)
    states = [
        recorded(bench, runs[0]),
        recorded(bench, runs[1], RecordState.OTHER_RECIPE),
        *missing([*runs[2:], *first_runs(bench, 1, network="resnet50")]),
    ]
    assert plan_of(bench, states, [CPU] * 2).to_text() == (
        f"preset smoke: {bench.preset.description}\n"
        f"results: {bench.project.results}/smoke\n"
        "workers: 2 on a bench\n"
        "\n"
        "  table  data set    network      runs    done    to do  time\n"
        "-------  ----------  ---------  ------  ------  -------  -----------\n"
        "      1  cifar100    resnet18        4       1        3  7.6s – 9.3s\n"
        "      1  cifar100    resnet50        1       0        1  ?\n"
        "\n"
        "5 cells, 5 runs: 1 done, 4 to do\n"
        "1 × other recipe\n"
        "time to do: 7.6s – 9.3s on these devices (0.0042 – 0.0052 core-hours), not counting columns marked ?\n"
        "  measured by 2 records\n"
        "  no estimate: no run of resnet50 at this size has been recorded on a bench yet\n"
        "  the first finished runs tell the rest; `repro bench` measures images per second now\n"
        "disk: about 4.5 MB (records 40 kB, checkpoints while training 4.4 MB, logs and attempts 20 kB)"
    )
    idle = plan_of(bench, states[:1], [CPU])
    assert "time to do:" not in idle.to_text()
    assert "supplied" not in idle.to_text()
    assert "supplied with the clone" in replace(idle, supplied=True).to_text()


def test_the_disk_that_a_sweep_takes_follows_from_runs_epochs_and_checkpoints(bench):
    plan = plan_of(bench, missing(paper_runs(bench)), [GPU], bench.registry.preset("paper"))
    assert plan.disk.records == 24 * (9_000 + 300 * 100)
    # Weights and momentum of 11.2 M parameters, three checkpoints at the worst moment.
    assert plan.disk.checkpoints == pytest.approx(3 * 8 * 11.2e6)
    assert json.loads(plan.to_json())["disk_bytes"]["records"] == plan.disk.records
    longer = with_row_recipe(bench, epochs=200, width=0.5)
    plan = plan_of(longer, missing(paper_runs(bench)), [GPU], bench.registry.preset("paper"))
    assert plan.disk.records == 24 * (9_000 + 300 * 200)
    assert plan.disk.checkpoints == pytest.approx(3 * 8 * 11.2e6 / 4)


def test_the_plan_says_what_a_budget_buys_and_what_it_leaves_out(bench):
    runs = [*first_runs(bench, 3), *first_runs(bench, 1, dataset="tiny-imagenet")]
    states = [recorded(bench, runs[0]), *missing(runs[1:])]
    plan = plan_of(bench, states, [CPU], budget=60.0, missing_data={"tiny-imagenet": "fetch it"})
    assert "budget 1m 00s: 1 of 1 column seeds fit" in plan.to_text()
    assert "1 run lacks its data: fetch it\n" in plan.to_text()
    content = json.loads(plan.to_json())["budget"]
    assert [part["runs"] for part in content["fits"]] == [[run.id for run in runs[1:3]]]


# What a time budget buys


def test_a_time_is_read_as_people_write_it():
    texts = ("30m", "20h", "1d2h", "45s", "1h1m1s")
    assert [parse_duration(text) for text in texts] == [1800, 72_000, 93_600, 45, 3661]
    for text in ("", "30", "m", "2h1d", "-5m", "0m", "1.5h", "tomorrow"):
        with pytest.raises(UsageError, match="expected one such as 30m, 20h or 1d2h"):
            parse_duration(text)


def test_durations_read_naturally():
    seconds = (0, 9.94, 9.96, 59.6, 492, 3599.7, 11_100, 16.2 * 86_400)
    texts = ("0.0s", "9.9s", "10s", "1m 00s", "8m 12s", "1h 00m", "3h 05m", "16d 5h")
    assert tuple(map(format_seconds, seconds)) == texts


def estimate_by(seconds: dict[str, float]):
    """Each run of a network takes so long; a network that is not named has no estimate."""

    def estimate(runs):
        each = seconds.get(runs[0].cell.network)
        wall = None if each is None else Duration(len(runs) * each / 2, len(runs) * each)
        return Estimate(wall, wall, "told")

    return estimate


def sweep_of(bench: Context):
    """Three columns, two seeds each, dearest first."""
    return [
        run
        for network in ("resnet50", "vgg16", "resnet18")
        for run in first_runs(bench, 16, network=network, seeds=(0, 1))
    ]


def names(parts):
    return [(part.network, part.seed) for part in parts]


def test_the_cheapest_columns_come_first_whole_and_seed_by_seed(bench):
    cost = {"resnet50": 1000, "vgg16": 10, "resnet18": 100}
    bought = spend(8 * (10 + 10 + 100) + 3 * START_UP, sweep_of(bench), estimate_by(cost))
    assert names(bought.fits) == [("vgg16", 0), ("vgg16", 1), ("resnet18", 0)]
    assert names(bought.rest) == [("resnet18", 1), ("resnet50", 0), ("resnet50", 1)]
    assert [run.id for run in bought.runs[:8]] == [run.id for run in first_runs(bench, 8, network="vgg16")]
    assert len(bought.runs) == 48
    assert bought.lines()[0].startswith("budget 16m 30s: 3 of 6 column seeds fit, in ")
    assert bought.lines()[-1].startswith("  the remaining time starts cifar100/resnet18 seed 1 (8 runs, ")


def test_a_column_that_is_nearly_done_is_cheap(bench):
    runs = [*first_runs(bench, 8, network="vgg16"), *first_runs(bench, 1, network="resnet50")]
    bought = spend(60, runs, estimate_by({"vgg16": 10, "resnet50": 30}))
    assert (names(bought.fits), names(bought.rest)) == ([("resnet50", 0)], [("vgg16", 0)])


def test_where_nothing_fits_the_cheapest_is_begun_and_it_says_so(bench):
    bought = spend(60, sweep_of(bench), estimate_by({"resnet50": 1000, "vgg16": 10, "resnet18": 100}))
    assert bought.fits == ()
    (line,) = bought.lines()
    assert "no column's seed fits completely; training starts with cifar100/vgg16 seed 0" in line


def test_a_column_of_unknown_speed_comes_last(bench):
    bought = spend(10_000, sweep_of(bench), estimate_by({"vgg16": 10}))
    assert names(bought.fits) == [("vgg16", 0), ("vgg16", 1)]
    assert names(bought.rest) == [("resnet50", 0), ("resnet50", 1), ("resnet18", 0), ("resnet18", 1)]
