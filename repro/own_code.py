"""Tries a loss or network of the user's own before it trains: what is wrong is told in the user's words.

Tried on a copy, so that trying changes neither it nor any random number.
"""

import copy
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from repro.errors import OwnCodeError, ReproError
from repro.implementations import explain

TRIAL_BATCH = 4


def try_loss(name: str, make: Callable[[], Any]) -> Any:
    """The loss that `make` builds, a `ClassificationLoss`.

    Raises OwnCodeError with the user's line where building or calling it fails, and where what it gives is
    not a scalar to minimise and logits (B, C).
    """
    try:
        loss = make()
        with torch.random.fork_rng(devices=[]):
            _call_loss(name, copy.deepcopy(loss))
    except ReproError:
        raise
    except Exception as error:
        missing = traceback.extract_tb(error.__traceback__)[-1].name
        if isinstance(error, NotImplementedError) and missing in ("classify", "class_weights"):
            raise OwnCodeError(f"{name}: it must define {missing}; see ClassificationLoss") from None
        raise OwnCodeError(f"{name}: trying it failed: {explain(error)}") from error
    return loss


def try_network(name: str, make: Callable[[], Any], image_size: int) -> nn.Module:
    """The network that `make` builds.

    Raises OwnCodeError with the user's line where building or calling it fails, and where it is no module
    with a `feature_dim` that gives features (B, feature_dim).
    """
    try:
        network = make()
        if not isinstance(network, nn.Module):
            raise OwnCodeError(f"{name}: expected a torch.nn.Module, got {type(network).__name__}")
        width = getattr(network, "feature_dim", None)
        if not isinstance(width, int) or isinstance(width, bool):
            raise OwnCodeError(f"{name}: expected an attribute feature_dim, a whole number, got {width!r}")
        with torch.random.fork_rng(devices=[]):
            features = copy.deepcopy(network)(torch.zeros(TRIAL_BATCH, 3, image_size, image_size))
    except ReproError:
        raise
    except Exception as error:
        raise OwnCodeError(f"{name}: trying it failed: {explain(error)}") from error
    if not isinstance(features, Tensor) or features.shape != (TRIAL_BATCH, width):
        got = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise OwnCodeError(f"{name}: expected features of shape {(TRIAL_BATCH, width)}, got {got}")
    return network


def _call_loss(name: str, loss: Any) -> None:
    features = torch.linspace(-1.0, 1.0, TRIAL_BATCH * loss.feature_dim).reshape(TRIAL_BATCH, -1)
    labels = torch.arange(TRIAL_BATCH) % loss.classes
    for mode in ("training", "evaluation"):
        loss.train(mode == "training")
        value, logits = _answer(name, loss(features.requires_grad_(mode == "training"), labels), mode)
        shape = (TRIAL_BATCH, loss.classes)
        if not isinstance(logits, Tensor) or logits.shape != shape:
            raise OwnCodeError(f"{name}: in {mode} expected logits of shape {shape}, got {_what(logits)}")
        if not isinstance(value, Tensor) or value.ndim or not value.is_floating_point():
            raise OwnCodeError(f"{name}: in {mode} expected the loss as a scalar tensor, got {_what(value)}")
        if mode == "training":
            if not value.requires_grad:
                raise OwnCodeError(
                    f"{name}: its loss does not depend on the features: no gradient flows back"
                )
            value.backward()
            loss.softmax_gradient(logits.detach(), labels)
    norms = loss.class_weight_norms()
    if norms.shape != (loss.classes,):
        raise OwnCodeError(f"{name}: class_weights: expected a row for each of {loss.classes} classes")


def _answer(name: str, answer: object, mode: str) -> tuple[object, object]:
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise OwnCodeError(f"{name}: in {mode} expected (loss, logits), got {_what(answer)}")
    return answer


def _what(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return repr(value) if value is None else type(value).__name__
