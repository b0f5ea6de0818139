"""Gradient alignment in dual-head distillation: backward passes through the backbone.

The released code asks for the gradients of both losses, projects, and goes backwards once more for the sum: three. Ours
asks for both, and its loss carries their weighted sum to the parameters by a function of autograd whose gradient is
that sum: two, and reducers, gradient scalers and accumulation see it as any other. The limit writes the sum to `.grad`
by hand, where none of them would. The memory that ours takes is that of K gradients and their sum, in float32. The
passes are counted at the first layer of the backbone.
"""

from functools import partial
from types import SimpleNamespace
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed._bench import Bench
from benchmarks.speed._memory import peak_of
from benchmarks.speed._nets import images, seeded, small_cnn
from lightning_objectives._step.gradients import Gradients
from lightning_objectives.combination import gradient_alignment

ONE, TWO, OURS, THREE = (
    "one backward pass of the plain sum",
    "both gradients, written to .grad",
    "GradientAlignment",
    "both gradients, then a backward pass, as released",
)


def run(bench: Bench) -> None:
    network, batch = _made(bench.tiny)
    network = network.to(bench.device)
    batch = tuple(part.to(bench.device) for part in batch)
    runs = {name: _step(name, network, batch) for name in (ONE, TWO, OURS, THREE)}
    bench.measure("resnet18 on 32x32, batch 64", runs, limit=TWO, repeats=5, warmup=1)
    found = []
    for name, step in runs.items():
        count = [0]
        first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
        handle = first.register_forward_hook(partial(_count, count))
        step()
        handle.remove()
        peak = None if bench.tiny else bench.apart(f"{__name__}:peak", threads=1, name=name) / 2**20
        found.append((name, count[0], peak))
    bench.figures(
        "backward passes and memory",
        ["", "backward passes through the backbone", "MiB at most"],
        found,
        targets=[("backward passes through the backbone", found[2][1], "<=", 2)],
    )


def _count(count: list[int], layer: nn.Module, inputs: Any, output: Tensor) -> None:
    def gone_through(gradient: Tensor) -> None:
        count[0] += 1

    output.register_hook(gone_through)


def _made(tiny: bool) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    if tiny:
        return seeded(lambda: small_cnn(3)), images(4, 8)
    return seeded(lambda: timm.create_model("resnet18", num_classes=10)), images(64, 32)


def _step(name: str, network: nn.Module, batch: Any) -> Any:
    inputs, target = batch
    parameters = list(network.parameters())
    running: Any = SimpleNamespace(module=network, trainer=SimpleNamespace(precision_plugin=None))

    def step() -> None:
        logits = network(inputs)
        own, term = F.cross_entropy(logits, target), logits.square().mean()
        network.zero_grad(set_to_none=True)
        if name == ONE:
            (own + term).backward()
            return
        if name == OURS:
            gradients = Gradients([own, term], running)
            gradients.weighted(gradient_alignment(gradients.rows)).backward()
            return
        rows = []
        for loss in (own, term):
            found = torch.autograd.grad(loss, parameters, retain_graph=name == THREE or loss is own)
            rows.append(torch.cat([gradient.flatten() for gradient in found]))
        gradients = torch.stack(rows)
        weights = gradient_alignment(gradients)
        if name == THREE:
            (weights[0] * own + weights[1] * term).backward()
            return
        joined = weights @ gradients
        for parameter, part in zip(parameters, joined.split([p.numel() for p in parameters])):
            parameter.grad = part.view_as(parameter)

    return step


def peak(name: str) -> float:
    """Bytes above the network."""
    network, batch = _made(False)
    return peak_of(_step(name, network, batch))["bytes"]
