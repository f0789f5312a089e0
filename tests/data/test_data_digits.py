"""repro.data.digits: real images, the same pixels on every machine, and a clear word without scikit-learn."""

import gzip
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from smoke_project import repro

from repro.data import DATA_SETS, digits
from repro.data.digits import fingerprint, load
from repro.errors import DataCorruptError, DataMissingError, UsageError

REQUEST = ("cifar100", 10, 16, 8)


def test_both_splits_hold_the_same_number_of_each_digit_and_share_no_image():
    data = load("facescrub", 10, 130, 43)
    for part, per_class in ((data.train, 130), (data.test, 43)):
        assert part.images.shape == (10 * per_class, 3, 32, 32)
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int64)
        assert np.bincount(part.labels).tolist() == [per_class] * 10
    assert len({image.tobytes() for image in [*data.train.images, *data.test.images]}) == 1730
    manifest = data.manifest
    assert (manifest.name, manifest.generated, manifest.class_names[9]) == ("digits", False, "9")
    assert manifest.title == "handwritten digits (scikit-learn), resized to 32 px"


def test_a_pixel_is_the_exact_bilinear_interpolation_of_the_file_rounded():
    """Against fractions, with the pixels' centres aligned and the border repeated."""
    lines = gzip.decompress(digits.read()).decode().splitlines()
    first = np.array(lines[0].split(","), dtype=int)  # the first image of the file is a 0
    assert first[-1] == 0
    source, resized = first[:-1].reshape(8, 8), load("lfw", 10, 1, 1).train.images[0]

    def weights(position: int) -> np.ndarray:
        at = min(max(Fraction(2 * position + 1, 8) - Fraction(1, 2), Fraction(0)), Fraction(7))
        return np.array([max(1 - abs(at - index), Fraction(0)) for index in range(8)])

    for row, column in ((0, 0), (2, 11), (13, 17), (30, 20), (31, 31)):
        grey = weights(row) @ source @ weights(column)
        assert resized[:, row, column].tolist() == [int(grey * 255 / 16 + Fraction(1, 2))] * 3


def test_the_pixels_are_the_same_everywhere():
    # A change here voids the smoke records: PREPARATION_VERSION or the membership must change with it.
    manifest = load("cifar100", 2, 2, 1).manifest
    assert manifest.train.images.sha256 == "2e961a82d275df41e71e71f5c4675c6a759e2701393dc5dcfdf25d8060310e59"


@pytest.mark.parametrize("request_", [REQUEST, ("facescrub", 3, 2, 1), ("lfw", 1, 1, 1)])
def test_the_fingerprint_is_known_before_a_pixel_is_made(request_):
    assert fingerprint(*request_) == load(*request_).manifest.fingerprint()


def test_every_part_of_the_request_changes_the_fingerprint():
    other = ("facescrub", 9, 17, 9)
    requests = [(*REQUEST[:part], other[part], *REQUEST[part + 1 :]) for part in range(4)]
    assert len({fingerprint(*request) for request in [REQUEST, *requests]}) == 5


def test_no_two_of_the_papers_data_sets_have_the_same_images():
    first = {load(name, 1, 3, 1).manifest.train.images.sha256 for name in DATA_SETS}
    assert len(first) == len(DATA_SETS)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (("cifar100", 11, 1, 1), "1 to 10 classes, got 11"),
        (("cifar100", 10, 131, 1), "1 to 130 training images per class, got 131"),
        (("cifar100", 10, 1, 0), "1 to 43 test images per class, got 0"),
    ],
)
def test_a_request_beyond_what_there_is_is_a_usage_error(request_, message):
    for function in (load, fingerprint):
        with pytest.raises(UsageError, match=message):
            function(*request_)


def test_another_file_than_the_published_one_is_refused(tmp_path, monkeypatch):
    path = tmp_path / digits.FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"torn")
    info = tmp_path / "scikit_learn-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scikit-learn\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataCorruptError, match="pip install scikit-learn --force-reinstall"):
        load(*REQUEST)
    path.unlink()
    with pytest.raises(DataMissingError, match=f"{path} does not exist. Run: .* -m pip install scikit-learn"):
        fingerprint(*REQUEST)


@pytest.mark.integration
def test_without_scikit_learn_a_command_says_which_to_install_and_ends_with_3(tmp_path):
    hide = tmp_path / "sitecustomize.py"
    hide.write_text(
        "from importlib import metadata\n"
        "find = metadata.distribution\n"
        "def distribution(name):\n"
        "    if name == 'scikit-learn':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return find(name)\n"
        "metadata.distribution = distribution\n"
    )
    root = Path(digits.__file__).parents[2]
    words = (
        "run",
        "--table",
        "1",
        "--network",
        "vgg16",
        "--preset",
        "smoke",
        "--results",
        tmp_path / "results",
    )
    done = repro(*words, check=3, environment={"PYTHONPATH": f"{tmp_path}:{root}"})
    assert "scikit-learn is not installed. Run: " in done.stderr
    assert " -m pip install scikit-learn" in done.stderr
