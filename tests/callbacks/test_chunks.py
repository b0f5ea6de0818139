"""Large logits in chunks of rows: the values and the gradients are those of the whole."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, equal, fit
from torch import nn

from lightning_objectives._step import chunks
from lightning_objectives._step.calls import TorchCall
from lightning_objectives._step.chunks import by_rows
from lightning_objectives.callbacks import AddRegularizer, CombineTerms, Distill, ReplaceLoss, ReweightSamples
from lightning_objectives.combination import GradientAlignment
from lightning_objectives.discovery import methods
from lightning_objectives.distillation import DualHead, VanillaKD
from lightning_objectives.kinds import Distillation, Loss, Regularizer
from lightning_objectives.losses import DiceLoss, FocalLoss, LDRLoss, LovaszSoftmaxLoss, MannWhitneyLoss
from lightning_objectives.regularizers import LogPartitionPenalty
from lightning_objectives.signals import signals_of
from lightning_objectives.testing import build, example_signals
from lightning_objectives.weighting import LossBasedReweighting

BY_ROWS = [cls for _, cls in methods() if issubclass(cls, (Loss, Distillation, Regularizer)) and not cls.coupled]
ROWS = ("logits", "reference_logits", "target", "teacher_logits")


@pytest.fixture
def sizes(monkeypatch):
    """Everything is large, and chunks have two rows of three classes; notes the rows of each chunk."""
    monkeypatch.setattr(chunks, "LARGE", 0)
    monkeypatch.setattr(chunks, "CHUNK", {"cpu": 7})
    return []


def noting(method, sizes):
    """Notes how many rows each call has."""
    method.register_forward_hook(lambda module, args, kwargs, output: sizes.append(len(output)), with_kwargs=True)
    return method


@pytest.mark.parametrize("kept", [None, torch.tensor([0, 2, 3, 6])], ids=["all rows", "some rows"])
@pytest.mark.parametrize("cls", BY_ROWS, ids=lambda cls: cls.__name__)
def test_every_method_gives_the_values_and_gradients_of_the_whole(cls, kept, sizes):
    signals = example_signals(rows=7)
    names = signals_of(build(cls))
    if "logits" not in names or {"again", "generator", "features", "mask", "memory"} & {*names}:
        return  # It is left whole.
    factors = torch.rand(7 if kept is None else 4, dtype=torch.float64)
    results = []
    for large in (0, 10**9):
        chunks.LARGE = large
        logits = signals["logits"].clone().requires_grad_()
        rows = {name: logits if name == "logits" else signals[name] for name in names if name in ROWS}
        others = {name: signals[name] for name in names if name not in ROWS}
        method = noting(build(cls), sizes)
        values = by_rows(method, rows, others, kept)
        (values * factors).sum().backward()
        results.append((values.detach(), logits.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-9)
    assert max(sizes[:-1]) == 2
    assert sizes[-1] == len(factors)


SAMPLES = [cls for cls in BY_ROWS if getattr(cls, "unit", "") == "sample" and "generator" not in signals_of(build(cls))]


@pytest.mark.parametrize("cls", SAMPLES, ids=lambda cls: cls.__name__)
def test_losses_of_whole_samples_give_the_values_and_gradients_of_the_whole(cls, sizes, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", {"cpu": 2 * 3 * 5 + 1})  # Two samples of three classes at five positions.
    generator, factors, results = torch.Generator().manual_seed(0), torch.rand(7, dtype=torch.float64), []
    logits, reference = (torch.randn(7, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    mask, target = torch.rand(7, 5, generator=generator) < 0.7, torch.randint(3, (7, 5), generator=generator)
    rows = {"logits": logits.requires_grad_(), "target": target, "mask": mask, "reference_logits": reference}
    rows = {name: rows[name] for name in signals_of(build(cls)) if name in rows}
    for large in (0, 10**9):
        chunks.LARGE = large
        values = by_rows(noting(build(cls), sizes), rows, {})
        results.append((values.detach(), *torch.autograd.grad((values * factors).sum(), logits)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-9)
    assert sizes == [2, 2, 2, 1, 7]


@pytest.mark.parametrize("cls", [DiceLoss, LovaszSoftmaxLoss], ids=lambda cls: cls.__name__)
def test_the_regions_of_a_whole_batch_are_left_whole(cls, sizes):
    loss = noting(cls(whole_batch=True), sizes)
    by_rows(loss, {"logits": torch.randn(5, 3, 4).requires_grad_(), "target": torch.zeros(5, 4).long()}, {})
    assert sizes == [5]


def test_the_graph_may_be_used_twice_if_it_is_kept(sizes):
    logits = torch.randn(5, 3, dtype=torch.float64).requires_grad_()
    target = torch.tensor([0, 1, 2, 0, 1])
    loss = by_rows(LDRLoss(), {"logits": logits, "target": target}, {}).mean()
    first = torch.autograd.grad(loss, logits, retain_graph=True)
    second = torch.autograd.grad(2 * loss, logits)
    torch.testing.assert_close(first[0] * 2, second[0])


def test_a_second_derivative_is_refused(sizes):
    logits = torch.randn(5, 3).requires_grad_()
    value = by_rows(LogPartitionPenalty(), {"logits": logits}, {}).sum()
    with pytest.raises(RuntimeError, match=r"LogPartitionPenalty\(\).*create_graph=True.*lambda logits: \.\.\."):
        torch.autograd.grad(value, logits, create_graph=True)


class Weighted(LDRLoss):
    """Has a parameter, whose gradient chunks do not give."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, logits, target):
        return self.scale * super().forward(logits, target)


@pytest.mark.parametrize(
    "method",
    [MannWhitneyLoss(), Weighted(), lambda logits, target: F.cross_entropy(logits, target, reduction="none")],
    ids=["coupled", "with a parameter", "a plain function"],
)
def test_others_are_left_whole(method, sizes):
    logits = torch.randn(5, 3).requires_grad_()
    noted = []
    if isinstance(method, nn.Module):
        noting(method, noted)
    by_rows(method, {"logits": logits, "target": torch.tensor([0, 1, 1, 0, 1])}, {}).sum().backward()
    assert logits.grad is not None
    assert set(noted) <= {5}


def test_without_a_gradient_nothing_is_kept(sizes):
    noted, logits = [], torch.randn(5, 3)
    by_rows(noting(LDRLoss(), noted), {"logits": logits, "target": torch.tensor([0, 1, 2, 0, 1])}, {})
    assert noted == [5]


class Ignoring(Net):
    def criterion(self, logits, y):
        return F.cross_entropy(logits, y, ignore_index=1)


class Reduced(Net):
    def criterion(self, logits, y):
        return F.cross_entropy(logits, y, reduction="none").sum() / 4


TRAININGS = {
    "a distillation": lambda: [Distill(VanillaKD(), teacher=Net())],
    "a head of its own": lambda: [Distill(DualHead(), teacher=Net())],
    "a loss": lambda: [ReplaceLoss(LDRLoss())],
    "a penalty": lambda: [AddRegularizer(LogPartitionPenalty(), strength=0.1)],
    "everything": lambda: [
        ReplaceLoss(FocalLoss()),
        ReweightSamples(LossBasedReweighting()),
        Distill(VanillaKD(), teacher=Net()),
        AddRegularizer(LogPartitionPenalty(), strength=0.1),
    ],
    "gradients by term": lambda: [AddRegularizer(LogPartitionPenalty()), CombineTerms(GradientAlignment())],
}


@pytest.mark.parametrize("net", [Ignoring, Net, Reduced], ids=lambda net: net.__name__)
@pytest.mark.parametrize("name", sorted(TRAININGS))
def test_trainings_are_the_same(name, net, monkeypatch):
    torch.manual_seed(1)
    whole = TRAININGS[name]()
    torch.manual_seed(1)
    parts = TRAININGS[name]()
    first, _ = fit(*whole, net=net)
    monkeypatch.setattr(chunks, "LARGE", 0)
    monkeypatch.setattr(chunks, "CHUNK", {"cpu": 7})
    noted = []
    noting(parts[0].method, noted)
    second, _ = fit(*parts, net=net)
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=1e-5, atol=1e-6)
    assert max(noted) <= 2
    assert not equal(second, fit(net=net)[0])


OPTIONS = {
    "plain": {},
    "class weights": {"weight": torch.tensor([1.0, 2.0, 0.5])},
    "smoothed": {"label_smoothing": 0.1, "ignore_index": 2},
    "a sum": {"reduction": "sum"},
    "no reduction": {"reduction": "none"},
}


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_criterion_beside_a_penalty_is_in_chunks_too(options, soft, sizes, monkeypatch):
    class Optional(Net):
        def criterion(self, logits, y):
            target = F.one_hot(y, 3) * 0.8 + 0.1 if soft else y
            given = {**options, "ignore_index": -100} if soft else options
            return F.cross_entropy(logits, target, **given).mean()

    counted = []
    apply = chunks._InChunks.apply
    monkeypatch.setattr(chunks._InChunks, "apply", lambda *args: counted.append(args[1]) or apply(*args))
    with monkeypatch.context() as patched:
        patched.setattr(TorchCall, "elements", None)  # They would be computed as a whole.
        parts, _ = fit(AddRegularizer(LogPartitionPenalty(), strength=0.1), net=Optional, max_epochs=1)
    assert len(counted) == 2 * 3
    chunks.LARGE = 10**9
    whole, _ = fit(AddRegularizer(LogPartitionPenalty(), strength=0.1), net=Optional, max_epochs=1)
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts.losses, whole.losses, rtol=1e-6, atol=0)


def test_the_criterion_alone_is_torchs_own(sizes, monkeypatch):
    monkeypatch.setattr(chunks._InChunks, "apply", None)
    coupled = AddRegularizer(lambda logits: logits.square().mean())
    fit(coupled, net=Net, max_epochs=1)
