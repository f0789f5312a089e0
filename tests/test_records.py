"""Records: what is written can be read, and whatever is wrong with one is named."""

import base64
import hashlib
import json
import platform
import re
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from smoke_project import OTHER, RUN, record_of, smoke_context, train_here

import repro
from repro.errors import RecordCorruptError, RecordMisplacedError
from repro.record_state import RecordState
from repro.records import Probes, parse_record, read_record
from repro.registry import Selection
from repro.system import memory_bytes, processor_name
from repro.training.precision import choose_precision


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A results folder with two real records, read only."""
    with pytest.MonkeyPatch.context() as patch:
        context = smoke_context(patch, tmp_path_factory.mktemp("results"))
        assert train_here(context, RUN, OTHER) == 0
        return context


@pytest.fixture
def text(trained) -> str:
    return trained.project.run("smoke", RUN).record.read_text()


def with_checksum_of(content: dict) -> str:
    """The record with a checksum that fits, whatever is in it: a program's mistake, not an editor's."""
    content = {key: value for key, value in content.items() if key != "sha256"}
    body = json.dumps(content, indent=1, ensure_ascii=False).removesuffix("\n}")
    return f'{body},\n "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'


def test_a_record_says_the_same_after_reading_as_when_written(text):
    record = parse_record(text, "here")
    assert record.to_json() == text
    assert record.run == RUN


def test_a_record_holds_what_the_figures_and_claims_need(trained):
    record = record_of(trained, RUN)
    assert len(record.curve) == record.config.recipe.epochs
    assert all(epoch.gradient_at_logits > 0 and epoch.gradient_at_features > 0 for epoch in record.curve)
    histogram = record.probes.logits
    assert sum(histogram.counts) + histogram.underflow + histogram.overflow == record.result.total * 10
    assert histogram.quantiles["2.5"] < histogram.quantiles["50"] < histogram.quantiles["97.5"]
    assert len(record.probes.weight_norms) == record.data.classes
    assert record.result.accuracy == 100 * record.result.correct / record.result.total
    assert record.curve[-1].test_accuracy == record.result.accuracy
    assert record.provenance.attempts[-1].outcome == "done"
    assert record.data.generated
    assert all(epoch.feature_norm > 0 and epoch.gradient_times_feature > 0 for epoch in record.curve)
    bits = np.unpackbits(
        np.frombuffer(base64.urlsafe_b64decode(record.result.correct_images), dtype=np.uint8)
    )
    assert (bits.sum(), len(bits)) == (record.result.correct, record.result.total)


def test_a_record_says_on_what_and_with_what_it_was_made(trained):
    made = record_of(trained, RUN).provenance
    assert made.packages["torch"] == torch.__version__.partition("+")[0]
    assert made.packages["scaled-bn-repro"] == repro.__version__
    assert len(made.packages) > 20
    assert made.kernel == f"Linux {platform.release()}"
    assert made.device == made.processor == processor_name()
    assert made.device_memory_bytes == memory_bytes()
    assert (made.cuda, made.cudnn, made.driver, made.compute_capability) == (None,) * 4
    assert (made.energy_joules, made.runs_on_device) == (None, 1)
    assert made.precision == choose_precision(torch.device("cpu")).name
    data = record_of(trained, RUN).data
    assert {len(sha256) for sha256 in data.arrays.values()} == {64}
    assert len(data.arrays) == 4


def test_a_host_is_named_by_a_hash_that_only_its_results_folder_can_compare(trained, monkeypatch, tmp_path):
    hosts = {record_of(trained, run).provenance.attempts[-1].host for run in (RUN, OTHER)}
    assert len(hosts) == 1
    other = smoke_context(monkeypatch, tmp_path)
    assert train_here(other, RUN) == 0
    (host,) = hosts | set()
    name = socket.gethostname()
    assert record_of(other, RUN).provenance.attempts[-1].host not in {host, name}
    assert host != hashlib.sha256(name.encode()).hexdigest()[:12]
    assert name not in trained.project.run("smoke", RUN).record.read_text()


def test_the_json_is_readable_one_value_a_line_but_for_lists_of_numbers(text):
    lines = text.splitlines()
    assert any(re.match(r' *"counts": \[\d+, \d+', line) for line in lines)
    assert len(lines) < 300


@pytest.mark.parametrize("keep", [0, 1, 0.5, 0.9, -2])
def test_a_torn_record_is_corrupt(text, keep):
    end = keep if isinstance(keep, int) else int(len(text) * keep)
    with pytest.raises(RecordCorruptError, match="torn or cut short"):
        parse_record(text[:end], "there.json")


def test_a_record_edited_by_hand_is_corrupt(text):
    content = json.loads(text)
    content["result"]["accuracy"] = 99.0
    with pytest.raises(RecordCorruptError, match=r"there\.json: its content does not match its sha256"):
        parse_record(json.dumps(content), "there.json")


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text + "\n",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace('"threads": 1', '"threads":  1'),
        lambda text: text.replace('\n "sha256"', '\n  "sha256"'),
        lambda text: text[:-5] + ("0" if text[-5] != "0" else "1") + text[-4:],
        lambda text: re.sub(',\n "sha256": "[0-9a-f]+"', "", text),
        lambda text: text.replace("{\n", '{\n "sha256": "00",\n', 1),
    ],
)
def test_the_checksum_is_over_the_text_and_finds_what_json_would_not(text, edit):
    assert edit(text) != text
    with pytest.raises(RecordCorruptError, match="does not match its sha256"):
        parse_record(edit(text), "there.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda c: c["result"].update(accuracy=50.0), "accuracy is not 100 × correct / total"),
        (lambda c: c["result"].pop("correct"), "result.correct: Field required"),
        (lambda c: c["result"].update(correct_images="AAAA"), "not one bit per test image"),
        (lambda c: c["result"].update(correct_images="_____________w=="), "does not have `correct` bits set"),
        (lambda c: c["result"].update(correct_images="?"), "result"),
        (lambda c: c["result"].update(accuracy=None, diverged_in=1), "no accuracy and no correct_images"),
        (lambda c: c["config"].update(seed=-1), "config.seed"),
    ],
)
def test_a_record_that_breaks_the_schema_is_corrupt_though_its_checksum_fits(text, change, says):
    content = json.loads(text)
    change(content)
    with pytest.raises(RecordCorruptError, match=says):
        parse_record(with_checksum_of(content), "there.json")


@pytest.mark.parametrize("bad", ["NaN", "Infinity"])
def test_nan_and_infinity_are_not_numbers_of_a_record(text, bad):
    with pytest.raises(RecordCorruptError, match="not whole JSON"):
        parse_record(text.replace('"threads": 1', f'"threads": {bad}'), "there.json")


def test_a_record_of_a_newer_schema_says_which_version_it_has(text):
    with pytest.raises(RecordCorruptError, match="schema version 3; this program reads version 2"):
        parse_record(text.replace('"schema_version": 2', '"schema_version": 3'), "there.json")


def test_a_record_under_another_runs_name_is_misplaced(trained, tmp_path):
    path = tmp_path / "seed0.json"
    path.write_text(trained.project.run("smoke", RUN).record.read_text())
    with pytest.raises(RecordMisplacedError, match="moved or copied"):
        read_record(path, OTHER, "smoke")
    with pytest.raises(RecordMisplacedError, match="preset smoke"):
        read_record(path, RUN, "quick")


def test_no_record_is_none(tmp_path):
    assert read_record(tmp_path / "seed0.json", RUN, "smoke") is None


def test_a_record_that_is_not_text_is_corrupt(tmp_path):
    path = tmp_path / "seed0.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordCorruptError, match="not text"):
        read_record(path, RUN, "smoke")


def test_record_states_say_what_each_record_is_worth(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_ROOT", str(trained.project.root))
    context = smoke_context(monkeypatch, tmp_path)
    names = ["cross-entropy", "scaled-bn-m0.8", "scaled-bn-m0.9", "scaled-bn-m1", "am-softmax-s10-m0.5"]
    runs = [context.registry.parse(f"cifar100/resnet18/{name}/seed0") for name in names]
    good = trained.project.run("smoke", RUN).record.read_text()

    def put(run, content):
        path = context.project.run("smoke", run.id).record
        path.parent.mkdir(parents=True)
        path.write_text(content)

    put(runs[0], trained.project.run("smoke", OTHER).record.read_text())
    put(runs[1], good[:100])
    put(runs[2], good)
    put(runs[3], good)
    states = list(context.states(runs))
    assert [state.record_state for state in states] == [
        RecordState.DONE,
        RecordState.CORRUPT,
        RecordState.MISPLACED,
        RecordState.DONE,
        RecordState.MISSING,
    ]
    assert [state.counts for state in states] == [True, False, False, True, False]
    assert "not run yet" in states[4].reason


def test_a_record_of_another_recipe_says_what_changed(trained):
    record = record_of(trained, RUN)
    preset = trained.preset.model_copy(
        update={"recipe": trained.preset.recipe.model_copy(update={"epochs": 4, "lr": 0.2})}
    )
    from repro.record_state import assess

    run = trained.registry.parse(RUN)
    (state,) = assess([run], trained.registry, preset, trained.project, {})
    assert state.record_state is RecordState.OTHER_RECIPE
    assert "epochs 3 → 4" in state.reason
    assert "lr 0.1 → 0.2" in state.reason
    assert record.config.recipe.epochs == 3


def test_a_record_is_unchecked_for_its_data_where_they_are_not_at_hand(trained):
    from repro.record_state import assess

    run = trained.registry.parse(RUN)
    (unchecked,) = assess([run], trained.registry, trained.preset, trained.project, {"cifar100": None})
    (other,) = assess([run], trained.registry, trained.preset, trained.project, {"cifar100": "0" * 64})
    assert unchecked.counts
    assert unchecked.data_unchecked
    assert other.record_state is RecordState.OTHER_RECIPE
    assert "other data" in other.reason


def test_records_without_curves_and_probes_are_otherwise_the_same(trained):
    runs = trained.registry.select_runs(Selection(tables=(1,)), trained.preset)
    whole, bare = list(trained.states(runs)), list(trained.states(runs, whole=False))
    assert sum(state.counts for state in whole) == 2
    for state, lesser in zip(whole, bare, strict=True):
        if state.record is not None:
            without = {"curve": (), "probes": Probes(logits=None, weight_norms=None)}
            state = replace(state, record=state.record.model_copy(update=without))
        assert lesser == state
