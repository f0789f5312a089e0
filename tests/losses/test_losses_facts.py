"""What a correct implementation must show: floors, bounds, invariances, and the paper's example corrected."""

import math

import pytest
import torch

from repro.losses import build
from repro.losses.centroids import regular_simplex

SETTINGS = [(7.5, 0.35), (10.0, 0.5)]
NO_EPS = 1e-30  # torch refuses 0 in training; added to any variance here it changes no digit
FLOORS = {
    (7.5, 0.35): {100: 0.531, 200: 0.901, 361: 1.306},
    (10.0, 0.5): {100: 0.472, 200: 0.822, 361: 1.212},
}


def identity_classifier(loss):
    """The loss with W = I, so that a feature is what the classifier gives."""
    with torch.no_grad():
        loss.classifier.weight.copy_(torch.eye(loss.classes, loss.feature_dim))
    return loss


@pytest.mark.parametrize("classes", [100, 200, 361])
@pytest.mark.parametrize(("scale", "margin"), SETTINGS)
def test_am_softmax_has_the_floor_of_the_regular_simplex(scale, margin, classes):
    """Every feature on its class's weight, weights on a simplex: the stated value, and a stationary point."""
    loss = build("am-softmax", 512, classes, scale=scale, margin=margin)
    with torch.no_grad():
        loss.classifier.weight.copy_(regular_simplex(classes, 512))
    features = loss.classifier.weight.detach().clone().requires_grad_()
    value, _ = loss(features, torch.arange(classes))
    value.backward()
    closed = math.log1p((classes - 1) * math.exp(scale * (margin - classes / (classes - 1))))
    assert value.item() == pytest.approx(closed, abs=2e-6)
    assert round(closed, 3) == FLOORS[scale, margin][classes]
    assert features.grad.abs().max() < 1e-6
    assert loss.classifier.weight.grad.abs().max() < 1e-6


@pytest.mark.parametrize(("classes", "needed"), [(100, 6.72), (200, 7.45), (361, 8.06)])
def test_normface_bound_gives_the_scale_that_a_probability_of_nine_tenths_needs(classes, needed):
    """At best, on the simplex and without a margin, the target's probability passes .9 only from there on."""
    exact = (classes - 1) / classes * math.log(9 * (classes - 1))
    assert exact == pytest.approx(needed, abs=0.01)
    for scale, reached in [(exact - 0.01, False), (exact + 0.01, True)]:
        loss = build("pedcc", 512, classes, scale=scale, margin=0.0, projection=0)
        target = loss.logits(loss.centroids).softmax(dim=1).diagonal()
        assert bool((target > 0.9).all()) is reached
        assert bool((target > 0.9).any()) is reached


def test_pedcc_with_a_projection_reaches_its_centroids_from_features_after_a_relu():
    """A matrix solved for takes non-negative features onto signed centroids: the floor, and no distance."""
    torch.manual_seed(0)
    classes, dim = 100, 128
    loss = build("pedcc", dim, classes, scale=7.5, margin=0.35)
    features = torch.randn(classes, dim).relu()
    with torch.no_grad():
        solution = torch.linalg.lstsq(features.double(), loss.centroids.double()).solution
        loss.projection.weight.copy_(solution.T)
    value, logits = loss(features, torch.arange(classes))
    assert loss.centroids.min() < 0 <= features.min()
    assert logits.diagonal().min().item() == pytest.approx(7.5, abs=1e-4)
    assert value.item() == pytest.approx(0.531, abs=1e-3)


def test_pedcc_on_features_after_a_relu_stays_far_above_its_floor():
    """Non-negative features optimised freely end near 2.05; the same without the restriction reach .531."""
    torch.manual_seed(0)
    loss = build("pedcc", 512, 100, scale=7.5, margin=0.35, projection=0, distance_weight=0.0)
    labels = torch.arange(100)
    ends = {}
    for name, feature in [("signed", lambda raw: raw), ("after a ReLU", torch.abs)]:
        raw = (loss.centroids + 0.02 * torch.randn(100, 512)).requires_grad_()
        optimizer = torch.optim.Adam([raw], lr=0.003)
        for _ in range(150):
            optimizer.zero_grad()
            value, _ = loss(feature(raw), labels)
            value.backward()
            optimizer.step()
        ends[name] = value.item()
    assert ends["signed"] == pytest.approx(0.531, abs=0.01)
    assert ends["after a ReLU"] == pytest.approx(2.05, abs=0.05)


@pytest.mark.parametrize("affine", [False, True])
def test_under_scaled_bn_without_eps_the_gradient_is_orthogonal_to_each_class_weight(affine):
    torch.manual_seed(0)
    loss = build("scaled-bn", 8, 6, scale=1.0, eps=NO_EPS, affine=affine).double()
    loss(torch.randn(32, 8, dtype=torch.float64), torch.randint(6, (32,)))[0].backward()
    weight = loss.classifier.weight
    assert weight.grad.norm(dim=1).min() > 1e-3
    assert (weight.grad * weight).sum(dim=1).abs().max() < 1e-15


@pytest.mark.parametrize("size", [1.0, 1e-2])
def test_under_scaled_bn_the_radial_gradient_is_of_the_order_of_eps_over_variance(size):
    """⟨∂L/∂w_k, w_k⟩ = ε/(Var + ε) · Σ_i ∂L/∂z_i z_i, exactly."""
    torch.manual_seed(0)
    eps = 1e-5
    loss = build("scaled-bn", 8, 6, scale=0.9, eps=eps).double()
    features = size * torch.randn(32, 8, dtype=torch.float64)
    value, logits = loss(features, torch.randint(6, (32,)))
    weight = loss.classifier.weight
    gradient, at_logits = torch.autograd.grad(value, [weight, logits])
    variance = (features @ weight.T).var(dim=0, unbiased=False)
    expected = eps / (variance + eps) * (at_logits * logits).sum(dim=0)
    radial = (gradient * weight).sum(dim=1)
    torch.testing.assert_close(radial, expected, rtol=1e-8, atol=1e-18)
    assert radial.abs().min() > 0


@pytest.mark.parametrize(("scale", "probability"), [(0.8, 0.969), (0.9, 0.988), (1.0, 0.996)])
def test_scaled_bn_on_separated_balanced_classes_has_a_gap_of_m_c_over_root_c_minus_one(scale, probability):
    classes = 100
    loss = identity_classifier(build("scaled-bn", classes, classes, scale=scale, eps=NO_EPS))
    labels = torch.arange(classes).repeat(2)
    value, logits = loss(torch.eye(classes)[labels], labels)
    target = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    other = logits.gather(1, (labels.unsqueeze(1) + 1) % classes).squeeze(1)
    gap = scale * classes / math.sqrt(classes - 1)
    torch.testing.assert_close(target - other, torch.full_like(target, gap))
    assert target.max().item() == pytest.approx(scale * 9.95, abs=0.01)
    assert round(math.exp(-value.item()), 3) == probability


def test_the_worked_example_of_section_3_gives_5761_and_7870_and_a_gain_of_21_09_points():
    """The paper prints .6769, .8481 and 17.12 %; doubling W leaves the prediction as it was."""
    loss = identity_classifier(build("cross-entropy", 3, 3, bias=False))
    feature = torch.tensor([[1.0, 1.0, 2.0]])
    before = loss.logits(feature)
    with torch.no_grad():
        loss.classifier.weight.mul_(2.0)
    after = loss.logits(feature)
    assert after.tolist() == [[2.0, 2.0, 4.0]]
    p, q = before.softmax(dim=1)[0, 2].item(), after.softmax(dim=1)[0, 2].item()
    assert (round(p, 4), round(q, 4), round(100 * (q - p), 2)) == (0.5761, 0.7870, 21.09)
    assert before.argmax() == after.argmax() == 2


def gradients(loss, features, labels):
    value, logits = loss(features, labels)
    return torch.autograd.grad(value, [loss.classifier.weight, features]), logits


def test_scaling_logits_is_scaling_the_weights_and_the_gradient_grows_by_the_same_factor():
    """The control: s·W is a matrix like any other, so at equal logits the loss is that of s = 1."""
    torch.manual_seed(0)
    features = torch.randn(16, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(5, (16,))
    double, plain = (build("logit-scale", 8, 5, scale=s).double() for s in (2.0, 1.0))
    with torch.no_grad():
        plain.classifier.weight.copy_(2 * double.classifier.weight)
    (at_double, feature_double), z_double = gradients(double, features, labels)
    (at_plain, feature_plain), z_plain = gradients(plain, features, labels)
    torch.testing.assert_close(z_double, z_plain)
    torch.testing.assert_close(at_double, 2 * at_plain)
    torch.testing.assert_close(feature_double, feature_plain)


@pytest.mark.parametrize(
    ("kind", "values", "length"),
    [("logit-norm", {"temperature": 0.04}, 25.0), ("logit-z-score", {"temperature": 0.5}, 2 * math.sqrt(6))],
)
def test_normalised_logits_have_one_length_and_no_gradient_along_the_raw_ones(kind, values, length):
    torch.manual_seed(0)
    loss = build(kind, 8, 6, **values).double()
    raw = {}
    loss.classifier.register_forward_hook(lambda module, inputs, output: raw.update(x=output))
    value, logits = loss(torch.randn(32, 8, dtype=torch.float64), torch.randint(6, (32,)))
    (gradient,) = torch.autograd.grad(value, raw["x"])
    torch.testing.assert_close(logits.norm(dim=1), torch.full((32,), length, dtype=torch.float64))
    assert gradient.norm(dim=1).mean() > 1e-2
    assert (gradient * raw["x"]).sum(dim=1).abs().max() < 1e-11


def test_a_sample_is_z_scored_alone_and_a_class_is_normalised_over_its_batch():
    """What parts the two: other images in the batch move scaled BN's logits and leave z-scores as they are."""
    torch.manual_seed(0)
    features, others = torch.randn(4, 8), torch.randn(4, 8)
    alone, standard = build("logit-z-score", 8, 6), build("scaled-bn", 8, 6, scale=1.0)
    z_scores = alone.logits(features)
    torch.testing.assert_close(z_scores.mean(dim=1), torch.zeros(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(alone.logits(torch.cat([features, others]))[:4], z_scores)
    assert not torch.allclose(standard.logits(torch.cat([features, others]))[:4], standard.logits(features))


@pytest.mark.parametrize(("classes", "scale"), [(100, 6.50), (200, 7.49), (361, 8.32)])
def test_the_scale_by_classes_is_where_the_probability_turns_at_45_degrees(classes, scale):
    """With the other classes at right angles: the target's probability passes one half at cos θ = √½."""
    loss = build("cosine-scale-by-classes", classes, classes)
    assert loss.scale == pytest.approx(scale, abs=0.005)
    assert loss.margin == 0

    def probability(cosine):
        return math.exp(loss.scale * cosine) / (math.exp(loss.scale * cosine) + classes - 1)

    assert probability(math.sqrt(0.5)) == pytest.approx(0.5)


def test_a_learnt_scale_grows_where_every_feature_lies_on_its_class():
    """∂L/∂s = mean of Σ (p − y)·cos θ, below zero there: the loss can be lowered by s alone."""
    loss = build("cosine-learnt-scale", 16, 5)
    with torch.no_grad():
        loss.classifier.weight.copy_(regular_simplex(5, 16))
    value, logits = loss(loss.classifier.weight.detach(), torch.arange(5))
    value.backward()
    p = logits.detach().softmax(dim=1)
    cosines = logits.detach() / 10.0
    expected = ((p - torch.eye(5)) * cosines).sum(dim=1).mean().item()
    assert loss.scale.grad.item() == pytest.approx(expected, rel=1e-3)
    assert loss.scale.grad.item() < 0


def test_label_smoothing_is_content_with_a_gap_that_cross_entropy_widens_for_ever():
    """Its gradient is zero where the target's probability is 1 − α + α/C, and points back beyond."""
    classes, alpha = 5, 0.1
    loss = identity_classifier(build("label-smoothing", classes, classes, smoothing=alpha, bias=False))
    gap = math.log((1 - alpha + alpha / classes) / (alpha / classes))
    for size, sign in [(gap - 1, -1), (gap, 0), (gap + 1, 1)]:
        features = (size * torch.eye(classes)).requires_grad_()
        loss(features, torch.arange(classes))[0].backward()
        slope = features.grad.diagonal()
        assert (slope.abs() < 1e-6).all() if sign == 0 else (slope.sign() == sign).all()
