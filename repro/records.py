"""A run's record: one readable JSON file with everything that tables, figures and claims need.

Validated when written and when read: unknown keys, NaN and infinity are errors, and a checksum over the
file's own text finds a record that was edited or torn. Schema version 2.
"""

import base64
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, AwareDatetime, Field, ValidationError, model_validator
from pydantic_core import from_json

from repro.config import Model, RunConfig
from repro.errors import RecordCorruptError, RecordMisplacedError, RecordUnreadableError, printable
from repro.paths import read_file

HISTOGRAM_RANGE = (-40.0, 40.0)
HISTOGRAM_BINS = 400
QUANTILES = (2.5, 25, 50, 75, 97.5)  # percent
SCHEMA_VERSION: Literal[2] = 2

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Text = Annotated[str, AfterValidator(printable)]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]

_CHECKSUM_KEY = ',\n "sha256": "'  # to_json indents by one blank, so that no nested key looks like it
_CHECKSUM_END = '"\n}\n'

# A list of plain numbers goes on one line: 400 histogram bins would be 400 lines of a diff.
# Nothing but layout matches, since no text in JSON holds a raw line break.
_NUMBERS = re.compile(r"\[\n([-+.,eE\d\s]+)\n *\]")


class Signature(Model):
    """What a record's numbers depend on; see `repro.signature`. Each a sha256."""

    config: Sha256
    data: Sha256
    code: Sha256


class DataSummary(Model):
    """The data set that was trained on, as its manifest tells it, after the preset's subset was taken."""

    name: str
    title: str
    generated: bool
    partial: str | None
    sources: dict[str, str]
    preparation_version: Size
    arrays: dict[str, Sha256] = Field(description="array file → sha256 of the bytes that were trained on")
    classes: Size
    train_images: Size
    test_images: Size
    mean: tuple[Fraction, Fraction, Fraction]
    std: tuple[Fraction, Fraction, Fraction]


class Epoch(Model):
    """One epoch of training; means are over every training image of the epoch, as trained on.

    `gradient_at_logits` is the mean of ‖p − y‖₂ at the softmax's input, margin included;
    `gradient_at_features` the mean of ‖∂ΣL/∂f_i‖₂, f_i an image's pooled feature, L summed over the batch;
    `feature_norm` the mean of ‖f_i‖₂; `gradient_times_feature` the mean of the product ‖∂ΣL/∂f_i‖₂ · ‖f_i‖₂,
    which the two means do not determine. Accuracies in percent. Test figures are None in epochs that were
    not evaluated, and where the logits were not finite; the others where the loss or they were not finite.
    """

    epoch: Count
    lr: Amount
    train_loss: float | None
    train_accuracy: Percent | None
    gradient_at_logits: Amount | None
    gradient_at_features: Amount | None
    feature_norm: Amount | None
    gradient_times_feature: Amount | None
    test_loss: float | None
    test_accuracy: Percent | None
    seconds: Amount


class Result(Model):
    """Percent top-1 on the test images, each counted once, after the last epoch; the best epoch beside it.

    `correct_images` has one bit per test image in the data set's order, 1 where it was classified correctly:
    packed as `numpy.packbits` does, padded with zeros to whole bytes, in base64 with the URL-safe alphabet,
    which has no slash that could be taken for a path's.

    A run has diverged where the training loss or the logits of the last evaluation are NaN or infinite. It
    has `diverged_in`, the 0-indexed epoch, no accuracy and no `correct_images`.
    """

    accuracy: Percent | None
    correct: Count
    total: Count
    test_loss: float | None
    best_accuracy: Percent | None
    best_epoch: Count | None
    correct_images: str | None
    diverged_in: Count | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.diverged_in is not None:
            if (self.accuracy, self.correct_images, self.test_loss, self.correct, self.total) != (
                None, None, None, 0, 0,
            ):  # fmt: skip
                raise ValueError("a diverged run has no accuracy, no test images and no correct_images")
            return self
        if self.accuracy is None or self.correct_images is None or self.total <= 0:
            raise ValueError("a run that did not diverge has an accuracy over at least one image")
        if abs(self.accuracy - 100 * self.correct / self.total) > 1e-9:
            raise ValueError("accuracy is not 100 × correct / total")
        packed = base64.b64decode(self.correct_images, altchars=b"-_", validate=True)
        if len(packed) != math.ceil(self.total / 8):
            raise ValueError("correct_images is not one bit per test image")
        bits = int.from_bytes(packed)
        if bits.bit_count() != self.correct or bits % (1 << -self.total % 8):
            raise ValueError("correct_images does not have `correct` bits set, all of them test images'")
        return self

    @property
    def divergence(self) -> str:
        """`diverged in epoch 3`, counted from 1; empty for a run that did not diverge."""
        return "" if self.diverged_in is None else f"diverged in epoch {self.diverged_in + 1}"


class LogitHistogram(Model):
    """Evaluation-mode logits of all test images and classes, in equal bins of [low, high)."""

    low: float
    high: float
    counts: tuple[Count, ...]
    underflow: Count
    overflow: Count
    mean: float
    std: Amount
    quantiles: dict[str, float] = Field(description="percent → logit: 2.5, 25, 50, 75, 97.5")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.low, self.high, len(self.counts)) != (*HISTOGRAM_RANGE, HISTOGRAM_BINS):
            raise ValueError(f"expected {HISTOGRAM_BINS} bins over {HISTOGRAM_RANGE}")
        values = list(self.quantiles.values())
        if list(self.quantiles) != [f"{percent:g}" for percent in QUANTILES] or values != sorted(values):
            raise ValueError(f"expected ascending quantiles at {QUANTILES} percent")
        return self

    @property
    def total(self) -> int:
        """How many logits were counted."""
        return sum(self.counts) + self.underflow + self.overflow


class Probes(Model):
    """The distribution of the logits and the class weights' norms, after the last epoch; None if diverged."""

    logits: LogitHistogram | None
    weight_norms: tuple[Amount, ...] | None = Field(description="‖w_k‖₂ of every class, in class order")


class Attempt(Model):
    """One start of the run: when, until when, how and why it ended, the step it started from, and by whom.

    `energy_joules` is what the device used during it, divided by the runs that shared the device. In a record
    `host` is a hash, salted per results folder, and `pid` is left out.
    """

    number: Size
    started: AwareDatetime
    ended: AwareDatetime | None
    outcome: Text
    resumed_at_step: Count
    energy_joules: Amount | None = None
    host: Text | None = None
    pid: int | None = None


class Environment(Model):
    """What a process trains on and with; known before its first step, and the same for all of its runs.

    `device` is the GPU's name or the processor's, `processor` always the latter; sizes are bytes.
    """

    git_commit: str | None
    git_dirty: bool | None = Field(description="whether code or experiments differed from the commit")
    packages: dict[str, str] = Field(description="every installed package → version")
    python: str
    system: str = Field(description="operating system's name, as in Debian GNU/Linux 12")
    kernel: str
    processor: str
    device: str
    device_memory_bytes: Count
    compute_capability: str | None
    cuda: str | None
    cudnn: str | None
    driver: str | None


class Provenance(Environment):
    """How the record came to be; nothing in here decides whether it counts.

    `accelerations` are those that were in use when the run ended: `cuda-graph` and `compile` only where the
    step was recorded and compiled, `channels-last` only where the network ran in it, `tf32` where fp32 is
    rounded to it in convolutions. `runs_on_device` is the most runs, this one included, that shared the
    device; `images_per_second` is this run's alone.
    `energy_joules` is this run's share over all attempts whose steps count, None where one is not known.
    """

    precision: str
    threads: Size
    deterministic: bool
    accelerations: tuple[str, ...]
    runs_on_device: Size
    images_per_second: Amount
    peak_memory_bytes: Count
    energy_joules: Amount | None
    attempts: tuple[Attempt, ...]
    started: AwareDatetime
    ended: AwareDatetime


class RunRecord(Model):
    """Everything that one finished run leaves behind."""

    schema_version: Literal[2] = SCHEMA_VERSION
    run: str
    preset: str
    signature: Signature
    config: RunConfig
    data: DataSummary
    result: Result
    curve: tuple[Epoch, ...]
    probes: Probes
    provenance: Provenance

    @model_validator(mode="after")
    def _possible(self) -> Self:
        """Refuses parts that contradict one another: no run leaves such a record, whatever its checksum."""
        config, data, result, probes, made = self.config, self.data, self.result, self.probes, self.provenance
        epochs = config.recipe.epochs if result.diverged_in is None else result.diverged_in + 1
        per_class = config.recipe.images_per_class or data.train_images
        tested = [(e.test_accuracy, -e.epoch) for e in self.curve if e.test_accuracy is not None]
        best, at = max(tested, default=(None, None))
        attempts = [attempt.number for attempt in made.attempts]
        for problem, so in {
            "run is not of config.dataset and config.seed": not (
                self.run.startswith(f"{config.dataset}/") and self.run.endswith(f"/seed{config.seed}")
            ),
            "data.name is not what the recipe trains on": (
                data.name != ("digits" if config.recipe.data == "digits" else config.dataset)
            ),
            "data.generated is true, and no run trains on generated data": data.generated,
            "data.train_images are more than the recipe takes": data.train_images > per_class * data.classes,
            "curve does not have every epoch once": (
                [epoch.epoch for epoch in self.curve] != list(range(epochs)) or epochs > config.recipe.epochs
            ),
            "result.best_accuracy and best_epoch are not the curve's": (
                (result.best_accuracy, result.best_epoch) != (best, None if at is None else -at)
            ),
            "result.accuracy is not the last epoch's": (
                result.diverged_in is None and result.accuracy != self.curve[-1].test_accuracy
            ),
            "result.total is not data.test_images": result.total not in (0, data.test_images),
            "probes.logits are not one per test image and class": (
                probes.logits is not None and probes.logits.total != data.test_images * data.classes
            ),
            "probes.weight_norms are not one per class": (
                probes.weight_norms is not None and len(probes.weight_norms) != data.classes
            ),
            "provenance ends before it starts": made.ended < made.started,
            "provenance.attempts are not in order": attempts != sorted(set(attempts)),
        }.items():
            if so:
                raise ValueError(problem)
        return self

    def to_json(self) -> str:
        """The file's text: indented JSON, its last key the sha256 of all the text before that key."""
        content = self.model_dump(mode="json")
        # JSON has no NaN: allow_nan=False turns a slip of the schema into an error instead of bad JSON.
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False).removesuffix("\n}")
        text = _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text)
        return f"{text}{_CHECKSUM_KEY}{_sha256(text)}{_CHECKSUM_END}"

    def comparable(self) -> dict[str, object]:
        """The record without timings and provenance: two runs of one recipe on a CPU agree in all of it."""
        content = self.model_dump(mode="json", exclude={"provenance"})
        for epoch in content["curve"]:
            del epoch["seconds"]
        return content


def parse_record(text: str, where: str) -> RunRecord:
    """A record from its file's text; RecordCorruptError, with `where` and what is wrong, if it is not one."""
    try:
        content = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise RecordCorruptError(f"{where}: not whole JSON ({error}): torn or cut short") from None
    if not isinstance(content, dict):
        raise RecordCorruptError(f"{where}: expected a JSON object, got {type(content).__name__}")
    version = content.get("schema_version")
    if version != SCHEMA_VERSION:
        raise RecordCorruptError(
            f"{where}: schema version {version!r}; this program reads version {SCHEMA_VERSION}"
        )
    body, key, end = text.rpartition(_CHECKSUM_KEY)
    if not key or end != f"{_sha256(body)}{_CHECKSUM_END}":
        raise RecordCorruptError(
            f"{where}: its content does not match its sha256: edited after it was written"
        )
    del content["sha256"]
    # The whole text is looked through faster than its parts; what is not printable here may be there.
    if "\\" in text or not text.replace("\n", "").isprintable():
        content = printable(content)
    try:
        return RunRecord.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its parts"
        problem = first["msg"].removeprefix("Value error, ")
        raise RecordCorruptError(f"{where}: {place}: {problem}") from None


def read_record(path: Path, run_id: str, preset: str) -> RunRecord | None:
    """The record at `path`, None where there is none.

    Raises RecordUnreadableError for what is no readable file, and as `decode_record` does.
    """
    try:
        content = read_file(path)
    except OSError as error:
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        if absent and not path.is_symlink():
            return None
        reason = "it is a link to nothing" if absent else error.strerror
        raise RecordUnreadableError(f"{path}: cannot be read: {reason}") from None
    return decode_record(content, str(path), run_id, preset)


def decode_record(content: bytes, where: str, run_id: str, preset: str) -> RunRecord:
    """A run's record from the bytes of its file.

    Raises RecordCorruptError, or RecordMisplacedError if it is another run's or preset's.
    """
    try:
        record = parse_record(content.decode(), where)
    except UnicodeDecodeError:
        raise RecordCorruptError(f"{where}: not text: overwritten or damaged") from None
    if (record.run, record.preset) != (run_id, preset):
        raise RecordMisplacedError(
            f"{where}: holds the record of {record.run} (preset {record.preset}), "
            f"expected {run_id} (preset {preset}): it was moved or copied here"
        )
    return record


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
