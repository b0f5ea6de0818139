"""The networks and modules that the rows train; no data is read."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out))
        self.second = nn.Sequential(nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out))
        self.around = nn.Identity() if stride == 1 else nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.around(x))


def small_cnn(channels: int = 1, classes: int = 10) -> nn.Module:
    """A resnet of eight layers with 16, 32 and 64 channels: about 78 thousand parameters."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Block(16, 16, 1),
        Block(16, 32, 2),
        Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, classes),
    )


def mlp(width: int = 64, classes: int = 10) -> nn.Module:
    """Three linear layers."""
    return nn.Sequential(
        nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    )


class Classifier(L.LightningModule):
    """What a user's module looks like."""

    def __init__(self, network: nn.Module, *, lr: float = 1e-3) -> None:
        super().__init__()
        self.network = network
        self.lr = lr

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        inputs, target = batch
        return F.cross_entropy(self.network(inputs), target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


class Same(torch.utils.data.IterableDataset[Any]):
    """One batch, again and again: what is measured is the step."""

    def __init__(self, batch: Any, steps: int) -> None:
        self.batch = batch
        self.steps = steps

    def __iter__(self) -> Any:
        return (self.batch for _ in range(self.steps))


def images(n: int, size: int, *, channels: int = 3, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Random images and classes, the same each time."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, channels, size, size, generator=draw), torch.randint(classes, (n,), generator=draw)


def rows(n: int, width: int = 64, *, classes: int = 10) -> tuple[Tensor, Tensor]:
    """Random vectors and classes, the same each time."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(n, width, generator=draw), torch.randint(classes, (n,), generator=draw)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """A network with the same weights each time."""
    torch.manual_seed(0)
    return make()
