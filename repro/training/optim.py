"""SGD as the paper says: momentum 0.9, weight decay 5e-4, the lr dropped by epochs."""

from typing import Any

import torch
from torch import nn

from repro.recipes import Recipe


def make_optimizer(network: nn.Module, loss: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD over the network's and the loss's parameters.

    Weight decay is on every parameter, the recipe's `weight_decay_on` being "all", or with "weights" only on
    those of two dimensions and more: not on biases, batch norm's γ and β, and other single numbers a channel.
    The fused kernel updates all parameters at once on CPU and CUDA alike. Momentum is kept across lr drops.
    """
    parameters = [p for module in (network, loss) for p in module.parameters() if p.requires_grad]
    if recipe.weight_decay_on == "all":
        groups: list[dict[str, Any]] = [{"params": parameters}]
    else:
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    return torch.optim.SGD(
        groups,
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
