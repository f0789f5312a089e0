"""What every loss promises its caller: modes, shapes, precision, errors, determinism."""

import inspect

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
each_loss = pytest.mark.parametrize("kind", list(LOSSES))
CHECKED = "scaled-bn"  # what the base class does for every loss is tested on this one
each_margin = pytest.mark.parametrize("kind", ["am-softmax", "pedcc"])


def example(kind, seed=0, **changes):
    torch.manual_seed(seed)
    loss = build(kind, DIM, CLASSES, **{**VALUES[kind], **changes})
    return loss, torch.randn(BATCH, DIM), torch.randint(CLASSES, (BATCH,))


@each_loss
def test_without_labels_there_are_logits_and_no_loss(kind):
    loss, features, labels = example(kind)
    loss.eval()
    none, logits = loss(features)
    assert none is None
    assert logits.shape == (BATCH, CLASSES)
    torch.testing.assert_close(logits, loss(features, labels)[1])
    torch.testing.assert_close(logits, loss.logits(features))


@each_margin
def test_logits_never_hold_the_margin(kind):
    with_margin, features, labels = example(kind, margin=0.5)
    without, _, _ = example(kind, margin=0.0)
    assert torch.equal(with_margin(features, labels)[1], without(features, labels)[1])
    assert with_margin(features, labels)[0] > without(features, labels)[0]


@each_margin
def test_the_margin_comes_off_the_target_alone_and_only_in_training(kind):
    loss, features, labels = example(kind)
    logits = loss.logits(features)
    taken = logits - loss.softmax_input(logits, labels)
    torch.testing.assert_close(taken, 7.5 * 0.35 * F.one_hot(labels, CLASSES).float())
    loss.eval()
    assert torch.equal(loss.softmax_input(logits, labels), logits)


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


def test_scaled_bn_evaluates_with_its_running_statistics():
    loss, features, labels = example("scaled-bn", scale=0.8, momentum=0.25)
    loss(features, labels)
    raw = features @ loss.classifier.weight.detach().T
    mean, variance = 0.25 * raw.mean(dim=0), 0.75 + 0.25 * raw.var(dim=0, unbiased=True)
    loss.eval()
    torch.testing.assert_close(loss.logits(features), 0.8 * (raw - mean) / (variance + 1e-5).sqrt())


def test_scaled_bn_leaves_its_running_statistics_alone_in_evaluation():
    loss, features, labels = example("scaled-bn")
    loss(features, labels)
    kept = {name: value.clone() for name, value in loss.state_dict().items()}
    loss.eval()
    loss(10 * features, labels)
    assert all(torch.equal(kept[name], value) for name, value in loss.state_dict().items())
    assert kept["norm.num_batches_tracked"] == 1


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
def test_no_loss_passes_over_the_training_set_unless_it_is_asked_to(kind):
    loss, _, _ = example(kind)
    kept = {name: value.clone() for name, value in loss.state_dict().items()}
    loss.recompute_statistics(lambda: pytest.fail("read the training set"))
    assert all(torch.equal(kept[name], value) for name, value in loss.state_dict().items())


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


@pytest.mark.parametrize(("kind", "values"), [("scaled-bn", {}), ("pedcc", {"embedding": "linear-bn"})])
def test_batch_norm_refuses_a_training_batch_of_one_and_evaluates_it(kind, values):
    loss, features, labels = example(kind, **values)
    with pytest.raises(ValueError, match="at least two samples"):
        loss(features[:1], labels[:1])
    loss.eval()
    assert loss(features[:1], labels[:1])[0].isfinite()


def test_pedcc_with_batch_norm_evaluates_by_running_statistics():
    loss, features, labels = example("pedcc", embedding="linear-bn")
    loss(features, labels)
    raw = features @ loss.projection.weight.detach().T
    mean, variance = 0.1 * raw.mean(dim=0), 0.9 + 0.1 * raw.var(dim=0, unbiased=True)
    loss.eval()
    expected = F.normalize((raw - mean) / (variance + 1e-5).sqrt(), dim=1)
    torch.testing.assert_close(loss.embed(features), expected)


def test_every_embedding_of_pedcc_draws_the_same_projection():
    """So that a seed's runs differ in the embedding alone; a bias is drawn between it and the centroids."""
    drawn = {
        name: example("pedcc", embedding=name)[0].state_dict()
        for name in ("linear", "linear-bias", "linear-bn")
    }
    for state in drawn.values():
        assert torch.equal(state["projection.weight"], drawn["linear"]["projection.weight"])
    assert torch.equal(drawn["linear"]["centroids"], drawn["linear-bn"]["centroids"])
    torch.manual_seed(0)
    assert torch.equal(drawn["linear-bias"]["projection.bias"], torch.nn.Linear(DIM, 6).bias)


@pytest.mark.parametrize("kind", [kind for kind in LOSSES if kind != "scaled-bn"])
def test_the_other_losses_train_on_a_batch_of_one(kind):
    loss, features, labels = example(kind)
    assert loss(features[:1], labels[:1])[0].isfinite()


@each_loss
def test_no_loss_has_checks_or_precision_of_its_own(kind):
    """So what is tested on `CHECKED` alone holds for every loss."""
    loss, _, _ = example(kind)
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
def test_a_nan_feature_makes_the_loss_nan(kind):
    loss, features, labels = example(kind)
    features[2, 1] = float("nan")
    assert loss(features, labels)[0].isnan()


@each_loss
def test_a_feature_of_zeros_has_a_finite_loss_and_finite_weight_gradients(kind):
    loss, features, labels = example(kind)
    features[2] = 0.0
    value, _ = loss(features, labels)
    value.backward()
    assert value.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in loss.parameters())


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


@each_loss
def test_the_same_seed_builds_the_same_loss_and_another_seed_another(kind):
    first, again, other = example(kind)[0], example(kind)[0], example(kind, seed=1)[0]
    assert first.state_dict().keys() == again.state_dict().keys()
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.class_weights(), other.class_weights())


@pytest.mark.parametrize("kind", ["am-softmax", "pedcc"])
def test_the_projection_is_drawn_before_the_class_weights(kind):
    loss, _, _ = example(kind, projection=6)
    torch.manual_seed(0)
    assert torch.equal(loss.projection.weight, torch.nn.Linear(DIM, 6, bias=False).weight)


def test_the_linear_weights_are_those_of_a_linear_layer_of_torch():
    """So seed k gives every loss without a projection or centroids the same class weights."""
    for kind in LOSSES.keys() - {"pedcc"}:
        loss, _, _ = example(kind)
        torch.manual_seed(0)
        assert torch.equal(loss.classifier.weight, torch.nn.Linear(DIM, CLASSES, bias=False).weight)


@each_loss
def test_class_weight_norms_are_the_lengths_of_the_rows(kind):
    loss, _, _ = example(kind)
    if kind != "pedcc":
        with torch.no_grad():
            loss.classifier.weight.mul_(5.0)
    norms = loss.class_weight_norms()
    rows = loss.class_weights().detach().numpy().astype("float64")
    assert not norms.requires_grad
    assert norms.tolist() == pytest.approx([(row @ row) ** 0.5 for row in rows], rel=1e-6)
    if kind == "pedcc":
        assert norms.tolist() == pytest.approx([1.0] * CLASSES, rel=1e-6)


def test_what_is_trained_is_what_the_formulas_call_learnt():
    names = {kind: sorted(name for name, _ in example(kind)[0].named_parameters()) for kind in LOSSES}
    assert names == {
        "cross-entropy": ["classifier.bias", "classifier.weight"],
        "am-softmax": ["classifier.weight"],
        "pedcc": ["projection.weight"],
        "scaled-bn": ["classifier.weight"],
        "logit-scale": ["classifier.weight"],
        "cosine-learnt-scale": ["classifier.weight", "scale"],
        "cosine-scale-by-classes": ["classifier.weight"],
        "logit-norm": ["classifier.bias", "classifier.weight"],
        "logit-z-score": ["classifier.weight"],
        "label-smoothing": ["classifier.bias", "classifier.weight"],
    }
    with_bias, _, _ = example("pedcc", embedding="linear-bias")
    assert [name for name, _ in with_bias.named_parameters()] == ["projection.weight", "projection.bias"]
    with_bn, _, _ = example("pedcc", embedding="linear-bn")
    assert [name for name, _ in with_bn.named_parameters()] == ["projection.weight"]
    affine, _, _ = example("scaled-bn", affine=True)
    assert {"norm.weight", "norm.bias"} < {name for name, _ in affine.named_parameters()}
    assert "centroids" in example("pedcc")[0].state_dict()


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
