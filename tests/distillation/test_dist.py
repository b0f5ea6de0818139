import numpy as np
import pytest
import torch

from lightning_objectives.distillation import DIST, dist_loss

S = torch.tensor([[0.2, -1.0, 1.5], [2.0, 0.0, -1.0], [-0.3, 0.4, 0.1]], dtype=torch.float64)
T = torch.tensor([[1.0, -2.0, 3.0], [0.5, 1.0, -0.5], [0.0, 2.0, 1.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("settings", "value"), [({"gamma": 0.0}, 0.319564), ({"beta": 0.0}, 0.104744), ({}, 0.424308)], ids=str
)
def test_numbers_of_another_implementation(settings, value):
    assert dist_loss(S, T, **settings).mean().item() == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_numpys_correlations(temperature):
    generator = torch.Generator().manual_seed(0)
    s, t = (2 * torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    q, p = ((z / temperature).softmax(1).numpy() for z in (s, t))
    rows = [1 - np.corrcoef(q[n], p[n])[0, 1] for n in range(6)]
    columns = np.mean([1 - np.corrcoef(q[:, k], p[:, k])[0, 1] for k in range(4)])
    expected = torch.tensor([temperature**2 * (0.5 * row + 3.0 * columns) for row in rows])
    torch.testing.assert_close(dist_loss(s, t, beta=0.5, gamma=3.0, temperature=temperature), expected)


def test_a_student_that_is_less_sure_in_the_same_way_has_no_distance():
    """q = a p + b, with one a for all; with one a for each row only the rows correlate."""
    p = T.softmax(1)
    same = (0.4 * p + 0.2).log()
    torch.testing.assert_close(dist_loss(same, T), torch.zeros(3, dtype=torch.float64))
    shares = torch.tensor([[0.1], [0.5], [0.9]], dtype=torch.float64)
    by_row = (shares * p + (1 - shares) / 3).log()
    torch.testing.assert_close(dist_loss(by_row, T, gamma=0.0), torch.zeros(3, dtype=torch.float64))
    assert dist_loss(by_row, T, beta=0.0).amin() > 0.01


def test_a_shift_of_the_logits_is_free_and_a_scale_is_not():
    shift = torch.tensor([[1.0], [-2.0], [5.0]], dtype=torch.float64)
    torch.testing.assert_close(dist_loss(S + shift, T), dist_loss(S, T))
    assert (dist_loss(3 * T, T) > 0.01).all()


def test_one_sample_has_no_columns_to_compare():
    """The authors' code adds a constant 1 here."""
    s = S[:1].clone().requires_grad_()
    values = dist_loss(s, T[:1], beta=0.0)
    assert values.tolist() == [0.0]
    assert torch.autograd.grad(values.sum(), s)[0].tolist() == [[0.0, 0.0, 0.0]]


def test_a_teacher_that_does_not_vary_says_nothing():
    """Its first row is uniform, and its second column is 1/3 in both rows."""
    t = torch.tensor([[0.2, 0.2], [0.2, 0.6]]).log()
    t = torch.cat([t, torch.full((2, 1), 0.2).log()], 1)
    t[1] = torch.tensor([0.2, 1 / 3, 1.4 / 3]).log()
    values = dist_loss(S[:2].float(), t, gamma=0.0)
    assert values[0].item() == pytest.approx(0, abs=1e-3)
    assert values[1] > 0.1
    columns = dist_loss(S[:2].float(), t, beta=0.0)
    q, p = S[:2].softmax(1).numpy(), t.softmax(1).double().numpy()
    expected = sum(1 - np.corrcoef(q[:, k], p[:, k])[0, 1] for k in (0, 2)) / 3
    torch.testing.assert_close(columns, torch.full((2,), expected).float(), rtol=1e-3, atol=1e-3)


def test_the_gradient_is_bounded_where_the_student_does_not_vary():
    """With 1e-8 in the place of a floor it is in the millions."""
    s = torch.zeros(3, 3, requires_grad=True)
    values = dist_loss(s, T.float())
    torch.testing.assert_close(values, torch.full((3,), 2.0))
    (gradient,) = torch.autograd.grad(values.mean(), s)
    assert 1 < gradient.abs().amax() < 1e4


def test_what_is_refused():
    for settings in ({"beta": -1.0}, {"gamma": float("nan")}, {"temperature": 0.0}, {"temperature": float("inf")}):
        (name,) = settings
        with pytest.raises(ValueError, match=f"{name}={settings[name]} must be >"):
            DIST(**settings)
        with pytest.raises(ValueError, match=f"{name}={settings[name]} must be >"):
            dist_loss(S, T, **settings)
    for s, t, words in (
        (S, T[:1], r"teacher_logits of the shape \(1, 3\)"),
        (S, T[:, :1], r"teacher_logits of the shape \(3, 1\)"),
        (S[:, :1], T[:, :1], "two or more"),
        (S[0], T[0], r"logits of the shape \(3,\)"),
    ):
        with pytest.raises(ValueError, match=words):
            dist_loss(s, t)
