"""SGD as the paper says: momentum 0.9, weight decay 5e-4 on every parameter, the lr dropped by epochs."""

import torch
from torch import nn

from repro.recipes import Recipe


def make_optimizer(network: nn.Module, loss: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD over the network's and the loss's parameters, in one group.

    The fused kernel updates all parameters at once on CPU and CUDA alike. Momentum is kept across lr drops.
    """
    parameters = [p for module in (network, loss) for p in module.parameters() if p.requires_grad]
    return torch.optim.SGD(
        parameters,
        lr=recipe.lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the lr of the epoch that begins."""
    for group in optimizer.param_groups:
        group["lr"] = lr
