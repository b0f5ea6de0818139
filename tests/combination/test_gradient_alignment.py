import torch

from lightning_objectives.combination import gradient_alignment


def projected(gradients):
    """The paper's loop: each added gradient loses what opposes the first, which is never changed."""
    first = gradients[0]
    total = first.clone()
    for gradient in gradients[1:]:
        dot = sum(a * b for a, b in zip(first.tolist(), gradient.tolist()))
        total += gradient - dot / first.norm() ** 2 * first if dot < 0 else gradient
    return total


def test_the_weighted_sum_is_the_projected_gradient():
    conflicts = 0
    for seed in range(10):
        gradients = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weights = gradient_alignment(gradients)
        torch.testing.assert_close(weights @ gradients, projected(gradients), rtol=0, atol=1e-9)
        conflicts += weights[0].item() > 1
    assert conflicts


def test_by_hand():
    """<g1, g2> = -2, |g1|² = 4: c = 1/2."""
    torch.testing.assert_close(gradient_alignment(torch.tensor([[2.0, 0.0], [-1.0, 5.0]])), torch.tensor([1.5, 1.0]))


def test_agreement_changes_nothing():
    assert gradient_alignment(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])).tolist() == [1.0, 1.0, 1.0]


def test_opposite_gradients_leave_the_first():
    """The whole of -3 g1 is taken out: w1 = 4, and 4 g1 - 3 g1 = g1."""
    first = torch.tensor([1.0, -2.0])
    weights = gradient_alignment(torch.stack([first, -3 * first]))
    torch.testing.assert_close(weights, torch.tensor([4.0, 1.0]))


def test_a_zero_or_bad_gradient_spoils_nothing():
    zero, good = torch.zeros(2), torch.ones(2)
    for gradients in ([zero, good], [good, torch.full((2,), torch.nan)], [good * torch.inf, good]):
        assert gradient_alignment(torch.stack(gradients)).tolist() == [1.0, 1.0]


def test_half_precision_is_computed_in_float32():
    gradients = torch.tensor([[256.0, 256.0], [-256.0, 0.0]], dtype=torch.float16)  # |g1|² = 131072 overflows half
    torch.testing.assert_close(gradient_alignment(gradients), torch.tensor([1.5, 1.0]))
