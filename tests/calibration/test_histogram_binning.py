import math

import numpy as np
import pytest
import torch
from torch_uncertainty.post_processing import HistogramBinningScaler

from lightning_objectives.calibration import HistogramBinning, binned_rates
from lightning_objectives.testing import assert_laws

P = torch.tensor([0.05, 0.1, 0.15, 0.25, 0.3, 0.45, 0.5, 0.55, 0.8, 1], dtype=torch.float64)
Y = torch.tensor([0.0, 0, 1, 0, 1, 0, 1, 1, 1, 1])


def fitted(logits, target, **settings):
    method = HistogramBinning(**settings)
    method.fit(logits, target)
    return method


def sample(n=500, classes=4):
    logits = 2 * torch.randn(n, classes, dtype=torch.float64)
    return logits, torch.multinomial((0.5 * logits).softmax(1), 1).squeeze(1)


def test_by_hand():
    """(0, 1/4] has 0, 0, 1, 0; (1/4, 1/2] has 1, 0, 1; the others have ones only."""
    torch.testing.assert_close(binned_rates(P, Y, bins=4), torch.tensor([1 / 4, 2 / 3, 1, 1], dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bins", [3, 7, 10, 15])
def test_an_edge_belongs_to_the_bin_below(bins, dtype):
    """In the type of the inputs: 3/10 in float32 is no less than 0.3 in float32."""
    edges = torch.tensor([(b + 1) / bins for b in range(bins)], dtype=dtype)
    rates = binned_rates(edges, torch.arange(bins, dtype=torch.float32), bins=bins)
    assert rates.tolist() == list(range(bins))
    assert binned_rates(torch.zeros(1), torch.ones(1), bins=bins)[0] == 1


def test_a_sample_is_in_the_same_bin_in_the_fit_and_later():
    """The probability 1/2 on the edge is counted below: class 1 has the rates 1/2 and 1, class 0 has 0 and 1."""
    logits = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    p = fitted(logits, torch.tensor([1, 0, 1]), bins=2)(logits)
    torch.testing.assert_close(p, torch.tensor([[0, 1], [2 / 3, 1 / 3], [0, 1]]))


def test_an_empty_bin_has_its_centre():
    torch.testing.assert_close(
        binned_rates(torch.tensor([0.9]), torch.tensor([0.0]), bins=4).float(), torch.tensor([0.125, 0.375, 0.625, 0.0])
    )
    assert binned_rates(torch.zeros(0), torch.zeros(0), bins=2).tolist() == [0.25, 0.75]


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_equals_a_slow_loop_and_torch_uncertainty(bins):
    logits, target = sample()
    p, y = logits.softmax(1).numpy(), target.numpy()
    expected = np.zeros_like(p)
    for c in range(4):
        places = np.maximum(np.ceil(p[:, c] * bins), 1)
        for n in range(len(p)):
            expected[n, c] = np.mean(y[places == places[n]] == c)
    expected /= expected.sum(1, keepdims=True)
    ours = fitted(logits, target, bins=bins)(logits)
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12)
    theirs = HistogramBinningScaler(num_bins=bins)
    theirs.fit([(logits, target)], progress=False)
    torch.testing.assert_close(ours, theirs(logits).exp().double(), atol=3e-6, rtol=0)  # It clips at 1e-6.


def test_a_row_of_rates_of_0_is_uniform():
    logits, target = sample()
    method = fitted(logits, target)
    method.rates.zero_()
    torch.testing.assert_close(method(logits), torch.full_like(logits, 1 / 4))


def test_a_soft_target_is_the_same_as_repeated_samples():
    logits, soft = sample(6, 3)[0], torch.tensor([[0.25, 0.75, 0.0]]).expand(6, 3)
    repeated = fitted(logits.repeat_interleave(4, 0), torch.tensor([0, 1, 1, 1]).repeat(6))
    torch.testing.assert_close(fitted(logits, soft)(logits), repeated(logits))


def test_a_state_of_more_bins_is_used_with_its_own_bins():
    logits, target = sample()
    other, method = HistogramBinning(bins=3), fitted(logits, target, bins=9)
    other.load_state_dict(method.state_dict())
    assert torch.equal(other(logits), method(logits))


def test_few_bins_do_not_keep_the_likelihood():
    with pytest.raises(AssertionError, match="the NLL of the fitted set must not rise"):
        assert_laws(HistogramBinning(bins=2))


def test_before_the_fit_it_is_softmax():
    logits = sample()[0]
    assert torch.equal(HistogramBinning()(logits), logits.softmax(1))


def test_what_cannot_be_fitted_is_refused():
    with pytest.raises(ValueError, match="bins=0 must be 1 or more"):
        HistogramBinning(bins=0)
    with pytest.raises(ValueError, match="bins=0 must be 1 or more"):
        binned_rates(P, Y, bins=0)
    with pytest.raises(ValueError, match="1 of 1 samples have logits"):
        fitted(torch.tensor([[0.0, math.nan]]), torch.tensor([0]))
