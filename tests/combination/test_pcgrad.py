import torch

from lightning_objectives.combination import PCGrad, pcgrad_weights


def projected(gradients, generator):
    """Algorithm 1 as a loop over gradients: each loses what opposes the original others, in a random order."""
    total = torch.zeros_like(gradients[0])
    for i, gradient in enumerate(gradients):
        h = gradient.clone()
        for j in torch.randperm(len(gradients), generator=generator).tolist():
            dot = torch.dot(h, gradients[j])
            if j != i and dot < 0:
                h -= dot / gradients[j].square().sum() * gradients[j]
        total += h
    return total


def test_the_weighted_sum_is_that_of_the_projected_gradients():
    conflicts = 0
    for seed in range(20):
        gradients = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weights = pcgrad_weights(gradients, torch.Generator().manual_seed(seed))
        expected = projected(gradients, torch.Generator().manual_seed(seed))
        torch.testing.assert_close(weights @ gradients, expected, rtol=0, atol=1e-9)
        conflicts += bool((weights > 1).any())
    assert conflicts > 10


def test_by_hand():
    """Of (1, 0) and (-1, 1): (1, 0) + 1/2 (-1, 1) = (1/2, 1/2), and (-1, 1) + (1, 0) = (0, 1)."""
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    torch.testing.assert_close(pcgrad_weights(gradients) @ gradients, torch.tensor([0.5, 1.5]))


def test_the_order_is_drawn_anew_for_each_gradient():
    """In three dimensions the order matters, so draws give several results; those of one generator are equal."""
    gradients = torch.tensor([[1.0, 0.0, 0.2], [-1.0, 0.5, 0.0], [-0.5, -1.0, 0.3]])
    draws = {tuple(pcgrad_weights(gradients, torch.Generator().manual_seed(seed % 10)).tolist()) for seed in range(20)}
    assert 1 < len(draws) <= 10


def test_without_conflict_it_is_the_sum():
    assert PCGrad()(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])).tolist() == [1.0, 1.0, 1.0]


def test_a_zero_or_bad_gradient_projects_nothing():
    zero, good = torch.zeros(2), torch.ones(2)
    for gradients in ([zero, good], [good, torch.full((2,), torch.nan)], [good * torch.inf, good]):
        assert pcgrad_weights(torch.stack(gradients)).tolist() == [1.0, 1.0]


def test_half_precision_is_computed_in_float32():
    gradients = torch.tensor([[256.0, 256.0], [-256.0, 0.0]], dtype=torch.float16)  # |g|² = 131072 overflows half
    torch.testing.assert_close(pcgrad_weights(gradients), torch.tensor([1.5, 2.0]))
