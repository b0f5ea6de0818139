"""A survey of a network and its data, beside the same pass by hand.

By hand is a loop over the same loader: the counts of the classes need the labels alone, and the empirical Fisher
information a backward pass for each sample, here by `torch.func.vmap` over a batch. Without `empirical=True` there is
one for each sample and each of the 10 classes. All variants see the same 256 samples in batches of 64.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.speed._bench import Bench, Target
from benchmarks.speed._nets import images, seeded, small_cnn
from lightning_objectives.loops import survey_data
from lightning_objectives.surveys import ClassCounts, ClassMeans, Fisher

PASS, COUNTS, FISHER = "the network's forward passes alone", "class counts by hand", "Fisher by hand"


def run(bench: Bench) -> None:
    batches = 1 if bench.tiny else 4
    inputs, target = images(64, 28, channels=1)
    data = TensorDataset(inputs.repeat(batches, 1, 1, 1), target.repeat(batches))
    loader = DataLoader(data, batch_size=64)
    network = seeded(small_cnn).to(bench.device).eval()
    classes = network(inputs[:1].to(bench.device)).shape[1]

    def passes() -> None:
        with torch.no_grad():
            for x, _ in loader:
                network(x.to(bench.device))

    def counts() -> Tensor:
        total = torch.zeros(classes, dtype=torch.float64)
        for _, y in loader:
            total += torch.bincount(y, minlength=classes)
        return total

    def fisher() -> dict[str, Tensor]:
        params = {name: parameter.detach() for name, parameter in network.named_parameters()}
        buffers = dict(network.named_buffers())

        def loss(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(network, (values, buffers), (x[None],)), y[None])

        rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
        sums = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in params.items()}
        for x, y in loader:
            for name, gradient in rows(params, x.to(bench.device), y.to(bench.device)).items():
                sums[name] += gradient.double().square().sum(0)
        return {name: value / len(data) for name, value in sums.items()}

    def surveyed(survey: Callable[[], nn.Module]) -> Callable[[], object]:
        return lambda: survey_data(survey(), network, loader)  # type: ignore[arg-type]  # one of ours

    runs: dict[str, Callable[[], object]] = {
        PASS: passes,
        COUNTS: counts,
        "survey_data(ClassCounts())": surveyed(ClassCounts),
        "survey_data(ClassMeans())": surveyed(ClassMeans),
        FISHER: fisher,
        "survey_data(Fisher(empirical=True))": surveyed(lambda: Fisher(empirical=True)),
        "survey_data(Fisher())": surveyed(Fisher),
    }
    targets = [
        Target("survey_data(ClassCounts())", PASS, 1.2),
        Target("survey_data(ClassMeans())", PASS, 1.2),
        Target("survey_data(Fisher(empirical=True))", FISHER, 1.1),
    ]
    samples = f"{len(data)} samples, resnet of 8 layers on 1x28x28"
    bench.measure(samples, runs, limit=PASS, targets=targets, repeats=7, warmup=1)
