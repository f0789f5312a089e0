"""What a device reaches on the two things that training is made of: matrix products, and copies."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_REPEATS = 5
_SIDE = {"cuda": 8192, "cpu": 2048}
_COPIED = {"cuda": 2**30, "cpu": 2**28}


@dataclass(frozen=True)
class Rates:
    """Measured: `matmul` in FLOP a second at the precision of the training, `copy` in bytes read plus bytes
    written a second."""

    matmul: float
    copy: float


def measure_rates(device: torch.device, precision: str) -> Rates:
    """The best of five of each: a square product of 8192 (CPU: 2048), a copy of 1 GiB (CPU: 256 MiB)."""
    return Rates(matmul=_matmul_rate(device, precision), copy=_copy_rate(device))


def _matmul_rate(device: torch.device, precision: str) -> float:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    side = _SIDE[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    return 2 * side**3 / _best(device, lambda: torch.mm(left, right, out=product))


def _copy_rate(device: torch.device) -> float:
    source = torch.ones(_COPIED[device.type], dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * source.numel() / _best(device, lambda: target.copy_(source))


def wait(device: torch.device) -> None:
    """Until what was launched is also done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _best(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of one call, the best of several after two that warm up; on a GPU of ten in a row."""
    calls = 10 if device.type == "cuda" else 1
    for _ in range(2):
        work()
    seconds = []
    for _ in range(_REPEATS):
        wait(device)
        began = time.perf_counter()
        for _ in range(calls):
            work()
        wait(device)
        seconds.append((time.perf_counter() - began) / calls)
    return min(seconds)
