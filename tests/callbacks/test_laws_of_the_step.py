"""Two laws, for every criterion, option, shape and piece of code around it that hypothesis draws.

Nothing: weights of one, equal stacks, a mixture with itself and the same loss as a replacement change nothing. Weights:
under any weights the gradient of row i is w_i times what it is in the plain run.
"""

import pytest
import torch
import torch.nn.functional as F
from bare_step import loss_and_gradient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_objectives.callbacks import ReplaceLoss, ReweightSamples, TransformBatch, WrapHead

pytestmark = pytest.mark.filterwarnings(
    "ignore:criterion='loss_fn' cannot be vectorized",
    "ignore:There is a performance drop",
    "ignore:.*micro-batch of one",
    "ignore:reduction. .mean. divides",
    "ignore:The dimensions .* have the length of the batch",
)
DRAWS = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
REDUCTIONS = ("mean", "mean", "sum", "none")


def classes(draw, generator):
    """Cross entropy and NLL: class indices or probabilities, ignored targets, class weights, smoothing."""
    rows, count = draw(st.sampled_from([0, 1, 2, 5])), draw(st.sampled_from([2, 3]))
    places = draw(st.sampled_from([(), (4,), (3, 2)]))
    logits = torch.randn(rows, count, *places, generator=generator)
    target = torch.randint(count, (rows, *places), generator=generator)
    options = {}
    if draw(st.booleans()):
        options["weight"] = torch.rand(count, generator=generator) + 0.2
    ignored = draw(st.sampled_from([None, -100, 0]))
    if ignored is not None:
        options["ignore_index"] = ignored
        target[torch.rand(target.shape, generator=generator) < 0.3] = ignored
    if draw(st.booleans()):
        return (lambda z, y, **more: F.nll_loss(z.log_softmax(1), y, **options, **more)), logits, target
    if draw(st.booleans()):
        options["label_smoothing"] = 0.1
    if draw(st.integers(0, 3)) == 0:
        options.pop("ignore_index", None)
        target = torch.rand(logits.shape, generator=generator).softmax(1)
    return (lambda z, y, **more: F.cross_entropy(z, y, **options, **more)), logits, target


def numbers(draw, generator, kind, by_rows=False):
    """Criteria that compare element with element."""
    rows = draw(st.sampled_from([0, 1, 2, 5]))
    shape = (rows, *draw(st.sampled_from([(), (1,), (3,), (3, 4), (1, 2, 2), (2, 3, 2)])))
    logits, target = torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)
    weight = torch.rand(shape, generator=generator) + 0.1
    options = {} if by_rows else ELEMENTWISE[kind](draw, weight)
    function = getattr(F, kind)
    if kind == "binary_cross_entropy":
        return (lambda z, y, **more: function(z.sigmoid(), y, **options, **more)), logits, target
    if kind == "kl_div":
        return (lambda z, y, **more: function(F.logsigmoid(z), y, **options, **more)), logits, target
    return (lambda z, y, **more: function(z, y, **options, **more)), logits, target


def maybe_weight(draw, weight):
    return {"weight": weight} if draw(st.booleans()) else {}


ELEMENTWISE = {
    "binary_cross_entropy": maybe_weight,
    "binary_cross_entropy_with_logits": lambda draw, weight: (
        maybe_weight(draw, weight) | ({"pos_weight": torch.tensor([2.0])} if draw(st.booleans()) else {})
    ),
    "mse_loss": maybe_weight,
    "l1_loss": maybe_weight,
    "smooth_l1_loss": lambda draw, weight: {"beta": draw(st.sampled_from([1.0, 0.3]))},
    "huber_loss": lambda draw, weight: maybe_weight(draw, weight) | {"delta": draw(st.sampled_from([1.0, 0.3]))},
    "kl_div": lambda draw, weight: {},
    "gaussian_nll_loss": lambda draw, weight: {"var": weight, "full": draw(st.booleans())},
    "poisson_nll_loss": lambda draw, weight: {"full": draw(st.booleans())},
}


def masked_mean(losses, mask):
    return (losses * mask).sum() / mask.sum().clamp_min(1)


KINDS = ("classes", *sorted(ELEMENTWISE))
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
"""Drawn for each criterion by itself, or a fault of one option of one criterion would be drawn by luck alone."""


@st.composite
def steps(draw, kind, named=None):
    """The code of a step, its batch, and the term that the code adds to the criterion."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    # A criterion that acts by row cannot keep weights of single elements in itself.
    is_named = named is not None and kind != "gaussian_nll_loss" and draw(named)
    if kind == "classes":
        criterion, logits, target = classes(draw, generator)
    else:
        criterion, logits, target = numbers(draw, generator, kind, by_rows=is_named)
    reduction, scale = draw(st.sampled_from(REDUCTIONS)), draw(st.sampled_from([1.0, 0.3, 20.0]))
    adds, by_keyword = draw(st.booleans()), draw(st.booleans())
    with torch.no_grad():
        mask = (torch.rand(criterion(logits, target, reduction="none").shape, generator=generator) < 0.7).float()
    around = draw(st.sampled_from([lambda losses: losses.mean(), lambda losses: masked_mean(losses, mask)]))

    class Criterion(nn.Module):
        def forward(self, input, target):
            return 1.0 * criterion(input, target, reduction=reduction)

    def term(z):
        return 0.1 * z.square().sum() if adds else 0 * z.sum()

    def compute(module, z, y):
        function = module.loss_fn if is_named else lambda input, target: criterion(input, target, reduction=reduction)
        value = function(input=z, target=y) if by_keyword else function(z, y)
        value = around(value) if reduction == "none" else value
        return scale * value + term(z)

    return compute, (logits, target), term, Criterion() if is_named else None


def check_equal(found, expected):
    for value, plain in zip(found, expected):
        torch.testing.assert_close(value, plain, rtol=2e-6, atol=1e-6, equal_nan=True)


def named(criterion):
    return {} if criterion is None else {"criterion": "loss_fn"}


def ones(losses):
    return torch.ones_like(losses)


@EACH_KIND
@DRAWS
@given(st.data(), st.sampled_from(["sample", "element"]))
def test_weights_of_one_change_nothing(kind, data, unit):
    compute, batch, *_ = data.draw(steps(kind))
    check_equal(
        loss_and_gradient(compute, batch, ReweightSamples(ones, unit=unit), steps=2), loss_and_gradient(compute, batch)
    )


@EACH_KIND
@DRAWS
@given(st.data())
def test_weights_of_one_change_nothing_under_a_named_criterion(kind, data):
    compute, batch, _, criterion = data.draw(steps(kind, named=st.just(True)))
    if not batch[0].numel():
        return  # A loss of no rows has no losses of single rows.
    plain = loss_and_gradient(compute, batch, criterion=criterion)
    if not plain[0].isfinite():
        return
    check_equal(
        loss_and_gradient(compute, batch, ReweightSamples(ones, **named(criterion)), criterion=criterion, steps=2),
        plain,
    )


@EACH_KIND
@DRAWS
@given(st.data())
def test_equal_stacks_change_nothing(kind, data):
    compute, batch, _, criterion = data.draw(steps(kind, named=st.booleans()))
    twice = WrapHead(lambda features, head: torch.stack([head(features)] * 2), head="head", **named(criterion))
    check_equal(
        loss_and_gradient(compute, batch, twice, criterion=criterion),
        loss_and_gradient(compute, batch, criterion=criterion),
    )


def itself(inputs):
    """Mixes each row with the next, whose share is 0."""
    rows = torch.arange(len(inputs))
    return inputs, torch.stack([rows, rows.roll(1)], 1), torch.tensor([1.0, 0.0]).expand(len(rows), 2)


@EACH_KIND
@DRAWS
@given(st.data())
def test_a_mixture_with_itself_changes_nothing(kind, data):
    compute, batch, _, criterion = data.draw(steps(kind, named=st.booleans()))
    plain = loss_and_gradient(compute, batch, criterion=criterion)
    if criterion is not None and not (batch[0].numel() and plain[0].isfinite()):
        return
    transform = TransformBatch(itself, **named(criterion))

    def keeps_the_features(module, z, y):
        return compute(module, z, y)

    check_equal(loss_and_gradient(keeps_the_features, batch, transform, criterion=criterion), plain)


@settings(DRAWS, max_examples=60)
@given(st.data())
def test_the_same_loss_as_a_replacement_changes_nothing(data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    rows, places = data.draw(st.sampled_from([1, 2, 5])), data.draw(st.sampled_from([(), (4,), (3, 2)]))
    logits, target = torch.randn(rows, 3, *places, generator=generator), torch.randint(3, (rows, *places))
    ignored, reduction = data.draw(st.sampled_from([-100, 0])), data.draw(st.sampled_from(REDUCTIONS))
    target[torch.rand(target.shape, generator=generator) < 0.3] = ignored

    def compute(module, z, y):
        value = F.cross_entropy(z, y, ignore_index=ignored, reduction=reduction)
        return value.mean() if reduction == "none" else value

    same = ReplaceLoss(lambda logits, target: F.cross_entropy(logits, target, reduction="none"))
    check_equal(loss_and_gradient(compute, (logits, target), same), loss_and_gradient(compute, (logits, target)))


@EACH_KIND
@DRAWS
@given(st.data(), st.sampled_from(["sample", "element"]), st.integers(0, 10**6))
def test_weights_scale_the_gradient_of_each_row(kind, data, unit, seed):
    compute, batch, term, criterion = data.draw(steps(kind, named=st.booleans()))
    logits, _ = batch
    plain, gradient = loss_and_gradient(compute, batch, criterion=criterion)
    if not plain.isfinite() or not logits.numel():
        return
    (of_term,) = torch.autograd.grad(term(z := logits.clone().requires_grad_()), z)
    generator = torch.Generator().manual_seed(seed)
    chosen = {}

    def by_sample(losses, index):
        chosen["weights"] = torch.rand(len(logits), generator=generator) * 2
        return chosen["weights"][index]

    def by_element(losses):
        chosen["weights"] = torch.full((len(losses),), 1.7)
        return chosen["weights"]

    weighting = by_sample if unit == "sample" else by_element
    _, weighted = loss_and_gradient(
        compute, batch, ReweightSamples(weighting, unit=unit, **named(criterion)), criterion=criterion
    )
    weights = chosen["weights"].view(-1, *[1] * (logits.dim() - 1)) if unit == "sample" else 1.7
    torch.testing.assert_close(weighted, weights * (gradient - of_term) + of_term, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_broadcast_targets_keep_their_divisor():
    """(N, 1) against (N,): torch compares N x N numbers, with a warning of its own."""
    logits, target = torch.randn(4, 1), torch.randn(4)
    compute = lambda module, z, y: F.mse_loss(z, y)  # noqa: E731
    plain = loss_and_gradient(compute, (logits, target))
    check_equal(loss_and_gradient(compute, (logits, target), ReweightSamples(ones)), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_types_of_numbers(dtype):
    logits, target = torch.randn(6, 3, dtype=dtype), torch.tensor([0, 1, 2, -100, 1, 0])
    compute = lambda module, z, y: F.cross_entropy(z, y)  # noqa: E731
    found, plain = (
        loss_and_gradient(compute, (logits, target), ReweightSamples(ones)),
        loss_and_gradient(compute, (logits, target)),
    )
    for value, expected in zip(found, plain):
        torch.testing.assert_close(value.to(dtype), expected)  # The weighted sum is taken in float32.


def test_a_learned_factor_of_each_loss_is_weighted_too():
    """A factor that depends on the logits themselves: the gradient through the factor belongs to the row too."""
    logits, target, weights = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]), torch.tensor([2.0, 0.5, 1.0, 0.0, 1.5])

    def compute(module, z, y):
        losses = F.cross_entropy(z, y, reduction="none")
        return (losses * (-z[:, 0]).exp()).sum()

    _, plain = loss_and_gradient(compute, (logits, target))
    callback = ReweightSamples(lambda losses: weights)
    _, weighted = loss_and_gradient(compute, (logits, target), callback)
    torch.testing.assert_close(weighted, weights[:, None] * plain)
