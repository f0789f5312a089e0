"""Every random number of a run is a pure function of (seed, purpose, epoch).

So a run is the same alone or beside others, resumed or not; no generator's state needs saving, and seed k
gives every loss of a column the same weights, order and augmentation.
"""

import hashlib

import torch


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed from sha256 of seed, purpose and index (an epoch or a step)."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator for one purpose of one epoch."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, index))
