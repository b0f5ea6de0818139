"""A step of sharpness-aware minimization: two forward and backward passes, and what lies around them.

Beside it are the same two passes by hand, in a module that optimizes by hand, and `pytorch_optimizer`'s SAM in the same
place. Both update BatchNorm twice and draw dropout anew, which ours does not.
"""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed._bench import Bench, Target
from benchmarks.speed._fits import compare_fits
from benchmarks.speed._nets import Classifier, images, mlp, rows, seeded
from lightning_objectives.callbacks import PerturbWeights
from lightning_objectives.perturbations import SAM

PLAIN, OURS, HAND, PEER = "one pass", "PerturbWeights(SAM())", "two passes by hand", "pytorch_optimizer SAM"


class ByHand(Classifier):
    """Two closures in a module that optimizes by hand."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        inputs, target = batch
        parameters = list(self.parameters())
        self.manual_backward(F.cross_entropy(self.network(inputs), target))
        with torch.no_grad():
            gradients = [parameter.grad for parameter in parameters]
            scale = 0.05 / (torch.stack(torch._foreach_norm(gradients)).norm() + 1e-12)
            copies = [parameter.clone() for parameter in parameters]
            torch._foreach_add_(parameters, torch._foreach_mul(gradients, scale))
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.network(inputs), target))
        with torch.no_grad():
            torch._foreach_copy_(parameters, copies)
        optimizer.step()
        optimizer.zero_grad()


class Wrapped(ByHand):
    """The peer's optimizer, as its page says."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        import pytorch_optimizer

        made: torch.optim.Optimizer = pytorch_optimizer.SAM(
            self.parameters(), torch.optim.SGD, rho=0.05, lr=self.lr, momentum=0.9
        )
        return made

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        inputs, target = batch
        self.manual_backward(F.cross_entropy(self.network(inputs), target))
        optimizer.optimizer.first_step(zero_grad=True)
        self.manual_backward(F.cross_entropy(self.network(inputs), target))
        optimizer.optimizer.second_step(zero_grad=True)


def run(bench: Bench) -> None:
    variants: dict[str, Callable[[], Sequence[Any]]] = {PLAIN: list, OURS: lambda: [PerturbWeights(SAM())], HAND: list}
    blank = []
    if bench.peer("pytorch_optimizer") is None:
        blank.append(PEER)
    else:
        variants[PEER] = list
    networks: dict[str, tuple[Callable[[], nn.Module], Any, int]] = {"MLP 64-64-64-10, batch 64": (mlp, rows(64), 200)}
    if not bench.tiny:
        resnet = lambda: timm.create_model("resnet18", num_classes=10)  # noqa: E731
        networks["resnet18 on 32x32, batch 64"] = (resnet, images(64, 32), 6)
    for name, (make, batch, steps) in networks.items():
        wrapped: dict[str, Callable[[], L.LightningModule]] = {
            HAND: lambda make=make: ByHand(seeded(make)),  # type: ignore[misc]  # a default
            PEER: lambda make=make: Wrapped(seeded(make)),  # type: ignore[misc]  # a default
        }
        compare_fits(
            bench,
            name,
            lambda make=make: Classifier(seeded(make)),  # type: ignore[misc]  # a default
            batch,
            variants,
            limit=PLAIN,
            steps=steps,
            repeats=7,
            skip=1,
            wrap=wrapped,
            blank=blank,
            targets=[Target(OURS, PLAIN, 2.1)],
        )
