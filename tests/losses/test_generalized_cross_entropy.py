import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import GeneralizedCrossEntropyLoss, generalized_cross_entropy_loss

LOGITS = torch.tensor([[2.0, 1.0, 0.1]])


@pytest.mark.parametrize(
    ("target", "threshold", "expected"),
    [
        # p = (0.65900, 0.24243, 0.09857): (1 - 0.24243^0.7) / 0.7
        (torch.tensor([1]), 0.0, 0.898766),
        # 0.24243 is below 0.5: (1 - 0.5^0.7) / 0.7
        (torch.tensor([1]), 0.5, 0.549183),
        (torch.tensor([0]), 0.5, 0.361675),
        # 0.7 and 0.3 of the losses of the two classes
        (torch.tensor([[0.7, 0.3, 0.0]]), 0.0, 0.522802),
    ],
    ids=["class", "below", "above", "shares"],
)
def test_worked_values(target, threshold, expected):
    loss = generalized_cross_entropy_loss(LOGITS, target, q=0.7, threshold=threshold)
    torch.testing.assert_close(loss, torch.tensor([expected]), rtol=0, atol=1e-6)


def test_the_ends_are_cross_entropy_and_the_absolute_error():
    logits, target = torch.randn(6, 3), torch.arange(6) % 3
    ce = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(generalized_cross_entropy_loss(logits, target, q=0.0), ce)
    torch.testing.assert_close(generalized_cross_entropy_loss(logits, target, q=1e-5), ce, rtol=1e-4, atol=0)
    absolute = (logits.softmax(1) - F.one_hot(target, 3)).abs().sum(1)
    torch.testing.assert_close(generalized_cross_entropy_loss(logits, target, q=1.0), absolute / 2)


def test_the_gradient_is_that_of_cross_entropy_times_a_power_of_p():
    logits, target = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.arange(6) % 3
    ce = F.cross_entropy(logits, target, reduction="none")
    plain = torch.autograd.grad(ce.sum(), logits)[0]
    ours = torch.autograd.grad(generalized_cross_entropy_loss(logits, target, q=0.4).sum(), logits)[0]
    torch.testing.assert_close(ours, plain * (-0.4 * ce.detach()).exp()[:, None])


def test_below_the_threshold_and_at_it_there_is_no_gradient():
    logits = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    losses = generalized_cross_entropy_loss(logits, torch.tensor([0, 0]), threshold=0.5)
    gradient = torch.autograd.grad(losses.sum(), logits)[0]
    assert gradient[0].tolist() == [0, 0]
    assert gradient[1, 0] < 0


def test_the_loss_is_bounded_where_p_is_zero():
    logits = torch.tensor([[-1e4, 1e4]], requires_grad=True)
    loss = generalized_cross_entropy_loss(logits, torch.tensor([0]))
    assert loss.item() == pytest.approx(1 / 0.7)
    assert torch.autograd.grad(loss.sum(), logits)[0].tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"q": -0.1}, r"q=-0\.1 must be in \[0, 1\]"), ({"threshold": 1.0}, r"threshold=1\.0 must be in \[0, 1\)")],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GeneralizedCrossEntropyLoss(**settings)
