"""repro.data: the index of data sets."""

import subprocess
import sys

import fake_cifar100 as fake
import pytest
from pictures import lay

from repro import data
from repro.data import cifar100
from repro.errors import UsageError
from repro.manifest import prepared_folder
from repro.paths import PUBLISHED_SETS

FILES = fake.files()
PUBLISHED = fake.published(FILES, fake.archive(FILES))


def state(data_dir, name="cifar100"):
    return next(each for each in data.listing(data_dir) if each.name == name)


def test_the_three_sets_of_the_paper_are_known_by_name():
    facts = {
        name: (each.title, each.image_size, each.classes, each.train_count, each.test_count)
        for name, each in data.DATA_SETS.items()
    }
    assert tuple(facts) == PUBLISHED_SETS
    assert facts == {
        "cifar100": ("CIFAR-100", 32, 100, 50_000, 10_000),
        "tiny-imagenet": ("TinyImageNet", 64, 200, 100_000, 10_000),
        "facescrub": ("FaceScrub", 64, None, None, None),
    }


def test_an_unknown_set_and_an_option_that_means_nothing_are_usage_errors(tmp_path):
    for ask in (data.fetch, data.prepare, data.verify):
        with pytest.raises(UsageError, match="'mnist'; known: cifar100, tiny-imagenet, facescrub"):
            ask("mnist", tmp_path)
        with pytest.raises(UsageError, match=r"'tinyimagenet'; .*\. Did you mean tiny-imagenet\?$"):
            ask("tinyimagenet", tmp_path)
    with pytest.raises(UsageError, match="prepare cifar100: --allow-partial means nothing for this set"):
        data.prepare("cifar100", tmp_path, allow_partial=True)
    with pytest.raises(UsageError, match="fetch cifar100: --retry-dead means nothing for this set"):
        data.fetch("cifar100", tmp_path, url=None, retry_dead=True)
    with pytest.raises(
        UsageError, match="--as facescrub: tiny-imagenet cannot be kept under another known set"
    ):
        data.prepare("tiny-imagenet", tmp_path, save_as="facescrub")


@pytest.mark.parametrize(
    ("script", "missing"),
    [
        ("import repro.data", ("numpy", "torch", "pydantic")),
        ("from repro.data.digits import fingerprint; fingerprint('cifar100', 10, 16, 8)", ("numpy", "torch")),
        ("import repro.data.cifar100, repro.data.tiny_imagenet, repro.data.identities, repro.data.facescrub", ("torch",)),
    ],
)  # fmt: skip
def test_importing_needs_little(script, missing):
    script = f"import sys; {script}; print(sorted({set(missing)} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_the_listing_follows_a_set_from_missing_to_prepared_to_corrupt(tmp_path):
    assert state(tmp_path).state == "missing"
    assert "repro data fetch cifar100" in state(tmp_path).detail

    lay(tmp_path / "cifar-100-python", FILES)
    fetched = state(tmp_path)
    assert (fetched.state, fetched.images, fetched.bytes) == ("fetched", None, sum(map(len, FILES.values())))

    manifest = cifar100.prepare(tmp_path, published=PUBLISHED)
    prepared = state(tmp_path)
    assert (prepared.state, prepared.images, prepared.classes) == ("prepared", 30, 5)
    assert prepared.bytes > 30 * 3072
    assert data.prepare("cifar100", tmp_path) == data.verify("cifar100", tmp_path) == manifest

    (prepared_folder(tmp_path, "cifar100") / "test-images.npy").write_bytes(b"")
    assert state(tmp_path).state == "corrupt"
    assert "test-images.npy" in state(tmp_path).detail
