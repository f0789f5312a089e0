"""Each loss against a slow float64 formula in plain Python, in value and in gradient; and the paper's facts."""

import math

import numpy as np
import pytest
import torch

from repro.losses import LOSSES, build
from repro.losses.centroids import regular_simplex

BATCH, DIM, CLASSES = 5, 4, 3
LABELS = [0, 2, 1, 2, 0]

CASES = [
    ("cross-entropy", {}),
    ("cross-entropy", {"bias": False}),
    ("am-softmax", {"scale": 7.5, "margin": 0.35}),
    ("am-softmax", {"scale": 10.0, "margin": 0.5, "projection": 6}),
    ("pedcc", {"scale": 7.5, "margin": 0.35, "projection": 6}),
    ("pedcc", {"scale": 7.5, "margin": 0.35, "projection": 0, "distance_weight": 0.3}),
    ("pedcc", {"scale": 10.0, "margin": 0.5, "projection": 5, "distance": "element-mean"}),
    ("pedcc", {"scale": 10.0, "margin": 0.5, "projection": 5, "distance": "sum", "distance_weight": 2.0}),
    ("pedcc", {"scale": 7.5, "margin": 0.35, "projection": 6, "embedding": "linear-bias"}),
    ("pedcc", {"scale": 7.5, "margin": 0.35, "projection": 6, "embedding": "linear-bn"}),
    ("pedcc", {"scale": 10.0, "margin": 0.5, "projection": 5, "embedding": "linear-bn", "distance": "sum"}),
    ("scaled-bn", {"scale": 0.8}),
    ("scaled-bn", {"scale": 1.0, "affine": True, "eps": 0.1}),
    ("scaled-bn", {"scale": 1.0, "statistics": "full-batches"}),
    ("logit-scale", {"scale": 2.0}),
    ("logit-scale", {"scale": 0.5, "bias": True}),
    ("cosine-learnt-scale", {}),
    ("cosine-learnt-scale", {"initial_scale": 3.0, "projection": 6}),
    ("cosine-scale-by-classes", {}),
    ("cosine-scale-by-classes", {"projection": 5}),
    ("logit-norm", {"temperature": 0.3}),
    ("logit-norm", {"bias": False}),
    ("logit-z-score", {}),
    ("logit-z-score", {"temperature": 0.5}),
    ("label-smoothing", {}),
    ("label-smoothing", {"smoothing": 0.4, "bias": False}),
]
IDS = [f"{kind}{''.join(f'-{k}={v}' for k, v in values.items())}" for kind, values in CASES]


def mean_cross_entropy(rows, labels, smoothing=0.0):
    """Eqs. 1 and 5, term by term: (1 − α) of the target's and α of the mean over classes of −log p."""
    total = 0.0
    for row, label in zip(rows, labels, strict=True):
        normaliser = math.log(sum(math.exp(z) for z in row))
        surprise = [normaliser - z for z in row]
        total += (1 - smoothing) * surprise[label] + smoothing * sum(surprise) / len(row)
    return total / len(labels)


def unit(vector):
    return vector / math.sqrt(sum(value * value for value in vector))


def cosines(x, weights, scale, labels=None, margin=0.0):
    """Eq. 2: s·(cos θ − m) for the target, s·cos θ for the others."""
    rows = [[scale * float(np.dot(unit(xi), unit(w))) for w in weights] for xi in x]
    for row, label in zip(rows, labels or [], strict=bool(labels)):
        row[label] -= scale * margin
    return rows


def linear(x, state):
    bias = state.get("classifier.bias", np.zeros(CLASSES))
    return [np.array([np.dot(w, xi) for w in state["classifier.weight"]]) + bias for xi in x]


def projected(x, state):
    return [state["projection.weight"] @ xi for xi in x] if "projection.weight" in state else list(x)


def standardised(rows, eps=1e-5):
    """Each coordinate less its mean over the batch, by √(its biased variance + ε), a coordinate at a time."""
    out = [np.zeros(len(rows[0])) for _ in rows]
    for j in range(len(rows[0])):
        column = [row[j] for row in rows]
        mean = sum(column) / len(column)
        variance = sum((value - mean) ** 2 for value in column) / len(column)
        for i, value in enumerate(column):
            out[i][j] = (value - mean) / math.sqrt(variance + eps)
    return out


def reference_cross_entropy(x, labels, state, values):
    return mean_cross_entropy(linear(x, state), labels)


def reference_am_softmax(x, labels, state, values):
    weights, scale, margin = state["classifier.weight"], values["scale"], values["margin"]
    return mean_cross_entropy(cosines(projected(x, state), weights, scale, labels, margin), labels)


def reference_pedcc(x, labels, state, values):
    x = projected(x, state)
    if values.get("embedding") == "linear-bias":
        x = [xi + state["projection.bias"] for xi in x]
    elif values.get("embedding") == "linear-bn":
        x = standardised(x)
    rows = cosines(x, state["centroids"], values["scale"], labels, values["margin"])
    squares = [sum((unit(xi) - state["centroids"][y]) ** 2) for xi, y in zip(x, labels, strict=True)]
    divisor = {"squared-norm": len(x), "element-mean": len(x) * len(x[0]), "sum": 1}
    distance = sum(squares) / divisor[values.get("distance", "squared-norm")]
    return mean_cross_entropy(rows, labels) + values.get("distance_weight", 1.0) * distance


def reference_scaled_bn(x, labels, state, values):
    """Eq. 9; γ and β of Eq. 4 where they are."""
    gamma, beta = state.get("norm.weight", 1.0), state.get("norm.bias", 0.0)
    rows = standardised(linear(x, state), values.get("eps", 1e-5))
    return mean_cross_entropy([values["scale"] * (gamma * row + beta) for row in rows], labels)


def reference_logit_scale(x, labels, state, values):
    return mean_cross_entropy([values["scale"] * row for row in linear(x, state)], labels)


def reference_cosine_learnt_scale(x, labels, state, values):
    weights = state["classifier.weight"]
    return mean_cross_entropy(cosines(projected(x, state), weights, float(state["scale"])), labels)


def reference_cosine_scale_by_classes(x, labels, state, values):
    scale = math.log(CLASSES - 1) / math.cos(math.pi / 4)
    return mean_cross_entropy(cosines(projected(x, state), state["classifier.weight"], scale), labels)


def reference_logit_norm(x, labels, state, values):
    temperature = values.get("temperature", 0.04)
    return mean_cross_entropy([unit(row) / temperature for row in linear(x, state)], labels)


def reference_logit_z_score(x, labels, state, values):
    rows = []
    for row in linear(x, state):
        mean = sum(row) / CLASSES
        deviation = math.sqrt(sum((z - mean) ** 2 for z in row) / CLASSES + 1e-12)
        rows.append([(z - mean) / (values.get("temperature", 1.0) * deviation) for z in row])
    return mean_cross_entropy(rows, labels)


def reference_label_smoothing(x, labels, state, values):
    return mean_cross_entropy(linear(x, state), labels, values.get("smoothing", 0.1))


def central_differences(function, array, step=1e-6):
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + step
        above = function()
        array[index] = kept - step
        below = function()
        array[index] = kept
        gradient[index] = (above - below) / (2 * step)
    return gradient


def test_every_loss_has_a_case():
    assert {kind for kind, _ in CASES} == set(LOSSES)


@pytest.mark.parametrize(("kind", "values"), CASES, ids=IDS)
def test_value_and_gradients_are_those_of_the_slow_formula(kind, values):
    """Gradients at the features and at every parameter, all random, against central differences."""
    torch.manual_seed(0)
    loss = build(kind, DIM, CLASSES, **values).double()
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter)
    features = torch.randn(BATCH, DIM, dtype=torch.float64, requires_grad=True)
    state = {name: value.detach().numpy().astype(np.float64) for name, value in loss.state_dict().items()}
    x = features.detach().numpy().copy()
    reference = globals()[f"reference_{kind.replace('-', '_')}"]

    def formula():
        return reference(x, LABELS, state, values)

    value, _ = loss(features, torch.tensor(LABELS))
    assert value.item() == pytest.approx(formula(), rel=1e-12)
    value.backward()
    np.testing.assert_allclose(features.grad, central_differences(formula, x), atol=1e-8, rtol=1e-6)
    for name, parameter in loss.named_parameters():
        expected = central_differences(formula, state[name])
        np.testing.assert_allclose(parameter.grad, expected, atol=1e-8, rtol=1e-6, err_msg=name)


# What the paper's formulas come to, in numbers worked out by hand.


@pytest.mark.parametrize(
    ("scale", "margin", "classes", "floor"),
    [(7.5, 0.35, 100, 0.531), (7.5, 0.35, 361, 1.306), (10.0, 0.5, 200, 0.822)],
)
def test_am_softmax_has_the_floor_of_the_regular_simplex(scale, margin, classes, floor):
    """Every feature on its class's weight, weights on a simplex: the stated value, and a stationary point."""
    loss = build("am-softmax", 512, classes, scale=scale, margin=margin)
    with torch.no_grad():
        loss.classifier.weight.copy_(regular_simplex(classes, 512))
    features = loss.classifier.weight.detach().clone().requires_grad_()
    value, _ = loss(features, torch.arange(classes))
    value.backward()
    closed = math.log1p((classes - 1) * math.exp(scale * (margin - classes / (classes - 1))))
    assert value.item() == pytest.approx(closed, abs=2e-6)
    assert round(closed, 3) == floor
    assert max(features.grad.abs().max(), loss.classifier.weight.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("size", [1.0, 1e-2])
def test_under_scaled_bn_the_radial_gradient_is_of_the_order_of_eps_over_variance(size):
    """⟨∂L/∂w_k, w_k⟩ = ε/(Var + ε) · Σ_i ∂L/∂z_i z_i, exactly; without ε the weights only turn."""
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


@pytest.mark.parametrize(("scale", "probability"), [(0.8, 0.969), (1.0, 0.996)])
def test_scaled_bn_on_separated_balanced_classes_has_a_gap_of_m_c_over_root_c_minus_one(scale, probability):
    classes = 100
    loss = build("scaled-bn", classes, classes, scale=scale, eps=1e-30)  # changes no digit
    with torch.no_grad():
        loss.classifier.weight.copy_(torch.eye(classes))
    labels = torch.arange(classes).repeat(2)
    value, logits = loss(torch.eye(classes)[labels], labels)
    target = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    other = logits.gather(1, (labels.unsqueeze(1) + 1) % classes).squeeze(1)
    torch.testing.assert_close(
        target - other, torch.full_like(target, scale * classes / math.sqrt(classes - 1))
    )
    assert round(math.exp(-value.item()), 3) == probability
