"""One step of SGD, on the device alone: batch, forward, backward, update, and what is measured of it.

It reads no tensor's value on the host and takes nothing from it but the batch's size, so that it can be
recorded as a CUDA graph and done again; `repro.training.capture` does that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from repro.data.loader import Feed
from repro.losses import ClassificationLoss
from repro.training.metrics import EpochSums
from repro.training.optim import momentum_buffers
from repro.training.precision import Precision


@dataclass(frozen=True)
class TrainingStep:
    """A step; called with its batch's number of images. `compiled` has torch.compile fuse both modules."""

    network: nn.Module
    loss: ClassificationLoss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    precision: Precision
    feed: Feed
    sums: EpochSums
    compiled: bool = False

    def __call__(self, size: int) -> None:
        """Trains on the next `size` images and adds what was measured to the sums."""
        call = compiled_call() if self.compiled else _call
        images, labels = self.feed.batch(size)
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.autocast():
            features = call(self.network, images)
        features.retain_grad()
        value, logits = call(self.loss, features, labels)
        assert value is not None
        if self.scaler is None:
            value.backward()
            self.optimizer.step()
            gradient = features.grad
        else:
            self.scaler.scale(value).backward()
            # The scale as a tensor: get_scale() would wait for the device.
            gradient = features.grad.float() / self.scaler.scale(torch.ones((), device=labels.device))
            self.scaler.step(self.optimizer)
            self.scaler.update()
        assert gradient is not None
        logits = logits.detach()
        at_softmax = self.loss.softmax_gradient(logits, labels)
        self.sums.add(value.detach(), logits, at_softmax, features.detach(), gradient, images, labels)

    def weights(self) -> list[Tensor]:
        """The trained parameters of both modules."""
        modules = (self.network, self.loss)
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def statistics(self) -> list[Tensor]:
        """The running statistics of both modules."""
        modules = (self.network, self.loss)
        return [b for module in modules for b in module.buffers() if b.is_floating_point()]

    def written(self) -> list[Tensor]:
        """Every tensor outside itself that a step writes; the scaler's are its own affair."""
        modules = (self.network, self.loss)
        of_modules = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        return [*of_modules, *momentum_buffers(self.optimizer), self.sums.values, self.feed.position]


def _call(module: nn.Module, *inputs: Tensor) -> Any:
    return module(*inputs)


@cache
def compiled_call() -> Callable[..., Any]:
    """`_call` through torch.compile, one per process: modules of one kind share what was compiled.

    A module that cannot be compiled whole raises an error when it is called, rather than run uncompiled in
    part; and so does one too many.
    """
    from torch._dynamo import config  # slow to import, and seldom needed

    # Every loss of a column, for each of its batch sizes: beyond the default of 8 nothing more is compiled.
    # The name is that of torch 2.6, which later ones still take.
    config.cache_size_limit = 256
    return torch.compile(_call, dynamic=False, fullgraph=True)
