"""Evenly distributed points on the unit sphere: the class centroids of PEDCC.

C points in d dimensions are as far apart as they can be, every pairwise cosine −1/(C − 1), exactly when they
are the corners of a regular simplex, and that exists for C ≤ d + 1. It is written down in closed form here:
the charge repulsion that the source of PEDCC iterates instead finds the same set only in the limit (after 200
steps and C = 200, cosines still spread from −.12 to +.08). For C > d + 1 no such set exists, and the points
are those of a local minimum of the Coulomb energy. At C = d + 1 the simplex spans the whole space and only
its orientation is random; below that so is the subspace it lies in.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from repro.errors import UsageError


def evenly_distributed(classes: int, dim: int, generator: Generator | None = None) -> Tensor:
    """C unit vectors (C, d) float32: the regular simplex if C ≤ d + 1, else charges at rest."""
    if classes <= dim + 1:
        return regular_simplex(classes, dim, generator)
    return charge_repulsion(classes, dim, generator)


def regular_simplex(classes: int, dim: int, generator: Generator | None = None) -> Tensor:
    """The C corners of a regular simplex on the unit sphere of d dimensions, (C, d) float32.

    c_k = √(C/(C − 1)) · Q · h_k, where h_k is the k-th column of the Helmert matrix (C − 1, C), whose rows
    are an orthonormal basis of the vectors that sum to zero, and Q (d, C − 1) has orthonormal columns,
    uniformly (Haar) distributed: ⟨c_j, c_k⟩ = −1/(C − 1) for j ≠ k. Computed in float64 on the CPU. Draws
    d · (C − 1) normal numbers from `generator` (None: torch's global one). Raises UsageError unless
    2 ≤ C ≤ d + 1.
    """
    if not 2 <= classes <= dim + 1:
        raise UsageError(
            f"a regular simplex of {classes} classes needs at least {classes - 1} dimensions, got {dim}"
        )
    order = torch.arange(1, classes, dtype=torch.float64, device="cpu").unsqueeze(1)
    column = torch.arange(classes, dtype=torch.float64, device="cpu")
    # Row k of the Helmert matrix: k ones, then −k, then zeros, over √(k(k + 1)).
    helmert = (column < order).double() - order * (column == order)
    helmert = helmert / (order * (order + 1)).sqrt()
    corners = math.sqrt(classes / (classes - 1)) * helmert.T
    return (corners @ _random_frame(dim, classes - 1, generator).T).float()


def charge_repulsion(
    classes: int,
    dim: int,
    generator: Generator | None = None,
    *,
    rounds: int = 100,
    tolerance: float = 1e-4,
) -> Tensor:
    """C equal charges at rest on the unit sphere of d dimensions, (C, d) float32, for C > d + 1.

    A local minimum of the Coulomb energy Σ_{j<k} 1/‖c_j − c_k‖, by L-BFGS in float64 from normal numbers
    drawn from `generator` (None: torch's global one), in at most `rounds` × 50 steps. At rest means: no
    charge feels a tangential force above `tolerance` times the mean over charges of Σ_k 1/‖c_j − c_k‖²,
    what the pushes on one add up to in magnitude. The landscape is flat and has many minima of nearly the
    same energy: past the default the energy falls by some 1e-5 of itself, the largest cosine moves by
    about .01. For the same reason the path amplifies rounding: one seed gives the same points only with the
    same library and number of threads.
    Raises UsageError if charges do not come to rest, and for C < 2 or d < 2.
    """
    if classes < 2 or dim < 2:
        raise UsageError(f"expected 2 charges and 2 dimensions or more, got {classes} and {dim}")
    points = torch.randn(classes, dim, generator=generator, dtype=torch.float64, device="cpu")
    points.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [points],
        max_iter=50,
        history_size=20,
        line_search_fn="strong_wolfe",
        # The force decides when to stop, not the size of a step.
        tolerance_grad=0.0,
        tolerance_change=0.0,
    )

    def energy() -> Tensor:
        optimizer.zero_grad()
        with torch.enable_grad():  # a caller may build under no_grad
            value = (1 / torch.pdist(F.normalize(points, dim=1))).sum()
        value.backward()
        return value

    force = math.inf
    for _ in range(rounds):
        optimizer.step(energy)
        force = _largest_relative_force(points, energy)
        if force <= tolerance:
            return F.normalize(points.detach(), dim=1).float()
    raise UsageError(
        f"{classes} charges on the sphere of {dim} dimensions are not at rest after {50 * rounds} steps: "
        f"largest relative force {force:.1e}, wanted {tolerance:.1e}; allow more rounds or more dimensions"
    )


def _largest_relative_force(points: Tensor, energy: Callable[[], Tensor]) -> float:
    """The largest tangential force on a charge over the mean sum of the magnitudes of the pushes on one."""
    energy()  # the line search leaves the gradient of its last trial, not of the point that it took
    assert points.grad is not None
    with torch.no_grad():
        # The energy is that of points / ‖points‖, so its gradient is tangential and scaled by 1/‖point‖.
        norms = points.norm(dim=1)
        pushes = 2 * torch.pdist(points / norms.unsqueeze(1)).square().reciprocal().sum() / len(points)
        return float((points.grad.norm(dim=1) * norms).max() / pushes)


def _random_frame(dim: int, count: int, generator: Generator | None) -> Tensor:
    """`count` orthonormal columns in `dim` dimensions, (d, count) float64, Haar-distributed."""
    normal = torch.randn(dim, count, generator=generator, dtype=torch.float64, device="cpu")
    frame, triangle = torch.linalg.qr(normal)
    # The factorisation leaves the columns' signs to the library; R's positive diagonal makes it unique.
    return frame * triangle.diagonal().sign()
