"""Each loss against a slow float64 formula in plain Python, in value and in gradient."""

import math

import numpy as np
import pytest
import torch
from torch.func import functional_call

from repro.losses import LOSSES, build

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


def mean_cross_entropy(rows, labels):
    """Eqs. 1 and 5, term by term."""
    total = 0.0
    for row, label in zip(rows, labels, strict=True):
        total -= math.log(math.exp(row[label]) / sum(math.exp(z) for z in row))
    return total / len(labels)


def unit(vector):
    return vector / math.sqrt(sum(value * value for value in vector))


def cosines(features, weights):
    return [[float(np.dot(unit(x), unit(w))) for w in weights] for x in features]


def linear(x, state):
    bias = state.get("classifier.bias", np.zeros(CLASSES))
    return [
        [float(np.dot(w, xi)) + b for w, b in zip(state["classifier.weight"], bias, strict=True)] for xi in x
    ]


def reference_cross_entropy(x, labels, state, values):
    return mean_cross_entropy(linear(x, state), labels)


def with_margin(rows, labels, scale, margin):
    """Eq. 2: s·(cos θ − m) for the target, s·cos θ for the others."""
    return [
        [scale * (cosine - (margin if k == label else 0.0)) for k, cosine in enumerate(row)]
        for row, label in zip(rows, labels, strict=True)
    ]


def projected(x, state):
    return [state["projection.weight"] @ xi for xi in x] if "projection.weight" in state else list(x)


def reference_am_softmax(x, labels, state, values):
    rows = cosines(projected(x, state), state["classifier.weight"])
    return mean_cross_entropy(with_margin(rows, labels, values["scale"], values["margin"]), labels)


def standardised(rows):
    """Each coordinate less its mean over the batch, by √(its biased variance + 1e-5), a coordinate at a time."""
    out = [[0.0] * len(rows[0]) for _ in rows]
    for j in range(len(rows[0])):
        column = [row[j] for row in rows]
        mean = sum(column) / len(column)
        variance = sum((value - mean) ** 2 for value in column) / len(column)
        for i, value in enumerate(column):
            out[i][j] = (value - mean) / math.sqrt(variance + 1e-5)
    return [np.array(row) for row in out]


def reference_pedcc(x, labels, state, values):
    x = projected(x, state)
    if values.get("embedding") == "linear-bias":
        x = [xi + state["projection.bias"] for xi in x]
    elif values.get("embedding") == "linear-bn":
        x = standardised(x)
    rows = with_margin(cosines(x, state["centroids"]), labels, values["scale"], values["margin"])
    squares = [sum((unit(xi) - state["centroids"][y]) ** 2) for xi, y in zip(x, labels, strict=True)]
    divisor = {"squared-norm": len(x), "element-mean": len(x) * len(x[0]), "sum": 1}
    distance = sum(squares) / divisor[values.get("distance", "squared-norm")]
    return mean_cross_entropy(rows, labels) + values.get("distance_weight", 1.0) * distance


def reference_scaled_bn(x, labels, state, values):
    """Eq. 9, a class at a time over the batch; γ and β of Eq. 4 where they are."""
    logits = [[float(np.dot(w, xi)) for w in state["classifier.weight"]] for xi in x]
    rows = [[0.0] * CLASSES for _ in x]
    for k in range(CLASSES):
        column = [row[k] for row in logits]
        mean = sum(column) / len(column)
        variance = sum((value - mean) ** 2 for value in column) / len(column)
        gamma = state["norm.weight"][k] if "norm.weight" in state else 1.0
        beta = state["norm.bias"][k] if "norm.bias" in state else 0.0
        for i, value in enumerate(column):
            standard = (value - mean) / math.sqrt(variance + values.get("eps", 1e-5))
            rows[i][k] = values["scale"] * (gamma * standard + beta)
    return mean_cross_entropy(rows, labels)


def reference_logit_scale(x, labels, state, values):
    return mean_cross_entropy([[values["scale"] * z for z in row] for row in linear(x, state)], labels)


def reference_cosine_learnt_scale(x, labels, state, values):
    rows = cosines(projected(x, state), state["classifier.weight"])
    return mean_cross_entropy([[float(state["scale"]) * cosine for cosine in row] for row in rows], labels)


def reference_cosine_scale_by_classes(x, labels, state, values):
    rows = cosines(projected(x, state), state["classifier.weight"])
    scale = math.log(CLASSES - 1) / math.cos(math.pi / 4)
    return mean_cross_entropy([[scale * cosine for cosine in row] for row in rows], labels)


def reference_logit_norm(x, labels, state, values):
    rows = []
    for row in linear(x, state):
        length = math.sqrt(sum(z * z for z in row))
        rows.append([z / (values.get("temperature", 0.04) * length) for z in row])
    return mean_cross_entropy(rows, labels)


def reference_logit_z_score(x, labels, state, values):
    rows = []
    for row in linear(x, state):
        mean = sum(row) / CLASSES
        deviation = math.sqrt(sum((z - mean) ** 2 for z in row) / CLASSES + 1e-12)
        rows.append([(z - mean) / (values.get("temperature", 1.0) * deviation) for z in row])
    return mean_cross_entropy(rows, labels)


def reference_label_smoothing(x, labels, state, values):
    """(1 − α) of the target's and α of the mean over classes of −log p."""
    alpha = values.get("smoothing", 0.1)
    total = 0.0
    for row, label in zip(linear(x, state), labels, strict=True):
        normaliser = math.log(sum(math.exp(z) for z in row))
        surprise = [normaliser - z for z in row]
        total += (1 - alpha) * surprise[label] + alpha * sum(surprise) / CLASSES
    return total / len(labels)


REFERENCES = {
    "cross-entropy": reference_cross_entropy,
    "am-softmax": reference_am_softmax,
    "pedcc": reference_pedcc,
    "scaled-bn": reference_scaled_bn,
    "logit-scale": reference_logit_scale,
    "cosine-learnt-scale": reference_cosine_learnt_scale,
    "cosine-scale-by-classes": reference_cosine_scale_by_classes,
    "logit-norm": reference_logit_norm,
    "logit-z-score": reference_logit_z_score,
    "label-smoothing": reference_label_smoothing,
}


def example(kind, values, seed=0):
    """A loss in float64 with every parameter random, its features and labels."""
    torch.manual_seed(seed)
    loss = build(kind, DIM, CLASSES, **values).double()
    for parameter in loss.parameters():
        torch.nn.init.normal_(parameter)
    features = torch.randn(BATCH, DIM, dtype=torch.float64, requires_grad=True)
    return loss, features, torch.tensor(LABELS)


def numbers(loss):
    return {name: value.detach().numpy().astype(np.float64) for name, value in loss.state_dict().items()}


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


def test_every_loss_has_a_case_and_a_reference():
    assert {kind for kind, _ in CASES} == set(LOSSES) == set(REFERENCES)


@pytest.mark.parametrize(("kind", "values"), CASES, ids=IDS)
def test_the_value_is_that_of_the_slow_formula(kind, values):
    loss, features, labels = example(kind, values)
    value, _ = loss(features, labels)
    expected = REFERENCES[kind](features.detach().numpy(), LABELS, numbers(loss), values)
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("kind", "values"), CASES, ids=IDS)
def test_the_gradients_are_those_of_the_slow_formula(kind, values):
    """At the features and at every parameter, against central differences of the formula."""
    loss, features, labels = example(kind, values)
    loss(features, labels)[0].backward()
    state, x = numbers(loss), features.detach().numpy().copy()

    def formula():
        return REFERENCES[kind](x, LABELS, state, values)

    np.testing.assert_allclose(features.grad, central_differences(formula, x), atol=1e-8, rtol=1e-6)
    for name, parameter in loss.named_parameters():
        expected = central_differences(formula, state[name])
        np.testing.assert_allclose(parameter.grad, expected, atol=1e-8, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(("kind", "values"), CASES, ids=IDS)
def test_gradcheck_passes_in_evaluation(kind, values):
    loss, features, labels = example(kind, values)
    loss.eval()
    names = [name for name, _ in loss.named_parameters()]

    def value(x, *parameters):
        return functional_call(loss, dict(zip(names, parameters, strict=True)), (x, labels))[0]

    assert torch.autograd.gradcheck(value, (features, *loss.parameters()))


@pytest.mark.parametrize(("kind", "values"), CASES, ids=IDS)
def test_the_gradient_at_the_softmax_input_is_p_minus_y(kind, values):
    """Eqs. 7 and 8, with p taken after the margin and y smoothed where it is, the mean over the batch."""
    loss, features, labels = example(
        kind, {**values, **({"distance_weight": 0.0} if kind == "pedcc" else {})}
    )
    value, logits = loss(features, labels)
    (gradient,) = torch.autograd.grad(value, logits)
    inputs = loss.softmax_input(logits, labels).detach().numpy()
    alpha = loss.smoothing if kind == "label-smoothing" else 0.0
    for i, label in enumerate(LABELS):
        exponentials = [math.exp(z) for z in inputs[i]]
        for k in range(CLASSES):
            target = (1 - alpha) * (k == label) + alpha / CLASSES
            expected = (exponentials[k] / sum(exponentials) - target) / BATCH
            assert gradient[i, k].item() == pytest.approx(expected, rel=1e-12)
