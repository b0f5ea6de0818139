"""The networks, and the one module that trains them: it knows of no method."""

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.quality.data import CLASSES
from lightning_objectives.schedules import WarmupStableSchedule, WSDSchedule


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        shortcut = [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.shortcut = nn.Identity() if same else nn.Sequential(*shortcut)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


def resnet8(width: int, *, pool: bool = True) -> nn.Sequential:
    """A ResNet of 8 layers and ``width`` to ``4 * width`` channels, on an eighth (or a quarter) of the resolution."""
    stem = [nn.Conv2d(1, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    blocks = [Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)]
    body = nn.Sequential(*stem, *([nn.MaxPool2d(2)] if pool else []), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return _with_head(body, nn.Linear(4 * width, CLASSES)).to(memory_format=torch.channels_last)


def mlp(width: int = 256) -> nn.Sequential:
    """Two layers before the dropout's place, and a head of two layers behind it, as in the paper's networks."""
    body = nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    return _with_head(body, nn.Sequential(nn.Linear(width, width // 2), nn.ReLU(), nn.Linear(width // 2, CLASSES)))


def _with_head(body: nn.Module, head: nn.Module) -> nn.Sequential:
    network = nn.Sequential()
    network.add_module("body", body)
    network.add_module("head", head)
    return network


class CharacterModel(nn.Module):
    """A causal transformer over characters."""

    def __init__(self, *, characters: int, context: int = 64, width: int = 64, layers: int = 1) -> None:
        super().__init__()
        self.characters = nn.Embedding(characters, width)
        self.places = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, characters)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.characters(x) + self.places
        for block in self.blocks:
            x = block(x, src_mask=self.mask, is_causal=True)
        return self.head(self.norm(x))


@dataclass(frozen=True)
class Recipe:
    """Optimizer and learning rate: ``decay`` is the part of the steps in which it falls to 0, by ``shape``."""

    lr: float
    optimizer: str = "sgd"
    weight_decay: float = 5e-4
    warmup: float = 0.1
    decay: float = 0.9
    shape: str = "cosine"

    def configure(self, parameters: Any, steps: int) -> dict[str, Any]:
        settings: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.optimizer == "sgd":
            optimizer: Any = torch.optim.SGD(parameters, momentum=0.9, nesterov=True, **settings)
        else:
            optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), **settings)
        warmup, decay = round(self.warmup * steps), round(self.decay * steps)
        if decay == 0:
            schedule: Any = WarmupStableSchedule(optimizer, warmup_steps=warmup)
        else:
            lengths = {"warmup_steps": warmup, "stable_steps": steps - warmup - decay, "decay_steps": decay}
            schedule = WSDSchedule(optimizer, shape=self.shape, **lengths)  # type: ignore[arg-type]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Module(L.LightningModule):
    """Cross entropy of a network, as anyone would write it; ``label_weight`` 0 leaves only what is added to it."""

    def __init__(self, network: nn.Module, recipe: Recipe, *, steps: int, label_weight: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.steps = steps
        self.label_weight = label_weight

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, target = batch
        loss = F.cross_entropy(self(inputs).flatten(0, -2), target.flatten())
        return loss if self.label_weight == 1 else self.label_weight * loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, target = batch
        F.cross_entropy(self(inputs).flatten(0, -2), target.flatten())  # LogMetrics reads it here

    def configure_optimizers(self) -> Any:
        return self.recipe.configure(self.parameters(), self.steps)
