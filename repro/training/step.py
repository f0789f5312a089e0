"""One step of SGD, entirely on the device: batch, forward, backward, update and metrics.

It reads no tensor value on the host and gets nothing from the host but the batch size, so that
`repro.training.cuda_graph` can capture it as a CUDA graph and replay it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from repro.data.loader import BatchStream
from repro.losses import ClassificationLoss
from repro.training.metrics import EpochSums
from repro.training.optim import momentum_buffers
from repro.training.precision import Precision


@dataclass(frozen=True)
class TrainingStep:
    """A training step, called with the number of images in its batch.

    With `compiled`, torch.compile fuses the operations of network and loss.
    """

    network: nn.Module
    loss: ClassificationLoss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    precision: Precision
    batches: BatchStream
    sums: EpochSums
    compiled: bool = False

    def __call__(self, size: int) -> None:
        """Trains on the next `size` images and adds their metrics to the sums."""
        call = compiled_call() if self.compiled else _call
        images, labels = self.batches.next_batch(size)
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
            # The scale as a tensor, because get_scale() would wait for the device.
            gradient = features.grad.float() / self.scaler.scale(torch.ones((), device=labels.device))
            self.scaler.step(self.optimizer)
            self.scaler.update()
        assert gradient is not None
        logits = logits.detach()
        at_softmax = self.loss.softmax_gradient(logits, labels)
        self.sums.add(value.detach(), logits, at_softmax, features.detach(), gradient, images, labels)

    def weights(self) -> list[Tensor]:
        """The trainable parameters of network and loss."""
        modules = (self.network, self.loss)
        return [p for module in modules for p in module.parameters() if p.requires_grad]

    def statistics(self) -> list[Tensor]:
        """The running statistics of network and loss."""
        modules = (self.network, self.loss)
        return [b for module in modules for b in module.buffers() if b.is_floating_point()]

    def written(self) -> list[Tensor]:
        """All tensors that a step writes and that outlive it, except the scaler's."""
        modules = (self.network, self.loss)
        of_modules = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        return [*of_modules, *momentum_buffers(self.optimizer), self.sums.values, self.batches.position]


def _call(module: nn.Module, *inputs: Tensor) -> Any:
    return module(*inputs)


@cache
def compiled_call() -> Callable[..., Any]:
    """`_call` through torch.compile, once per process: modules of the same kind share compiled code.

    A call raises an error if its module cannot be compiled as a whole, or if the cache limit is exceeded.
    """
    from torch._dynamo import config  # slow to import and rarely needed

    # One process compiles every loss of a column for each of its batch sizes; the default of 8 is too low.
    # The option is called so in torch 2.6; later versions accept this name too.
    config.cache_size_limit = 256
    # fullgraph: an error instead of silently running a part of the module uncompiled.
    return torch.compile(_call, dynamic=False, fullgraph=True)
