import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import BiTemperedLoss, bi_tempered_loss, tempered_softmax

LOGITS = torch.tensor([[2.0, 1.0, 0.1]], dtype=torch.float64)
PAIRS = [(0.8, 1.2), (0.5, 0.8), (1.0, 1.5), (0.3, 1.0), (0.0, 3.0)]


def slow_softmax(row, t):
    """By bisection for the lambda at which the probabilities sum to 1."""

    def probabilities(shift):
        return [max(1 + (1 - t) * (z - shift), 0) ** (1 / (1 - t)) for z in row]

    low, high = max(row), max(row) + 1
    while sum(probabilities(high)) > 1:
        high = low + 2 * (high - low)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(probabilities(middle)) > 1 else (low, middle)
    return probabilities(low)


def slow_loss(p, q, t1):
    """The definition in plain Python."""

    def log(x):
        return (x ** (1 - t1) - 1) / (1 - t1)

    power = 2 - t1
    logs = sum(b * (log(b) - log(a)) for a, b in zip(p, q) if b)
    return logs - sum(b**power - a**power for a, b in zip(p, q)) / power


@pytest.mark.parametrize(
    ("logits", "target", "t1", "t2", "expected"),
    [
        (LOGITS, torch.tensor([1]), 0.8, 1.2, 1.038010),
        (LOGITS, torch.tensor([1]), 0.5, 0.8, 0.886877),
        # the authors' own test
        (torch.tensor([[-0.5, 0.1, 2.0]]), torch.tensor([[0.2, 0.3, 0.5]]), 0.5, 1.5, 0.023019),
    ],
    ids=["heavy", "light", "authors"],
)
def test_worked_values(logits, target, t1, t2, expected):
    loss = bi_tempered_loss(logits.double(), target, t1=t1, t2=t2)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("t1", "t2"), [(0.8, 1.2), (0.5, 0.8), (0.9, 2.5)])
def test_equals_plain_loops(t1, t2):
    logits = 3 * torch.randn(5, 4, dtype=torch.float64)
    q = torch.randn(5, 4, dtype=torch.float64).softmax(1)
    p = [slow_softmax(row, t2) for row in logits.tolist()]
    torch.testing.assert_close(tempered_softmax(logits, temperature=t2), torch.tensor(p, dtype=torch.float64))
    expected = [slow_loss(a, b, t1) for a, b in zip(p, q.tolist())]
    losses = bi_tempered_loss(logits, q, t1=t1, t2=t2)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("temperature", "scale"), [(0.3, 0.1), (0.5, 10), (0.9999, 10), (1.0001, 10), (1.5, 10), (4.0, 30)]
)
def test_many_classes_sum_to_one(temperature, scale):
    """Five steps of the authors' code leave a sum that is wrong by 0.26 at 1.5; six of ours one of 0.003 at 0.3."""
    p = tempered_softmax(scale * torch.randn(4, 10000), temperature=temperature)
    torch.testing.assert_close(p.sum(1), torch.ones(4), rtol=0, atol=5e-6)


def test_at_one_and_one_it_is_cross_entropy_or_the_divergence():
    logits, target = torch.randn(6, 3), torch.arange(6) % 3
    losses = bi_tempered_loss(logits, target, t1=1.0, t2=1.0)
    torch.testing.assert_close(losses, F.cross_entropy(logits, target, reduction="none"))
    q = torch.randn(6, 3).softmax(1)
    divergence = F.kl_div(logits.log_softmax(1), q, reduction="none").sum(1)
    torch.testing.assert_close(bi_tempered_loss(logits, q, t1=1.0, t2=1.0), divergence)
    near = bi_tempered_loss(logits.double(), target, t1=1 - 1e-6, t2=1 + 1e-6)
    torch.testing.assert_close(near, losses.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("t1", "t2"), PAIRS)
def test_the_gradient_is_that_of_finite_differences(t1, t2):
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    for target in (torch.tensor([0, 1, 2, 0]), torch.randn(4, 3, dtype=torch.float64).softmax(1)):
        assert torch.autograd.gradcheck(lambda z, q=target: bi_tempered_loss(z, q, t1=t1, t2=t2), logits)


@pytest.mark.parametrize(("t1", "t2"), PAIRS)
def test_it_is_zero_where_the_prediction_is_the_target(t1, t2):
    logits = torch.randn(4, 3, dtype=torch.float64)
    p = tempered_softmax(logits, temperature=t2)
    zero = torch.zeros(4, dtype=torch.float64)
    torch.testing.assert_close(bi_tempered_loss(logits, p, t1=t1, t2=t2), zero, rtol=0, atol=1e-10)


def test_it_is_bounded_and_shifts_change_nothing():
    """The bound is 1 / (1 - 0.5)."""
    far = torch.tensor([[-1e4, 1e4]])
    assert bi_tempered_loss(far, torch.tensor([0]), t1=0.5, t2=1.0).item() == pytest.approx(2)
    shifted = bi_tempered_loss(LOGITS + 100, torch.tensor([1]))
    torch.testing.assert_close(shifted, bi_tempered_loss(LOGITS, torch.tensor([1])))


@pytest.mark.parametrize(("t1", "t2"), [(0.5, 0.4), (0.8, 0.5), (1.0, 1.2)])
def test_classes_of_probability_zero_have_no_gradient_and_no_nan(t1, t2):
    logits = torch.tensor([[50.0, 0.0, -50.0], [0.0, 50.0, 0.0]], requires_grad=True)
    losses = bi_tempered_loss(logits, torch.tensor([0, 0]), t1=t1, t2=t2)
    (gradient,) = torch.autograd.grad(losses.sum(), logits)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()


def test_a_second_derivative_is_refused():
    """Or it would be 0 in silence."""
    logits = LOGITS.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="bi_tempered_loss has no second derivative"):
        torch.autograd.grad(bi_tempered_loss(logits, torch.tensor([1])).sum(), logits, create_graph=True)


@pytest.mark.parametrize(
    ("settings", "message"), [({"t1": 1.5}, r"t1=1\.5 must be in \[0, 1\]"), ({"t2": 0.0}, r"t2=0\.0 must be > 0")]
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BiTemperedLoss(**settings)
