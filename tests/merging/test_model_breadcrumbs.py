import pytest
import torch

from lightning_objectives.merging import ModelBreadcrumbs, TaskArithmetic, breadcrumbs_merge


def test_by_hand():
    """Changes 0.1, -2, 9, 1, 4 without the smallest two and the largest: -2, 4; the others 8, -5, 0, 6, 7 give 6, 7."""
    base = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    weights = [
        base + torch.tensor([0.1, -2.0, 9.0, 1.0, 4.0]),
        base + torch.tensor([8.0, -5.0, 0.0, 6.0, 7.0]),
    ]
    merged = breadcrumbs_merge(weights, base=base, beta=0.4, gamma=0.2, scale=0.5)
    torch.testing.assert_close(merged, torch.tensor([1.0, 0.0, 1.0, 4.0, 6.5]))


def slow_loop(weights, base, beta, gamma, scale):
    """Each change by itself: how many others are smaller, and how many are larger."""
    merged = base.clone()
    n = base.numel()
    for weight in weights:
        change = (weight - base).flatten().tolist()
        for j, own in enumerate(change):
            smaller = sum(abs(other) < abs(own) for other in change)
            larger = sum(abs(other) > abs(own) for other in change)
            if smaller >= int(beta * n) and larger >= int(gamma * n):
                merged.view(-1)[j] += scale * own
    return merged


@pytest.mark.parametrize(("beta", "gamma"), [(0.85, 0.006), (0.5, 0.1), (0.0, 0.3), (0.9, 0.0), (0.0, 0.0)])
def test_by_a_slow_loop(beta, gamma):
    generator = torch.Generator().manual_seed(0)
    base, *weights = torch.randn(4, 12, 17, generator=generator, dtype=torch.float64)
    merged = breadcrumbs_merge(weights, base=base, beta=beta, gamma=gamma, scale=0.7)
    torch.testing.assert_close(merged, slow_loop(weights, base, beta, gamma, 0.7))


def test_without_masks_it_is_task_arithmetic():
    base, *weights = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    merged = ModelBreadcrumbs(beta=0.0, gamma=0.0, scale=0.3).tensor(weights, base=base)
    torch.testing.assert_close(merged, TaskArithmetic(scale=0.3).tensor(weights, base=base))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0)])
def test_a_single_number_is_kept_and_none_is_no_error(shape):
    merged = breadcrumbs_merge([torch.full(shape, 3.0)], base=torch.ones(shape), scale=0.5)
    assert merged.equal(torch.full(shape, 2.0))


def test_each_tensor_by_itself_has_its_share_also_if_all_changes_are_equal():
    merged = breadcrumbs_merge([torch.ones(10)], base=torch.zeros(10), beta=0.5, gamma=0.2, scale=1.0)
    assert merged.tolist() == [0.0] * 5 + [1.0] * 3 + [0.0] * 2


def test_what_is_masked_stays_to_the_bit():
    base = torch.tensor([-0.0, 0.1, 0.3])
    merged = breadcrumbs_merge([torch.tensor([5.0, 0.1, 0.4])], base=base, beta=0.0, gamma=0.34, scale=1.0)
    assert merged[:2].view(torch.int32).equal(base[:2].view(torch.int32))


def test_complex_numbers_have_one_magnitude():
    weights = [torch.tensor([3.0 + 4.0j, 4.5 + 0.0j, 0.0 + 1.0j])]
    merged = breadcrumbs_merge(weights, base=torch.zeros(3, dtype=torch.complex64), beta=0.34, gamma=0.34, scale=1.0)
    assert merged.tolist() == [0.0, 4.5, 0.0]


@pytest.mark.parametrize(("beta", "gamma"), [(-0.1, 0.0), (0.5, -0.1), (0.9, 0.1), (1.0, 0.0), (float("nan"), 0.0)])
def test_shares_that_leave_nothing_are_refused(beta, gamma):
    with pytest.raises(ValueError, match=rf"beta={beta} and gamma={gamma} must be >= 0 and below 1 together"):
        ModelBreadcrumbs(beta=beta, gamma=gamma)
    with pytest.raises(ValueError, match="below 1 together"):
        breadcrumbs_merge([torch.ones(1)], base=torch.ones(1), beta=beta, gamma=gamma)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="ModelBreadcrumbs cannot merge without the base"):
        ModelBreadcrumbs().tensor([torch.ones(1)])
    with pytest.raises(ValueError, match="hold no network"):
        breadcrumbs_merge([], base=torch.ones(1))
    with pytest.raises(ValueError, match="shape"):
        breadcrumbs_merge([torch.ones(2)], base=torch.ones(1))


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_not_finite_is_refused(scale):
    with pytest.raises(ValueError, match=rf"scale={scale} must be finite"):
        ModelBreadcrumbs(scale=scale)
    with pytest.raises(ValueError, match="must be finite"):
        breadcrumbs_merge([torch.ones(1)], base=torch.ones(1), scale=scale)
