"""Two loops as others write them, on the same network and images: a plain one and a tuned one.

Plain is how public CIFAR scripts train: float32, a DataLoader with a worker per core, torchvision's
transforms on PIL images, torch's SGD as it comes, `.item()` at every step. Tuned is the same with what a
careful user adds: channels_last, bf16 (where the device has it) and torch.compile; it adds up its losses on
the device.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from repro.benchmark.case import Case
from repro.system import usable_cores
from repro.training.precision import Precision


class PictureDataset(Dataset[tuple[Tensor, int]]):
    """The training images as PIL images, transformed one at a time."""

    def __init__(self, case: Case) -> None:
        manifest = case.data.manifest
        # A copy of pixels in the layout of torchvision's CIFAR100, (N, H, W, 3): PIL reads it as it is.
        self._images = np.ascontiguousarray(case.data.train.images.transpose(0, 2, 3, 1))
        self._labels = case.data.train.labels
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(manifest.image_size, padding=case.config.recipe.crop_padding),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(manifest.mean, manifest.std),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._images[index])), int(self._labels[index])


def baseline(case: Case, precision: Precision, tuned: bool) -> Iterator[int]:
    """A script's loop, which trains a step per item: the images of that step. Tuned, it is in `precision`."""
    device, recipe = precision.device, case.config.recipe
    network, _ = case.build()
    features: int = network.feature_dim  # type: ignore[assignment]  # nn.Module's attributes have no types
    model: nn.Module = nn.Sequential(network, nn.Linear(features, case.data.manifest.classes)).to(device)
    layout = precision.memory_format if tuned else torch.contiguous_format
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision.name) if tuned else None
    model = model.to(memory_format=layout)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    run: Callable[[Tensor], Tensor] = torch.compile(model) if tuned else model
    loader = DataLoader(
        PictureDataset(case),
        batch_size=recipe.batch_size,
        shuffle=True,
        drop_last=True,  # a compiler would compile a short last batch separately
        num_workers=usable_cores(),
        pin_memory=device.type == "cuda",
        persistent_workers=True,
        multiprocessing_context="fork",  # Linux's default; this process was spawned and would spawn too
    )
    losses: Tensor | float = 0.0
    while True:
        for images, labels in loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            images = images.contiguous(memory_format=layout)
            optimizer.zero_grad()
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                loss = F.cross_entropy(run(images), labels)
            loss.backward()
            optimizer.step()
            losses += loss.detach() if tuned else loss.item()
            yield len(labels)
