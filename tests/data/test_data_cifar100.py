"""repro.data.cifar100 on a tiny set in the published format, and on the real one where it is."""

import dataclasses
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import textwrap
import warnings
from pathlib import Path

import fake_cifar100 as fake
import numpy as np
import pytest
from local_server import LocalServer, html

from repro.data import FetchOptions, cifar100
from repro.data.arrays import open_prepared, verify_prepared
from repro.errors import DataCorruptError, DataMissingError, FetchError, SetupError
from repro.manifest import prepared_folder

FILES = fake.files()
PACKED = fake.archive(FILES)
SOURCE = fake.source(FILES, PACKED)


@pytest.fixture
def mirror(server: LocalServer) -> LocalServer:
    server.content = PACKED
    return server


def raw(data_dir: Path) -> Path:
    return data_dir / "cifar100" / "raw" / "cifar-100-python"


def test_the_published_checksums_are_torchvisions():
    from torchvision.datasets import CIFAR100

    published = cifar100.PUBLISHED
    assert (published.url, published.archive_md5) == (CIFAR100.url, CIFAR100.tgz_md5)
    assert dict(published.files) == {
        **dict(CIFAR100.train_list + CIFAR100.test_list),
        "meta": CIFAR100.meta["md5"],
    }
    assert (published.archive, published.folder) == (CIFAR100.filename, CIFAR100.base_folder)


def test_fetched_files_lie_unpacked_in_raw(mirror, tmp_path):
    seen = []
    folder = cifar100.fetch(tmp_path, FetchOptions(url=mirror.url), lambda *call: seen.append(call), SOURCE)
    assert folder == raw(tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert seen[-1] == (len(PACKED), len(PACKED))


def test_fetching_twice_downloads_once(mirror, tmp_path):
    cifar100.fetch(tmp_path, FetchOptions(url=mirror.url), source=SOURCE)
    cifar100.fetch(tmp_path, FetchOptions(url=mirror.url), source=SOURCE)
    assert len(mirror.ranges) == 1


def test_a_mirror_can_be_named_in_the_environment(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_CIFAR100_URL", mirror.url)
    cifar100.fetch(tmp_path, source=SOURCE)
    assert len(mirror.ranges) == 1


def test_a_parameter_wins_over_the_environment(mirror, tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_CIFAR100_URL", "http://127.0.0.1:9/none")
    cifar100.fetch(tmp_path, FetchOptions(url=mirror.url), source=SOURCE)


def test_a_page_instead_of_the_archive_leaves_nothing_to_prepare(mirror, tmp_path):
    mirror.answers = [html]
    with pytest.raises(FetchError, match="HTML page"):
        cifar100.fetch(tmp_path, FetchOptions(url=mirror.url), source=SOURCE)
    with pytest.raises(DataMissingError):
        cifar100.prepare(tmp_path, source=SOURCE)


def test_damaged_files_are_fetched_anew_and_this_is_said(mirror, tmp_path, said):
    cifar100.fetch(tmp_path, FetchOptions(url=mirror.url), source=SOURCE)
    (raw(tmp_path) / "train").write_bytes(FILES["train"][:-100])
    cifar100.fetch(tmp_path, FetchOptions(url=mirror.url), source=SOURCE)
    assert (raw(tmp_path) / "train").read_bytes() == FILES["train"]
    assert "train has MD5" in said[0]
    assert len(mirror.ranges) == 1  # the archive was still there, whole


def test_a_damaged_archive_is_fetched_anew(mirror, tmp_path):
    archive = raw(tmp_path).parent / "cifar-100-python.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(PACKED[:-1])
    cifar100.fetch(tmp_path, FetchOptions(url=mirror.url), source=SOURCE)
    assert archive.read_bytes() == PACKED


def test_damaged_files_of_torchvision_are_left_as_they_are(mirror, tmp_path):
    folder = fake.lay_out({**FILES, "test": b"torn"}, tmp_path / "cifar-100-python")
    assert cifar100.fetch(tmp_path, FetchOptions(url=mirror.url), source=SOURCE) == raw(tmp_path)
    assert (folder / "test").read_bytes() == b"torn"
    assert cifar100.prepare(tmp_path, source=SOURCE).train.count == 20


def test_an_archive_with_other_files_than_published_is_not_taken(server, tmp_path):
    server.content = fake.archive({**FILES, "train": b"evil"})
    source = dataclasses.replace(SOURCE, archive_md5=fake.md5(server.content))
    cifar100.fetch(tmp_path, FetchOptions(url=server.url), source=source)
    with pytest.raises(DataCorruptError, match=r"train has MD5 .* expected"):
        cifar100.prepare(tmp_path, source=source)


def lay_raw(data_dir: Path) -> None:
    fake.lay_out(FILES, raw(data_dir))


def lay_torchvision(data_dir: Path) -> None:
    fake.lay_out(FILES, data_dir / "cifar-100-python")


def lay_archive(data_dir: Path) -> None:
    (data_dir / "cifar-100-python.tar.gz").write_bytes(PACKED)


def lay_raw_archive(data_dir: Path) -> None:
    raw(data_dir).parent.mkdir(parents=True)
    (raw(data_dir).parent / "cifar-100-python.tar.gz").write_bytes(PACKED)


@pytest.mark.parametrize("lay", [lay_raw, lay_torchvision, lay_archive, lay_raw_archive])
def test_files_already_on_disk_are_enough(tmp_path, lay):
    lay(tmp_path)
    assert cifar100.located(tmp_path, SOURCE) is not None
    # Port 9 refuses connections: fetching must find the files without a network.
    cifar100.fetch(tmp_path, source=SOURCE)
    assert cifar100.prepare(tmp_path, source=SOURCE).train.count == 20


def test_prepared_arrays_hold_the_published_pixels_labels_and_names(tmp_path):
    lay_raw(tmp_path)
    manifest = cifar100.prepare(tmp_path, source=SOURCE)
    data = open_prepared(tmp_path, "cifar100")
    for part, name, per_class, seed in ((data.train, "train", 4, 1), (data.test, "test", 2, 2)):
        content, images = fake.split(name, per_class, seed)
        assert np.array_equal(part.images, images)
        assert part.labels.tolist() == content["fine_labels"]
    assert manifest == data.manifest
    assert manifest.class_names == tuple(fake.FINE_LABELS)
    assert set(manifest.sources) == {"train", "test", "meta"}
    assert (manifest.name, manifest.title, manifest.generated) == ("cifar100", "CIFAR-100", False)


def test_preparing_twice_gives_the_same_bytes(tmp_path):
    lay_raw(tmp_path)
    first = cifar100.prepare(tmp_path, source=SOURCE)
    kept = {path.name: path.read_bytes() for path in prepared_folder(tmp_path, "cifar100").iterdir()}
    shutil.rmtree(prepared_folder(tmp_path, "cifar100"))
    assert cifar100.prepare(tmp_path, source=SOURCE) == first
    assert {path.name: path.read_bytes() for path in prepared_folder(tmp_path, "cifar100").iterdir()} == kept


def test_whole_arrays_stay_even_where_the_source_is_gone(tmp_path):
    lay_raw(tmp_path)
    cifar100.prepare(tmp_path, source=SOURCE)
    shutil.rmtree(raw(tmp_path))
    made = prepared_folder(tmp_path, "cifar100").stat().st_ino
    cifar100.prepare(tmp_path, source=SOURCE)
    assert prepared_folder(tmp_path, "cifar100").stat().st_ino == made


def test_damaged_arrays_are_made_anew_and_this_is_said(tmp_path, said):
    lay_raw(tmp_path)
    cifar100.prepare(tmp_path, source=SOURCE)
    path = prepared_folder(tmp_path, "cifar100") / "train-images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    cifar100.prepare(tmp_path, source=SOURCE)
    assert "train-images.npy has sha256" in said[0]
    verify_prepared(tmp_path, "cifar100")


@pytest.mark.parametrize("name", ["train", "test", "meta"])
def test_a_torn_file_is_named_with_both_checksums(tmp_path, name):
    fake.lay_out({**FILES, name: FILES[name][:-1]}, raw(tmp_path))
    expected, actual = fake.md5(FILES[name]), fake.md5(FILES[name][:-1])
    message = f"cifar-100-python/{name} has MD5 {actual}, expected {expected}: delete it and run"
    with pytest.raises(DataCorruptError, match=message):
        cifar100.prepare(tmp_path, source=SOURCE)
    assert not prepared_folder(tmp_path, "cifar100").exists()


def test_a_torn_archive_is_named(tmp_path):
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(PACKED[:-1])
    with pytest.raises(DataCorruptError, match=r"cifar-100-python\.tar\.gz has MD5"):
        cifar100.prepare(tmp_path, source=SOURCE)


def test_a_missing_file_is_named(tmp_path):
    lay_raw(tmp_path)
    (raw(tmp_path) / "meta").unlink()
    with pytest.raises(
        DataMissingError, match=r"cifar-100-python lacks meta; looked for .*run `repro data fetch cifar100`"
    ):
        cifar100.prepare(tmp_path, source=SOURCE)


def test_a_missing_set_names_every_place_that_was_looked_at(tmp_path):
    with pytest.raises(DataMissingError, match="repro data fetch cifar100") as caught:
        cifar100.prepare(tmp_path, source=SOURCE)
    for place in (raw(tmp_path), tmp_path / "cifar-100-python", tmp_path / "cifar-100-python.tar.gz"):
        assert str(place) in str(caught.value)


class Wish:
    """Unpickled by an ordinary unpickler, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_asks_for_a_program_is_never_opened(tmp_path):
    fake.lay_out({**FILES, "train": pickle.dumps(Wish(tmp_path / "evil"))}, raw(tmp_path))
    with pytest.raises(DataCorruptError, match="has MD5"):
        cifar100.prepare(tmp_path, source=SOURCE)
    assert not (tmp_path / "evil").exists()


def test_a_folder_that_cannot_be_written_is_named(read_only):
    with pytest.raises(SetupError, match="no permission to write"):
        cifar100.prepare(read_only, source=SOURCE)


def test_two_preparations_at_once_write_once(tmp_path):
    lay_raw(tmp_path)
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        import fake_cifar100 as fake
        from repro.data import FetchOptions, cifar100
        files = fake.files()
        source = fake.source(files, fake.archive(files))
        cifar100.prepare(Path(sys.argv[1]), source=source)
        folder = Path(sys.argv[1]) / "cifar100" / "prepared"
        print((folder / "manifest.json").stat().st_ino)
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script, str(tmp_path)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    verify_prepared(tmp_path, "cifar100")


@pytest.mark.slow
@pytest.mark.shared
def test_the_real_set_goes_from_a_server_to_verified_arrays(real_cifar100, server, tmp_path):
    packed = tmp_path / "packed.tar"
    with tarfile.open(packed, "w") as tar:
        tar.add(real_cifar100 / "cifar-100-python", "cifar-100-python")
    server.content = packed.read_bytes()
    packed.unlink()
    # Compressing the archive takes longer than all the rest, so its checksum is this test's own.
    source = dataclasses.replace(cifar100.PUBLISHED, archive_md5=fake.md5(server.content))
    cifar100.fetch(tmp_path, FetchOptions(url=server.url), source=source)
    manifest = cifar100.prepare(tmp_path)
    assert verify_prepared(tmp_path, "cifar100") == manifest
    assert (manifest.train.count, manifest.test.count, manifest.classes) == (50_000, 10_000, 100)
    assert manifest.mean == pytest.approx((0.5071, 0.4865, 0.4409), abs=5e-5)
    assert manifest.std == pytest.approx((0.2673, 0.2564, 0.2762), abs=5e-5)
    assert manifest.class_names[:3] == ("apple", "aquarium_fish", "baby")


@pytest.mark.shared
def test_the_real_arrays_are_what_torchvision_reads(real_cifar100, tmp_path):
    from torchvision.datasets import CIFAR100

    (tmp_path / "cifar-100-python").symlink_to(real_cifar100 / "cifar-100-python")
    cifar100.prepare(tmp_path)
    data = open_prepared(tmp_path, "cifar100")
    for ours, train in ((data.train, True), (data.test, False)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision opens Python 2's pickles with numpy itself
            theirs = CIFAR100(real_cifar100, train=train, download=False)
        assert np.array_equal(ours.images, theirs.data.transpose(0, 3, 1, 2))
        assert ours.labels.tolist() == theirs.targets
    assert list(data.manifest.class_names) == theirs.classes
    assert np.bincount(data.train.labels).tolist() == [500] * 100
