"""Every criterion that is caught: weights of 1 change nothing, others change what they should."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, equal, fit, loader
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from lightning_objectives._step.calls import parse
from lightning_objectives.batches import Mixup
from lightning_objectives.callbacks import LogMetrics, TransformBatch
from lightning_objectives.callbacks.reweight_samples import ReweightSamples

WEIGHT = torch.tensor([0.5, 2.0, 1.0])


def ignoring(y):
    return torch.where(torch.arange(len(y)) % 3 == 0, -100, y)


def soft(y):
    return 0.8 * F.one_hot(y, 3) + 0.2 / 3


CRITERIA = {
    "ce": lambda z, y: F.cross_entropy(z, y),
    "ce sum": lambda z, y: F.cross_entropy(z, y, reduction="sum") / 8,
    "ce class weights": lambda z, y: F.cross_entropy(z, y, weight=WEIGHT),
    "ce smoothing": lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1),
    "ce ignoring": lambda z, y: F.cross_entropy(z, ignoring(y)),
    "ce all three": lambda z, y: F.cross_entropy(z, ignoring(y), weight=WEIGHT, label_smoothing=0.1),
    "ce soft": lambda z, y: F.cross_entropy(z, soft(y)),
    "ce soft class weights": lambda z, y: F.cross_entropy(z, soft(y), weight=WEIGHT, label_smoothing=0.1),
    "ce module": lambda z, y: nn.CrossEntropyLoss()(z, y),
    "ce none, mean": lambda z, y: F.cross_entropy(z, y, reduction="none").mean(),
    "ce legacy": lambda z, y: F.cross_entropy(z, y, size_average=False) / 8,
    "ce positional": lambda z, y: F.cross_entropy(z, y, WEIGHT),
    "nll": lambda z, y: F.nll_loss(F.log_softmax(z, -1), y),
    "nll weights": lambda z, y: F.nll_loss(z.log_softmax(-1), ignoring(y), WEIGHT),
    "bce": lambda z, y: F.binary_cross_entropy(z.sigmoid(), soft(y)),
    "bce logits": lambda z, y: F.binary_cross_entropy_with_logits(z, soft(y), pos_weight=WEIGHT),
    "mse": lambda z, y: F.mse_loss(z, soft(y)),
    "scaled, with a term": lambda z, y: 2 * F.cross_entropy(z, y) / 3 + 0.01 * z.square().mean(),
}
EXACT = {"ce", "ce sum", "ce soft", "ce module", "ce none, mean", "ce legacy", "nll", "scaled, with a term", "mse"}


def net(criterion):
    class Own(Net):
        def criterion(self, logits, y):
            return criterion(logits, y)

    return Own


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.filterwarnings("ignore:size_average and reduce args")
def test_weights_of_one_change_nothing(name):
    plain, _ = fit(net=net(CRITERIA[name]))
    ones = ReweightSamples(lambda losses: torch.ones_like(losses))
    weighted, runner = fit(ones, net=net(CRITERIA[name]))
    if name in EXACT:
        assert equal(plain, weighted)
    for a, b in zip(plain.parameters(), weighted.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert runner.callback_metrics["train/effective_sample_size"] > 1


def _weighted(name, z, y, by_row):
    """The weighted loss is linear in the weights: sum_i w_i * (what row i adds to the unweighted loss)."""
    calls = []

    class Spy(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if getattr(func, "__name__", "").endswith(("cross_entropy", "nll_loss", "with_logits", "mse_loss")):
                calls.append((func, args, kwargs or {}))
            return func(*args, **(kwargs or {}))

    with Spy():
        CRITERIA[name](z, y)
    func, args, kwargs = calls[0]
    per_row = func(*args, **{k: v for k, v in kwargs.items() if k != "size_average"} | {"reduction": "none"})
    full = func(*args, **{k: v for k, v in kwargs.items() if k != "size_average"} | {"reduction": "mean"})
    denominator = per_row.sum() / full
    rows = per_row.reshape(8, -1).sum(1)
    expected = (rows * by_row).sum() / denominator
    if name == "scaled, with a term":
        expected = 2 * expected / 3 + 0.01 * z.square().mean()
    if "sum" in name or "legacy" in name:
        expected = (rows * by_row).sum() / 8
    return expected


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.filterwarnings("ignore:size_average and reduce args")
def test_weights_are_applied_by_a_slow_reference(name):
    generator = torch.Generator().manual_seed(1)
    z, y = torch.randn(8, 3, generator=generator), torch.randint(3, (8,), generator=generator)
    by_row = torch.rand(8, generator=generator)

    class Once(Net):
        def training_step(self, batch, batch_idx):
            self.z = z.clone().requires_grad_()
            self.value = CRITERIA[name](self.z, y)
            return self.value

    def weighting(losses):
        kept = ignoring(y) != -100 if len(losses) < 8 else torch.ones(8, dtype=torch.bool)
        return by_row[kept]

    class Loss(L.Callback):
        """Keeps the loss that is optimized; where the user's code reduces the losses, only that one is weighted."""

        def on_before_backward(self, trainer, pl_module, loss):
            self.value = loss.detach()

    last = Loss()
    once, _ = fit(ReweightSamples(weighting), last, net=Once, max_steps=1)

    expected = _weighted(name, z, y, by_row)
    torch.testing.assert_close(last.value, expected, rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(_weighted(name, inputs := z.clone().requires_grad_(), y, by_row), inputs)
    torch.testing.assert_close(once.z.grad, gradient, rtol=1e-5, atol=1e-6)


NAMED = {
    "timm label smoothing": (LabelSmoothingCrossEntropy(0.1), lambda y: y),
    "timm soft target": (SoftTargetCrossEntropy(), soft),
    "kl batchmean": (nn.KLDivLoss(reduction="batchmean"), soft),
    "kl sum": (nn.KLDivLoss(reduction="sum"), soft),
    "function": (lambda z, t: (z.logsumexp(-1) - z.gather(1, t[:, None])[:, 0]).mean(), lambda y: y),
}


def named_net(name):
    criterion, target = NAMED[name]

    class Own(Net):
        def __init__(self):
            super().__init__()
            self.loss_fn = criterion

        def criterion(self, logits, y):
            return self.loss_fn(logits.log_softmax(-1) if "kl" in name else logits, target(y))

    return Own


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch has no batching rule of its divergence yet
def test_a_criterion_named_by_its_path(name):
    plain, _ = fit(net=named_net(name))
    ones, _ = fit(ReweightSamples(lambda losses: torch.ones_like(losses), criterion="loss_fn"), net=named_net(name))
    for a, b in zip(plain.parameters(), ones.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    first = ReweightSamples(lambda losses: len(losses) * F.one_hot(losses.argmax(), len(losses)), criterion="loss_fn")
    changed, _ = fit(first, net=named_net(name))
    assert not torch.allclose(changed.fc.weight, plain.fc.weight, atol=1e-3)
    assert "forward" not in vars(changed.loss_fn)


def test_a_named_criterion_that_mixes_rows_is_refused():
    class Own(Net):
        def __init__(self):
            super().__init__()
            self.loss_fn = lambda z, y: (z - z.mean(0) - F.one_hot(y, 3)).square().mean()

        def criterion(self, logits, y):
            return self.loss_fn(logits, y)

    with pytest.raises(ValueError, match="does not act row by row"):
        fit(ReweightSamples(lambda losses: torch.ones_like(losses), criterion="loss_fn"), net=Own)


def test_dense_elements_and_their_denominator():
    z, y = torch.randn(2, 3, 5), torch.randint(3, (2, 5))
    y[0, :2] = -100
    call = parse(F.cross_entropy, (z, y), {"weight": WEIGHT})
    assert call.elements.shape == (2, 5)
    torch.testing.assert_close(call.weighted(torch.ones_like(call.elements)), F.cross_entropy(z, y, weight=WEIGHT))
    assert call.table(z).shape == (10, 3)
    assert torch.equal(call.table(z)[7], z[1, :, 2])


def test_torchs_old_arguments_are_read_without_a_second_warning():
    """Torch warns of them when the user's own call is made; a warning of ours would be an error here."""
    z, y = torch.randn(2, 3), torch.tensor([0, 2])
    for old, reduction in (({"size_average": False}, "sum"), ({"reduce": False}, "none"), ({"reduce": True}, "mean")):
        assert parse(F.cross_entropy, (z, y), old).reduction == reduction


def test_mixed_targets_under_a_criterion_that_takes_classes_alone():
    """Label smoothing is linear in the target: torch's own, which takes probabilities, is the independent number."""

    class Ours(Net):
        def __init__(self):
            super().__init__()
            self.loss_fn = LabelSmoothingCrossEntropy(0.1)

        def criterion(self, logits, y):
            return self.loss_fn(logits, y)

    class Theirs(Net):
        def criterion(self, logits, y):
            return F.cross_entropy(logits, y, label_smoothing=0.1)

    ours, _ = fit(TransformBatch(Mixup(), criterion="loss_fn"), net=Ours)
    theirs, _ = fit(TransformBatch(Mixup()), net=Theirs)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


def test_two_callbacks_that_name_one_criterion_hear_one_call_each():
    class Compares(Net):
        def __init__(self):
            super().__init__()
            self.loss_fn = LabelSmoothingCrossEntropy(0.1)

        def validation_step(self, batch, batch_idx):
            self.loss_fn(self(batch[0]), batch[1])

    callbacks = LogMetrics(criterion="loss_fn"), LogMetrics(prefix="again/", criterion="loss_fn")
    _, runner = fit(*callbacks, net=Compares, val=loader(), max_epochs=1)
    metrics = runner.callback_metrics
    assert metrics["val/nll"] == metrics["again/val/nll"] > 0
