"""Criteria that the user names, as people write them: keywords, masks, tuples, a `__call__` of their own, branches."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from bare_step import loss_and_gradient
from helpers import Net, equal, fit
from torch import nn

from lightning_objectives.callbacks import (
    AddRegularizer,
    Distill,
    LogMetrics,
    ReplaceLoss,
    ReweightSamples,
    TransformBatch,
    WrapHead,
)
from lightning_objectives.distillation import VanillaKD
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.losses import LDRLoss
from lightning_objectives.regularizers import SpectralDecoupling

pytestmark = pytest.mark.filterwarnings(
    "ignore:criterion='.*' cannot be vectorized", "ignore:ReweightSamples got a micro-batch of one"
)
ALPHA = torch.tensor([1.0, 2.0, 3.0])
GENERATOR = torch.Generator().manual_seed(0)
LOGITS, TARGET = torch.randn(8, 3, generator=GENERATOR), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
WEIGHTS = torch.tensor([2.0, 0.0, 1.0, 0.5, 1.5, 1.0, 3.0, 0.25])


class Focal(nn.Module):
    """A focal loss in the forms that are found on the web."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.register_buffer("alpha", ALPHA.clone())
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, input, target):
        if self.kind == "masked":
            keep = target != 0
            input, target = input[keep], target[keep]
        scores = input.log_softmax(-1).gather(-1, target[:, None]).squeeze(-1)
        losses = -((1 - scores.exp()) ** 2) * scores
        if self.kind == "branch" and target.max() > 2:
            raise IndexError("class")
        if self.kind == "counts":
            self.seen += len(input)
        if self.kind == "alpha":
            losses = losses * self.alpha[target]
        if self.kind == "alpha-normalised":
            return (losses * self.alpha[target]).sum() / self.alpha[target].sum()
        return losses.sum() if self.kind == "sum" else losses if self.kind == "none" else losses.mean()


class Called(nn.Module):
    """A module whose `__call__` torch never sees."""

    def __call__(self, prediction, actual):
        return (prediction.softmax(1) - F.one_hot(actual, 3)).square().mean()


def ones(losses):
    return torch.ones_like(losses)


def masked(y_hat, y, mask=None):
    losses = (y_hat - F.one_hot(y, 3)).abs().mean(1)
    return losses.mean() if mask is None else (losses * mask).sum() / mask.sum()


MASK = torch.tensor([1.0, 1, 0, 1, 0, 1, 1, 1])
FORMS = {
    **{kind: (Focal(kind), lambda c, z, y: c(z, y)) for kind in ("mean", "sum", "alpha", "alpha-normalised", "masked")},
    "branch": (Focal("branch"), lambda c, z, y: c(z, y)),
    "counts": (Focal("counts"), lambda c, z, y: c(z, y)),
    "none": (Focal("none"), lambda c, z, y: c(z, y).mean()),
    "keywords": (Focal("mean"), lambda c, z, y: c(input=z, target=y)),
    "target first": (masked, lambda c, z, y: c(y=y, y_hat=z)),
    "a mask": (masked, lambda c, z, y: c(z, y, MASK)),
    "nothing as a mask": (masked, lambda c, z, y: c(z, y, None)),
    "a tuple": (lambda z, pair: masked(z, *pair), lambda c, z, y: c(z, (y, MASK))),
    "its own call": (Called(), lambda c, z, y: c(z, y)),
    "several results": (lambda z, y: (F.cross_entropy(z, y) * 2, {"more": 1}), lambda c, z, y: c(z, y)[0]),
    "a dictionary": (lambda z, y: {"loss": F.cross_entropy(z, y) * 2}, lambda c, z, y: c(z, y)["loss"]),
    "a dense module": (nn.SmoothL1Loss(), lambda c, z, y: c(z.view(2, 3, 2, 2), z.detach().view(2, 3, 2, 2) + 0.3)),
}


def run(form, *callbacks):
    criterion, call = FORMS[form]
    before = copy.deepcopy(criterion.state_dict()) if isinstance(criterion, nn.Module) else None
    try:
        return loss_and_gradient(
            lambda module, z, y: call(module.loss_fn, z, y), (LOGITS, TARGET), *callbacks, criterion=criterion
        )
    finally:
        if before is not None:
            criterion.load_state_dict(before)


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_one_change_nothing(form):
    plain = run(form)
    unit = "element" if form == "a dense module" else "sample"
    found = run(form, ReweightSamples(ones, criterion="loss_fn", unit=unit))
    for value, expected in zip(found, plain):
        torch.testing.assert_close(value, expected, rtol=2e-6, atol=1e-6)
    assert type(FORMS["its own call"][0]) is Called


@pytest.mark.parametrize("form", sorted(set(FORMS) - {"a dense module"}))
def test_weights_scale_the_gradient_of_each_row(form):
    _, plain = run(form)
    counts = plain.abs().sum(1) > 0  # The rows that the criterion masks are not among those that are weighted.
    _, weighted = run(
        form, ReweightSamples(lambda losses: WEIGHTS[counts] if len(losses) < 8 else WEIGHTS, criterion="loss_fn")
    )
    torch.testing.assert_close(weighted, WEIGHTS[:, None] * plain, rtol=1e-4, atol=1e-6)


def test_the_losses_are_those_of_single_rows():
    seen = []

    def spy(losses):
        seen.append(losses)
        return torch.ones_like(losses)

    run("alpha", ReweightSamples(spy, criterion="loss_fn"))
    criterion = FORMS["alpha"][0]
    torch.testing.assert_close(seen[0], torch.stack([criterion(z[None], y[None]) for z, y in zip(LOGITS, TARGET)]))


def test_calls_that_are_made_for_single_rows_leave_no_trace():
    """A buffer that counts calls, and a value that is logged, show the user's own call alone."""
    logged = []

    class Own(Net):
        def __init__(self):
            super().__init__()
            self.focal = Focal("counts")

        def compute(self, z, y):
            loss = self.focal(z, y)
            self.log("own", loss)
            logged.append(loss.item())
            return loss

        def criterion(self, logits, y):
            return self.compute(logits, y)

    plain, _ = fit(net=Own)
    expected = list(logged)
    logged.clear()
    net, runner = fit(ReweightSamples(ones, criterion="compute"), net=Own)
    assert plain.focal.seen == 48
    torch.testing.assert_close(runner.callback_metrics["own"].item(), plain.trainer.callback_metrics["own"].item())
    for a, b in zip(plain.parameters(), net.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert len(logged) > len(expected), "the rows were computed by calls of this function"


class Dice(nn.Module):
    """No sum over rows: nothing can be said of one of them."""

    def forward(self, logits, target):
        p, t = logits.softmax(1), F.one_hot(target, 3)
        return 1 - (2 * (p * t).sum(0) / (p + t).sum(0)).mean()


class Segments(Net):
    def __init__(self):
        super().__init__()
        self.loss_fn = Dice()

    def criterion(self, logits, y):
        return self.loss_fn(logits, y)

    def validation_step(self, batch, batch_idx):
        self.loss_fn(self(batch[0]), batch[1])


WITHOUT_ROWS = [
    lambda: AddRegularizer(SpectralDecoupling(), criterion="loss_fn"),
    lambda: Distill(VanillaKD(), teacher=nn.Linear(4, 3), criterion="loss_fn"),
    lambda: WrapHead(MultiSampleDropout(p=0.5), criterion="loss_fn"),
    lambda: LogMetrics(criterion="loss_fn"),
]


@pytest.mark.parametrize("make", WITHOUT_ROWS)
def test_what_needs_no_losses_of_rows_works_under_a_criterion_without_them(make):
    from helpers import loader

    net, _ = fit(make(), net=Segments, val=loader())
    assert equal(net, fit(net=Segments)[0]) == isinstance(make(), LogMetrics)


@pytest.mark.parametrize(
    "callback",
    [
        lambda: ReweightSamples(ones, criterion="loss_fn"),
        lambda: ReplaceLoss(LDRLoss(), criterion="loss_fn"),
        lambda: AddRegularizer(lambda losses: losses, criterion="loss_fn"),
    ],
)
def test_what_needs_them_is_refused(callback):
    with pytest.raises(ValueError, match=r"'loss_fn' does not act row by row: the gradient of row .* no multiple"):
        fit(callback(), net=Segments)


def test_a_criterion_that_closes_over_the_batch_keeps_its_shares():
    """Alone, each row meets all factors of the batch; its share in the value is still its own factor."""
    factors = torch.rand(8)

    def criterion(z, y):
        return (F.cross_entropy(z, y, reduction="none") * factors).mean()

    def compute(module, z, y):
        return module.loss_fn(z, y)

    callback = ReweightSamples(lambda losses: WEIGHTS, criterion="loss_fn")
    value, weighted = loss_and_gradient(compute, (LOGITS, TARGET), callback, criterion=criterion)
    _, plain = loss_and_gradient(compute, (LOGITS, TARGET), criterion=criterion)
    torch.testing.assert_close(weighted, WEIGHTS[:, None] * plain)
    losses = F.cross_entropy(LOGITS, TARGET, reduction="none")
    torch.testing.assert_close(value, (losses * factors * WEIGHTS).mean())


def test_a_replacement_keeps_the_mean_or_the_sum_and_refuses_shares_that_it_does_not_know():
    replaced = ReplaceLoss(
        lambda logits, target: F.cross_entropy(logits, target, reduction="none"), criterion="loss_fn"
    )
    for form, reduction in (("mean", "mean"), ("sum", "sum")):
        value, _ = run(form, replaced)
        torch.testing.assert_close(value, F.cross_entropy(LOGITS, TARGET, reduction=reduction))
    for form in ("alpha-normalised", "masked"):
        with pytest.raises(ValueError, match="which is neither their mean nor their sum"):
            run(form, replaced)


def test_one_sample_proves_nothing_and_the_next_batch_is_asked():
    """A mean and a sum are one number for one row; a batch of rows without a gradient has no shares."""
    seen = []
    criterion = Dice()

    def compute(module, z, y):
        rows = next(sizes)
        return module.loss_fn(z[:rows], y[:rows])

    sizes = iter([1, 8])
    with pytest.raises(ValueError, match="does not act row by row"):
        loss_and_gradient(
            compute,
            (LOGITS, TARGET),
            ReweightSamples(
                lambda losses: seen.append(len(losses)) or torch.ones_like(losses), criterion="loss_fn", unit="element"
            ),
            criterion=criterion,
            steps=2,
        )
    assert seen == [1]


def test_a_mixture_under_a_named_criterion():
    """Each target's loss by hand, times its share."""
    rows = torch.arange(8)
    index, share = torch.stack([rows, rows.roll(3)], 1), torch.rand(8, generator=GENERATOR)
    mix = TransformBatch(lambda inputs: (inputs, index, torch.stack([share, 1 - share], 1)), criterion="loss_fn")
    criterion = FORMS["alpha"][0]
    losses = [torch.stack([criterion(z[None], y[None]) for z, y in zip(LOGITS, TARGET[i])]) for i in index.unbind(1)]
    value, _ = run("alpha", mix)
    torch.testing.assert_close(value, (share * losses[0] + (1 - share) * losses[1]).mean())


def test_a_copy_of_a_patched_call_is_plain():
    class Look(Net):
        def __init__(self):
            super().__init__()
            self.loss_fn = Called()

        def criterion(self, logits, y):
            self.copies = [copy.deepcopy(self.loss_fn), pickle.loads(pickle.dumps(self.loss_fn))]
            assert type(self.loss_fn) is not Called
            assert isinstance(self.loss_fn, Called)
            return self.loss_fn(logits, y)

    net, _ = fit(ReweightSamples(ones, criterion="loss_fn"), net=Look, max_steps=1)
    assert [type(each) for each in [net.loss_fn, *net.copies]] == [Called] * 3


def test_a_metric_before_the_loss_is_no_loss():
    """Of several criteria, the one whose value is in the loss is the loss; the others are metrics."""

    class Logs(Net):
        def training_step(self, batch, batch_idx):
            logits = self(batch[0])
            if batch_idx % 2 == 0:
                self.log("mae", F.l1_loss(logits, F.one_hot(batch[1], 3).float()))
            return F.cross_entropy(logits, batch[1])

    def double(losses):
        return 2 * torch.ones_like(losses)

    for callback in (
        ReweightSamples(double),
        WrapHead(MultiSampleDropout(p=0.3)),
        ReplaceLoss(LDRLoss(temperature=0.5)),
    ):
        logs, _ = fit(callback, net=Logs)
        plain, _ = fit(callback)
        for a, b in zip(logs.parameters(), plain.parameters()):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        assert not equal(logs, fit()[0])


def test_losses_of_classes_are_no_losses_of_rows():
    """As many classes as rows: one number for each is no proof."""

    class ByClass(nn.Module):
        def forward(self, logits, target):
            p, t = logits.softmax(1), F.one_hot(target, 3)
            return 1 - 2 * (p * t).sum(0) / (p + t).sum(0)

    batch = torch.randn(3, 3), torch.tensor([0, 1, 2])

    def compute(module, z, y):
        return module.loss_fn(z, y).mean()

    with pytest.raises(ValueError, match="does not act row by row"):
        loss_and_gradient(compute, batch, ReweightSamples(ones, criterion="loss_fn"), criterion=ByClass())


def test_another_criterion_later_in_the_training_is_not_left_alone():
    """A warm-up with one loss and then another: the callback acts on whichever is the loss."""

    class Changes(Net):
        def training_step(self, batch, batch_idx):
            z = self(batch[0])
            if self.trainer.current_epoch == 0:
                return F.mse_loss(z, F.one_hot(batch[1], 3).float())
            return F.cross_entropy(z, batch[1])

    class Doubled(Changes):
        def training_step(self, batch, batch_idx):
            return 2 * super().training_step(batch, batch_idx)

    weighted, _ = fit(ReweightSamples(lambda losses: 2 * torch.ones_like(losses)), net=Changes)
    reference, _ = fit(net=Doubled)
    for a, b in zip(weighted.parameters(), reference.parameters()):
        torch.testing.assert_close(a, b)


def test_a_row_without_a_gradient_has_the_mean_share():
    """Losses 1, 2, 0.5, 0.5, the last two of which have no gradient: (2·1 + 0.5·2 + 1.5·0.5 + 0·0.5) / 4 = 0.9375."""

    class Floor(nn.Module):
        def forward(self, input, target):
            return (input - target).abs().clamp_min(0.5).mean()

    batch = torch.tensor([[1.0], [-2.0], [0.1], [0.2]]), torch.zeros(4, 1)
    weights = torch.tensor([2.0, 0.5, 1.5, 0.0])

    def step(module, input, target):
        return module.loss_fn(input, target)

    callback = ReweightSamples(lambda losses: weights, criterion="loss_fn")
    loss, gradient = loss_and_gradient(step, batch, callback, criterion=Floor(), steps=2)
    torch.testing.assert_close(loss, torch.tensor(0.9375))
    torch.testing.assert_close(gradient, torch.tensor([[0.5], [-0.125], [0.0], [0.0]]))
