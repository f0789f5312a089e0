"""Seeds: every random number of a run is a pure function of (seed, purpose, epoch or step).

So a run's result does not depend on other runs in the process or on being resumed, no generator state has to
be saved, and seed k gives every loss of a column the same weights, order and augmentation.
"""

import hashlib

import torch


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed: sha256 of seed, purpose and index (an epoch or a step)."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator for one purpose in one epoch."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, index))
