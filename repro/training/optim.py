"""SGD as in the paper: momentum 0.9, weight decay 5e-4, lr drops at given epochs."""

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
    """SGD over the parameters of the network and the loss.

    With the recipe's `weight_decay_on` "all", weight decay applies to every parameter; with "weights" only to
    those of two or more dimensions: not to biases, batch norm's γ and β, and other per-channel numbers.
    `fused` updates all parameters in one kernel, on CPU and CUDA alike; otherwise torch's foreach functions
    do. With an `lr_device` the lr is a float32 tensor there, which a captured step reads at every launch.
    Momentum is kept across lr drops.
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
        # torch takes another path in a first step without buffers, and a graph would contain that path. From
        # zeros the result is the same: 0.9 · 0 + g is g.
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the lr; in place where it is a tensor, whose address a captured step knows."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads the momentum of a checkpoint; this optimizer keeps its own lr tensor and its kind of kernel."""
    own = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        group.update({key: kept[key] for key in ("lr", "fused", "foreach")})


def momentum_buffers(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What a step changes besides the parameters."""
    return [state["momentum_buffer"] for state in optimizer.state.values() if "momentum_buffer" in state]
