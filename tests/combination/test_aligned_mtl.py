import pytest
import torch

from lightning_objectives.combination import AlignedMTL, aligned_mtl_weights

CONFLICT = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])


def drawn(seed, terms=3):
    return torch.randn(terms, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_svd(g, preferences):
    """With G = U S V^T the aligned gradients are the least singular value times U V^T, of the rank of G."""
    u, s, v = torch.linalg.svd(g, full_matrices=False)
    kept = s > 1e-6
    return preferences @ (s[kept][-1] * u[:, kept] @ v[kept])


def test_by_hand():
    """M = ((1, -1), (-1, 2)): twice the weights of the mean, 0.552786 and 0.414590."""
    torch.testing.assert_close(aligned_mtl_weights(CONFLICT), torch.tensor([1.105573, 0.829180]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("terms", [2, 3, 5])
def test_equals_the_singular_vectors(terms):
    for seed in range(5):
        g, preferences = drawn(seed, terms), [0.5 + k for k in range(terms)]
        update = aligned_mtl_weights(g, preferences=preferences) @ g
        torch.testing.assert_close(update, by_svd(g, torch.tensor(preferences, dtype=torch.float64)))


def test_aligned_gradients_are_orthogonal_and_as_long_as_the_least_singular_value():
    g = drawn(3)
    rows = torch.stack([aligned_mtl_weights(g, preferences=[float(k == i) for k in range(3)]) for i in range(3)])
    least = torch.linalg.svdvals(g)[-1]
    torch.testing.assert_close(rows @ g @ g.T @ rows.T, least.square() * torch.eye(3, dtype=torch.float64))


def test_orthogonal_gradients_of_one_length_keep_the_sum():
    g = 3 * torch.linalg.qr(drawn(0).T).Q.T
    torch.testing.assert_close(aligned_mtl_weights(g), torch.ones(3).double())


def test_gradients_that_depend_on_each_other():
    g = drawn(1, 2)
    g = torch.cat([g, g.sum(0, keepdim=True)])
    torch.testing.assert_close(aligned_mtl_weights(g) @ g, by_svd(g, torch.ones(3).double()))
    one = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(aligned_mtl_weights(torch.stack([one, -one])), torch.zeros(2), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        aligned_mtl_weights(torch.stack([one, one])) @ torch.stack([one, one]), 2**0.5 * one * 2**0.5
    )


def test_a_gradient_of_zero_leaves_the_others():
    g = drawn(2, 2)
    with_zero = torch.cat([g, torch.zeros(1, 7, dtype=torch.float64)])
    torch.testing.assert_close(aligned_mtl_weights(with_zero)[:2], aligned_mtl_weights(g))


@pytest.mark.parametrize("scale", [1e-15, 1e12])
def test_the_scale_means_nothing(scale):
    torch.testing.assert_close(aligned_mtl_weights(scale * CONFLICT), aligned_mtl_weights(CONFLICT))


def test_zero_and_bad_gradients_give_the_preferences():
    for gradients in ([[0.0, 0.0], [0.0, 0.0]], [[1.0, torch.nan], [1.0, 0.0]], [[1.0, 0.0], [torch.inf, 0.0]]):
        assert aligned_mtl_weights(torch.tensor(gradients), preferences=[1.0, 2.0]).tolist() == [1.0, 2.0]


def test_refusals():
    with pytest.raises(ValueError, match=r"preferences=\[1\.0, -1\.0\] must hold a finite number >= 0"):
        AlignedMTL(preferences=[1.0, -1.0])
    with pytest.raises(ValueError, match=r"preferences=\[\] must hold"):
        AlignedMTL(preferences=[])
    with pytest.raises(ValueError, match=r"The loss has 2 terms, but preferences=\(1\.0,\) has 1"):
        AlignedMTL(preferences=[1.0])(CONFLICT)
