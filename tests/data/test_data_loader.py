"""Batches: which images, how augmented, how normalised, against plain per-image code."""

import pytest
import torch
from smoke_project import PROJECT

from repro.data import digits
from repro.data.loader import (
    CIFAR100_MEAN,
    BatchStream,
    batch_bounds,
    crop_and_flip,
    draw_epoch,
    evaluation_batches,
    normalisation,
    normalise,
    rotate,
    to_device,
)
from repro.registry import Registry
from repro.training.seeding import generator

CPU = torch.device("cpu")
RECIPE = Registry.load(PROJECT / "experiments").preset("smoke").recipe


@pytest.fixture(scope="module")
def data():
    return digits.load("cifar100", 10, 16, 8)


def draws_of(count, recipe=RECIPE, epoch=0):
    return draw_epoch(count, recipe, lambda purpose: generator(0, purpose, epoch))


@pytest.mark.parametrize(
    ("count", "bounds"),
    [
        (6, [(0, 3), (3, 6)]),
        (8, [(0, 3), (3, 6), (6, 8)]),
        (7, [(0, 3), (3, 7)]),
        (2, [(0, 2)]),
        (1, [(0, 1)]),
    ],
)
def test_the_short_last_batch_is_kept_and_a_tail_of_one_joins_the_batch_before(count, bounds):
    assert batch_bounds(count, 3) == bounds


def test_every_crop_and_flip_is_the_padded_images():
    images = torch.randint(
        0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    index = torch.tensor([4, 0, 2, 2])
    for top in range(9):
        for left in range(9):
            offsets = torch.tensor([[top, left]] * 4)
            flips = torch.tensor([False, True, False, True])
            crops = crop_and_flip(images, index, offsets, flips, padding=4)
            for position, image in enumerate(index.tolist()):
                padded = torch.nn.functional.pad(images[image], (4, 4, 4, 4))
                expected = padded[:, top : top + 8, left : left + 8]
                assert torch.equal(crops[position], expected.flip(2) if flips[position] else expected)


def test_a_quarter_turn_is_the_quarter_turn():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    turned = rotate(images, torch.tensor([90.0, 0.0]))
    torch.testing.assert_close(turned[0], torch.rot90(images[0], 1, (1, 2)), rtol=0, atol=1e-5)
    torch.testing.assert_close(turned[1], images[1], rtol=0, atol=1e-6)


def test_rotation_is_bounded_and_leaves_the_other_draws_as_they_were():
    with_rotation = draws_of(500, RECIPE.model_copy(update={"rotation": 15.0}))
    without, other = draws_of(500), draws_of(500, epoch=1)
    assert without.degrees is None
    assert with_rotation.degrees.abs().max() <= 15
    assert with_rotation.degrees.abs().max() > 14
    assert torch.equal(with_rotation.order, without.order)
    assert torch.equal(with_rotation.flips, without.flips)
    assert torch.equal(without.order.sort().values, torch.arange(500))
    assert not torch.equal(without.order, other.order)
    assert not torch.equal(without.offsets, other.offsets)


def test_crops_and_flips_are_uniform():
    draws = draws_of(20_000)
    counts = torch.bincount(draws.offsets.flatten(), minlength=9)
    # Nine equal shares of 40,000: five standard deviations of a binomial are 314.
    assert (counts - 40_000 / 9).abs().max() < 314
    assert abs(draws.flips.float().mean() - 0.5) < 0.018


def test_what_a_recipe_switches_off_is_off(data):
    recipe = RECIPE.model_copy(update={"flip": False, "crop_padding": 0})
    split = to_device(data.train, CPU)
    draws = draws_of(split.count, recipe)
    stream = BatchStream(split, 0, normalisation(data, recipe, CPU, torch.contiguous_format))
    stream.begin(draws)
    images, labels = stream.next_batch(7)
    index = draws.order[:7]
    expected = normalise(
        split.images[index],
        torch.tensor(data.manifest.mean),
        torch.tensor(data.manifest.std),
        torch.contiguous_format,
    )
    assert torch.equal(images, expected)
    assert torch.equal(labels, split.labels[index])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalised_training_images_have_mean_0_and_std_1(data, memory_format):
    split = to_device(data.train, CPU)
    normalised = normalisation(data, RECIPE, CPU, memory_format)
    batches = list(evaluation_batches(split, 50, normalised))
    assert [len(labels) for _, labels in batches] == [50, 50, 50, 10]
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)
    images = torch.cat([batch for batch, _ in batches])
    assert images.dtype == torch.float32
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), rtol=0, atol=1e-3)


def test_cifar100s_statistics_serve_all_sets_where_the_recipe_says_so(data):
    recipe = RECIPE.model_copy(update={"normalization": "cifar100"})
    torch.testing.assert_close(
        normalisation(data, recipe, CPU, torch.contiguous_format).mean, torch.tensor(CIFAR100_MEAN)
    )
    own = normalisation(data, RECIPE, CPU, torch.contiguous_format).mean
    torch.testing.assert_close(own, torch.tensor(data.manifest.mean))
