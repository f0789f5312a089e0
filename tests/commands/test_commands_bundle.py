"""`repro bundle` and `repro merge`: records change hands, and only valid ones get in."""

import gzip
import io
import random
import socket
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from smoke_project import OTHER, RUN, record_of, smoke_context, train_here

from repro.cli.share import Fate, anonymise, merge_bundles, write_bundle
from repro.errors import SelectionError
from repro.records import Attempt, RunRecord
from repro.registry import Selection
from repro.signature import config_hash

THIRD = "cifar100/resnet18/scaled-bn-m0.9/seed0"


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> RunRecord:
    """A real record of RUN."""
    with pytest.MonkeyPatch.context() as patch:
        context = smoke_context(patch, tmp_path_factory.mktemp("trained"))
        assert train_here(context, RUN) == 0
        return record_of(context, RUN)


@pytest.fixture
def here(monkeypatch, tmp_path):
    return smoke_context(monkeypatch, tmp_path / "here")


@pytest.fixture
def there(monkeypatch, tmp_path):
    return smoke_context(monkeypatch, tmp_path / "there")


def put(context, record: RunRecord, run_id: str = RUN, **changes) -> Path:
    """The record under another run's name, valid there; `changes` are of its provenance."""
    config = context.registry.config(context.registry.parse(run_id), context.preset)
    signature = record.signature.model_copy(update={"config": config_hash(config)})
    provenance = record.provenance.model_copy(update=changes)
    made = record.model_copy(
        update={"run": run_id, "config": config, "signature": signature, "provenance": provenance}
    )
    path = context.project.run("smoke", run_id).record
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(made.to_json())
    return path


def bundle(context, tmp_path, name="records.tar.gz", **selection) -> Path:
    write_bundle(context, Selection(**selection), tmp_path / name)
    return tmp_path / name


def pack(path: Path, **members: bytes) -> Path:
    """An archive that is no work of `repro bundle`."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def fates(merged) -> dict[str, Fate]:
    return {offer.name: offer.fate for offer in merged.offers}


def files(context) -> dict[str, bytes]:
    root = context.project.results
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_what_is_bundled_there_is_taken_in_here_and_counts(record, there, here, tmp_path):
    put(there, record)
    put(there, record, OTHER)
    merged = merge_bundles(here, [bundle(there, tmp_path)])
    assert fates(merged) == {f"smoke/{run}.json": Fate.TAKEN for run in (RUN, OTHER)}
    assert (merged.exit_code, merged.lines()) == (0, ["2 taken"])
    states = list(here.states(map(here.registry.parse, (RUN, OTHER))))
    assert all(state.counts for state in states)
    assert sorted(files(here)) == sorted(f"smoke/{run}.json" for run in (RUN, OTHER))


def test_the_same_records_give_the_same_bytes_whoever_packs_them_and_when(record, there, here, tmp_path):
    for context in (there, here):
        put(context, record)
        put(context, record, OTHER)
    first, second = bundle(there, tmp_path, "one.tar.gz"), bundle(here, tmp_path / "deep", "two.tar.gz")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        assert all((info.mtime, info.uid, info.uname, info.gname) == (0, 0, "", "") for info in tar)


def test_a_selection_packs_only_what_it_names(record, there, tmp_path):
    put(there, record)
    put(there, record, OTHER)
    with tarfile.open(bundle(there, tmp_path, losses=("cross-entropy",))) as tar:
        assert tar.getnames() == [f"records/smoke/{OTHER}.json"]
    with pytest.raises(SelectionError, match="nothing is packed"):
        bundle(there, tmp_path, "none.tar.gz", networks=("vgg16",))
    assert [path.name for path in tmp_path.iterdir() if "tar" in path.name] == ["records.tar.gz"]


def test_a_damaged_record_and_one_of_another_recipe_stay_behind(record, there, tmp_path):
    put(there, record)
    torn = put(there, record, OTHER)
    torn.write_text(torn.read_text()[:-100])
    put(there, record, THIRD)
    packed, left_out, damaged = write_bundle(there, Selection(), tmp_path / "b.tar.gz")
    assert (packed, damaged) == (2, True)
    assert len(left_out) == 1
    assert "torn or cut short" in left_out[0]
    changed = there.preset.model_copy(update={"recipe": there.preset.recipe.model_copy(update={"epochs": 4})})
    with pytest.raises(SelectionError):
        write_bundle(replace(there, preset=changed), Selection(), tmp_path / "c.tar.gz")


def test_no_path_host_or_message_of_an_error_leaves_the_machine(record, there, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "alices-desktop")
    when = record.provenance.started
    outcome = "failed: SetupError: cannot write /home/alice/results/x.json: No space left on device"
    failed = Attempt(number=1, started=when, ended=when, outcome=outcome, resumed_at_step=0)
    attempts = (failed, *record.provenance.attempts)
    put(
        there,
        record,
        attempts=attempts,
        device="alices-desktop: CPU",
        accelerations=("cache in /home/alice/.c",),
    )
    with gzip.open(bundle(there, tmp_path)) as file:
        text = file.read().decode()
    assert "alice" not in text
    assert "failed: SetupError" in text
    assert "<host>: CPU" in text
    assert "cache in <path>" in text


def test_a_record_whose_meaning_holds_a_path_is_kept_back(record):
    data = record.data.model_copy(update={"partial": "without /home/alice/list.txt"})
    kept, reason = anonymise(record.model_copy(update={"data": data}))
    assert kept is None
    assert "/home/alice/list.txt" in reason
    url = record.data.model_copy(update={"sources": {"https://example.org/a/b.tar": "0" * 64}})
    assert anonymise(record.model_copy(update={"data": url}))[0] is not None


def test_merging_twice_finds_everything_here_and_changes_nothing(record, there, here, tmp_path):
    when = record.provenance.started
    failed = Attempt(number=1, started=when, ended=when, outcome="failed: OSError: /a/b", resumed_at_step=0)
    # The one who packed it has the message still; to him it is the same record all the same.
    put(there, record, attempts=(failed, *record.provenance.attempts))
    file = bundle(there, tmp_path)
    merge_bundles(here, [file])
    before = files(here)
    for context in (here, there):
        again = merge_bundles(context, [file, file])
        assert [offer.fate for offer in again.offers] == [Fate.ALREADY_HERE] * 2
        assert again.exit_code == 0
    assert files(here) == before


def test_another_record_of_the_same_run_is_named_and_left_out(record, there, here, tmp_path):
    put(there, record, device="another device")
    put(there, record, OTHER)
    put(here, record)
    before = files(here)
    merged = merge_bundles(here, [bundle(there, tmp_path)])
    assert fates(merged) == {f"smoke/{RUN}.json": Fate.CONFLICT, f"smoke/{OTHER}.json": Fate.TAKEN}
    assert merged.exit_code == 1
    assert "another device" in merged.lines()[0]
    assert before.items() <= files(here).items()


def test_a_damaged_record_here_is_left_for_the_scheduler_to_quarantine(record, there, here, tmp_path):
    put(there, record)
    torn = put(here, record)
    torn.write_text("{")
    merged = merge_bundles(here, [bundle(there, tmp_path)])
    assert (fates(merged), merged.exit_code) == ({f"smoke/{RUN}.json": Fate.CONFLICT}, 1)
    assert torn.read_text() == "{"


def test_a_record_of_another_recipe_says_what_differs(record, there, here, tmp_path):
    put(there, record)
    file = bundle(there, tmp_path)
    preset = here.preset.model_copy(update={"recipe": here.preset.recipe.model_copy(update={"epochs": 4})})
    here.registry.presets["smoke"] = preset
    merged = merge_bundles(here, [file])
    assert merged.lines() == [f"other recipe: smoke/{RUN}.json: epochs 3 → 4", "1 other recipe"]
    assert (merged.exit_code, files(here)) == (1, {})


def test_a_dry_run_says_the_same_and_writes_nothing(record, there, here, tmp_path):
    put(there, record)
    one = bundle(there, tmp_path, "one.tar.gz")
    put(there, record, threads=7)
    two = bundle(there, tmp_path, "two.tar.gz")
    dry = merge_bundles(here, [one, two], dry_run=True)
    assert not here.project.results.exists()
    assert dry.lines()[-1] == "would be: 1 taken, 1 conflict"
    real = merge_bundles(here, [one, two])
    assert [offer.fate for offer in real.offers] == [offer.fate for offer in dry.offers]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("records/smoke/cifar100/resnet18/cross-entropy/seed0.json", "holds the record of"),
        ("records/smoke/cifar100/resnet18/no-such-loss/seed0.json", "no-such-loss"),
        ("records/smoke/cifar100/resnet18/seed0.json", "not a run id"),
        ("records/no-such-preset/x.json", "there is no preset"),
        ("records/smoke/notes.txt", "not a record's name"),
        ("records/smoke/cifar100/resnet18/cross-entropy+epochs=3/seed0.json", "is what the preset"),
    ],
)
def test_a_misplaced_record_is_refused(record, here, tmp_path, name, says):
    merged = merge_bundles(here, [pack(tmp_path / "b.tar.gz", **{name: record.to_json().encode()})])
    assert [offer.fate for offer in merged.offers] == [Fate.REFUSED]
    assert says in merged.offers[0].reason
    assert (merged.exit_code, files(here)) == (4, {})


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda text: text[:-200].encode(), "torn or cut short"),
        (lambda text: text.replace('"correct": ', '"correct": 1', 1).encode(), "edited after"),
        (lambda text: b"[" * 100_000, "not whole JSON"),
        (lambda text: b"\xff", "not text"),
        (lambda text: random.Random(1).randbytes(11 << 20), "too large"),
    ],
    ids=["torn", "edited", "nested", "binary", "large"],
)
def test_a_damaged_record_is_refused_and_the_others_are_taken(record, there, here, tmp_path, spoil, says):
    good = put(there, record, OTHER).read_bytes()
    members = {f"records/smoke/{RUN}.json": spoil(record.to_json()), f"records/smoke/{OTHER}.json": good}
    merged = merge_bundles(here, [pack(tmp_path / "b.tar.gz", **members)])
    assert fates(merged)[f"smoke/{OTHER}.json"] is Fate.TAKEN
    (refusal,) = (offer for offer in merged.offers if offer.name == f"smoke/{RUN}.json")
    assert says in refusal.reason
    assert str(tmp_path) not in refusal.reason
    assert merged.exit_code == 4
    assert list(files(here)) == [f"smoke/{OTHER}.json"]


def _tar_of(info: tarfile.TarInfo, content: bytes = b"") -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def _link(kind: bytes) -> bytes:
    info = tarfile.TarInfo(f"records/smoke/{RUN}.json")
    info.type, info.linkname = kind, "/etc/passwd"
    return _tar_of(info)


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (lambda: _tar_of(tarfile.TarInfo("records/../../evil"), b"x"), "leads out"),
        (lambda: _tar_of(tarfile.TarInfo("/etc/evil"), b"x"), "leads out"),
        (lambda: _tar_of(tarfile.TarInfo("elsewhere/evil"), b"x"), "does not lie below 'records'"),
        (lambda: _link(tarfile.SYMTYPE), "is a link"),
        (lambda: _link(tarfile.LNKTYPE), "is a link"),
        (lambda: _tar_of(tarfile.TarInfo("records/bomb"), bytes(60 << 20)), "times as many"),
        (lambda: gzip.compress(b"nothing of the kind"), "not a whole tar archive"),
        (lambda: b"", "not a whole tar archive"),
    ],
    ids=["upwards", "absolute", "elsewhere", "symbolic-link", "hard-link", "bomb", "no-tar", "empty"],
)
def test_a_hostile_archive_is_refused_whole_and_the_next_one_taken(
    record, there, here, tmp_path, archive, says
):
    put(there, record)
    hostile = tmp_path / "hostile.tar.gz"
    hostile.write_bytes(archive())
    merged = merge_bundles(here, [hostile, bundle(there, tmp_path)])
    refusal, taken = merged.offers
    assert (refusal.fate, taken.fate, merged.exit_code) == (Fate.REFUSED, Fate.TAKEN, 4)
    assert says in refusal.reason
    assert "a file made by `repro bundle`" in refusal.reason
    assert not list(tmp_path.parent.rglob("evil"))
