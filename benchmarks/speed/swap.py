"""To the averaged weights and back, as at each validation.

What stands in the module and what is averaged change places, tensor by tensor: each is read and written once, each way,
and no copy of the model is kept. The limit does that with two flat tensors of as many bytes, in pieces that stay in the
cache. Lightning's own callback clones every tensor on the way.
"""

from types import SimpleNamespace

import timm
import torch

from benchmarks.speed._bench import Bench, Target
from benchmarks.speed._memory import peak_of, resident
from benchmarks.speed._nets import Classifier, seeded, small_cnn
from lightning_objectives._weights.averages import Averages
from lightning_objectives.averaging import BEMA, EMA

LIMIT, OURS = "two flat tensors change places, in pieces", "EMA"


def run(bench: Bench) -> None:
    network = seeded(small_cnn if bench.tiny else lambda: timm.create_model("resnet50")).to(bench.device)
    runs = {LIMIT: flat(network), OURS: ours(network, EMA()), "BEMA": ours(network, BEMA())}
    runs["Lightning EMAWeightAveraging"] = theirs(network)
    # each way both are read and written
    moved = dict.fromkeys(runs, 8 * sum(p.nbytes for p in network.parameters()))
    targets = [Target(OURS, LIMIT, 1.1)]
    with torch.no_grad():
        bench.measure("resnet50, in and out", runs, limit=LIMIT, targets=targets, repeats=21, moved=moved)
    if bench.tiny:
        return
    found = [(name, *bench.apart(f"{__name__}:held", threads=1, name=name)) for name in (OURS, "BEMA", "Lightning")]
    bench.figures(
        "memory of the second swap, in copies of the weights (resnet50)",
        ["", "at most, on the way", "kept afterwards, by both swaps"],
        found,
        targets=[("EMA, at most, of one model", found[0][1], "<=", 0.15)],
    )


def flat(network: torch.nn.Module):
    one, other = (torch.cat([p.detach().flatten() for p in network.parameters()]) for _ in range(2))
    piece = min(len(one), 2**19)
    spare = torch.empty(piece, device=one.device)

    def there() -> None:
        for a, b in zip(one.split(piece), other.split(piece)):
            held = spare[: len(a)].copy_(a)
            a.copy_(b)
            b.copy_(held)

    def both() -> None:
        there()
        there()

    return both


def ours(network: torch.nn.Module, rule):
    averages = Averages(network, {"average": rule})
    averages.update(1)

    def both() -> None:
        averages.swap_in("average", exchange=True)
        averages.swap_out()

    return both


def theirs(network: torch.nn.Module):
    from lightning.pytorch.callbacks import EMAWeightAveraging

    module, callback = Classifier(network), EMAWeightAveraging()
    callback.setup(SimpleNamespace(), module, "fit")

    def both() -> None:
        callback._swap_models(module)
        callback._swap_models(module)

    return both


def held(name: str) -> tuple[float, float]:
    """The memory that swapping takes, in copies of the weights."""
    network = timm.create_model("resnet50")
    size = sum(p.nbytes for p in network.parameters())
    both = theirs(network) if name == "Lightning" else ours(network, EMA() if name == "EMA" else BEMA())
    with torch.no_grad():
        before = resident()
        both()
        after = resident()
        peak = peak_of(both)["bytes"]
    return peak / size, (after - before) / size
