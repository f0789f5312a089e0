"""Training one run: the recipe, pairing by seed, resuming, divergence."""

import base64
import math

import numpy as np
import pytest
import torch
from smoke_project import ROOT

from repro.config import RunConfig
from repro.data.prepared import PreparedData
from repro.data.training_set import open_for_training
from repro.errors import RunInterruptedError
from repro.records import Signature
from repro.registry import Registry
from repro.training.checkpoint import Checkpoint, CheckpointFolder, CheckpointUnfitError
from repro.training.loop import build, train_run
from repro.training.optim import make_optimizer
from repro.training.precision import Precision

SIGNATURE = Signature(config="1", data="2", code="3")
LOSSES = ("cross-entropy", "am-softmax-s10-m0.5", "pedcc-s10-m0.5", "scaled-bn-m1")


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry.load(ROOT / "experiments")


def config_of(registry, loss="cross-entropy", network="resnet18", seed=0, **recipe) -> RunConfig:
    run = registry.parse(f"cifar100/{network}/{loss}/seed{seed}")
    config = registry.config(run, registry.preset("smoke"))
    return config.model_copy(update={"recipe": config.recipe.model_copy(update=recipe)})


def data_of(config) -> PreparedData:
    return open_for_training(config, ROOT / "no data needed")


def plain(memory_format=torch.contiguous_format) -> Precision:
    return Precision("fp32", torch.device("cpu"), memory_format)


def comparable(trained):
    curve = [epoch.model_dump(exclude={"seconds"}) for epoch in trained.curve]
    return trained.result, curve, trained.probes


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_is_bitwise_repeatable_on_a_cpu(registry, loss):
    config = config_of(registry, loss)
    data = data_of(config)
    assert comparable(train_run(config, data, plain())) == comparable(train_run(config, data, plain()))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_interrupted_again_and_again_ends_as_if_it_never_was(registry, tmp_path, loss):
    config = config_of(registry, loss)
    data = data_of(config)
    straight = train_run(config, data, plain())
    asked = 0

    def every_third_time() -> bool:
        nonlocal asked
        asked += 1
        return asked % 3 == 0

    interruptions = 0
    for number in range(1, 100):
        folder = tmp_path / str(number)
        folder.mkdir()
        checkpoints = CheckpointFolder(tmp_path, folder, SIGNATURE)
        start = checkpoints.newest()
        try:
            resumed = train_run(config, data, plain(), checkpoints, should_stop=every_third_time, start=start)
            break
        except RunInterruptedError:
            interruptions += 1
    assert interruptions >= 5
    assert start.step > 0
    assert comparable(resumed) == comparable(straight)


def test_dropout_resumes_exactly_too(registry, tmp_path):
    config = config_of(registry, network="vgg16-4096", epochs=1)
    data = data_of(config)
    straight = train_run(config, data, plain())
    calls = iter([False, False, True])
    folder = tmp_path / "1"
    folder.mkdir()
    with pytest.raises(RunInterruptedError):
        train_run(
            config,
            data,
            plain(),
            CheckpointFolder(tmp_path, folder, SIGNATURE),
            should_stop=lambda: next(calls),
        )
    start = CheckpointFolder(tmp_path, folder, SIGNATURE).newest()
    assert start.step == 2
    resumed = train_run(config, data, plain(), start=start)
    assert comparable(resumed) == comparable(straight)


def stopped_at(config, data, precision, folder, when) -> Checkpoint:
    """Trains until `when(report)`, and comes back with the checkpoint written then."""
    folder.mkdir(exist_ok=True)
    checkpoints = CheckpointFolder(folder.parent, folder, SIGNATURE)
    seen = []

    def report(progress):
        seen.append(progress)

    with pytest.raises(RunInterruptedError, match="started again it goes on from there"):
        train_run(
            config,
            data,
            precision,
            checkpoints,
            report=report,
            should_stop=lambda: bool(seen) and when(seen[-1]),
        )
    return checkpoints.newest()


def test_the_state_of_the_fp16_scaler_comes_back_too(registry, tmp_path):
    """The scale has grown or shrunk since the start, and the next step depends on it bit for bit."""
    config = config_of(registry, epochs=2, lr_drops=(1,))
    data = data_of(config)
    precision = Precision("fp16", torch.device("cpu"), torch.contiguous_format)
    straight = train_run(config, data, precision)
    start = stopped_at(config, data, precision, tmp_path / "1", lambda progress: progress.epoch == 1)
    assert start.state["scaler"]["scale"] > 0
    assert comparable(train_run(config, data, precision, start=start)) == comparable(straight)


def test_a_run_stopped_while_it_is_evaluated_need_not_train_the_epoch_again(registry, tmp_path):
    config = config_of(registry)
    data = data_of(config)
    seen = []
    straight = train_run(config, data, plain(), report=seen.append)
    steps = seen[0].steps

    asked = 0

    def in_evaluation() -> bool:
        nonlocal asked
        asked += 1
        return asked == steps + 1

    folder = tmp_path / "1"
    folder.mkdir()
    checkpoints = CheckpointFolder(tmp_path, folder, SIGNATURE)
    with pytest.raises(RunInterruptedError, match="stopped in epoch 1 of 3"):
        train_run(config, data, plain(), checkpoints, should_stop=in_evaluation)
    start = checkpoints.newest()
    assert (start.step, start.state["epoch"]) == (steps, 0)
    resumed = []
    trained = train_run(config, data, plain(), report=resumed.append, start=start)
    assert comparable(trained) == comparable(straight)
    assert [(p.state, p.epoch) for p in resumed[:2]] == [("evaluating", 0), ("training", 1)]


def test_speed_and_seconds_of_a_resumed_run_are_those_of_all_its_steps(registry, tmp_path):
    """Speed × seconds is the number of images, and the epoch that was cut in two has the time of both halves."""
    config = config_of(registry)
    data = data_of(config)
    last = config.recipe.epochs - 1
    start = stopped_at(
        config, data, plain(), tmp_path / "1", lambda progress: (progress.epoch, progress.step) == (last, 1)
    )
    trained = train_run(config, data, plain(), start=start)
    images = config.recipe.epochs * len(data.train.labels)
    seconds = [epoch.seconds for epoch in trained.curve]
    assert trained.images_per_second * sum(seconds) == pytest.approx(images)
    assert seconds[:last] == [entry["seconds"] for entry in start.state["curve"]]
    assert seconds[last] > start.state["epoch_seconds"] > 0


def test_a_checkpoint_that_does_not_fit_the_run_is_an_error_of_its_own(registry, tmp_path):
    config = config_of(registry)
    data = data_of(config)
    start = stopped_at(config, data, plain(), tmp_path / "1", lambda progress: progress.step == 1)
    del start.state["optimizer"]
    with pytest.raises(CheckpointUnfitError, match="does not fit this run"):
        train_run(config, data, plain(), start=start)


def test_a_run_that_writes_checkpoints_is_the_same_as_one_that_does_not(registry, tmp_path):
    config = config_of(registry)
    data = data_of(config)
    folder = tmp_path / "1"
    folder.mkdir()
    checkpoints = CheckpointFolder(tmp_path, folder, SIGNATURE)
    with_them = train_run(config, data, plain(), checkpoints, checkpoint_interval=0.0)
    assert list(folder.glob("checkpoint-*.pt"))
    assert comparable(with_them) == comparable(train_run(config, data, plain()))


def test_seed_k_gives_every_loss_the_same_network(registry):
    networks = [build(config_of(registry, loss, seed=3), 32, 10)[0] for loss in LOSSES]
    other = build(config_of(registry, LOSSES[0], seed=4), 32, 10)[0]
    first = networks[0].state_dict()
    for network in networks[1:]:
        for name, value in network.state_dict().items():
            assert torch.equal(value, first[name]), name
    weights = [name for name, value in first.items() if value.ndim > 1]
    assert all(not torch.equal(other.state_dict()[name], first[name]) for name in weights)


@pytest.mark.parametrize("momentum_reset", [False, True])
def test_the_recipe_is_an_independent_sgd_to_float_precision(registry, momentum_reset):
    """A slow loop with the textbook update, hand-written schedule and per-image crops gives the same curve."""
    config = config_of(registry, "cross-entropy", network="vgg16", epochs=3, momentum_reset=momentum_reset)
    recipe = config.recipe
    data = data_of(config)
    trained = train_run(config, data, plain())

    from repro.training.randomness import generator

    network, loss = build(config, 32, 10)
    parameters = [*network.parameters(), *loss.parameters()]
    velocity = [torch.zeros_like(p) for p in parameters]
    mean = torch.tensor(data.manifest.mean).view(3, 1, 1)
    std = torch.tensor(data.manifest.std).view(3, 1, 1)
    images = torch.from_numpy(np.array(data.train.images))
    labels = torch.from_numpy(np.array(data.train.labels))
    curve = []
    for epoch in range(3):
        lr = 0.1 * 0.1 ** sum(epoch >= drop for drop in recipe.lr_drops)
        if momentum_reset and epoch in recipe.lr_drops:
            velocity = [torch.zeros_like(p) for p in parameters]
        order = torch.randperm(len(labels), generator=generator(0, "order", epoch))
        corners = torch.randint(0, 9, (len(labels), 2), generator=generator(0, "crop", epoch))
        flips = torch.rand(len(labels), generator=generator(0, "flip", epoch)) < 0.5
        total = 0.0
        for start in range(0, len(labels), recipe.batch_size):
            batch = []
            for position in range(start, min(start + recipe.batch_size, len(labels))):
                image = torch.nn.functional.pad(images[order[position]], (4, 4, 4, 4))
                top, left = corners[position].tolist()
                image = image[:, top : top + 32, left : left + 32]
                image = image.flip(2) if flips[position] else image
                batch.append((image / 255.0 - mean) / std)
            target = labels[order[start : start + recipe.batch_size]]
            value, _ = loss(network(torch.stack(batch)), target)
            gradients = torch.autograd.grad(value, parameters)
            with torch.no_grad():
                for p, g, v in zip(parameters, gradients, velocity, strict=True):
                    v.mul_(0.9).add_(g + 5e-4 * p)
                    p.sub_(lr * v)
            total += value.item() * len(target)
        curve.append(total / len(labels))
    assert [epoch.train_loss for epoch in trained.curve] == pytest.approx(curve, rel=2e-4)
    assert [epoch.lr for epoch in trained.curve] == pytest.approx([0.1, 0.01, 0.001])


def test_a_loss_that_is_not_finite_is_recorded_as_diverged(registry):
    config = config_of(registry, lr=1e12, lr_drops=())
    trained = train_run(config, data_of(config), plain())
    assert trained.result.diverged_in is not None
    assert trained.result.accuracy is None
    assert trained.curve[-1].train_loss is None
    assert trained.curve[-1].train_accuracy is None
    assert len(trained.curve) == trained.result.diverged_in + 1
    assert trained.probes.logits is None


@pytest.mark.parametrize("epochs", [1, 2])
def test_logits_that_are_not_finite_are_a_diverged_run_and_no_accuracy(registry, epochs):
    """The last epoch's loss is finite, its last step ruins the weights: argmax of NaN would be class 0."""
    config = config_of(registry, lr=1e38, lr_drops=(), epochs=epochs, batch_size=512, evaluate_every=1)
    trained = train_run(config, data_of(config), plain())
    assert trained.curve[0].train_loss is not None
    assert [epoch.test_accuracy for epoch in trained.curve] == [None] * len(trained.curve)
    assert [epoch.test_loss for epoch in trained.curve] == [None] * len(trained.curve)
    result = trained.result
    assert (result.accuracy, result.best_accuracy, result.correct_images) == (None, None, None)
    assert result.diverged_in == epochs - 1
    assert trained.probes.logits is None


def test_which_test_images_were_right_is_recorded_bit_by_bit(registry):
    config = config_of(registry, epochs=1, lr_drops=())
    network, loss = build(config, 32, 10)
    trained = train_run(config, data_of(config), plain())
    bits = np.unpackbits(
        np.frombuffer(base64.urlsafe_b64decode(trained.result.correct_images), dtype=np.uint8)
    )
    assert bits.sum() == trained.result.correct
    # The same run again, its evaluation looked at from outside.
    seen = []

    class Watched(type(loss)):
        def forward(self, features, labels=None):
            value, logits = super().forward(features, labels)
            if not self.training:
                seen.append(logits.argmax(dim=1) == labels)
            return value, logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("repro.training.loop.build", lambda *arguments: (network, loss))
        loss.__class__ = Watched
        loss.full_batch = config.recipe.batch_size
        train_run(config, data_of(config), plain())
    expected = torch.cat(seen).numpy()
    assert bits[: len(expected)].astype(bool).tolist() == expected.tolist()


def test_a_run_that_drops_its_momentum_with_the_lr_resumes_to_the_bit(registry, tmp_path):
    """Before a drop, right at it, and behind it."""
    config = config_of(registry, momentum_reset=True)
    data = data_of(config)
    straight = train_run(config, data, plain())
    for step in (4, 5, 6):
        start = stopped_at(
            config, data, plain(), tmp_path / f"{step}", lambda p, at=step: p.epoch * p.steps + p.step == at
        )
        assert comparable(train_run(config, data, plain(), start=start)) == comparable(straight)


def test_evaluation_counts_every_image_once_and_only_when_due(registry):
    config = config_of(registry, epochs=5, evaluate_every=2, lr_drops=(4,))
    trained = train_run(config, data_of(config), plain())
    assert [epoch.test_accuracy is not None for epoch in trained.curve] == [False, True, False, True, True]
    assert trained.result.total == 80
    assert trained.result.accuracy == trained.curve[-1].test_accuracy


def test_the_gradient_at_the_logits_is_p_minus_y_with_the_margin_in(registry):
    """Of one batch, before any step: from an independent float64 computation."""
    config = config_of(registry, "am-softmax-s10-m0.5", epochs=1, batch_size=512)
    data = data_of(config)
    trained = train_run(config, data, plain())
    network, loss = build(config, 32, 10)
    from repro.data.loader import draw_epoch, normalisation, subset, to_device, training_batch
    from repro.training.randomness import generator

    split = to_device(subset(data, config.recipe)[0], torch.device("cpu"))
    draws = draw_epoch(split.count, config.recipe, lambda purpose: generator(0, purpose, 0))
    normalised = normalisation(data, config.recipe, torch.device("cpu"), torch.contiguous_format)
    images, labels = training_batch(split, draws, (0, split.count), 4, normalised)
    features = network(images).double()
    features.retain_grad()
    weights = torch.nn.functional.normalize(loss.class_weights().detach().double(), dim=1)
    cosines = torch.nn.functional.normalize(features, dim=1) @ weights.T
    y = torch.nn.functional.one_hot(labels, 10).double()
    softmax_input = 10 * (cosines - 0.5 * y)
    torch.nn.functional.cross_entropy(softmax_input, labels, reduction="sum").backward()
    expected = (torch.softmax(softmax_input, 1) - y).norm(dim=1).mean().item()
    assert trained.curve[0].gradient_at_logits == pytest.approx(expected, rel=1e-5)
    gradients, norms = features.grad.norm(dim=1), features.detach().norm(dim=1)
    assert trained.curve[0].gradient_at_features == pytest.approx(gradients.mean().item(), rel=1e-4)
    assert trained.curve[0].feature_norm == pytest.approx(norms.mean().item(), rel=1e-5)
    product = (gradients * norms).mean().item()
    assert trained.curve[0].gradient_times_feature == pytest.approx(product, rel=1e-4)
    # The means alone would not give it.
    assert product != pytest.approx((gradients.mean() * norms.mean()).item(), rel=1e-3)


def test_nothing_is_left_of_the_global_generator(registry):
    """Training neither reads nor moves torch's global generator where there is no dropout."""
    config = config_of(registry, epochs=1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_run(config, data_of(config), plain())
    assert torch.equal(torch.rand(3), expected)


def test_probes_count_every_logit(registry):
    config = config_of(registry, "cross-entropy")
    trained = train_run(config, data_of(config), plain())
    histogram = trained.probes.logits
    assert sum(histogram.counts) + histogram.underflow + histogram.overflow == 80 * 10
    assert math.isclose(len(histogram.counts) * 0.2, histogram.high - histogram.low)


FURTHER = (
    "logit-scale-s2",
    "affine-bn",
    "cosine-learnt-scale-s10",
    "cosine-scale-by-classes",
    "logit-norm-t0.04",
    "logit-z-score",
    "label-smoothing-0.1",
    "scaled-bn-m1+statistics=full-batches",
    "scaled-bn-m1+statistics=training-set",
    "cross-entropy+weight_decay_on=weights",
)


@pytest.mark.parametrize("loss", FURTHER)
def test_the_losses_beyond_the_paper_train_and_learn(registry, loss):
    config = config_of(registry, loss)
    trained = train_run(config, data_of(config), plain())
    assert trained.result.diverged_in is None
    assert trained.curve[-1].train_loss < trained.curve[0].train_loss
    assert all(epoch.gradient_at_logits > 0 for epoch in trained.curve)
    assert trained.probes.logits is not None


def test_statistics_are_those_of_the_whole_training_set_where_they_are_asked_for(registry):
    """Only evaluation changes: weights and training losses are those of running statistics, to the bit."""
    running, recomputed = (
        config_of(registry, f"scaled-bn-m1{axis}", batch_size=96) for axis in ("", "+statistics=training-set")
    )
    plain_run, other = (train_run(config, data_of(config), plain()) for config in (running, recomputed))
    assert [epoch.train_loss for epoch in plain_run.curve] == [epoch.train_loss for epoch in other.curve]
    assert plain_run.probes.weight_norms == other.probes.weight_norms
    assert plain_run.result.test_loss != other.result.test_loss


def test_a_short_last_batch_is_left_out_of_the_statistics_where_that_is_asked_for(registry):
    """160 images in batches of 96 end in one of 64; in batches of 80 there is no short one to leave out."""
    results = {}
    for size in (96, 80):
        for axis in ("", "+statistics=full-batches"):
            config = config_of(registry, f"scaled-bn-m1{axis}", batch_size=size)
            results[size, axis] = train_run(config, data_of(config), plain()).result.test_loss
    assert results[96, ""] != results[96, "+statistics=full-batches"]
    assert results[80, ""] == results[80, "+statistics=full-batches"]


def test_weight_decay_can_be_kept_off_biases_and_batch_norm(registry):
    config = config_of(registry, "scaled-bn-m1+weight_decay_on=weights")
    network, loss = build(config, 32, 10)
    decayed = {
        id(parameter): group["weight_decay"]
        for group in make_optimizer(network, loss, config.recipe).param_groups
        for parameter in group["params"]
    }
    for module in (network, loss):
        for name, parameter in module.named_parameters():
            assert decayed.pop(id(parameter)) == (5e-4 if parameter.ndim >= 2 else 0.0), name
    assert not decayed
