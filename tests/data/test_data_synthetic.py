"""repro.data.synthetic: learnable, repeatable, and never mistaken for real data."""

import dataclasses

import numpy as np
import pytest

from repro.data import DATA_SETS, dataset_info
from repro.data.synthetic import fingerprint, generate
from repro.errors import UsageError

REQUEST = ("cifar100", 32, 10, 16, 8)


@pytest.mark.parametrize("name", [*DATA_SETS, "lfw"])
def test_the_data_have_the_shape_of_their_set_and_say_that_they_are_generated(name):
    size = dataset_info(name).image_size
    data = generate(name, size, 4, 3, 2)
    for part, per_class in ((data.train, 3), (data.test, 2)):
        assert part.images.shape == (4 * per_class, 3, size, size)
        assert (part.images.dtype, part.labels.dtype) == (np.uint8, np.int64)
        assert np.bincount(part.labels).tolist() == [per_class] * 4
    manifest = data.manifest
    assert (manifest.generated, manifest.name) == (True, f"generated-{name}")
    assert manifest.title == f"generated data in the shape of {dataset_info(name).title}"
    assert (manifest.train.count, manifest.classes, manifest.image_size) == (12, 4, size)
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.train = data.test


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
    assert len({image.tobytes() for image in [*data.train.images, *data.test.images]}) == 240


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
