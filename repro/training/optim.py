"""SGD as the paper says: momentum 0.9, weight decay 5e-4, the lr dropped by epochs."""

from typing import Any

import torch
from torch import Tensor, nn

from repro.config import Recipe


def make_optimizer(
    network: nn.Module,
    loss: nn.Module,
    recipe: Recipe,
    fused: bool = True,
    lr_device: torch.device | None = None,
) -> torch.optim.SGD:
    """SGD over the network's and the loss's parameters.

    Weight decay is on every parameter, the recipe's `weight_decay_on` being "all", or with "weights" only on
    those of two dimensions and more: not on biases, batch norm's γ and β, and other single numbers a channel.
    The fused kernel updates all parameters at once on CPU and CUDA alike; without it torch's foreach
    functions do. Momentum is kept across lr drops, and begins at zero rather than with a first step of
    another kind: 0.9 · 0 + g is g. With an `lr_device` the lr is a number there, which a recorded step reads
    anew.
    """
    parameters = [p for module in (network, loss) for p in module.parameters() if p.requires_grad]
    if recipe.weight_decay_on == "all":
        groups: list[dict[str, Any]] = [{"params": parameters}]
    else:
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2]},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    lr = recipe.lr if lr_device is None else torch.tensor(recipe.lr, dtype=torch.float32, device=lr_device)
    optimizer = torch.optim.SGD(
        groups,
        lr=lr,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        fused=fused,
        foreach=not fused,
    )
    if recipe.momentum:
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the lr of the epoch that begins; in place where it is a number on the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The momentum of a checkpoint; how this optimizer works, and where its lr lives, stay its own."""
    own = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        group.update({key: kept[key] for key in ("lr", "fused", "foreach")})


def momentum_buffers(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What a step changes beside the parameters."""
    return [state["momentum_buffer"] for state in optimizer.state.values() if "momentum_buffer" in state]
