"""`repro bundle`: valid records as one file to hand to somebody else, without what names this machine.

    records/<preset>/<run id>.json …   in a gzipped tar; the same records give the same bytes

`repro.commands.merge` takes it in.
"""

import gzip
import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from repro.commands.context import Context
from repro.commands.nameless import nameless
from repro.errors import SelectionError, UsageError
from repro.record_state import RecordState, RunState
from repro.records import RunRecord
from repro.registry import Selection

TOP = "records"


@dataclass(frozen=True)
class Bundled:
    """What came of it: the records packed, and a sentence for each that was left out.

    `damaged` says whether one of these cannot be believed.
    """

    file: Path
    packed: int
    left_out: tuple[str, ...]
    damaged: bool


def write_bundle(context: Context, selected: Selection, file: Path) -> Bundled:
    """Packs every record of the selection that counts into `file`, replacing it.

    Raises SelectionError where there is none, UsageError where the file cannot be written.
    """
    left_out: list[str] = []
    damaged = False
    packed = 0

    def members() -> Iterator[tuple[str, bytes]]:
        nonlocal damaged, packed
        runs = context.registry.select_runs(selected, context.preset)
        for state in context.states(sorted(runs, key=lambda run: run.id)):
            record, reason = _share(state)
            if record is None:
                damaged |= state.record_state in (RecordState.CORRUPT, RecordState.MISPLACED)
                left_out.extend([f"{state.run.id}: {reason}"] if reason else [])
                continue
            packed += 1
            yield f"{TOP}/{context.preset.name}/{state.run.id}.json", record.to_json().encode()

    temporary = file.with_name(f".{file.name}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_tar(temporary, members())
        if not packed:
            raise SelectionError(
                f"no record of the preset {context.preset.name} counts in this selection, so nothing "
                f"is packed; `repro status --preset {context.preset.name}` shows what there is"
            )
        temporary.replace(file)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return Bundled(file, packed, tuple(left_out), damaged)


def _share(state: RunState) -> tuple[RunRecord | None, str]:
    """The record as it may leave this machine, or why it stays."""
    if state.record_state is RecordState.MISSING:
        return None, ""
    if not state.counts or state.record is None:
        return None, state.reason
    return nameless(state.record)


def _write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """No time, owner or file name of this machine gets into the archive."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
