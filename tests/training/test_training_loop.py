"""Training one run: the recipe, pairing by seed, resuming, divergence."""

import base64
import math

import numpy as np
import pytest
import torch
from small_runs import (
    LOSSES,
    checkpoints_in,
    comparable,
    config_of,
    data_of,
    on_cpu,
    stopped_at,
    straight,
    train,
)

from repro.data.loader import BatchStream, draw_epoch, normalisation, subset, to_device
from repro.errors import RunInterruptedError
from repro.training.loop import build
from repro.training.optim import make_optimizer
from repro.training.seeding import generator


@pytest.mark.parametrize(
    "loss", ["pedcc-s10-m0.5", "scaled-bn-m1"]
)  # with buffers, and with running statistics
def test_a_run_interrupted_again_and_again_ends_as_if_it_never_was(tmp_path, loss):
    asked = interruptions = 0

    def every_third_time() -> bool:
        nonlocal asked
        asked += 1
        return asked % 3 == 0

    for number in range(1, 100):
        checkpoints = checkpoints_in(tmp_path, number)
        start = checkpoints.newest()
        try:
            resumed = train(
                config_of(loss), checkpoints=checkpoints, should_stop=every_third_time, start=start
            )
            break
        except RunInterruptedError:
            interruptions += 1
    assert interruptions >= 5
    assert start.step > 0
    assert comparable(resumed) == comparable(straight(loss))


def after(step):
    """When a run has that many steps behind it and asks whether to take the next."""
    return lambda p: p.state == "training" and p.epoch * p.steps + p.step + 1 == step


@pytest.mark.parametrize(
    ("network", "recipe", "step"),
    [
        pytest.param("vgg16-4096", {"epochs": 1}, 2, id="dropout"),
        *(
            pytest.param("resnet18", {"momentum_reset": True}, step, id=f"momentum reset, step {step}")
            for step in (4, 5, 6)  # before a drop, right at it, and behind it
        ),
    ],
)
def test_dropout_and_momentum_resume_to_the_bit(tmp_path, network, recipe, step):
    config = config_of(network=network, **recipe)
    start = stopped_at(config, after(step), tmp_path)
    assert start.step == step
    assert comparable(train(config, start=start)) == comparable(straight(network=network, **recipe))


def test_the_scale_of_fp16_comes_back_too(tmp_path):
    """It has shrunk from 65536; a power of two alone would not show in the weights."""
    config, precision = config_of("scaled-bn-m1", images_per_class=4, batch_size=8), on_cpu("fp16")
    start = stopped_at(config, after(3), tmp_path / "cut", precision)
    resumed = stopped_at(config, after(4), tmp_path / "resumed", precision, start=start)
    uncut = stopped_at(config, after(4), tmp_path / "uncut", precision)
    assert resumed.state["scaler"] == uncut.state["scaler"]
    assert uncut.state["scaler"]["scale"] < 65536


def test_a_run_stopped_while_it_is_evaluated_need_not_train_the_epoch_again(tmp_path):
    checkpoints, steps = checkpoints_in(tmp_path), 5
    asked = iter([False] * steps + [True])
    with pytest.raises(RunInterruptedError, match="stopped in epoch 1 of 3"):
        train(config_of(), checkpoints=checkpoints, should_stop=lambda: next(asked))
    start = checkpoints.newest()
    assert (start.step, start.state["epoch"]) == (steps, 0)
    resumed = []
    trained = train(config_of(), report=resumed.append, start=start)
    assert comparable(trained) == comparable(straight())
    assert [(p.state, p.epoch, p.steps) for p in resumed[:2]] == [("evaluating", 0, 5), ("training", 1, 5)]


def test_speed_and_seconds_of_a_resumed_run_are_those_of_all_its_steps(tmp_path):
    """Speed × seconds is the number of images, and the epoch that was cut in two has the time of both halves."""
    config = config_of()
    last = config.recipe.epochs - 1
    start = stopped_at(config, lambda progress: (progress.epoch, progress.step) == (last, 0), tmp_path)
    trained = train(config, start=start)
    seconds = [epoch.seconds for epoch in trained.curve]
    assert trained.images_per_second * sum(seconds) == pytest.approx(config.recipe.epochs * 160)
    assert seconds[:last] == [entry["seconds"] for entry in start.state["curve"]]
    assert seconds[last] > start.state["epoch_seconds"] > 0


def test_seed_k_gives_every_loss_the_same_network():
    networks = [build(config_of(loss, seed=3), 32, 10)[0] for loss in LOSSES]
    other = build(config_of(seed=4), 32, 10)[0]
    first = networks[0].state_dict()
    for network in networks[1:]:
        for name, value in network.state_dict().items():
            assert torch.equal(value, first[name]), name
    weights = [name for name, value in first.items() if value.ndim > 1]
    assert all(not torch.equal(other.state_dict()[name], first[name]) for name in weights)


@pytest.mark.parametrize("momentum_reset", [False, True])
def test_the_recipe_is_an_independent_sgd_to_float_precision(momentum_reset):
    """A slow loop with the textbook update, hand-written schedule and per-image crops gives the same curve."""
    # A rate at which float32's rounding does not grow from step to step.
    config = config_of(network="vgg16", epochs=3, lr=0.02, momentum_reset=momentum_reset)
    recipe, data = config.recipe, data_of(config)
    trained = train(config)

    network, loss = build(config, 32, 10)
    parameters = [*network.parameters(), *loss.parameters()]
    velocity = [torch.zeros_like(p) for p in parameters]
    mean = torch.tensor(data.manifest.mean).view(3, 1, 1)
    std = torch.tensor(data.manifest.std).view(3, 1, 1)
    images = torch.from_numpy(np.array(data.train.images))
    labels = torch.from_numpy(np.array(data.train.labels))
    curve = []
    for epoch in range(3):
        lr = 0.02 * 0.1 ** sum(epoch >= drop for drop in recipe.lr_drops)
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
    assert [epoch.lr for epoch in trained.curve] == pytest.approx([0.02, 0.002, 0.0002])


def test_a_loss_that_is_not_finite_is_recorded_as_diverged():
    """Here after an epoch whose evaluation was fine: that one is the best, but not the result."""
    trained = straight(lr_factor=1e13, lr_drops=(1,), evaluate_every=1)
    result, last = trained.result, trained.curve[-1]
    assert (result.accuracy, result.correct_images, result.total) == (None, None, 0)
    assert (last.train_loss, last.train_accuracy) == (None, None)
    assert len(trained.curve) == result.diverged_in + 1 == 2
    assert result.best_accuracy == trained.curve[0].test_accuracy > 0
    assert trained.probes.logits is None


@pytest.mark.parametrize("epochs", [1, 2])
def test_logits_that_are_not_finite_are_a_diverged_run_and_no_accuracy(epochs):
    """The last epoch's loss is finite, its last step ruins the weights: argmax of NaN would be class 0."""
    trained = straight(lr=1e38, lr_drops=(), epochs=epochs, batch_size=512, evaluate_every=1)
    assert trained.curve[0].train_loss is not None
    assert [(epoch.test_accuracy, epoch.test_loss) for epoch in trained.curve] == [(None, None)] * epochs
    result = trained.result
    assert (result.accuracy, result.best_accuracy, result.correct_images) == (None, None, None)
    assert result.diverged_in == epochs - 1
    assert trained.probes.logits is None


def test_which_test_images_were_right_is_recorded_bit_by_bit(monkeypatch):
    """The evaluation is watched from outside; probes count every logit of it."""
    config = config_of(epochs=1, lr_drops=())
    network, loss = build(config, 32, 10)
    seen = []

    class Watched(type(loss)):
        def forward(self, features, labels=None):
            value, logits = super().forward(features, labels)
            if not self.training:
                seen.append(logits.argmax(dim=1) == labels)
            return value, logits

    monkeypatch.setattr("repro.training.loop.build", lambda *arguments: (network, loss))
    loss.__class__ = Watched
    trained = train(config)
    expected = torch.cat(seen).numpy()
    recorded = np.frombuffer(base64.urlsafe_b64decode(trained.result.correct_images), dtype=np.uint8)
    bits = np.unpackbits(recorded)
    assert bits[: len(expected)].astype(bool).tolist() == expected.tolist()
    assert bits.sum() == trained.result.correct > 0
    histogram = trained.probes.logits
    assert sum(histogram.counts) + histogram.underflow + histogram.overflow == 80 * 10
    assert math.isclose(len(histogram.counts) * 0.2, histogram.high - histogram.low)


def test_evaluation_counts_every_image_once_and_only_when_due():
    trained = straight(epochs=5, evaluate_every=2, lr_drops=(4,))
    assert [epoch.test_accuracy is not None for epoch in trained.curve] == [False, True, False, True, True]
    assert trained.result.total == 80
    assert trained.result.accuracy == trained.curve[-1].test_accuracy


def test_the_gradient_at_the_logits_is_p_minus_y_with_the_margin_in():
    """Of one batch, before any step: from an independent float64 computation."""
    config = config_of("am-softmax-s10-m0.5", epochs=1, batch_size=512)
    data, curve = data_of(config), train(config).curve
    network, loss = build(config, 32, 10)
    split = to_device(subset(data, config.recipe)[0], torch.device("cpu"))
    randomness = draw_epoch(split.count, config.recipe, lambda purpose: generator(0, purpose, 0))
    normalised = normalisation(data, config.recipe, torch.device("cpu"), torch.contiguous_format)
    batches = BatchStream(split, 4, normalised)
    batches.begin(randomness)
    images, labels = batches.next_batch(split.count)
    features = network(images).double()
    features.retain_grad()
    weights = torch.nn.functional.normalize(loss.class_weights().detach().double(), dim=1)
    cosines = torch.nn.functional.normalize(features, dim=1) @ weights.T
    y = torch.nn.functional.one_hot(labels, 10).double()
    softmax_input = 10 * (cosines - 0.5 * y)
    torch.nn.functional.cross_entropy(softmax_input, labels, reduction="sum").backward()
    expected = (torch.softmax(softmax_input, 1) - y).norm(dim=1).mean().item()
    assert curve[0].gradient_at_logits == pytest.approx(expected, rel=1e-5)
    gradients, norms = features.grad.norm(dim=1), features.detach().norm(dim=1)
    assert curve[0].gradient_at_features == pytest.approx(gradients.mean().item(), rel=1e-4)
    assert curve[0].feature_norm == pytest.approx(norms.mean().item(), rel=1e-5)
    product = (gradients * norms).mean().item()
    assert curve[0].gradient_times_feature == pytest.approx(product, rel=1e-4)
    # The means alone would not give it.
    assert product != pytest.approx((gradients.mean() * norms.mean()).item(), rel=1e-3)


def test_statistics_are_those_of_the_whole_training_set_where_they_are_asked_for():
    """Only evaluation changes: weights and training losses are those of running statistics, to the bit."""
    running, recomputed = straight("scaled-bn-m1"), straight("scaled-bn-m1+statistics=training-set")
    assert [epoch.train_loss for epoch in running.curve] == [epoch.train_loss for epoch in recomputed.curve]
    assert running.probes.weight_norms == recomputed.probes.weight_norms
    assert running.result.test_loss != recomputed.result.test_loss


@pytest.mark.parametrize(("batch_size", "same"), [(96, False), (80, True)])
def test_a_short_last_batch_is_left_out_of_the_statistics_where_that_is_asked_for(batch_size, same):
    """160 images in batches of 96 end in one of 64; in batches of 80 there is no short one to leave out."""
    every, full = (
        straight(f"scaled-bn-m1{override}", batch_size=batch_size).result.test_loss
        for override in ("", "+statistics=full-batches")
    )
    assert (every == full) == same


def test_weight_decay_can_be_kept_off_biases_and_batch_norm():
    config = config_of("scaled-bn-m1+weight_decay_on=weights")
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
