import pytest
import torch

from lightning_objectives.gradients import OrthogonalGradient, orthogonal_gradient


def test_by_hand():
    """w = (1, 1), g = (3, 1): <w, g> / <w, w> = 2, the rest (1, -1) is scaled by sqrt(10) / sqrt(2)."""
    new = orthogonal_gradient(torch.tensor([3.0, 1.0]), torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(new, torch.tensor([2.2360680, -2.2360680]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_orthogonal_and_as_long(dtype):
    g, w = torch.randn(20, 30).to(dtype), torch.randn(20, 30).to(dtype)
    new = orthogonal_gradient(g, w)
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-5
    assert abs((new.double() * w.double()).sum() / (new.double().norm() * w.double().norm())) < tolerance
    assert new.double().norm() / g.double().norm() == pytest.approx(1, abs=tolerance)
    assert (new.double() * g.double()).sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_gradient_along_the_weights_gives_nothing(dtype):
    w = torch.randn(50, 7).to(dtype)
    for factor in (0.37, -2.0):
        assert torch.equal(orthogonal_gradient(factor * w, w), torch.zeros_like(w))


def test_weights_of_zero_keep_the_gradient():
    g = torch.randn(3, 2)
    torch.testing.assert_close(orthogonal_gradient(g, torch.zeros(3, 2)), g)
    assert torch.equal(orthogonal_gradient(torch.zeros(3, 2), g), torch.zeros(3, 2))


def test_biases_and_single_elements_keep_theirs():
    params = [torch.ones(2, 2), torch.ones(3), torch.ones(1, 1)]
    gradients = [torch.eye(2), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[0.37]])]
    matrix, bias, scale = OrthogonalGradient().update(gradients, params, {})
    assert not torch.equal(matrix, gradients[0])
    assert bias is gradients[1]
    assert scale is gradients[2]
    _, bias, scale = OrthogonalGradient(min_dims=0).update(gradients, params, {})
    # <w, g> / <w, w> = 2: (-1, 0, 1) sqrt(14 / 2)
    torch.testing.assert_close(bias, torch.tensor([-2.6457513, 0.0, 2.6457513]))
    assert scale is gradients[2]


def test_what_is_refused():
    with pytest.raises(ValueError, match="min_dims=-1 must be >= 0"):
        OrthogonalGradient(min_dims=-1)
