"""How many runs share a device: the choice from given numbers, and the measuring itself on this CPU."""

import sys

import pytest
from sweep_bench import PRESET, ROOT, Bench, cpu_slots

from repro.scheduling.events import Started
from repro.scheduling.packing import choose_copies, next_copies
from repro.scheduling.probes import ProbeResult, Work, add_probes, read_probes
from repro.scheduling.probing import ProbeCommand, ProbeFailedError, measure

GIB = 2**30
WORK = Work("resnet18", 32, 1.0, "auto")


def measured(*speeds: float, memory: int = GIB, copies=(1, 2, 3, 4, 6, 8)) -> list[ProbeResult]:
    """What probes of 1, 2, 3, 4, 6, 8 runs at once reached together."""
    return [
        ProbeResult("a GPU", WORK, 128, None, 1, "c" * 64, count, speed, memory)
        for count, speed in zip(copies, speeds, strict=False)
    ]


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ((), 1),
        ((100,), 1),
        ((100, 190, 250, 270, 271), 4),
        ((100, 104), 1),  # a gain of less than 5 % is not worth a second run's memory
        ((100, 190, 150), 2),
        ((100, 90, 200), 3),
    ],
)
def test_the_fewest_that_come_near_the_best_total_are_chosen(speeds, chosen):
    assert choose_copies(measured(*speeds), 80 * GIB) == chosen


def test_what_does_not_fit_the_memory_is_not_chosen_however_fast():
    results = measured(100, 190, 280, memory=3 * GIB)
    assert choose_copies(results, 80 * GIB) == 3
    assert choose_copies(results, 8 * GIB) == 2
    assert choose_copies(results, 5 * GIB) == 1
    assert choose_copies(results, 2 * GIB) == 1


@pytest.mark.parametrize(
    ("speeds", "memory_bytes", "most", "expected"),
    [
        ((), 80 * GIB, 8, 1),
        ((100,), 80 * GIB, 8, 2),
        ((100, 190, 260, 320), 80 * GIB, 8, 6),
        ((100, 190, 195), 80 * GIB, 8, None),  # no longer pays
        ((100, 190), 3 * GIB, 8, None),  # three would not fit
        ((100, 190), 80 * GIB, 2, None),
    ],
)
def test_one_more_is_measured_as_long_as_it_pays_and_fits(speeds, memory_bytes, most, expected):
    assert next_copies(measured(*speeds), memory_bytes, most) == expected


def test_a_cache_of_probes_keeps_the_latest_answer_and_a_torn_one_is_empty(tmp_path):
    path = tmp_path / "deep" / "probes.json"
    assert read_probes(path) == ()
    add_probes(path, measured(100, 190))
    add_probes(path, measured(120))
    assert [(each.copies, each.images_per_second) for each in read_probes(path)] == [(2, 190), (1, 120)]
    path.write_text(path.read_text()[:50])
    assert read_probes(path) == ()


def test_a_device_holds_no_more_runs_of_a_kind_than_it_should(bench: Bench):
    few, many = bench.runs(4, network="resnet50"), bench.runs(4, network="resnet18")
    bench.script({})
    heard = []
    most = {"resnet50": 1, "resnet18": 3}

    def listen(event):
        if isinstance(event, Started):
            heard.append(event.job)

    def tenants(run, slot):
        return most[run.cell.network]

    outcome = bench.scheduler([*few, *many], bench.inline(), 3, listen, tenants=tenants).run()
    assert len(outcome.done) == 8
    for job in heard:
        network = job.runs[0].split("/")[1]
        assert job.slot.co_tenants == most[network] - 1
        assert job.argv[-2:] == ("--co-tenants", str(most[network] - 1))


def command(*program: str, preset: str = PRESET, seconds: float = 0.3) -> ProbeCommand:
    return ProbeCommand(
        preset,
        ROOT,
        ROOT / "data",
        threads=1,
        seconds=seconds,
        program=program or (sys.executable, "-m", "repro"),
    )


def test_probes_at_once_each_measure_the_real_loop(bench: Bench):
    (run,) = bench.runs(1)
    answers = measure(command(), run.id, cpu_slots(2)[0], copies=2)
    assert len(answers) == 2
    assert all(answer.images_per_second > 0 and answer.memory_bytes > 50 * 2**20 for answer in answers)


def test_a_probe_that_dies_says_its_last_words(bench: Bench):
    (slot,) = cpu_slots(1)
    with pytest.raises(ProbeFailedError, match="has no row 'no-such-loss'"):
        measure(command(), "cifar100/resnet18/no-such-loss/seed0", slot)
    killed = (sys.executable, "-c", "import os; print('ready', flush=True); os.kill(os.getpid(), 9)")
    with pytest.raises(ProbeFailedError, match="exit code -9"):
        measure(command(*killed), bench.runs(1)[0].id, slot)
