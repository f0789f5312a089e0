"""What a run's attempts say about the next one: a pure function of the notes on disk."""

import pytest
from pretended_environment import attempt_note

from repro.attempts import (
    Outcome,
    given_up,
    is_suspect,
    memory_that_was_too_small,
    new_attempt,
    read_attempts,
    write_attempt,
)
from repro.paths import RunPaths


def note(outcome, saved=0, number=1, memory=0, alone=True):
    return attempt_note(outcome, number, saved_step=saved, device_memory_bytes=memory, alone=alone)


CRASH = "crashed: killed by SIGSEGV"


@pytest.mark.parametrize(
    ("outcomes", "failed"),
    [
        ([], None),
        (["failed: ValueError: no"], True),
        (["interrupted", "failed: ValueError: no", "interrupted"], True),
        ([CRASH] * 2, None),
        ([CRASH] * 3, True),
        (["device error: CUDA error: misaligned address"] * 3, True),
        ([CRASH, "interrupted", CRASH, "interrupted", CRASH], True),
        (["interrupted"] * 9, None),
        (["interrupted"] * 10, False),
        (["withdrawn: out of memory beside 3 others"] * 50, None),
        (["superseded"] * 50, None),
        (["running"] * 50, None),
    ],
)
def test_a_run_is_given_up_after_an_error_three_crashes_or_ten_interruptions(outcomes, failed):
    verdict = given_up([note(outcome) for outcome in outcomes])
    assert (verdict and verdict.failed) == failed


def test_crashes_beside_other_runs_are_never_counted():
    assert given_up([note(CRASH, alone=False)] * 20) is None


def test_a_later_saved_step_forgives_what_came_before_it():
    assert given_up([note(CRASH, saved=step) for step in (0, 0, 5, 5, 9, 9)]) is None
    assert given_up([note(CRASH, saved=step) for step in (0, 0, 5, 5, 5)]).failed


def test_a_step_that_was_saved_before_is_no_progress():
    # Two checkpoint formats that restart from 0 in turn would else go on for ever.
    assert given_up([note(CRASH, saved=step) for step in (9, 5, 8)]).failed


def test_the_reason_names_each_crash_and_counts_equal_ones():
    notes = [note(CRASH), note(CRASH), note("crashed: hung: no sign of life for 10m 00s")]
    assert given_up(notes).reason == ("killed by SIGSEGV (2 times); then hung: no sign of life for 10m 00s")


def test_a_run_that_crashed_last_is_suspect_until_it_ends_otherwise():
    assert not is_suspect([])
    assert is_suspect([note("interrupted"), note(CRASH)])
    assert is_suspect([note(CRASH), note("withdrawn: x")])
    assert not is_suspect([note(CRASH), note("interrupted")])


def test_memory_counts_only_where_the_run_was_alone():
    notes = [note("out of memory: x", memory=8), note("out of memory: x", memory=16, alone=False)]
    assert memory_that_was_too_small(notes) == 8
    assert memory_that_was_too_small(notes[1:]) is None


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"outcome": "done"}', b"\xff", b"unknown outcome"])
def test_a_folder_without_a_readable_note_counts_as_a_crash(tmp_path, content):
    paths = RunPaths(record=tmp_path / "seed0.json", work=tmp_path / "work")
    for _ in range(3):
        folder = new_attempt(paths)
        if content == b"unknown outcome":
            write_attempt(folder, note("exploded", number=int(folder.name)))
        elif content is not None:
            (folder / "attempt.json").write_bytes(content)
    assert [each.kind for each in read_attempts(paths)] == [Outcome.CRASHED] * 3
    assert given_up(read_attempts(paths)).failed


def test_other_names_beside_the_attempts_are_ignored(tmp_path):
    paths = RunPaths(record=tmp_path / "seed0.json", work=tmp_path / "work")
    write_attempt(new_attempt(paths), note("interrupted"))
    for name in ("1 copy", "²", ".2", "two"):
        (paths.attempts / name).mkdir()
    assert [each.number for each in read_attempts(paths)] == [1]
    assert new_attempt(paths).name == "2"
