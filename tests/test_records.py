"""Records: what is written can be read, and whatever is wrong with one is named."""

import base64
import functools
import hashlib
import json
import platform
import re
import socket
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from smoke_project import OTHER, RUN, record_of, smoke_context, train_here

import repro
from repro.attempts import AttemptNote, new_attempt, write_attempt
from repro.cli import main
from repro.errors import RecordCorruptError
from repro.record_state import RecordState, assess_record, assess_run
from repro.records import Probes, parse_record, read_record
from repro.system import memory_bytes, processor_name
from repro.training.precision import choose_precision
from repro.worker_note import new_worker_note


@pytest.fixture
def text(trained) -> str:
    return trained.project.run("smoke", RUN).record.read_text()


def test_a_record_says_the_same_after_reading_as_when_written_and_is_readable(text):
    record = parse_record(text, "here")
    assert (record.run, record.to_json()) == (RUN, text)
    assert any(re.match(r' *"counts": \[\d+, \d+', line) for line in text.splitlines())
    assert len(text.splitlines()) < 300


def test_a_record_holds_what_the_figures_and_claims_need(trained):
    record = record_of(trained, RUN)
    result, histogram = record.result, record.probes.logits
    assert len(record.curve) == record.config.recipe.epochs
    for epoch in record.curve:
        assert min(epoch.gradient_at_logits, epoch.gradient_at_features) > 0
        assert min(epoch.feature_norm, epoch.gradient_times_feature) > 0
    assert sum(histogram.counts) + histogram.underflow + histogram.overflow == result.total * 10
    assert histogram.quantiles["2.5"] < histogram.quantiles["50"] < histogram.quantiles["97.5"]
    assert len(record.probes.weight_norms) == record.data.classes
    assert record.curve[-1].test_accuracy == result.accuracy == 100 * result.correct / result.total
    bits = np.unpackbits(np.frombuffer(base64.urlsafe_b64decode(result.correct_images), dtype=np.uint8))
    assert (bits.sum(), len(bits)) == (result.correct, result.total)


def test_a_record_says_on_what_and_with_what_it_was_made(trained):
    record = record_of(trained, RUN)
    made = record.provenance
    assert made.packages["torch"] == torch.__version__.partition("+")[0]
    assert made.packages["repro"] == repro.__version__
    assert made.kernel == f"Linux {platform.release()}"
    assert made.device == made.processor == processor_name()
    assert made.device_memory_bytes == memory_bytes()
    assert (made.cuda, made.cudnn, made.driver, made.compute_capability) == (None,) * 4
    assert (made.energy_joules, made.runs_on_device, made.attempts[-1].outcome) == (None, 1, "done")
    assert made.precision == choose_precision(torch.device("cpu")).name
    assert (record.data.name, record.data.generated) == ("digits", False)
    assert record.data.title == "handwritten digits (scikit-learn), resized to 32 px"
    assert [len(sha256) for sha256 in record.data.arrays.values()] == [64] * 4


def test_a_host_is_named_by_a_hash_that_only_its_results_folder_can_compare(trained, monkeypatch, tmp_path):
    other = smoke_context(monkeypatch, tmp_path)
    assert train_here(other, RUN) == 0
    records = [record_of(trained, RUN), record_of(trained, OTHER), record_of(other, RUN)]
    here, also_here, elsewhere = (record.provenance.attempts[-1].host for record in records)
    name = socket.gethostname()
    assert here == also_here != elsewhere
    assert hashlib.sha256(name.encode()).hexdigest()[:12] not in (here, elsewhere)
    assert name not in records[0].to_json()


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        *((lambda text, end=end: text[:end], "torn or cut short") for end in (0, 1, 3000, -2)),
        (lambda text: text.replace('"threads": 1', '"threads": NaN'), "not whole JSON"),
        (lambda text: text.replace('"threads": 1', '"threads": Infinity'), "not whole JSON"),
        (lambda text: text.replace('"schema_version": 2', '"schema_version": 3'), "version 3; .* reads version 2"),
        (lambda text: text.replace('"total": ', '"total": 1'), "does not match its sha256: edited"),
        # What JSON would not notice.
        (lambda text: text + "\n", "does not match its sha256"),
        (lambda text: text.replace("\n", "\r\n"), "does not match its sha256"),
        (lambda text: text.replace('"threads": 1', '"threads":  1'), "does not match its sha256"),
        (lambda text: text.replace('\n "sha256"', '\n  "sha256"'), "does not match its sha256"),
        (lambda text: text[:-5] + ("0" if text[-5] != "0" else "1") + text[-4:], "does not match its sha256"),
        (lambda text: re.sub(',\n "sha256": "[0-9a-f]+"', "", text), "does not match its sha256"),
        (lambda text: text.replace("{\n", '{\n "sha256": "00",\n', 1), "does not match its sha256"),
    ],
)  # fmt: skip
def test_a_record_that_is_torn_edited_or_of_another_schema_is_corrupt(text, edit, says):
    assert edit(text) != text
    with pytest.raises(RecordCorruptError, match=rf"there\.json: .*{says}"):
        parse_record(edit(text), "there.json")


def sealed(content: dict) -> str:
    """A record's text with a checksum that fits, as whoever edits it on purpose can make it."""
    content.pop("sha256", None)
    body = json.dumps(content, indent=1, ensure_ascii=False).removesuffix("\n}")
    return f'{body},\n "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"\n}}\n'


def add(key: str, amount: float):
    return lambda content: content.update({key: content[key] + amount})


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ((), lambda c: c.update(surprise=1), "surprise: Extra inputs are not permitted"),
        ((), lambda c: c.update({"\x1b]0;x": 1}), r"\\u001b\]0;x: Extra"),
        ((), lambda c: c.update(run=c["run"][:-1] + "7"), "run is not of config.dataset and config.seed"),
        (("signature",), lambda c: c.update(data="none"), "signature.data: String should match"),
        (("config",), lambda c: c.update(seed=-1), "config.seed"),
        (("config", "recipe"), add("epochs", 1), "curve does not have every epoch once"),
        (("data",), lambda c: c.update(name="cifar100"), "data.name is not what the recipe trains on"),
        (("data",), lambda c: c.update(generated=True), "data.generated is true"),
        (("data",), add("train_images", 1), "data.train_images are more than the recipe takes"),
        (("data",), add("test_images", 1), "result.total is not data.test_images"),
        (("data",), add("classes", 1), "one per test image and class"),
        (("result",), lambda c: c.update(accuracy=50.0), "accuracy is not 100 × correct / total"),
        (("result",), lambda c: c.update(accuracy=150.0, correct=120), "result.accuracy: Input should be less"),
        (("result",), lambda c: c.pop("correct"), "result.correct: Field required"),
        (("result",), lambda c: c.update(correct_images="AAAA"), "not one bit per test image"),
        (("result",), lambda c: c.update(correct_images="_____________w=="), "does not have `correct` bits set"),
        (("result",), lambda c: c.update(correct_images="?"), "result"),
        (("result",), lambda c: c.update(accuracy=None, diverged_in=1), "a diverged run has no accuracy"),
        (("result",), lambda c: c.update(best_accuracy=100.0), "best_accuracy and best_epoch are not the curve's"),
        (("result",), lambda c: c.update(best_epoch=90), "best_accuracy and best_epoch are not the curve's"),
        (("curve",), lambda c: c.pop(0), "curve does not have every epoch once"),
        (("curve",), lambda c: c.append(c[-1]), "curve does not have every epoch once"),
        (("curve", 2), lambda c: c.update(test_accuracy=0.0), "is not the|are not the"),
        (("probes", "logits", "counts"), lambda c: c.append(0), "expected 400 bins"),
        (("probes", "logits"), add("overflow", 1), "probes.logits are not one per test image and class"),
        (("probes", "logits", "quantiles"), lambda c: c.update({"50": 99.0}), "expected ascending quantiles"),
        (("probes", "logits", "quantiles"), lambda c: c.pop("50"), "expected ascending quantiles"),
        (("probes", "weight_norms"), lambda c: c.pop(), "weight_norms are not one per class"),
        (("provenance",), lambda c: c.update(started="2999-01-01T00:00:00Z"), "provenance ends before it starts"),
        (("provenance", "attempts"), lambda c: c.append(c[0]), "attempts are not in order"),
    ],
)  # fmt: skip
def test_a_record_of_what_no_run_leaves_is_corrupt_though_its_checksum_fits(text, part, change, says):
    content = json.loads(text)
    change(functools.reduce(lambda each, key: each[key], part, content))
    with pytest.raises(RecordCorruptError, match=says) as caught:
        parse_record(sealed(content), "there.json")
    assert "\x1b" not in str(caught.value)


def leaves(content: object, place: tuple = ()):
    """Every value of a record that is neither a list nor a dictionary, with its place."""
    parts = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in parts:
        if isinstance(value, dict | list):
            yield from leaves(value, (*place, key))
        else:
            yield (*place, key), value


def test_no_amount_is_negative_and_no_date_without_its_zone(text):
    free = {"train_loss", "test_loss", "mean", "low", "quantiles", "loss_parameters"}  # of any sign
    tried = 0
    for place, value in leaves(json.loads(text)):
        content = json.loads(text)
        parent = functools.reduce(lambda each, key: each[key], place[:-1], content)
        if type(value) in (int, float) and not (free & set(place) and "data" not in place):
            parent[place[-1]] = -1 if isinstance(value, int) else -1e-9
        elif place[-1] in ("started", "ended"):
            parent[place[-1]] = value.removesuffix("Z")
        else:
            continue
        tried += 1
        with pytest.raises(RecordCorruptError, match="there"):
            print(place, parse_record(sealed(content), "there"))
    assert tried > 450


def test_a_record_whose_config_is_not_the_one_that_it_is_signed_with_is_corrupt(trained):
    run = trained.registry.parse(RUN)
    config, record = trained.registry.config(run, trained.preset), record_of(trained, RUN)
    recipe = config.recipe.model_copy(update={"lr": 0.2})
    edited = record.model_copy(update={"config": config.model_copy(update={"recipe": recipe})})
    state = assess_record(edited, run, config, None)
    assert (state.record_state, state.counts) == (RecordState.CORRUPT, False)


def test_what_a_record_says_reaches_no_terminal_raw(trained, tmp_path, monkeypatch):
    evil = "\x1b]0;owned\x07\x1b[31m\x9b2J\rGPU"
    context = smoke_context(monkeypatch, tmp_path)
    for run, field in ((RUN, "device"), (OTHER, "system")):
        content = json.loads(trained.project.run("smoke", run).record.read_text())
        content["provenance"][field] = evil
        content["data"]["title"] += evil
        content["provenance"]["attempts"][0]["outcome"] += evil
        path = context.project.run("smoke", run).record
        path.parent.mkdir(parents=True)
        path.write_text(sealed(content))
    path.write_text(sealed(content).replace("80", "81"))
    when = datetime(2025, 3, 1, tzinfo=UTC)
    attempt = new_attempt(context.project.run("smoke", RUN))
    note = AttemptNote(number=1, started=when, ended=when, outcome="failed: ?", resumed_at_step=0)
    write_attempt(attempt, note)
    for file in (attempt / "attempt.json", attempt / "error.txt"):
        text = file.read_text() if file.exists() else "?\n"
        file.write_text(text.replace("?", json.dumps(evil)[1:-1] if file.suffix == ".json" else evil))
    replace(new_worker_note("sweep", "job", evil), host="far" + evil, device_name=evil).write(
        context.project.workers("smoke")
    )
    (context.project.work("smoke") / "logs").mkdir()
    (context.project.work("smoke") / "logs" / "1.log").write_text(f"{RUN}: {evil}\n")
    printed = ""
    options = ["--preset", "smoke", "--results", str(context.project.results)]
    commands = ["status", "status --json", "plan", "claims", "aggregate", "aggregate --by run --format csv"]
    commands += [f"aggregate --format {form}" for form in ("csv", "json")]
    commands += [f"show {RUN}", f"show {RUN} --json", f"show {OTHER}", f"logs {RUN}"]
    for command in commands:
        result = CliRunner().invoke(main, [*command.split(), *options])
        assert result.exception is None or isinstance(result.exception, SystemExit), command
        printed += result.output
    assert printed.count("\\u001b]0;owned") >= 10
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", printed)


def test_record_states_say_what_each_record_is_worth(trained, tmp_path, monkeypatch):
    context = smoke_context(monkeypatch, tmp_path)
    names = (
        "cross-entropy",
        "scaled-bn-m1",
        "scaled-bn-m0.8",
        "pedcc-s10-m0.5",
        "scaled-bn-m0.9",
        "pedcc-s7.5-m0.35",
    )
    runs = [context.registry.parse(f"cifar100/resnet18/{name}/seed0") for name in names]
    good = trained.project.run("smoke", RUN).record.read_bytes()
    there = [trained.project.run("smoke", OTHER).record.read_bytes(), good, good[:100], b"\xff\xfe\x00", good]
    for run, content in zip(runs, there, strict=False):
        path = context.project.run("smoke", run.id).record
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    states = list(context.states(runs))
    expected = ["done", "done", "corrupt", "corrupt", "misplaced", "missing"]
    assert [str(state.record_state) for state in states] == expected
    assert [state.counts for state in states] == [True, True, False, False, False, False]
    reasons = ("torn", "not text", "moved or copied here", "not run yet")
    for state, reason in zip(states[2:], reasons, strict=True):
        assert reason in state.reason
    assert read_record(context.project.run("smoke", names[-1]).record, names[-1], "smoke") is None
    # Without curves and probes they are otherwise the same.
    bare = {"curve": (), "probes": Probes(logits=None, weight_norms=None)}
    assert list(context.states(runs, whole=False)) == [
        replace(state, record=state.record.model_copy(update=bare)) if state.record else state
        for state in states
    ]


def test_a_record_of_another_recipe_or_data_says_so_and_one_without_data_at_hand_is_unchecked(trained):
    run, preset, project = trained.registry.parse(RUN), trained.preset, trained.project
    config = trained.registry.config(run, preset)
    recipe = config.recipe.model_copy(update={"epochs": 4, "lr": 0.2})
    other = assess_run(run, config.model_copy(update={"recipe": recipe}), preset, project, None)
    assert (other.record_state, other.counts) == (RecordState.OTHER_RECIPE, False)
    assert other.reason == "other recipe: epochs 3 → 4, lr 0.1 → 0.2"
    data = assess_run(run, config, preset, project, "0" * 64)
    assert (data.record_state, "other data" in data.reason) == (RecordState.OTHER_RECIPE, True)
    unchecked = assess_run(run, config, preset, project, None)
    assert (unchecked.counts, unchecked.data_unchecked) == (True, True)
