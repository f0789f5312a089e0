"""repro.data: the index of data sets."""

import subprocess
import sys

import fake_cifar100 as fake
import pytest

from repro import data
from repro.data import cifar100
from repro.errors import DataMissingError, UsageError
from repro.manifest import prepared_folder

FILES = fake.files()
PACKED = fake.archive(FILES)
SOURCE = fake.source(FILES, PACKED)


def state(data_dir, name="cifar100"):
    return next(each for each in data.listing(data_dir) if each.name == name)


def test_the_three_sets_of_the_paper_are_known_by_name():
    facts = {
        name: (each.title, each.image_size, each.classes, each.train_count, each.test_count)
        for name, each in data.DATA_SETS.items()
    }
    assert facts == {
        "cifar100": ("CIFAR-100", 32, 100, 50_000, 10_000),
        "tiny-imagenet": ("TinyImageNet", 64, 200, 100_000, 10_000),
        "facescrub": ("FaceScrub", 64, None, None, None),
    }


def test_an_unknown_set_is_answered_with_the_known_ones(tmp_path):
    for ask in (data.fetch, data.prepare, data.verify):
        with pytest.raises(
            UsageError, match="unknown data set 'mnist'; known: cifar100, tiny-imagenet, facescrub"
        ):
            ask("mnist", tmp_path)


def test_an_option_that_means_nothing_for_a_set_is_a_usage_error(tmp_path):
    options = data.PrepareOptions(allow_partial=True)
    with pytest.raises(
        UsageError, match="repro data prepare cifar100: --allow-partial means nothing for this set"
    ):
        data.prepare("cifar100", tmp_path, options)
    with pytest.raises(
        UsageError, match="--as facescrub: tiny-imagenet cannot be kept under another known set"
    ):
        data.prepare("tiny-imagenet", tmp_path, data.PrepareOptions(name="facescrub"))


def test_cifar100_is_prepared_from_a_place_elsewhere(tmp_path):
    folder = fake.lay_out(FILES, tmp_path / "else" / "cifar-100-python")
    (tmp_path / "packed.tar.gz").write_bytes(PACKED)
    for number, place in enumerate((folder, folder.parent, tmp_path / "packed.tar.gz")):
        manifest = cifar100.prepare(tmp_path / str(number), data.PrepareOptions(source=place), source=SOURCE)
        assert manifest.train.count == 20
    with pytest.raises(DataMissingError, match="CIFAR-100 is not on disk"):
        cifar100.prepare(tmp_path / "empty", data.PrepareOptions(source=tmp_path), source=SOURCE)


def test_importing_the_package_imports_neither_numpy_nor_torch():
    script = "import sys, repro.data; print(sorted({'numpy', 'torch', 'pydantic'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_nothing_of_the_data_but_training_needs_torch():
    script = (
        "import sys, repro.data.cifar100, repro.data.tiny_imagenet, repro.data.image_folder, pathlib; "
        "repro.data.listing(pathlib.Path('none')); "
        "print('torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_the_listing_follows_a_set_from_missing_to_prepared_to_corrupt(tmp_path):
    assert state(tmp_path).state == "missing"
    assert "repro data fetch cifar100" in state(tmp_path).detail

    fake.lay_out(FILES, tmp_path / "cifar-100-python")
    fetched = state(tmp_path)
    assert (fetched.state, fetched.images, fetched.bytes) == ("fetched", None, sum(map(len, FILES.values())))

    cifar100.prepare(tmp_path, source=SOURCE)
    prepared = state(tmp_path)
    assert (prepared.state, prepared.images, prepared.classes) == ("prepared", 30, 5)
    assert prepared.bytes > 30 * 3072

    (prepared_folder(tmp_path, "cifar100") / "test-images.npy").write_bytes(b"")
    assert state(tmp_path).state == "corrupt"
    assert "test-images.npy" in state(tmp_path).detail


def test_a_set_on_disk_is_prepared_and_verified_by_name(tmp_path):
    cifar100.prepare(fake.lay_out(FILES, tmp_path / "cifar-100-python").parent, source=SOURCE)
    assert data.prepare("cifar100", tmp_path) == data.verify("cifar100", tmp_path)


@pytest.mark.shared
def test_the_real_set_is_prepared_by_name(real_cifar100, tmp_path):
    (tmp_path / "cifar-100-python").symlink_to(real_cifar100 / "cifar-100-python")
    assert data.fetch("cifar100", tmp_path) == tmp_path / "cifar-100-python"
    manifest = data.prepare("cifar100", tmp_path)
    known = data.described("cifar100")
    assert (manifest.classes, manifest.train.count) == (known.classes, known.train_count)
    assert (manifest.test.count, manifest.image_size) == (known.test_count, known.image_size)
    assert state(tmp_path).state == "prepared"
