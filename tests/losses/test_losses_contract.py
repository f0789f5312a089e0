"""What every loss promises its caller: modes, shapes, precision, errors, determinism."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F

from repro.config import LOSS_PARAMETERS
from repro.errors import UsageError
from repro.losses import LOSSES, build
from repro.losses.base import ClassificationLoss
from repro.plugins import find, load

BATCH, DIM, CLASSES = 8, 12, 5
VALUES = {
    "cross-entropy": {},
    "am-softmax": {"scale": 7.5, "margin": 0.35},
    "pedcc": {"scale": 7.5, "margin": 0.35, "projection": 6},
    "scaled-bn": {"scale": 0.9},
    "logit-scale": {"scale": 2.0},
    "cosine-learnt-scale": {},
    "cosine-scale-by-classes": {},
    "logit-norm": {},
    "logit-z-score": {},
    "label-smoothing": {},
}
WITH_BIAS, LEARNT_SCALE = ("cross-entropy", "logit-norm", "label-smoothing"), "cosine-learnt-scale"
each_loss = pytest.mark.parametrize("kind", list(LOSSES))
CHECKED = "scaled-bn"  # what the base class does for every loss is tested on this one
PEDCC_BN = {"embedding": "linear-bn"}


def example(kind, seed=0, **changes):
    torch.manual_seed(seed)
    loss = build(kind, DIM, CLASSES, **{**VALUES[kind], **changes})
    return loss, torch.randn(BATCH, DIM), torch.randint(CLASSES, (BATCH,))


def test_without_labels_there_are_logits_and_no_loss():
    loss, features, labels = example(CHECKED)
    loss.eval()
    none, logits = loss(features)
    assert none is None
    assert torch.equal(logits, loss(features, labels)[1])


@each_loss
def test_in_evaluation_the_loss_is_the_cross_entropy_of_the_logits(kind):
    """PEDCC's distance stays: it has no margin, and is part of what is minimised."""
    loss, features, labels = example(kind)
    loss.eval()
    value, logits = loss(features, labels)
    expected = F.cross_entropy(logits, labels)
    if kind == "pedcc":
        expected = expected + (loss.embed(features) - loss.centroids[labels]).square().sum(dim=1).mean()
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(
    ("kind", "values", "layer", "momentum"),
    [
        ("scaled-bn", {"scale": 0.8, "momentum": 0.25}, "classifier", 0.25),
        ("pedcc", PEDCC_BN, "projection", 0.1),
    ],
)
def test_batch_norm_evaluates_by_its_running_statistics(kind, values, layer, momentum):
    loss, features, labels = example(kind, **values)
    loss(features, labels)
    raw = features @ getattr(loss, layer).weight.detach().T
    mean, variance = momentum * raw.mean(dim=0), 1 - momentum + momentum * raw.var(dim=0, unbiased=True)
    expected = (raw - mean) / (variance + 1e-5).sqrt()
    loss.eval()
    if kind == "pedcc":
        torch.testing.assert_close(loss.embed(features), F.normalize(expected, dim=1))
    else:
        torch.testing.assert_close(loss.logits(features), 0.8 * expected)


def test_scaled_bn_can_leave_a_short_batch_out_of_its_running_statistics():
    """It is normalised by its own statistics all the same: value and gradients are those of `running`."""
    running, features, labels = example("scaled-bn")
    without, _, _ = example("scaled-bn", statistics="full-batches")
    running.full_batch = without.full_batch = BATCH
    for part in (slice(None), slice(BATCH // 2)):
        values = [loss(features[part], labels[part])[0] for loss in (running, without)]
        assert torch.equal(*values)
        kept = [loss.norm.running_mean.clone() for loss in (running, without)]
        assert torch.equal(*kept) is (part == slice(None))
    torch.testing.assert_close(
        without.norm.running_mean, 0.1 * without.classifier(features).mean(dim=0).detach()
    )


def test_scaled_bn_can_take_its_statistics_from_the_whole_training_set():
    loss, features, labels = example("scaled-bn", statistics="training-set")
    loss(features, labels)
    everything = torch.cat([features, 3 * features[:3] + 1])
    loss.recompute_statistics(lambda: (everything[:5], everything[5:]))
    raw = (everything @ loss.classifier.weight.detach().T).double()
    torch.testing.assert_close(loss.norm.running_mean.double(), raw.mean(dim=0), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        loss.norm.running_var.double(), raw.var(dim=0, unbiased=True), atol=1e-6, rtol=1e-5
    )


@each_loss
def test_the_softmax_gradient_is_that_of_the_summed_loss_and_moves_nothing(kind):
    loss, features, labels = example(kind, **({"distance_weight": 0.0} if kind == "pedcc" else {}))
    value, logits = loss(features, labels)
    (expected,) = torch.autograd.grad(value, logits, retain_graph=True)
    with torch.no_grad():
        found = loss.softmax_gradient(logits.detach(), labels)
    torch.testing.assert_close(found / BATCH, expected)
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in loss.parameters())


@pytest.mark.parametrize(("kind", "values"), [("scaled-bn", {}), ("pedcc", PEDCC_BN)])
def test_batch_norm_refuses_a_training_batch_of_one_and_evaluates_it(kind, values):
    loss, features, labels = example(kind, **values)
    with pytest.raises(ValueError, match="at least two samples"):
        loss(features[:1], labels[:1])
    loss.eval()
    assert loss(features[:1], labels[:1])[0].isfinite()


@each_loss
def test_no_loss_has_checks_or_precision_of_its_own(kind):
    """So what is tested on `CHECKED` alone holds for every loss."""
    loss, _, _ = example(kind)
    loss.recompute_statistics(lambda: pytest.fail("read the training set without being asked to"))
    assert loss.min_training_batch == (2 if kind == "scaled-bn" else 1)
    for method in ("forward", "logits", "check_labels", "_check_features", "_check_labels_shape"):
        assert getattr(type(loss), method) is getattr(ClassificationLoss, method), method


@pytest.mark.parametrize(
    ("features", "labels", "says"),
    [
        (torch.zeros(BATCH, DIM + 1), None, rf"features: expected .*\(batch, {DIM}\), got .*{DIM + 1}"),
        (torch.zeros(DIM), None, "features: expected .* got"),
        (torch.zeros(0, DIM), None, "batch of at least"),
        (torch.zeros(BATCH, DIM).long(), None, r"features: expected floating point .* got torch\.int64"),
        (torch.zeros(BATCH, DIM), torch.zeros(BATCH + 1).long(), rf"labels: expected torch.int64 of shape \({BATCH},\)"),
        (torch.zeros(BATCH, DIM), torch.zeros(BATCH), rf"labels: expected torch.int64 of shape \({BATCH},\), got"),
    ],
)  # fmt: skip
def test_features_or_labels_of_another_shape_or_dtype_are_refused_with_both(features, labels, says):
    loss, _, _ = example(CHECKED)
    with pytest.raises(ValueError, match=says):
        loss(features, labels)


@pytest.mark.parametrize("stray", [-1, -100, CLASSES])
def test_check_labels_names_a_label_out_of_range(stray):
    loss, _, labels = example(CHECKED)
    loss.check_labels(labels)
    labels[3] = stray
    with pytest.raises(ValueError, match=rf"expected classes 0 … {CLASSES - 1}, got values from .*{stray}"):
        loss.check_labels(labels)
    with pytest.raises(ValueError, match="at least one"):
        loss.check_labels(labels[:0])


@each_loss
def test_a_nan_feature_makes_the_loss_nan_and_one_of_zeros_harms_nothing(kind):
    loss, features, labels = example(kind)
    features[2] = 0.0
    value, _ = loss(features, labels)
    value.backward()
    assert value.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())
    features[2, 1] = float("nan")
    assert loss(features, labels)[0].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_inside_runs_in_half_precision_whatever_is_around_it(dtype):
    outside, features, labels = example(CHECKED)
    inside, _, _ = example(CHECKED)
    expected = outside(features.to(dtype).float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = inside(features.to(dtype), labels)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


DRAWN = [
    *((kind, {}, "classifier", CLASSES, False) for kind in LOSSES if kind != "pedcc"),
    *((kind, {"projection": 6}, "projection", 6, False) for kind in ("am-softmax", "pedcc")),
    ("pedcc", {"embedding": "linear-bias"}, "projection", 6, True),
    ("pedcc", PEDCC_BN, "projection", 6, False),
]


@pytest.mark.parametrize(("kind", "values", "layer", "outputs", "bias"), DRAWN)
def test_what_is_drawn_first_is_a_linear_layer_of_torch(kind, values, layer, outputs, bias):
    """So seed k gives every loss the same class weights, and every embedding of PEDCC the same projection."""
    loss, _, _ = example(kind, **values)
    torch.manual_seed(0)
    expected = torch.nn.Linear(DIM, outputs, bias=bias)
    drawn = getattr(loss, layer)
    assert torch.equal(drawn.weight, expected.weight)
    assert not bias or torch.equal(drawn.bias, expected.bias)
    assert not torch.equal(loss.class_weights(), example(kind, seed=1, **values)[0].class_weights())
    if kind == "pedcc" and not bias:
        assert torch.equal(loss.centroids, example("pedcc")[0].centroids)


@each_loss
def test_class_weight_norms_are_the_lengths_of_the_rows_as_they_are_stored(kind):
    loss, _, _ = example(kind)
    rows = loss.centroids if kind == "pedcc" else 5 * loss.classifier.weight.detach()
    if kind != "pedcc":
        loss.classifier.weight.data.mul_(5.0)
    norms = loss.class_weight_norms()
    assert not norms.requires_grad
    assert norms.tolist() == pytest.approx([math.sqrt(row @ row) for row in rows.double().numpy()], rel=1e-6)


@pytest.mark.parametrize(
    ("kind", "values", "names"),
    [
        *((kind, {}, {"classifier.bias", "classifier.weight"}) for kind in WITH_BIAS),
        *(
            (kind, {}, {"classifier.weight"})
            for kind in LOSSES
            if kind not in (*WITH_BIAS, "pedcc", LEARNT_SCALE)
        ),
        (LEARNT_SCALE, {}, {"classifier.weight", "scale"}),
        ("pedcc", {}, {"projection.weight"}),
        ("pedcc", {"embedding": "linear-bias"}, {"projection.weight", "projection.bias"}),
        ("pedcc", PEDCC_BN, {"projection.weight"}),
        ("scaled-bn", {"affine": True}, {"classifier.weight", "norm.weight", "norm.bias"}),
    ],
)
def test_what_is_trained_is_what_the_formulas_call_learnt(kind, values, names):
    loss, _, _ = example(kind, **values)
    assert {name for name, _ in loss.named_parameters()} == names
    assert ("centroids" in loss.state_dict()) == (kind == "pedcc")


@each_loss
def test_the_loss_compiles_to_one_graph(kind):
    """A tensor's value read on the host would break the graph, and stall a GPU."""
    torch.compiler.reset()  # every loss is another specialisation of one forward, and there may be eight
    loss, features, labels = example(kind)
    whole = torch.compile(loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(whole(features, labels), loss(features, labels))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:.*ynchronization debug mode:UserWarning")
@each_loss
def test_a_training_step_never_waits_for_the_gpu(kind):
    loss, features, labels = example(kind)
    loss, features, labels = loss.cuda(), features.cuda().requires_grad_(), labels.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(features, labels)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert features.grad.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        ("am-softmax", {"scale": 7.5}, "am-softmax: margin: Field required"),
        ("logit-scale", {"scale": 2.0, "colour": 1}, "unknown key 'colour'; allowed: scale, bias"),
        ("am-softmax", {"scale": 0, "margin": 0}, "am-softmax: scale: Input should be greater than 0, got 0"),
        ("am-softmax", {"scale": float("inf"), "margin": 0}, "scale: Input should be a finite number"),
        ("am-softmax", {"scale": 1, "margin": -0.1}, "margin: Input should be greater than or equal to 0"),
        ("am-softmax", {"scale": 1, "margin": 0, "projection": 1.5}, "projection: Input should be a valid integer"),
        ("pedcc", {"scale": 1, "margin": 0, "distance": "cosine"}, "distance: Input should be 'squared-norm'"),
        ("pedcc", {"scale": 1, "margin": 0, "embedding": "linear-bn", "projection": 0}, "needs a projection above 0"),
        ("scaled-bn", {"scale": 1, "momentum": 1.5}, "momentum: Input should be less than or equal to 1"),
        ("scaled-bn", {"scale": 1, "statistics": "batch"}, "statistics: Input should be 'running'"),
        ("label-smoothing", {"smoothing": 1.0}, "smoothing: Input should be less than 1"),
        ("cross-entropy", {"bias": "perhaps"}, "bias: Input should be a valid boolean"),
        ("cosine-scale-by-classes", {"classes": 2}, "expected at least 3"),
        ("softmax", {}, "unknown loss 'softmax'; there are: cross-entropy, am-softmax, pedcc, scaled-bn"),
    ],
)  # fmt: skip
def test_a_parameter_that_cannot_be_is_a_usage_error_by_its_name(kind, values, says):
    values = dict(values)
    with pytest.raises(UsageError, match=says):
        build(kind, DIM, values.pop("classes", CLASSES), **values)


def test_a_constructor_itself_refuses_what_would_train_to_nonsense():
    for kind in LOSSES:
        made = load(find("losses", kind, None))
        taken = inspect.signature(made).parameters
        for name in {"scale", "initial_scale", "temperature", "eps", "momentum"} & set(taken):
            for value in (0.0, -1.0, float("nan")):
                with pytest.raises(ValueError, match=f"{name}: expected a finite number above 0"):
                    made(DIM, CLASSES, **{**VALUES[kind], name: value})
        with pytest.raises(ValueError, match=r"2 classes or more|at least 3"):
            made(DIM, 1, **VALUES[kind])


@each_loss
def test_the_schema_has_the_parameters_of_the_constructor_and_their_defaults(kind):
    taken = list(inspect.signature(load(find("losses", kind, None))).parameters.values())
    assert [each.name for each in taken[:2]] == ["feature_dim", "classes"]
    fields = LOSS_PARAMETERS[kind].model_fields
    defaults = {
        name: inspect.Parameter.empty if field.is_required() else field.default
        for name, field in fields.items()
    }
    assert defaults == {each.name: each.default for each in taken[2:]}
