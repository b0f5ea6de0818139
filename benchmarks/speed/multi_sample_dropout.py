"""Multi-sample dropout at the head: M = 8, batch 256, forward and backward with the loss.

The limit is the matrix products that M heads cannot do without: forward, to the weights, to the features.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed._bench import Bench, Target
from benchmarks.speed._memory import peak_of
from lightning_objectives.heads import multi_sample_dropout

LIMIT, OURS, PLAIN = "the matrix products alone", "multi_sample_dropout", "plain head"
LOOP = "a loop of 8 heads and losses"


def run(bench: Bench) -> None:
    widths, batch, classes = ((8,), 4, 5) if bench.tiny else ((512, 2048), 256, 1000)
    for width in widths:
        runs = variants(width, batch, classes, bench.device)
        bench.measure(
            f"{width} -> {classes}",
            runs,
            limit=LIMIT,
            repeats=11,
            warmup=2,
            targets=[Target(OURS, LIMIT, 1.35)],
        )
    if bench.tiny:
        return
    for width in widths:
        settings = {"width": width, "batch": batch, "classes": classes}
        found = [
            (n, bench.apart(f"{__name__}:peak", threads=1, name=n, **settings) / 2**20) for n in (PLAIN, OURS, LOOP)
        ]
        one = 8 * batch * classes * 4 / 2**20
        # what 8 heads must keep at once: their logits; one more of these is what the target allows
        found.append(("for scale: the logits of 8 heads, once", one))
        bench.figures(f"{width} -> {classes}: peak memory", ["", "MiB at most"], found)


def variants(width: int, batch: int, classes: int, device: str = "cpu") -> dict[str, Callable[[], None]]:
    head = nn.Linear(width, classes).to(device)
    features = torch.randn(batch, width, device=device, requires_grad=True)
    target = torch.randint(classes, (batch,), device=device)
    many = torch.randn(8 * batch, width, device=device)
    gradient = torch.randn(8 * batch, classes, device=device)
    logits, to_weight, to_many = torch.empty_like(gradient), torch.empty(classes, width), torch.empty_like(many)
    to_weight = to_weight.to(device)

    def clear() -> None:
        head.zero_grad(set_to_none=True)
        features.grad = None

    def products() -> None:
        with torch.no_grad():
            torch.mm(many, head.weight.T, out=logits)
            torch.mm(gradient.T, many, out=to_weight)
            torch.mm(gradient, head.weight, out=to_many)

    def plain() -> None:
        clear()
        F.cross_entropy(head(F.dropout(features, 0.3)), target).backward()

    def loop() -> None:
        clear()
        losses = [F.cross_entropy(head(F.dropout(features, 0.3)), target) for _ in range(8)]
        torch.stack(losses).mean().backward()

    def loss(stacks: Tensor) -> Tensor:  # as the engine takes it: the mean of the stacks' losses
        return torch.stack([F.cross_entropy(stack, target, reduction="none") for stack in stacks]).mean(0).mean()

    def ours() -> None:
        clear()
        loss(multi_sample_dropout(features, head, num_samples=8, p=0.3)).backward()

    return {LIMIT: products, PLAIN: plain, OURS: ours, LOOP: loop}


def peak(name: str, width: int, batch: int, classes: int) -> float:
    """Bytes above the head and the features, gradients included."""
    run = variants(width, batch, classes)[name]
    return max(peak_of(run)["bytes"] for _ in range(3))
