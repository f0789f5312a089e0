"""Two loops as others write them, on the same network and images: a plain one and a tuned one.

Plain is how public CIFAR scripts train: float32, a DataLoader with a worker a core, torchvision's transforms
on PIL images, torch's SGD as it comes, `.item()` at every step. Tuned is the same with what a careful user
adds: channels_last, bf16 (where the device has it) and torch.compile; it adds up its losses on the device.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from repro.benchmark.rates import wait
from repro.benchmark.subject import Subject
from repro.system import usable_cores
from repro.training.loop import build
from repro.training.precision import Precision


class PictureDataset(Dataset[tuple[Tensor, int]]):
    """The training images as PIL images, transformed one at a time."""

    def __init__(self, subject: Subject) -> None:
        manifest = subject.data.manifest
        # A copy of pixels in the layout of torchvision's CIFAR100, (N, H, W, 3): PIL reads it as it is.
        self._images = np.ascontiguousarray(subject.data.train.images.transpose(0, 2, 3, 1))
        self._labels = subject.data.train.labels
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(manifest.image_size, padding=subject.config.recipe.crop_padding),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(manifest.mean, manifest.std),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), int(self._labels[index])


@dataclass
class RivalLoop:
    """A script's loop; `preparing` are the seconds until its first step was done, compiling among them."""

    subject: Subject
    precision: Precision
    tuned: bool
    preparing: float = 0.0
    losses: Any = field(default=0.0, repr=False)

    def start(self) -> Callable[[], int]:
        """Trains a first step; the rest a step a call."""
        began = time.perf_counter()
        device, recipe = self.precision.device, self.subject.config.recipe
        manifest = self.subject.data.manifest
        network, _ = build(self.subject.config, manifest.image_size, manifest.classes)
        features: int = network.feature_dim  # type: ignore[assignment]  # nn.Module's attributes have no types
        model: nn.Module = nn.Sequential(network, nn.Linear(features, manifest.classes)).to(device)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.precision.name)
        if self.tuned:
            model = model.to(memory_format=self.precision.memory_format)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        run: Callable[[Tensor], Tensor] = torch.compile(model) if self.tuned else model
        batches = self._batches()

        def step() -> int:
            images, labels = next(batches)
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            if self.tuned:
                images = images.contiguous(memory_format=self.precision.memory_format)
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=dtype, enabled=self.tuned and dtype is not None):
                loss = F.cross_entropy(run(images), labels)
            loss.backward()
            optimizer.step()
            self.losses += loss.detach() if self.tuned else loss.item()
            return len(labels)

        step()
        wait(device)
        self.preparing = time.perf_counter() - began
        return step

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Epoch after epoch; the short last batch is left out, as a compiler would compile it anew."""
        loader = DataLoader(
            PictureDataset(self.subject),
            batch_size=self.subject.config.recipe.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=usable_cores(),
            pin_memory=self.precision.device.type == "cuda",
            persistent_workers=True,
            multiprocessing_context="fork",  # Linux's default; this process was spawned and would spawn too
        )
        while True:
            yield from loader
