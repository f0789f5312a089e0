"""The centroids of PEDCC: exact on the simplex, at rest beyond it."""

import pytest
import torch

from repro.errors import UsageError
from repro.losses import build
from repro.losses.centroids import charge_repulsion, evenly_distributed, regular_simplex


def cosines(points):
    """Every pairwise cosine, in float64."""
    points = points.double()
    gram = points @ points.T
    return gram[~torch.eye(len(points), dtype=torch.bool)]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("classes", "dim"), [(2, 1), (9, 8), (513, 512), (361, 512), (200, 2048)])
def test_every_pairwise_cosine_of_the_simplex_is_minus_one_over_c_minus_one(classes, dim):
    points = evenly_distributed(classes, dim, seeded(0))
    assert (points.shape, points.dtype) == ((classes, dim), torch.float32)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(classes), rtol=0, atol=1e-6)
    assert (cosines(points) + 1 / (classes - 1)).abs().max() < (1e-6 if classes > dim else 1e-7)


def test_no_direction_is_preferred():
    """Over many draws a coordinate of a centroid has mean 0 and variance 1/d, as on the whole sphere."""
    generator = seeded(0)
    draws = torch.stack([regular_simplex(3, 4, generator) for _ in range(2000)])
    assert draws.mean(dim=0).abs().max() < 0.05
    assert (draws.square().mean(dim=0) - 0.25).abs().max() < 0.03


@pytest.mark.parametrize(("classes", "dim"), [(10, 3), (20, 8), (60, 32)])
def test_beyond_the_simplex_the_charges_are_apart_and_on_the_sphere(classes, dim):
    """No even spread has a mean cosine other than −1/(C − 1): the charges must sum to about zero."""
    points = evenly_distributed(classes, dim, seeded(0))
    assert points.dtype == torch.float32
    torch.testing.assert_close(points.norm(dim=1), torch.ones(classes), rtol=0, atol=1e-6)
    start = torch.nn.functional.normalize(torch.randn(classes, dim, generator=seeded(0)), dim=1)
    assert cosines(points).max() < 0.75 * cosines(start).max()
    assert cosines(points).mean().item() == pytest.approx(-1 / (classes - 1), abs=1e-3)


@pytest.mark.parametrize(("classes", "dim", "tolerance"), [(7, 3, 1e-8), (40, 8, 1e-4)])
def test_charges_at_rest_feel_no_tangential_force(classes, dim, tolerance):
    """Coulomb's law written out, charge by charge; against the sum of the pushes on one charge, on average."""
    points = charge_repulsion(classes, dim, seeded(0), tolerance=tolerance).double()
    largest = pushes = 0.0
    for i in range(classes):
        apart = points[i] - torch.cat([points[:i], points[i + 1 :]])
        distances = apart.norm(dim=1, keepdim=True)
        force = (apart / distances**3).sum(dim=0)
        tangential = force - (force @ points[i]) * points[i]
        largest = max(largest, tangential.norm().item())
        pushes += (1 / distances**2).sum().item() / classes
    assert largest < max(tolerance, 1e-6) * pushes  # 1e-6: the points are rounded to float32


def test_repulsion_run_to_rest_finds_the_simplex_where_there_is_one():
    points = charge_repulsion(20, 30, seeded(0), tolerance=1e-7)
    assert (cosines(points) + 1 / 19).abs().max() < 1e-5


def test_charges_not_at_rest_within_the_bound_are_an_error_and_not_a_result():
    with pytest.raises(UsageError, match="not at rest after 50 steps: largest relative force"):
        charge_repulsion(40, 8, seeded(0), rounds=1, tolerance=1e-12)
    with pytest.raises(UsageError, match="expected 2 charges and 2 dimensions or more, got 3 and 1"):
        evenly_distributed(3, 1)
    with pytest.raises(UsageError, match="10 classes needs at least 9 dimensions, got 8"):
        regular_simplex(10, 8)


def test_pedcc_beyond_the_simplex_takes_the_charges():
    torch.manual_seed(0)
    loss = build("pedcc", 4, 10, scale=7.5, margin=0.35, projection=0)
    torch.manual_seed(0)
    assert torch.equal(loss.centroids, charge_repulsion(10, 4))
    assert loss(loss.centroids, torch.arange(10))[0].isfinite()
