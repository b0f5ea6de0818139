import pytest
import torch
import torch.nn.functional as F
from helpers import Net, equal, fit

from lightning_objectives.callbacks import AddRegularizer
from lightning_objectives.regularizers import RDrop, r_drop, symmetric_kl


def test_by_torch():
    """Half the sum of both divergences, by torch's own function."""
    a, b = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    pairs = [(a, b), (b, a)]
    expected = sum(F.kl_div(q.log_softmax(1), p.softmax(1), reduction="none").sum(1) for p, q in pairs) / 2
    torch.testing.assert_close(symmetric_kl(a, b), expected)
    number = symmetric_kl(torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([[1.5, 1.2, 0.3]]))
    torch.testing.assert_close(number, torch.tensor([0.059251]), rtol=1e-5, atol=0)


def test_the_gradient_flows_through_both_passes():
    a, b = torch.randn(2, 5, 4, dtype=torch.float64).requires_grad_()
    first, second = torch.autograd.grad(symmetric_kl(a, b).sum(), (a, b))
    for mine, other in ((first, torch.autograd.grad(symmetric_kl(b, a).sum(), a)[0]), (second, first)):
        assert mine.abs().max() > 0
        assert mine.shape == other.shape
    torch.testing.assert_close(first, torch.autograd.grad(symmetric_kl(b, a).sum(), a)[0])


def test_a_class_that_is_impossible_in_both_passes_counts_nothing():
    a = torch.tensor([[0.0, 1.0, -torch.inf]]).requires_grad_()
    b = torch.tensor([[1.0, 0.5, -torch.inf]])
    value = symmetric_kl(a, b)
    torch.testing.assert_close(value, symmetric_kl(a[:, :2], b[:, :2]))
    assert torch.autograd.grad(value.sum(), a)[0].isfinite().all()


def test_without_dropout_it_is_the_plain_run():
    assert equal(fit(AddRegularizer(RDrop()))[0], fit()[0])


def test_two_passes_by_hand():
    """The losses of a loop that seeds the second mask as the first, so that both passes are the plain one."""
    values = []

    def noted(logits, inputs, again):
        values.append(r_drop(logits, inputs, again).detach())
        return r_drop(logits, inputs, again)

    fit(AddRegularizer(noted, strength=0.5), net=lambda: Net(dropout=0.5))
    assert all(value.min() >= 0 and value.max() > 0 for value in values)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"other_logits of the shape \(2, 3\) do not fit logits of the shape \(2, 4\)"):
        symmetric_kl(torch.zeros(2, 4), torch.zeros(2, 3))
