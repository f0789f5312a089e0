"""`repro bundle` and `repro merge`: records change hands, and only valid ones get in."""

import gzip
import io
import random
import re
import shlex
import socket
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from smoke_project import OTHER, RUN, record_of, smoke_context

from repro.attempts import AttemptNote, new_attempt, write_attempt
from repro.cli import main
from repro.cli.share import Fate, anonymise, merge_bundles, write_bundle
from repro.errors import SelectionError
from repro.records import Attempt, RunRecord
from repro.registry import Selection
from repro.signature import config_hash
from repro.worker_note import new_worker_note

THIRD = "cifar100/resnet18/scaled-bn-m0.9/seed0"


@pytest.fixture
def record(trained) -> RunRecord:
    return record_of(trained, RUN)


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
    """An archive that `repro bundle` did not write."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def fates(offers) -> dict[str, Fate]:
    return {offer.name: offer.fate for offer in offers}


def files(context) -> dict[str, bytes]:
    root = context.project.results
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def invoke(context, *words: object):
    return CliRunner().invoke(main, [*map(str, words), "--results", str(context.project.results)])


def test_what_is_bundled_there_is_taken_in_here_and_merging_again_changes_nothing(
    record, there, here, tmp_path
):
    when = record.provenance.started
    failed = Attempt(number=1, started=when, ended=when, outcome="failed: OSError: /a/b", resumed_at_step=0)
    last = record.provenance.attempts[-1].model_copy(update={"number": 2})
    put(there, record, attempts=(failed, last))
    put(there, record, OTHER)
    file = tmp_path / "records.tar.gz"
    packed = invoke(there, "bundle", "--preset", "smoke", "--output", file)
    assert (packed.exit_code, packed.stdout, packed.stderr) == (0, f"{file}\n", "2 records packed\n")
    merged = invoke(here, "merge", file)
    assert (merged.exit_code, merged.stderr) == (0, "2 added\n")
    before = files(here)
    assert sorted(before) == sorted(f"smoke/{run}.json" for run in (RUN, OTHER))
    assert all(state.counts for state in here.states(map(here.registry.parse, (RUN, OTHER))))
    # The one who packed them has the message of the failed attempt still: the same record all the same.
    for context in (here, there):
        again = invoke(context, "merge", file, file)
        assert (again.exit_code, again.stderr) == (0, "4 already here\n")
    assert files(here) == before


def test_the_same_records_give_the_same_bytes_whoever_packs_them_and_when(record, there, here, tmp_path):
    for context in (there, here):
        put(context, record)
        put(context, record, OTHER)
    first, second = bundle(there, tmp_path, "one.tar.gz"), bundle(here, tmp_path / "deep", "two.tar.gz")
    assert first.read_bytes() == second.read_bytes()
    with tarfile.open(first) as tar:
        assert all((info.mtime, info.uid, info.uname, info.gname) == (0, 0, "", "") for info in tar)


def test_a_bundle_holds_what_is_selected_and_counts(record, there, tmp_path):
    torn = put(there, record)
    torn.write_text(torn.read_text()[:-100])
    put(there, record, OTHER)
    put(there, record, THIRD)
    whole = tmp_path / "whole.tar.gz"
    packed, left_out = write_bundle(there, Selection(), whole)
    assert (packed, len(there.damaged), len(left_out)) == (2, 1, 1)
    assert "torn or cut short" in left_out[0]
    with tarfile.open(bundle(there, tmp_path, losses=("cross-entropy",))) as tar:
        assert tar.getnames() == [f"records/smoke/{OTHER}.json"]
    changed = there.preset.model_copy(update={"recipe": there.preset.recipe.model_copy(update={"epochs": 4})})
    again = invoke(there, "bundle", "--preset", "smoke", "--output", whole)
    assert (again.exit_code, "is there already: remove it" in again.stderr) == (2, True)
    with pytest.raises(SelectionError):
        write_bundle(replace(there, preset=changed), Selection(), tmp_path / "none.tar.gz")
    nothing = invoke(
        there, "bundle", "--preset", "smoke", "--network", "vgg16", "--output", tmp_path / "none.tar.gz"
    )
    assert nothing.exit_code == 2
    assert sorted(path.name for path in tmp_path.glob("*tar*")) == ["records.tar.gz", "whole.tar.gz"]
    command = shlex.split(nothing.stderr.split("`")[1])  # what it suggests works when pasted
    assert command[command.index("--results") + 1] == str(there.project.results)
    assert CliRunner().invoke(main, command[1:]).exit_code == 4  # one record is torn


def test_no_path_name_or_message_of_an_error_leaves_the_machine(record, there, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "alices-desktop.wonder.land")
    monkeypatch.setenv("USER", "wonderalice")
    monkeypatch.setenv("LOGNAME", "wonderalice")
    monkeypatch.setenv("HOME", "/home/alice")
    when = record.provenance.started
    new_worker_note("sweep", "job", "cpu:0").write(there.project.workers("smoke"))
    monkeypatch.setattr(socket, "gethostname", lambda: "alices-laptop")
    (attempt,) = record.provenance.attempts
    note = AttemptNote(number=1, started=when, ended=when, outcome="done", resumed_at_step=0, host="lidell")
    write_attempt(new_attempt(there.project.run("smoke", RUN)), note)
    outcome = "failed: SetupError: cannot write /home/alice/results/x.json: No space left on device"
    failed = attempt.model_copy(update={"outcome": outcome})
    kept = (
        "Debian GNU/Linux 12 (trixie/sid)",
        "Intel(R) Xeon(R) CPU @ 2.20GHz",
        "CPU 4/8 cores",
        "NVIDIA A100-SXM4-80GB",
    )
    named = (
        "in /home/alice smith/my runs/x",
        "in '/home/alice smith/c' it",
        "cache\nin /home/alice/.c",
        "at ~alice/c",
        "~/alice runs/x",
        "C:\\Users\\alice smith",
        "file:///home/alice/x",
        "alice@wonderland:~/alice runs",
        "mail alice.smith@example.org",
        "on alices-desktop: CPU",
        "on ALICES-LAPTOP",
        "on node42.alice.example.org",
        "at 10.1.2.3",
        "lidell: CPU",
        "of wonderalice",
    )
    packages = {"ruamel.yaml.clib": "0.2.8", "x": "1.0 @ file:///home/alice/x", "cublas": "12.4.5.8"}
    put(there, record, attempts=(failed,), accelerations=named, packages=packages,
        system=kept[0], processor=kept[1], kernel=kept[2], device=kept[3])  # fmt: skip
    with gzip.open(bundle(there, tmp_path)) as file:
        text = file.read().decode()
    assert "cannot write" not in text
    assert not re.search("alice|lidell|smith|wonder|10.1.2.3", text, re.IGNORECASE)
    shared = ("failed: SetupError", "<name>: CPU", "in <path>", "' it", "ruamel.yaml.clib", "12.4.5.8")
    assert [each for each in (*kept, *shared) if each not in text] == []


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"partial": "without\n/home/alice/list.txt"}, "/home/alice/list.txt"),
        ({"title": "faces of alice@wonderland"}, "alice@wonderland"),
        ({"title": "the faces of alice"}, "holds 'alice'"),
        ({"sources": {"https://www.example.org/a/b.tar": "0" * 64}}, ""),
        ({"title": "about 1/2 of the set"}, ""),
    ],
)
def test_a_record_that_means_a_place_or_person_is_kept_back(record, data, reason):
    named = record.model_copy(update={"data": record.data.model_copy(update=data)})
    kept, why = anonymise(named, {"alice"})
    assert ((kept is None), reason in why) == (bool(reason), True)


def test_what_is_here_stays_and_each_conflict_is_named(record, there, here, tmp_path):
    for run in (RUN, OTHER, THIRD):
        put(there, record, run, device="another device")
    put(here, record)
    put(here, record, OTHER).write_text("{")
    before = files(here)
    merged = invoke(here, "merge", bundle(there, tmp_path))
    assert merged.exit_code == 1
    assert merged.stderr.endswith("1 added, 2 conflict\n")
    assert "another device" in merged.stderr
    assert f"`repro train {OTHER} --preset smoke --results" in merged.stderr
    assert before.items() <= files(here).items()


def test_a_record_of_another_recipe_says_what_differs(record, there, here, tmp_path):
    put(there, record)
    preset = here.preset.model_copy(update={"recipe": here.preset.recipe.model_copy(update={"epochs": 4})})
    here.registry.presets["smoke"] = preset
    (offer,) = merge_bundles(here, [bundle(there, tmp_path)])
    assert (offer.fate, offer.reason) == (Fate.OTHER_RECIPE, "epochs 3 → 4")
    assert files(here) == {}


def test_a_dry_run_says_the_same_and_writes_nothing(record, there, here, tmp_path):
    put(there, record)
    one = bundle(there, tmp_path, "one.tar.gz")
    put(there, record, threads=7)
    two = bundle(there, tmp_path, "two.tar.gz")
    dry = invoke(here, "merge", "--dry-run", one, two)
    assert (dry.exit_code, dry.stderr.splitlines()[-1]) == (1, "would be: 1 added, 1 conflict")
    assert not here.project.results.exists()
    real = merge_bundles(here, [one, two])
    assert [offer.fate for offer in real] == [Fate.ADDED, Fate.CONFLICT]


HERE = f"records/smoke/{RUN}.json"


@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        (HERE, lambda text: text[:-200].encode(), "torn or cut short"),
        (HERE, lambda text: text.replace('"correct": ', '"correct": 1', 1).encode(), "edited after"),
        (HERE, lambda text: b"\xff", "not text"),
        (HERE, lambda text: random.Random(1).randbytes(11 << 20), "not a file of at most"),
        (f"records/smoke/{THIRD}.json", str.encode, "holds the record of"),
        ("records/smoke/cifar100/resnet18/seed0.json", str.encode, "not a run id"),
        ("records/no-such-preset/x.json", str.encode, "there is no preset"),
        ("elsewhere/smoke/x.json", str.encode, "not a record's name"),
        ("elsewhere/\x1b]0;x\x07.json", str.encode, r"elsewhere/\u001b]0;x\u0007.json: not a record's name"),
        ("records/../../smoke/evil.json", str.encode, "there is no preset"),
        ("records/smoke/cifar100/resnet18/cross-entropy+epochs=3/seed0.json", str.encode, "is already the default"),
    ],
)  # fmt: skip
def test_what_is_no_valid_record_is_refused_and_the_others_are_taken(
    record, there, here, tmp_path, name, spoil, says
):
    members = {
        name: spoil(record.to_json()),
        f"records/smoke/{OTHER}.json": put(there, record, OTHER).read_bytes(),
    }
    file = pack(tmp_path / "b.tar.gz", **members)
    assert fates(merge_bundles(here, [file], dry_run=True))[name] is Fate.REFUSED
    merged = invoke(here, "merge", file)
    assert merged.exit_code == 4
    (line,) = (line for line in merged.stderr.splitlines() if line.startswith("refused: "))
    assert says in line
    assert line.isprintable()
    assert list(files(here)) == [f"smoke/{OTHER}.json"]


def symbolic_link() -> bytes:
    raw, info = io.BytesIO(), tarfile.TarInfo(HERE)
    with tarfile.open(fileobj=raw, mode="w:gz") as tar:
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    return raw.getvalue()


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (lambda whole: symbolic_link(), "not a file of at most"),
        (lambda whole: gzip.compress(bytes(60 << 20)), "times as many"),
        (lambda whole: gzip.compress(b"nothing of the kind"), "ask for another copy"),
        (lambda whole: whole[:-20], "ask for another copy"),
        (lambda whole: whole + whole[:1], "ask for another copy"),
        # Packed again by whoever holds it: what gzip says is right, and tarfile takes this for the end.
        (
            lambda whole: gzip.compress(gzip.decompress(whole).replace(b"m1/seed0.json", b"m1/seed9.json")),
            "its end is missing",
        ),
        (
            lambda whole: gzip.compress(gzip.decompress(whole).rstrip(b"\0") + bytes(600)),
            "ask for another copy",
        ),
    ],
    ids=["link", "bomb", "no-tar", "torn", "more", "header", "cut"],
)
def test_a_hostile_or_torn_archive_is_refused_whole_and_the_next_one_taken(
    record, there, here, tmp_path, archive, says
):
    put(there, record)
    other = bundle(there, tmp_path)
    put(there, record, OTHER)
    hostile = tmp_path / "hostile.tar.gz"
    hostile.write_bytes(archive(bundle(there, tmp_path, "both.tar.gz").read_bytes()))
    refusal, taken = merge_bundles(here, [hostile, other])
    assert (refusal.fate, taken.fate) == (Fate.REFUSED, Fate.ADDED)
    assert says in refusal.reason


def flipped_bits(whole: bytes, count: int, seed: int) -> Iterator[tuple[int, bytes]]:
    """`whole` with one bit flipped, at `count` random places."""
    generator = random.Random(seed)
    for _ in range(count):
        place, content = generator.randrange(8 * len(whole)), bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        yield place, bytes(content)


@pytest.mark.parametrize("count", [200, pytest.param(3000, marks=pytest.mark.slow)], ids=["short", "long"])
def test_a_bundle_with_one_flipped_bit_is_taken_whole_or_refused(record, there, here, tmp_path, count):
    for run in (RUN, OTHER, THIRD):
        put(there, record, run)
    whole, path = bundle(there, tmp_path).read_bytes(), tmp_path / "flipped.tar.gz"
    refused = 0
    for place, content in flipped_bits(whole, count, seed=count):
        path.write_bytes(content)
        found = [offer.fate for offer in merge_bundles(here, [path], dry_run=True)]
        assert found in ([Fate.ADDED] * 3, [Fate.REFUSED]), place
        refused += found == [Fate.REFUSED]
    assert refused > 0.9 * count  # the rest hit bits of the header that say nothing, as the time
