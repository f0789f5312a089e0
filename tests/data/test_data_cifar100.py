"""repro.data.cifar100 on a tiny set in the published layout, and on the real set where it is."""

import bz2
import dataclasses
import gzip
import os
import pickle
import shutil
import tarfile
import warnings
from pathlib import Path

import fake_cifar100 as fake
import numpy as np
import pytest
from pictures import lay

from repro.data import DATA_SETS, cifar100
from repro.data.prepared import open_prepared, verify_prepared
from repro.errors import DataCorruptError, DataMissingError, FetchError, SetupError
from repro.manifest import prepared_folder

FILES = fake.files()
PACKED = fake.archive(FILES)
PUBLISHED = fake.published(FILES, PACKED)


def fetch(data_dir: Path, **options) -> Path:
    return cifar100.fetch(data_dir, **{"published": PUBLISHED, **options})


def prepare(data_dir: Path, **options):
    return cifar100.prepare(data_dir, **{"published": PUBLISHED, **options})


FOLDER, ARCHIVE = "cifar-100-python", "cifar-100-python.tar.gz"
RAW = Path("cifar100", "raw")


@pytest.fixture
def mirror(server):
    server.content = PACKED
    return server


def test_the_archive_is_fetched_once_from_the_option_before_the_environment_and_prepared_from(
    mirror, tmp_path, monkeypatch
):
    monkeypatch.setenv("REPRO_CIFAR100_URL", "http://127.0.0.1:9/none")
    for _ in range(2):
        place = fetch(tmp_path, url=mirror.url)
    assert (place, len(mirror.ranges)) == (tmp_path / RAW / ARCHIVE, 1)
    manifest = prepare(tmp_path)
    assert manifest.train.count == 20
    place.unlink()
    assert prepare(tmp_path) == manifest  # whole arrays need no source
    monkeypatch.setenv("REPRO_CIFAR100_URL", mirror.url)
    fetch(tmp_path / "other")
    assert len(mirror.ranges) == 2


def test_the_mirror_is_used_where_the_publisher_fails_unless_an_address_is_named(mirror, tmp_path):
    published = dataclasses.replace(PUBLISHED, mirrors=(mirror.url,))
    with pytest.raises(FetchError, match=r"^http://127.0.0.1:9/this: the connection is refused; "):
        fetch(tmp_path, url="http://127.0.0.1:9/this", published=published)
    assert mirror.ranges == []
    assert fetch(tmp_path, published=published).read_bytes() == PACKED


def test_a_damaged_folder_or_archive_is_said_and_left_for_what_is_fetched(mirror, tmp_path, said):
    lay(tmp_path / FOLDER, {**FILES, "test": b"torn"})
    lay(tmp_path / RAW, {ARCHIVE: PACKED[:-1]})
    place = fetch(tmp_path, url=mirror.url)
    assert place.read_bytes() == PACKED
    assert "cifar-100-python/test has MD5" in said[0]
    shutil.rmtree(tmp_path / FOLDER)
    assert prepare(tmp_path).train.count == 20


@pytest.mark.parametrize(
    ("place", "named"),
    [
        (RAW / FOLDER, None),
        (Path(FOLDER), None),  # torchvision's layout
        (RAW / ARCHIVE, None),
        (Path(ARCHIVE), None),
        (Path("else", FOLDER), Path("else", FOLDER)),
        (Path("else", FOLDER), Path("else")),
        (Path("else/packed.tar.gz"), Path("else/packed.tar.gz")),
    ],
)
def test_files_on_disk_are_enough_wherever_they_are(tmp_path, place, named):
    if place.suffix == ".gz":
        lay(tmp_path, {place: PACKED})
    else:
        lay(tmp_path / place, FILES)
    options = {"source": tmp_path / named} if named else {}
    if not options:
        assert cifar100.find_source(tmp_path, published=PUBLISHED) == fetch(tmp_path)  # without a network
    manifest = prepare(tmp_path, **options)
    data = open_prepared(tmp_path, "cifar100")
    for part, name, per_class, seed in ((data.train, "train", 4, 1), (data.test, "test", 2, 2)):
        content, images = fake.split(name, per_class, seed)
        assert np.array_equal(part.images, images)
        assert part.labels.tolist() == content["fine_labels"]
    assert manifest.class_names == tuple(fake.FINE_LABELS)
    assert set(manifest.sources) == {"train", "test", "meta"}
    assert (manifest.name, manifest.title, manifest.generated) == ("cifar100", "CIFAR-100", False)


def test_an_archive_that_is_named_may_be_packed_otherwise_but_holds_the_published_files(tmp_path):
    other = tmp_path / "else.tar.bz2"
    other.write_bytes(bz2.compress(gzip.decompress(PACKED)))
    assert prepare(tmp_path / "good", source=other).train.count == 20
    other.write_bytes(fake.archive({**FILES, "train": b"evil"}))
    with pytest.raises(DataCorruptError, match=r"else.tar.bz2/train has MD5 .* expected"):
        prepare(tmp_path / "bad", source=other)


@pytest.mark.parametrize("name", ["train", "test"])
def test_pixels_that_are_not_the_published_ones_are_refused(tmp_path, name):
    lay(tmp_path / RAW / FOLDER, FILES)
    pixels = {**PUBLISHED.pixels, name: "0" * 64}
    with pytest.raises(DataCorruptError, match=f"the {name} images as prepared have sha256 .* expected 000"):
        prepare(tmp_path, published=dataclasses.replace(PUBLISHED, pixels=pixels))
    assert not prepared_folder(tmp_path, "cifar100").exists()


class Wish:
    """Unpickled by an ordinary unpickler, this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_what_is_damaged_or_missing_is_named_and_nothing_but_the_published_pickles_is_opened(tmp_path):
    def refused(says: str, error: type[SetupError] = DataCorruptError) -> None:
        with pytest.raises(error, match=says):
            prepare(tmp_path)
        assert not prepared_folder(tmp_path, "cifar100").exists()

    places = (tmp_path / RAW / FOLDER, tmp_path / FOLDER, tmp_path / ARCHIVE)
    refused(
        f"looked for .*{places[2]}.*{places[0]}.*{places[1]}.*repro data fetch cifar100", DataMissingError
    )
    lay(tmp_path, {ARCHIVE: PACKED[:-1]})
    refused(r"cifar-100-python\.tar\.gz has MD5")
    places[2].unlink()
    lay(places[0], {**FILES, "train": pickle.dumps(Wish(tmp_path / "evil"))})
    refused(f"cifar-100-python/train has MD5 .*, expected {fake.md5(FILES['train'])}: delete it and run")
    assert not (tmp_path / "evil").exists()
    (places[0] / "meta").unlink()
    refused("cifar-100-python lacks meta; looked for ", DataMissingError)


@pytest.mark.slow
@pytest.mark.shared
def test_the_real_set_goes_from_a_server_to_what_torchvision_reads(real_cifar100, server, tmp_path):
    from torchvision.datasets import CIFAR100

    packed = tmp_path / "packed.tar"
    with tarfile.open(packed, "w") as tar:
        tar.add(real_cifar100 / "cifar-100-python", "cifar-100-python")
    server.content = packed.read_bytes()
    packed.unlink()
    # Compressing the archive takes longer than all the rest, so its checksum is this test's own.
    published = dataclasses.replace(cifar100.PUBLISHED, archive_md5=fake.md5(server.content))
    fetch(tmp_path, url=server.url, published=published)
    manifest = prepare(tmp_path, published=published)
    assert verify_prepared(tmp_path, "cifar100") == manifest
    known, found = DATA_SETS["cifar100"], (manifest.classes, manifest.train.count, manifest.test.count)
    assert found == (known.classes, known.train_count, known.test_count)
    assert manifest.mean == pytest.approx((0.5071, 0.4865, 0.4409), abs=5e-5)
    assert manifest.std == pytest.approx((0.2673, 0.2564, 0.2762), abs=5e-5)
    assert manifest.train.images.sha256 == "26f5f26a8d71d97887e6a7f175322c09a4375bb1234523b0c781633de351e40b"
    data = open_prepared(tmp_path, "cifar100")
    for ours, train in ((data.train, True), (data.test, False)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision opens Python 2's pickles with numpy itself
            theirs = CIFAR100(real_cifar100, train=train, download=False)
        assert np.array_equal(ours.images, theirs.data.transpose(0, 3, 1, 2))
        assert ours.labels.tolist() == theirs.targets
    assert list(data.manifest.class_names) == theirs.classes
