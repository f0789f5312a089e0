"""What each run's record is worth today: done, of older code, of another recipe, damaged or missing."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from repro.errors import RecordCorruptError, RecordForeignError
from repro.paths import Project
from repro.recipes import Preset, RunConfig
from repro.records import Probes, RunRecord, read_record
from repro.registry import Registry, Run
from repro.signature import code_hash, config_hash, data_hash


class Standing(StrEnum):
    """Where a run stands; the first two count in every table."""

    DONE = "done"
    OLDER_CODE = "older code"
    OTHER_RECIPE = "other recipe"
    CORRUPT = "corrupt"
    FOREIGN = "foreign"
    MISSING = "missing"


@dataclass(frozen=True)
class RunState:
    """A run with the standing of its record; `reason` is a sentence for the user where it is not done."""

    run: Run
    standing: Standing
    record: RunRecord | None = None
    reason: str = ""
    data_unchecked: bool = False

    @property
    def counts(self) -> bool:
        """Whether the record is one to average."""
        return self.standing in (Standing.DONE, Standing.OLDER_CODE)


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
    then believed for their data and marked "data unchecked". Records are checked whole either way; not `whole`,
    they come without their curves and probes.
    """
    for run in runs:
        config = registry.config(run, preset)
        state = assess_run(run, config, preset, project, fingerprints.get(run.cell.dataset))
        yield state if whole else _trimmed(state)


def _trimmed(state: RunState) -> RunState:
    if state.record is None:
        return state
    bare = {"curve": (), "probes": Probes(logits=None, weight_norms=None)}
    return replace(state, record=state.record.model_copy(update=bare))


def assess_run(
    run: Run, config: RunConfig, preset: Preset, project: Project, fingerprint: str | None
) -> RunState:
    """The state of one run."""
    path = project.run(preset.name, run.id).record
    try:
        record = read_record(path, run.id, preset.name)
    except RecordCorruptError as error:
        return RunState(run, Standing.CORRUPT, reason=str(error))
    except RecordForeignError as error:
        return RunState(run, Standing.FOREIGN, reason=str(error))
    if record is None:
        return RunState(run, Standing.MISSING, reason="not run yet")
    if record.signature.config != config_hash(config):
        return RunState(run, Standing.OTHER_RECIPE, record, f"other recipe: {_differences(record, config)}")
    if fingerprint is not None and record.signature.data != data_hash(fingerprint, config):
        return RunState(run, Standing.OTHER_RECIPE, record, "other data than the ones prepared here")
    unchecked = fingerprint is None
    if record.signature.code != code_hash(config):
        return RunState(
            run, Standing.OLDER_CODE, record, "made by older training code", data_unchecked=unchecked
        )
    return RunState(run, Standing.DONE, record, data_unchecked=unchecked)


def _differences(record: RunRecord, config: RunConfig) -> str:
    """`epochs 90 → 100, …`: the record's value, then today's."""
    then, now = _flat(record.config), _flat(config)
    changed = [
        f"{key} {then.get(key, 'unset')} → {now.get(key, 'unset')}"
        for key in dict.fromkeys([*then, *now])
        if then.get(key) != now.get(key)
    ]
    return ", ".join(changed) or "the recipe's version was raised since"


def _flat(config: RunConfig) -> dict[str, object]:
    content = config.model_dump()
    return {
        **{key: content[key] for key in ("dataset", "network", "loss", "seed")},
        **content["loss_parameters"],
        **content["recipe"],
    }
