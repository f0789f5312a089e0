"""What each run's record is worth today: done, of older code, of another recipe, damaged or missing."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from repro.attempts import read_attempts, without_record
from repro.config import Preset, RunConfig
from repro.errors import RecordCorruptError, RecordMisplacedError, SelectionError, SetupError
from repro.paths import Project, RunPaths
from repro.records import Probes, RunRecord, read_record
from repro.registry import Registry, Run
from repro.signature import code_hash, config_content, config_hash, data_hash, own_code
from repro.storage import lock_holder, lock_holders


class RecordState(StrEnum):
    """What a record is worth; the first two count in every table."""

    DONE = "done"
    OLDER_CODE = "older code"
    OTHER_RECIPE = "other recipe"
    CORRUPT = "corrupt"
    MISPLACED = "misplaced"
    MISSING = "missing"


@dataclass(frozen=True)
class RunState:
    """A run with the state of its record; `reason` is a sentence for the user where it is not done."""

    run: Run
    record_state: RecordState
    record: RunRecord | None = None
    reason: str = ""
    data_unchecked: bool = False

    @property
    def counts(self) -> bool:
        """Whether the record is one to average."""
        return self.record_state in (RecordState.DONE, RecordState.OLDER_CODE)

    @property
    def is_damaged(self) -> bool:
        """Whether what has the record's name is not valid; `reason` names the file and says why."""
        return self.record_state in (RecordState.CORRUPT, RecordState.MISPLACED)


def damage(states: Iterable[RunState]) -> list[str]:
    """A sentence for each damaged record, once."""
    return list(dict.fromkeys(state.reason for state in states if state.is_damaged))


def recorded_runs(project: Project, preset: Preset, registry: Registry) -> tuple[list[Run], list[str]]:
    """The runs that the preset has files for, and a sentence for each file that has no run's name."""
    folder = project.preset_results(preset.name)
    runs, misnamed = [], []
    for path in sorted(folder.rglob("*.[jJ][sS][oO][nN]")):
        place = path.relative_to(folder)
        if any(part.startswith(".") for part in place.parts):
            continue
        try:
            runs.append(registry.parse(str(place).removesuffix(".json")))
        except SelectionError:
            misnamed.append(f"{path} counts nowhere: {place} is not the name of a run's record")
    return runs, misnamed


def assess(
    runs: Iterable[Run],
    registry: Registry,
    preset: Preset,
    project: Project,
    fingerprints: Mapping[str, str | None],
    whole: bool = True,
) -> Iterator[RunState]:
    """The state of each run, in order, one at a time: 100,000 records do not fit into memory at once.

    `fingerprints` gives each data set's fingerprint, None where the data are not at hand: records are
    then accepted for their data and marked "data unchecked". Not `whole`, records come without their curves
    and probes; they are checked all the same.
    """
    for run in runs:
        config = registry.config(run, preset)
        state = assess_run(run, config, preset, project, fingerprints.get(run.cell.dataset))
        yield state if whole else trimmed(state)


def trimmed(state: RunState) -> RunState:
    """The state without its record's curve and probes, so that many fit into memory."""
    if state.record is None:
        return state
    bare = {"curve": (), "probes": Probes(logits=None, weight_norms=None)}
    return replace(state, record=state.record.model_copy(update=bare))


def assess_run(
    run: Run, config: RunConfig, preset: Preset, project: Project, fingerprint: str | None
) -> RunState:
    """The state of one run."""
    paths = project.run(preset.name, run.id)
    try:
        record = read_record(paths.record, run.id, preset.name)
    except RecordCorruptError as error:
        return RunState(run, RecordState.CORRUPT, reason=str(error))
    except RecordMisplacedError as error:
        return RunState(run, RecordState.MISPLACED, reason=str(error))
    if record is None:
        return RunState(run, RecordState.MISSING, reason=_why_missing(paths))
    return assess_record(record, run, config, fingerprint)


def _why_missing(paths: RunPaths) -> str:
    """`not run yet`, `running`, `interrupted`, or `failed: ` and why."""
    try:
        notes = read_attempts(paths)
    except SetupError as error:
        return f"not known: {error}"
    kind, why = without_record(notes, bool(notes) and lock_holder(paths.lock, lock_holders()) is not None)
    return f"{kind}: {why}" if why else kind


def assess_record(record: RunRecord, run: Run, config: RunConfig, fingerprint: str | None) -> RunState:
    """What a valid record is worth to the run as it is configured now."""
    if record.signature.config != config_hash(config):
        reason = f"other recipe: {_differences(record, config)}"
        return RunState(run, RecordState.OTHER_RECIPE, record, reason)
    if config_content(record.config) != config_content(config):
        reason = f"{run.id}: its config is not the one that its signature names"
        return RunState(run, RecordState.CORRUPT, reason=reason)
    if fingerprint is not None and record.signature.data != data_hash(fingerprint, config):
        return RunState(run, RecordState.OTHER_RECIPE, record, "other data than the ones prepared here")
    older = record.signature.code != code_hash(config)
    return RunState(
        run,
        RecordState.OLDER_CODE if older else RecordState.DONE,
        record,
        "made by older training code" if older else "",
        data_unchecked=fingerprint is None,
    )


def _differences(record: RunRecord, config: RunConfig) -> str:
    """`epochs 90 → 100, …`: the record's value, then today's."""
    then, now = _flat(record.config), _flat(config)
    changed = [
        f"{key} {then.get(key, 'unset')} → {now.get(key, 'unset')}"
        for key in dict.fromkeys([*then, *now])
        if then.get(key) != now.get(key)
    ]
    if not changed and (own := own_code(config)):
        changed.append(f"your own code has changed since ({', '.join(own)})")
    return ", ".join(changed) or "the recipe's version was raised since"


def _flat(config: RunConfig) -> dict[str, object]:
    content = config.model_dump()
    return {
        **{key: content[key] for key in ("dataset", "network", "loss", "seed")},
        **content["loss_parameters"],
        **content["recipe"],
    }
