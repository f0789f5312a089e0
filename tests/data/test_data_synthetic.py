"""repro.data.synthetic: learnable, repeatable, and never mistaken for real data."""

import dataclasses
import subprocess
import sys
import time

import numpy as np
import pytest

from repro.data import DATA_SETS, described
from repro.data.synthetic import fingerprint, generate
from repro.errors import UsageError

REQUEST = ("cifar100", 32, 10, 16, 8)


def test_shapes_types_and_labels_are_those_of_a_prepared_set():
    data = generate(*REQUEST)
    assert data.train.images.shape == (160, 3, 32, 32)
    assert data.test.images.shape == (80, 3, 32, 32)
    assert data.train.images.dtype == np.uint8
    assert data.train.labels.dtype == np.int64
    assert np.bincount(data.train.labels).tolist() == [16] * 10
    assert np.bincount(data.test.labels).tolist() == [8] * 10


def test_the_manifest_says_that_the_data_are_generated():
    manifest = generate(*REQUEST).manifest
    assert manifest.generated
    assert manifest.name == "generated-cifar100"
    assert manifest.title == "generated data in the shape of CIFAR-100"
    assert (manifest.train.count, manifest.classes, manifest.image_size) == (160, 10, 32)


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_known_set_has_a_generated_shape(name):
    data = generate(name, DATA_SETS[name].image_size, 4, 2, 1)
    assert DATA_SETS[name].title in data.manifest.title
    assert data.train.images.shape[2] == DATA_SETS[name].image_size


def test_a_set_of_ones_own_has_a_generated_shape_too():
    manifest = generate("lfw", described("lfw").image_size, 4, 2, 1).manifest
    assert (manifest.title, manifest.image_size) == ("generated data in the shape of lfw", 64)


def test_two_processes_make_the_same_pixels():
    script = (
        "from repro.data.synthetic import generate; "
        f"print(generate(*{REQUEST!r}).manifest.train.images.sha256)"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == generate(*REQUEST).manifest.train.images.sha256


def test_the_pixels_are_those_of_this_generator_version():
    # A change here voids the smoke records: raise GENERATOR_VERSION with it.
    manifest = generate("cifar100", 8, 2, 2, 1).manifest
    assert manifest.train.images.sha256 == "59b686601a117fe17810d18d728d6184108c2f14988630a153407a496f6e6b7d"


def test_classes_can_be_told_apart_by_their_mean_image():
    data = generate("cifar100", 32, 10, 16, 8)
    flat = data.train.images.reshape(160, -1).astype(float)
    means = np.stack([flat[data.train.labels == label].mean(axis=0) for label in range(10)])
    test = data.test.images.reshape(80, -1).astype(float)
    nearest = ((test[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
    assert (nearest == data.test.labels).mean() > 0.9


def test_images_of_a_class_differ():
    images = generate(*REQUEST).train.images
    assert len({image.tobytes() for image in images}) == len(images)


def test_training_and_test_images_differ():
    data = generate(*REQUEST)
    assert not np.array_equal(data.train.images[:80], data.test.images)


@pytest.mark.parametrize(
    "request_",
    [REQUEST, ("tiny-imagenet", 64, 3, 2, 1), ("facescrub", 8, 1, 1, 1), ("cifar100", 33, 5, 1, 2)],
)
def test_the_fingerprint_is_known_before_a_pixel_is_made(request_):
    assert fingerprint(*request_) == generate(*request_).manifest.fingerprint()


def test_every_part_of_the_request_changes_the_fingerprint():
    others = [
        ("tiny-imagenet", 32, 10, 16, 8),
        ("cifar100", 64, 10, 16, 8),
        ("cifar100", 32, 11, 16, 8),
        ("cifar100", 32, 10, 17, 8),
        ("cifar100", 32, 10, 16, 9),
    ]
    assert len({fingerprint(*request) for request in [REQUEST, *others]}) == 6


def test_the_fingerprint_needs_no_numpy():
    script = (
        "import sys; from repro.data.synthetic import fingerprint; "
        f"fingerprint(*{REQUEST!r}); print('numpy' in sys.modules, 'torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False", "False"]


def test_two_hundred_large_images_take_well_under_a_second():
    generate("tiny-imagenet", 64, 10, 1, 1)
    started = time.process_time()
    generate("tiny-imagenet", 64, 10, 16, 4)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (("../mnist", 32, 10, 1, 1), "'../mnist' cannot be a data set's name"),
        (("cifar100", 4, 10, 1, 1), "at least 8 pixels"),
        (("cifar100", 32, 0, 1, 1), "0 classes"),
        (("cifar100", 32, 10, 0, 1), "0 training"),
        (("cifar100", 32, 10, 1, 0), "0 test images"),
    ],
)
def test_a_request_that_makes_no_sense_is_a_usage_error(request_, message):
    for function in (generate, fingerprint):
        with pytest.raises(UsageError, match=message):
            function(*request_)


def test_generated_data_are_frozen():
    data = generate("cifar100", 8, 2, 1, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.train = data.test
