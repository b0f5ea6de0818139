"""One update of an average of the weights.

The limit is one in-place `lerp_` over one flat tensor of as many bytes: each weight read once, each average read and
written once. BEMA is measured as it is during a training, while nobody reads the corrected weights. Four averages move
9 tensors' worth of bytes at least (each average in and out, the weights once) where one moves 3.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import timm
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.speed._bench import Bench, Target
from benchmarks.speed._memory import resident
from benchmarks.speed._nets import Classifier, seeded, small_cnn
from lightning_objectives._weights.averages import Averages
from lightning_objectives.averaging import BEMA, EMA

LIMIT = "one lerp_ of as many bytes"
OURS = "EMA"
PEERS = {
    "Lightning EMAWeightAveraging": "lightning",
    "torch AveragedModel(multi_avg_fn)": "torch",
    "timm ModelEmaV3": "timm",
    "ema-pytorch": "ema_pytorch",
    "torch-ema": "torch_ema",
    "TRL BEMACallback": "trl",
}


def run(bench: Bench) -> None:
    networks: dict[str, Callable[[], nn.Module]] = {
        "resnet50 (98 MiB, 161 tensors)": lambda: timm.create_model("resnet50"),
        "small CNN (78 thousand weights)": small_cnn,
    }
    if bench.tiny:
        networks.pop("resnet50 (98 MiB, 161 tensors)")
    for name, make in networks.items():
        network = seeded(make).to(bench.device)
        runs, blank = variants(bench, network, make)
        targets = [Target(OURS, LIMIT, 1.10), Target("BEMA, not read", LIMIT, 1.10)]
        if "small" in name:
            # Where calls and not bytes are what costs, a ratio to one call of torch says nothing.
            targets = [Target(OURS, "", 0.08e-3, "seconds")]
        targets.append(Target("four averages", OURS, 2.5))
        size = sum(p.nbytes for p in network.parameters())
        moved = {key: (9 if key == "four averages" else 3) * size for key in runs}
        with torch.no_grad():
            bench.measure(name, runs, limit=LIMIT, targets=targets, repeats=21, blank=blank, moved=moved)
    bfloat16(bench)
    if not bench.tiny:
        memory(bench)


def averages(network: nn.Module, rules: dict[str, Any]) -> Callable[[], object]:
    """What the callback does after each optimizer step."""
    kept = Averages(network, rules)
    return lambda: kept.update(1)


def flat(network: nn.Module) -> Callable[[], object]:
    new, old = (torch.cat([p.detach().flatten() for p in network.parameters()]) for _ in range(2))
    return lambda: old.lerp_(new, 0.001)


def variants(
    bench: Bench, network: nn.Module, make: Callable[[], nn.Module]
) -> tuple[dict[str, Callable[[], object]], list[str]]:
    """What is timed, by name, and what is missing here."""
    four = {f"ema_{i}": EMA(decay=decay) for i, decay in enumerate((0.9, 0.99, 0.999, 0.9999))}
    runs = {
        LIMIT: flat(network),
        OURS: averages(network, {"ema": EMA()}),
        "BEMA, not read": averages(network, {"bema": BEMA()}),
        "four averages": averages(network, four),
    }
    blank = []
    for name, library in PEERS.items():
        if (library == "trl" and bench.peer("trl.trainer.callbacks") is None) or bench.peer(library) is None:
            blank.append(name)
        else:
            runs[name] = peer(name, network, make)
    return runs, blank


def peer(name: str, network: nn.Module, make: Callable[[], nn.Module]) -> Callable[[], object]:
    """One update by another library, as its own callback or class does it in a training."""
    if name == "Lightning EMAWeightAveraging":
        from lightning.pytorch.callbacks import EMAWeightAveraging

        module, callback = Classifier(network), EMAWeightAveraging()
        callback.setup(SimpleNamespace(), module, "fit")
        return lambda: callback._average_model.update_parameters(module)
    if name == "torch AveragedModel(multi_avg_fn)":
        averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        return lambda: averaged.update_parameters(network)
    if name == "timm ModelEmaV3":
        from timm.utils import ModelEmaV3

        theirs = ModelEmaV3(network, decay=0.999)
        return lambda: theirs.update(network)
    if name == "ema-pytorch":
        import ema_pytorch

        ema = ema_pytorch.EMA(
            network, beta=0.999, min_value=0.999, update_after_step=0, update_every=1, use_foreach=True
        )
        return ema.update
    if name == "torch-ema":
        from torch_ema import ExponentialMovingAverage

        shadow = ExponentialMovingAverage(network.parameters(), decay=0.999, use_num_updates=False)
        return lambda: shadow.update()
    from trl.trainer.callbacks import BEMACallback

    class Configured(nn.Module):  # it asks for a class that a configuration alone builds
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.config = config
            self.network = make()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return self.network(inputs)

    model = Configured(None).to(next(network.parameters()).device)
    bema = BEMACallback(device=str(next(network.parameters()).device))
    bema.on_train_begin(None, None, None, model=model)  # type: ignore[arg-type]  # it uses the model alone
    return lambda: bema._update_bema_weights(1000)


def bfloat16(bench: Bench) -> None:
    """A bfloat16 weight goes from 1 to 1.1015625 at once; where does its average stand after 5000 updates?"""
    updates = 10 if bench.tiny else 5000
    exact = 1 + 0.1015625 * (1 - 0.999 ** (updates - 1))  # the first update of an EMA copies

    def network() -> nn.Module:
        return nn.Linear(1, 1, bias=False).to(bench.device, torch.bfloat16)

    found: list[tuple[str, float]] = []
    for name in ("EMA", *PEERS):
        if name == "TRL BEMACallback":
            continue  # another rule
        if PEERS.get(name) is not None and bench.peer(PEERS[name]) is None:
            continue
        net = network()
        with torch.no_grad():
            net.weight.fill_(1.0)
            update = averages(net, {"ema": EMA()}) if name == "EMA" else peer(name, net, network)
            update()
            net.weight.fill_(1.1015625)
            for _ in range(updates - 1):
                update()
        found.append((name, value_of(update)))
    bench.figures(
        f"a bfloat16 weight's average after {updates} updates; exact {exact:.4f}",
        ["", "average", "off by"],
        [(name, value, abs(value - exact)) for name, value in found],
        targets=[("EMA off by", abs(found[0][1] - exact), "<=", 1e-4)],
    )


def value_of(update: Callable[[], Any]) -> float:
    """The one averaged weight that an update's closure, or its owner, holds."""
    owners = [cell.cell_contents for cell in (update.__closure__ or ())] if hasattr(update, "__closure__") else []
    owners += [*(update.__defaults__ or ())] if hasattr(update, "__defaults__") else []
    owners += [update.__self__] if hasattr(update, "__self__") else []
    for owner in owners:
        if isinstance(owner, Averages):
            return float(owner.states["ema"].slots["average"][0])
        held = getattr(owner, "_average_model", None) or owner
        for attribute in ("module", "ema_model"):
            if isinstance(getattr(held, attribute, None), nn.Module):
                return next(getattr(held, attribute).parameters()).item()
        if hasattr(held, "shadow_params"):
            return float(held.shadow_params[0])
    raise RuntimeError(f"{update} holds no average that is known here.")


def memory(bench: Bench) -> None:
    """What an average keeps, in copies of the model, each in a process of its own."""
    found = []
    for name in (OURS, "BEMA, not read", *PEERS):
        if PEERS.get(name) is None or name.split()[0] not in {peer.split()[0] for peer in bench.absent}:
            library = "trl.trainer.callbacks" if name.startswith("TRL") else PEERS.get(name, "torch")
            if bench.peer(library) is not None:
                found.append((name, bench.apart(f"{__name__}:kept", threads=1, name=name)))
    bench.figures("memory that is kept, in copies of the weights (resnet50)", ["", "copies"], found)


def kept(name: str) -> float:
    """Bytes that a variant holds after its second update, in copies of resnet50's weights."""

    def make() -> nn.Module:
        return timm.create_model("resnet50")

    network = make()
    if name.startswith("TRL"):
        from trl.trainer.callbacks import BEMACallback  # noqa: F401  # what an import takes is not the average's
    before = resident()
    rules = {OURS: {"ema": EMA()}, "BEMA, not read": {"bema": BEMA()}}
    update = averages(network, rules[name]) if name in rules else peer(name, network, make)
    with torch.no_grad():
        update()
        update()
    own = name.startswith("TRL")  # it builds a model of its own first, which is not the average's
    size = sum(p.nbytes for p in network.parameters())
    return (resident() - before) / size - own
