"""What methods ask of a step: a second pass, a memory, a reference, hidden and changed layers, several criteria.

Beside each is the same step by hand, written into the module. Two criteria are two cross entropies on the same logits,
so that the plain step of theirs has another loss; its passes through the network are those of the plain step.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed._bench import Bench, Target
from benchmarks.speed._fits import compare_fits
from benchmarks.speed._nets import Classifier, images, seeded, small_cnn
from lightning_objectives.callbacks import AddRegularizer, ChangeLayers, CombineTerms, Distill, Refer, ReweightSamples
from lightning_objectives.combination import PCGrad, UncertaintyWeighting
from lightning_objectives.data.with_index import Indexed
from lightning_objectives.distillation import FitNets
from lightning_objectives.regularizers import L2SP, EarlyLearningRegularization, RDrop
from lightning_objectives.surgery import StochasticDepth
from lightning_objectives.weighting import DRRho

SAMPLES = 50_000


def symmetric(a: Tensor, b: Tensor) -> Tensor:
    log_a, log_b = a.log_softmax(1), b.log_softmax(1)
    return ((log_a.exp() - log_b.exp()) * (log_a - log_b)).sum(1).mean() / 2


class TwoPasses(Classifier):
    """R-Drop by hand."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, target = batch
        first, second = self.network(inputs), self.network(inputs)
        return F.cross_entropy(first, target) + symmetric(first, second)


class Remembering(Classifier):
    """Early-learning regularization by hand, with a tensor of all samples."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.register_buffer("memory", torch.zeros(SAMPLES, 10))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, target = batch
        index = torch.arange(len(target), device=target.device)
        logits = self.network(inputs)
        p = logits.softmax(1).clamp(1e-4, 1 - 1e-4)
        kept = 0.7 * self.memory[index] + 0.3 * p.detach() / p.detach().sum(1, keepdim=True)
        self.memory[index] = kept
        return F.cross_entropy(logits, target) + 3 * (1 - (kept * p).sum(1)).log().mean()


class Pulled(Classifier):
    """L2-SP by hand."""

    def on_fit_start(self) -> None:
        self.start = [parameter.detach().clone() for parameter in self.network.parameters()]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        pulls = [(w - s).square().sum() for w, s in zip(self.network.parameters(), self.start)]
        return super().training_step(batch, batch_idx) + 0.005 * torch.stack(pulls).sum()


class Referring(Classifier):
    """Weights by the excess over the start, by hand."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.start = copy.deepcopy(network).eval().requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, target = batch
        losses = F.cross_entropy(self.network(inputs), target, reduction="none")
        with torch.no_grad():
            excess = losses - F.cross_entropy(self.start(inputs), target, reduction="none")
        return (excess.softmax(0) * losses).sum()


class Hinted(Classifier):
    """Hints by hand."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.teacher = small_cnn().eval().requires_grad_(False)
        self.projection = nn.Conv2d(32, 32, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, target = batch
        network: Any = self.network
        maps = network[:5](inputs)
        with torch.no_grad():
            hints = self.teacher[:5](inputs)  # type: ignore[index]  # a Sequential
            self.teacher[5:](hints)  # type: ignore[index]  # the whole teacher, as the callback runs it
        return F.cross_entropy(network[5:](maps), target) + F.mse_loss(self.projection(maps), hints)


class Dropping(Classifier):
    """Stochastic depth of one layer by hand."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, target = batch
        network: Any = self.network
        maps = network[:5](inputs)
        maps = maps * (maps.new_empty(len(maps), 1, 1, 1).bernoulli_(0.8) / 0.8)
        return F.cross_entropy(network[5:](maps), target)


class TwoTasks(Classifier):
    """Two criteria."""

    def terms(self, batch: Any) -> tuple[Tensor, Tensor]:
        inputs, target = batch
        logits = self.network(inputs)
        return F.cross_entropy(logits, target), F.cross_entropy(logits, (target + 1) % 10)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return sum(self.terms(batch))  # type: ignore[return-value]  # a tensor


class Projecting(TwoTasks):
    """PCGrad by hand."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        params = list(self.parameters())
        rows = [
            torch.cat([g.flatten() for g in torch.autograd.grad(term, params, retain_graph=True)])
            for term in self.terms(batch)
        ]
        dot = rows[0] @ rows[1]
        if dot < 0:
            first = rows[0] - dot / rows[1].square().sum() * rows[1]
            rows = [first, rows[1] - dot / rows[0].square().sum() * rows[0]]
        pieces = torch.split(rows[0] + rows[1], [p.numel() for p in params])
        return torch.stack([(p * piece.view_as(p)).sum() for p, piece in zip(params, pieces)]).sum()


def run(bench: Bench) -> None:
    inputs, target = images(64, 28, channels=1)
    batch = Indexed((inputs, target), torch.arange(64))
    pairs: dict[str, tuple[Callable[[], Sequence[Any]], type[Classifier]]] = {
        "AddRegularizer(RDrop())": (lambda: [AddRegularizer(RDrop())], TwoPasses),
        "AddRegularizer(EarlyLearningRegularization())": (
            lambda: [AddRegularizer(EarlyLearningRegularization(), samples=SAMPLES)],
            Remembering,
        ),
        "AddRegularizer(L2SP()), Refer()": (lambda: [AddRegularizer(L2SP()), Refer()], Pulled),
        "ReweightSamples(DRRho()), Refer()": (lambda: [ReweightSamples(DRRho()), Refer()], Referring),
        "Distill(FitNets())": (
            lambda: [Distill(FitNets(), teacher=small_cnn(), layers="network.4", teacher_layers="4")],
            Hinted,
        ),
        "ChangeLayers(StochasticDepth())": (
            lambda: [ChangeLayers(StochasticDepth(rate=0.2), layers="network.4")],
            Dropping,
        ),
    }
    variants: dict[str, Callable[[], Sequence[Any]]] = {"the plain step": list}
    wrap: dict[str, Callable[[], L.LightningModule]] = {}
    targets = []
    for name, (callbacks, by_hand) in pairs.items():
        hand = f"{by_hand.__name__}, by hand"
        variants |= {name: callbacks, hand: list}
        wrap[hand] = lambda by_hand=by_hand: by_hand(seeded(small_cnn))  # type: ignore[misc]  # a default
        targets.append(Target(name, hand, 1.1))
    tasks: dict[str, Callable[[], Sequence[Any]]] = {
        "two criteria, the plain step": list,
        "CombineTerms(UncertaintyWeighting(), criteria=True)": lambda: [
            CombineTerms(UncertaintyWeighting(tasks=["classification"] * 2), criteria=True)
        ],
        "CombineTerms(PCGrad(), criteria=True)": lambda: [CombineTerms(PCGrad(), criteria=True)],
        "PCGrad by hand": list,
    }
    for name in tasks:
        module = Projecting if name == "PCGrad by hand" else TwoTasks
        wrap[name] = lambda module=module: module(seeded(small_cnn))  # type: ignore[misc]  # a default
    targets += [
        Target("CombineTerms(UncertaintyWeighting(), criteria=True)", "two criteria, the plain step", 1.1),
        Target("CombineTerms(PCGrad(), criteria=True)", "PCGrad by hand", 1.1),
    ]
    compare_fits(
        bench,
        "resnet of 8 layers on 1x28x28, batch 64",
        lambda: Classifier(seeded(small_cnn)),
        batch,
        variants | tasks,
        limit="the plain step",
        steps=40,
        repeats=7,
        targets=targets,
        wrap=wrap,
        unwrap=[name for name in (*variants, *tasks) if "EarlyLearning" not in name],
    )
