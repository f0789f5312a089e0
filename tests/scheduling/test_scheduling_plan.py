"""The plan: what is counted, and how long the rest takes."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from sweep_bench import Bench, make_record

from repro.config import Preset
from repro.implementations import NETWORKS
from repro.record_state import RecordState, RunState
from repro.registry import Selection
from repro.scheduling.estimate import DataSize
from repro.scheduling.footprint import PARAMETERS
from repro.scheduling.plan import make_plan
from repro.scheduling.probes import ProbeResult, Work
from repro.scheduling.slots import Slot, find_slots
from repro.scheduling.survey import Survey

SIZES = {
    "cifar100": DataSize(50_000, 10_000, 100, 32),
    "tiny-imagenet": DataSize(100_000, 10_000, 200, 64),
    "facescrub": DataSize(50_000, 5_000, 361, 64),
}


def slot(device="cuda", name="NVIDIA H200", index=0, share=0, co_tenants=0) -> Slot:
    return Slot(device, index, name, "GPU-a" if device == "cuda" else None, 80 << 30, co_tenants, {}, share)


CPU = slot("cpu", "a bench")


def plan_of(bench: Bench, states, slots, preset: Preset | None = None, **options):
    survey = Survey.of(states, SIZES)
    return make_plan(survey, bench.registry, preset or bench.preset, bench.project, slots, **options)


def missing(runs):
    return [RunState(run, RecordState.MISSING, reason="not run yet") for run in runs]


def recorded(bench, run, record_state=RecordState.DONE, **changes):
    return RunState(run, record_state, make_record(bench, run, "0" * 64, **changes), reason=f"{record_state}")


def paper_runs(bench, dataset="cifar100", network="resnet18"):
    return bench.runs(24, dataset=dataset, network=network, seeds=(0, 1, 2))


def test_the_paper_is_72_cells_and_216_runs(bench):
    preset = bench.registry.preset("paper")
    runs = list(bench.registry.select_runs(Selection(), preset))
    plan = plan_of(bench, missing(runs), [slot()], preset)
    content = json.loads(plan.to_json())
    assert (content["cells"], content["runs"], content["to_do"]) == (72, 216, 216)
    assert [column["runs"] for column in content["columns"]] == [24] * 9
    assert content["duration"]["low"] == pytest.approx(sum(c["duration"]["low"] for c in content["columns"]))


def test_every_record_state_is_counted(bench):
    runs = bench.runs(6)
    states = [
        recorded(bench, runs[0]),
        recorded(bench, runs[1], RecordState.OLDER_CODE),
        recorded(bench, runs[2], RecordState.OTHER_RECIPE),
        RunState(runs[3], RecordState.CORRUPT, reason="torn"),
        RunState(runs[4], RecordState.MISPLACED, reason="moved"),
        RunState(runs[5], RecordState.MISSING),
    ]
    (column,) = plan_of(bench, states, [CPU]).columns
    assert (column.done, column.older_code, column.stale, column.damaged, column.to_do) == (1, 1, 1, 2, 4)
    (column,) = plan_of(bench, states, [CPU], stale="rerun").columns
    assert column.to_do == 5
    assert plan_of(bench, states, [CPU]).reasons == {
        "older code": 1,
        "other recipe": 1,
        "torn": 1,
        "moved": 1,
    }


def test_time_is_images_over_the_measured_speed(bench):
    runs = bench.runs(3)
    states = [recorded(bench, runs[0], images_per_second=100.0), *missing(runs[1:])]
    (column,) = plan_of(bench, states, [CPU]).columns
    # Two runs of 3 epochs, each 160 training images and 80 test images at a third.
    images = 2 * 3 * (160 + 80 / 3)
    assert column.duration.low == pytest.approx(images / 110)
    assert column.duration.high == pytest.approx(images / 90)
    assert column.source == "measured by 1 record"


def test_a_wide_spread_of_measured_speeds_gives_a_wide_range(bench):
    runs = bench.runs(4)
    speeds = (50.0, 100.0, 200.0)
    states = [recorded(bench, run, images_per_second=s) for run, s in zip(runs, speeds, strict=False)]
    (column,) = plan_of(bench, [*states, *missing(runs[3:])], [CPU]).columns
    assert column.duration.high / column.duration.low == pytest.approx(4)
    assert column.source == "measured by 3 records"


def test_slots_share_the_work_but_a_run_has_only_one(bench):
    runs = bench.runs(3)
    states = [recorded(bench, runs[0], images_per_second=100.0), *missing(runs[1:])]
    alone = plan_of(bench, states, [CPU]).duration
    two = plan_of(bench, states, [CPU] * 2).duration
    many = plan_of(bench, states, [CPU] * 50).duration
    assert two.low == pytest.approx(alone.low / 2)
    assert many == two


def test_runs_that_share_a_gpu_share_its_speed(bench):
    runs = bench.runs(2)
    states = [
        recorded(bench, runs[0], images_per_second=100.0, co_tenants=3, device="NVIDIA H200"),
        *missing(runs[1:]),
    ]
    packed = [slot(share=share, co_tenants=1) for share in range(2)]
    for slots in ([slot()], packed):
        plan = plan_of(bench, states, slots)
        assert plan.duration.low == pytest.approx(3 * (160 + 80 / 3) / 440)


@pytest.mark.parametrize(
    ("name", "dataset", "network", "rate"),
    [
        ("NVIDIA H200", "cifar100", "resnet18", 127e3),
        ("NVIDIA H100 80GB HBM3", "cifar100", "resnet18", 108e3),
        ("NVIDIA H100 80GB HBM3", "tiny-imagenet", "vgg16", 57e3),
        ("NVIDIA GeForce RTX 4090", "cifar100", "vgg16", 49e3),
        ("NVIDIA GeForce RTX 4090", "facescrub", "resnet50", 6.9e3),
        ("NVIDIA A100-SXM4-80GB", "cifar100", "vgg16", 96e3),
        ("NVIDIA GeForce RTX 3090", "cifar100", "resnet50", 5.1e3),
        ("NVIDIA GeForce GTX 1080 Ti", "tiny-imagenet", "vgg16", 1.3e3),
        ("NVIDIA GeForce GTX 1080 Ti", "tiny-imagenet", "resnet18", 2.9e3),
    ],
)
def test_a_known_device_is_estimated_from_its_roofline(bench, name, dataset, network, rate):
    preset = bench.registry.preset("paper")
    runs = paper_runs(bench, dataset, network)
    (column,) = plan_of(bench, missing(runs), [slot(name=name)], preset).columns
    size = SIZES[dataset]
    images = 24 * 100 * (size.train + size.test / 3)
    assert column.duration.low == pytest.approx(images / (0.7 * rate))
    assert column.duration.high == pytest.approx(images / (0.3 * rate))
    assert "roofline" in column.source


def test_a_stem_without_a_pool_costs_four_times_as_much_at_64_px(bench):
    paper = bench.registry.preset("paper")
    never = paper.model_copy(update={"recipe": paper.recipe.model_copy(update={"stem_pool": "never"})})
    states = missing(paper_runs(bench, "tiny-imagenet"))
    pooled, unpooled = (plan_of(bench, states, [slot()], preset).duration for preset in (paper, never))
    assert unpooled.low == pytest.approx(4 * pooled.low)


@pytest.mark.parametrize("device", [CPU, slot(name="NVIDIA Unheard-Of 9")])
def test_an_unknown_device_gets_no_estimate(bench, device):
    plan = plan_of(bench, missing(bench.runs(1)), [device])
    assert plan.duration is None
    assert plan.columns[0].source == f"no estimate: no speed measured on {device.name} yet"
    assert json.loads(plan.to_json())["duration"] is None


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GH200 480GB",
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
    ],
)
def test_a_card_of_another_model_borrows_no_roofline(bench, name):
    """Its name holds that of a known card, its bandwidth is another."""
    preset = bench.registry.preset("paper")
    (column,) = plan_of(bench, missing(paper_runs(bench)), [slot(name=name)], preset).columns
    assert column.duration is None


def test_narrow_networks_are_not_estimated_from_a_roofline(bench):
    assert plan_of(bench, missing(bench.runs(1)), [slot()], bench.registry.preset("quick")).duration is None


def test_a_speed_measured_on_another_device_does_not_count(bench):
    runs = bench.runs(2)
    states = [recorded(bench, runs[0], device="another bench"), *missing(runs[1:])]
    assert plan_of(bench, states, [CPU]).duration is None


def test_a_preset_that_takes_few_images_needs_less_time(bench):
    recipe = bench.registry.preset("paper").recipe.model_copy(
        update={"images_per_class": 100, "epochs": 30, "lr_drops": (), "evaluate_every": 4}
    )
    quick = bench.registry.preset("paper").model_copy(update={"recipe": recipe})
    runs = bench.runs(2)
    states = [recorded(bench, runs[0], RecordState.OTHER_RECIPE, images_per_second=100.0), *missing(runs[1:])]
    record = states[0].record
    config = record.config.model_copy(update={"recipe": quick.recipe})
    states[0] = RunState(runs[0], RecordState.OTHER_RECIPE, record.model_copy(update={"config": config}))
    plan = plan_of(bench, states, [CPU], quick)
    # 100 of 500 images a class for 30 epochs, evaluated after every fourth and the last.
    assert plan.duration.low == pytest.approx(2 * (30 * 10_000 + 8 * 10_000 / 3) / 110)


def test_the_plan_as_text(bench):
    runs = bench.runs(4)
    states = [
        recorded(bench, runs[0], images_per_second=100.0),
        recorded(bench, runs[1], RecordState.OTHER_RECIPE, images_per_second=100.0),
        *missing([*runs[2:], *bench.runs(1, network="resnet50")]),
    ]
    heading = bench.preset.heading
    assert plan_of(bench, states, [CPU] * 2).to_text() == (
        f"preset smoke: {heading}\n"
        f"results: {bench.project.results}/smoke\n"
        "slots: 2 on a bench\n"
        "\n"
        "  table  data set    network      cells    runs    done    older code    to do  time\n"
        "-------  ----------  ---------  -------  ------  ------  ------------  -------  -----------\n"
        "      1  cifar100    resnet18         4       4       1             0        3  7.6s – 9.3s\n"
        "      1  cifar100    resnet50         1       1       0             0        1  ?\n"
        "\n"
        "5 cells, 5 runs: 1 done, 0 done by older code, 4 to do (of them 1 with a record of another recipe, "
        "0 with a damaged one)\n"
        "1 × other recipe\n"
        "time to do: 7.6s – 9.3s on these slots (0.0042 – 0.0052 core-hours), columns marked ? not counted\n"
        "  measured by 2 records\n"
        "  no estimate: no speed measured on a bench yet\n"
        "disk: about 4.5 MB (records 40 kB, checkpoints while training 4.4 MB, logs and attempts 20 kB)"
    )


def test_a_plan_with_nothing_to_do_speaks_of_no_time(bench):
    text = plan_of(bench, [recorded(bench, bench.runs(1)[0])], [CPU]).to_text()
    assert "time to do:" not in text
    assert "estimate" not in text


def test_records_that_came_with_the_project_are_called_supplied(bench):
    plan = plan_of(bench, missing(bench.runs(1)), [CPU])
    assert "supplied" not in plan.to_text()
    assert "supplied with the clone" in replace(plan, supplied=True).to_text()


def test_a_plan_is_made_without_torch_pandas_or_rich(bench):
    code = (
        "import sys, sweep_bench, pathlib\n"
        "import test_scheduling_plan as tests\n"
        "bench = sweep_bench.Bench.at(pathlib.Path('/nowhere'))\n"
        "tests.plan_of(bench, tests.missing(bench.runs(8)), [tests.CPU]).to_text()\n"
        "print(sorted({'torch', 'pandas', 'rich'} & set(sys.modules)))"
    )
    where = __file__.rpartition("/")[0]
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=where, check=True
    )
    assert found.stdout == "[]\n"


def test_this_machine_can_be_planned_for(bench):
    slots = find_slots(1, "cpu", cpu_slots=1)
    assert slots[0].name in plan_of(bench, missing(bench.runs(1)), slots).to_text()


def test_the_disk_that_a_sweep_takes_follows_from_runs_epochs_and_checkpoints(bench):
    preset = bench.registry.preset("paper")
    plan = plan_of(bench, missing(paper_runs(bench)), [slot()], preset)
    assert plan.disk.records == 24 * (9_000 + 300 * 100)
    # Weights and momentum of 11.2 M parameters, three checkpoints at the worst moment.
    assert plan.disk.checkpoints == pytest.approx(3 * 8 * 11.2e6)
    assert json.loads(plan.to_json())["disk_bytes"]["records"] == plan.disk.records


@pytest.mark.parametrize("name", NETWORKS)
def test_the_parameters_that_a_checkpoint_is_estimated_from_are_the_networks(name):
    import torch  # not for planning, which this file imports

    from repro import models

    with torch.device("meta"):
        network = models.build(name, 64)
    assert sum(each.numel() for each in network.parameters()) == pytest.approx(PARAMETERS[name], rel=0.02)


def test_gpu_hours_are_of_every_gpu_that_is_kept_busy(bench):
    preset = bench.registry.preset("paper")
    runs = paper_runs(bench)
    one = plan_of(bench, missing(runs), [slot()], preset)
    two = plan_of(bench, missing(runs), [slot(), slot(index=1)], preset)
    assert (one.busy, one.busy_unit) == (one.duration, "GPU")
    assert two.busy.low == pytest.approx(one.busy.low)
    assert two.duration.low == pytest.approx(one.duration.low / 2)


def test_a_probe_is_believed_where_no_record_is_and_replaces_the_table(bench):
    preset = bench.registry.preset("paper")
    work = Work("resnet18", 32, 1.0, "auto")
    probe = ProbeResult("NVIDIA H200", work, 128, None, 2, "c", 1, 50_000.0, 2**30)
    survey = Survey.of(missing(paper_runs(bench)), SIZES, [probe])
    plan = make_plan(survey, bench.registry, preset, bench.project, [slot()])
    (column,) = plan.columns
    assert column.source == "measured by a probe"
    images = 24 * 100 * (50_000 + 10_000 / 3)
    assert column.duration.low == pytest.approx(images / 55_000)


def test_a_run_with_a_checkpoint_needs_only_the_rest(bench):
    runs = bench.runs(2)
    states = [recorded(bench, runs[0], images_per_second=100.0), *missing(runs[1:])]
    whole = plan_of(bench, states, [CPU]).duration
    half = plan_of(bench, states, [CPU], begun={runs[1].id: 0.5}).duration
    assert half.low == pytest.approx(whole.low / 2)


def test_the_plan_says_what_a_budget_buys_and_what_it_leaves_out(bench):
    runs = [*bench.runs(3), *bench.runs(1, dataset="tiny-imagenet")]
    states = [recorded(bench, runs[0], images_per_second=100.0), *missing(runs[1:])]
    plan = plan_of(bench, states, [CPU], budget=60.0, without_data=["tiny-imagenet"])
    text = plan.to_text()
    assert "budget 1m 00s: 1 of 1 column seeds fit" in text
    assert "left out, no data here: tiny-imagenet" in text
    content = json.loads(plan.to_json())["budget"]
    assert [part["runs"] for part in content["fits"]] == [[run.id for run in runs[1:3]]]
