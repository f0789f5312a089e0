"""Losses, networks and augmentations of the user's own, tried on a tiny batch before they train.

On a copy, so that trying one changes neither it nor any random number.
"""

import copy
import math
import random
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from repro.errors import OwnCodeError, ReproError
from repro.plugins import explain

BATCH = 4  # images


def try_loss(name: str, make: Callable[[], Any]) -> Any:
    """The loss that `make` builds, a `ClassificationLoss`.

    Raises OwnCodeError with the user's line where building or calling it fails, and where what it gives is
    not a scalar to minimise and logits (B, C).
    """
    return _tried(name, make, _call_loss)


def try_network(name: str, make: Callable[[], Any], image_size: int) -> nn.Module:
    """The network that `make` builds.

    Raises OwnCodeError with the user's line where building or calling it fails, and where it is no module
    with a `feature_dim` that gives features (B, feature_dim).
    """

    def call(network: Any) -> None:
        _expect(isinstance(network, nn.Module), "a torch.nn.Module", network)
        width: Any = getattr(network, "feature_dim", None)
        _expect(type(width) is int, "an attribute feature_dim, a whole number", width)
        features = network(torch.zeros(BATCH, 3, image_size, image_size))
        _expect_shape("features", features, (BATCH, width))

    network: nn.Module = _tried(name, make, call)
    return network


def try_augmentation(name: str, make: Callable[[], Any], image_size: int, device: torch.device) -> Any:
    """The augmentation that `make` builds, tried on `device`.

    Raises OwnCodeError with the user's line where building or calling it fails; where it does not give a row
    of random numbers per image, and images like those it was given; and where it depends on anything else
    than the generator and the images, which a resumed run would not repeat.
    """

    def call(tried: Any) -> None:
        count, shape = BATCH + 1, (BATCH, 3, image_size, image_size)
        images = torch.linspace(-2.0, 2.0, math.prod(shape), device=device).reshape(shape)
        before, results = _global_generators(device), []
        for each in (tried, tried, make()):  # as in another epoch, and in a run that is resumed
            drawn = each.draw(count, torch.Generator().manual_seed(0))
            fits = isinstance(drawn, Tensor) and drawn.device.type == "cpu" and drawn.shape[:1] == (count,)
            _expect(fits, f"a CPU tensor of {count} rows from draw({count}, generator)", drawn)
            augmented = each.apply(images.clone(), drawn[:BATCH].to(device))
            _expect_shape("images from apply", augmented, shape)
            fits = augmented.dtype == images.dtype and augmented.device == images.device
            _expect(fits, f"images from apply in {images.dtype} on {images.device}", augmented)
            if not augmented.isfinite().all():
                raise OwnCodeError("apply gives images with NaN or infinity")
            results.append((drawn, augmented))
        if _global_generators(device) != before:
            raise OwnCodeError("it draws from a global generator; expected: only from the one given to draw")
        for method, given in zip(("draw", "apply"), zip(*results, strict=True), strict=True):
            if not all(torch.equal(result, given[0]) for result in given):
                raise OwnCodeError(f"{method} gives different results for the same input")

    return _tried(name, make, call)


def _global_generators(device: torch.device) -> tuple[object, ...]:
    """The states of all random generators that code can draw from without being given one."""
    on_device = torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else []
    return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist(), on_device


def _tried(name: str, make: Callable[[], Any], call: Callable[[Any], None]) -> Any:
    try:
        made = make()
        with torch.random.fork_rng(devices=[]):
            call(copy.deepcopy(made))
    except OwnCodeError as error:
        raise OwnCodeError(f"{name}: {error}") from None
    except ReproError:
        raise
    except Exception as error:
        missing = traceback.extract_tb(error.__traceback__)[-1].name
        if isinstance(error, NotImplementedError) and missing in ("classify", "class_weights"):
            raise OwnCodeError(f"{name}: it must define {missing}; see ClassificationLoss") from None
        raise OwnCodeError(f"{name}: trying it failed: {explain(error)}") from error
    return made


def _call_loss(loss: Any) -> None:
    features = torch.linspace(-1.0, 1.0, BATCH * loss.feature_dim).reshape(BATCH, -1)
    labels = torch.arange(BATCH) % loss.classes
    for training in (True, False):
        answer = loss.train(training)(features.requires_grad_(training), labels)
        _expect(isinstance(answer, tuple) and len(answer) == 2, "(loss, logits)", answer)
        value, logits = answer
        _expect_shape("logits", logits, (BATCH, loss.classes))
        _expect_shape("the loss as a scalar", value, ())
        if training:
            if not value.requires_grad:
                raise OwnCodeError("its loss does not depend on the features: no gradient flows back")
            value.backward()
            loss.softmax_gradient(logits.detach(), labels)
    _expect_shape("a row of class_weights for each class", loss.class_weight_norms(), (loss.classes,))


def _expect_shape(what: str, value: Any, shape: tuple[int, ...]) -> None:
    fits = isinstance(value, Tensor) and value.shape == shape and value.is_floating_point()
    _expect(fits, f"{what}, a floating-point tensor of shape {shape}", value)


def _expect(fits: bool, what: str, value: Any) -> None:
    if not fits:
        got = f"{type(value).__name__} {value!r:.50}"
        if isinstance(value, Tensor):
            got = f"{value.dtype} of shape {tuple(value.shape)}"
        raise OwnCodeError(f"expected {what}; got {got}")
