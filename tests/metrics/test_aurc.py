import itertools

import numpy as np
import pytest
import torch
from torch_uncertainty.metrics import classification as torch_uncertainty

from lightning_objectives.metrics import AURC, aurc
from lightning_objectives.testing import assert_laws


def rows(confidence, errors):
    """Predictions of class 0 with these confidences, and the targets that make these errors."""
    confidence = torch.tensor(confidence, dtype=torch.float64)
    n = len(confidence)
    p = torch.cat([confidence[:, None], ((1 - confidence) / 9)[:, None].expand(n, 9)], 1)
    return p, torch.tensor(errors)


CONFIDENCE, ERRORS = [0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3], [0, 0, 1, 0, 1, 0, 1, 1]


def slow(errors):
    return np.mean([np.mean(errors[:k]) for k in range(1, len(errors) + 1)])


def test_by_hand():
    """Errors 0, 1, 0 from the most confident on: (0 + 1/2 + 1/3) / 3; best 0, 0, 1: 1/9."""
    p, target = rows([0.5, 0.9, 0.7], [0, 0, 1])
    assert aurc(p, target, from_logits=False).item() == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    assert aurc(p, target, from_logits=False, excess=True).item() == pytest.approx((0 + 1 / 2) / 3)


def test_the_numbers_of_another_program():
    """In the given order .280655; the two confidences of .8 in both orders .311905, the mean of them."""
    p, target = rows([0.9, 0.81, *CONFIDENCE[2:]], ERRORS)
    assert aurc(p, target, from_logits=False).item() == pytest.approx(0.280655, abs=1e-6)
    assert aurc(p, target, from_logits=False, excess=True).item() == pytest.approx(0.097917, abs=1e-6)
    p, target = rows(CONFIDENCE, ERRORS)
    assert aurc(p, target, from_logits=False).item() == pytest.approx(0.311905, abs=1e-6)


def test_equal_confidences_have_the_mean_over_all_orders():
    errors = [0, 1, 1, 0, 1]
    p, target = rows([0.9, 0.6, 0.6, 0.6, 0.3], errors)
    orders = [slow([0, *middle, 1]) for middle in itertools.permutations(errors[1:4])]
    assert aurc(p, target, from_logits=False).item() == pytest.approx(np.mean(orders))


@pytest.mark.parametrize("seed", range(3))
def test_equals_a_slow_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(60, 4, generator=generator)
    target = torch.randint(4, (60,), generator=generator)
    confidence, predicted = logits.softmax(1).max(1)
    errors = (predicted != target)[confidence.argsort(descending=True)].numpy()
    assert aurc(logits, target).item() == pytest.approx(slow(errors), rel=1e-6)
    assert aurc(logits, target, excess=True).item() == pytest.approx(slow(errors) - slow(np.sort(errors)), rel=1e-5)


def test_torch_uncertainty_takes_trapezia_from_the_first_row_on():
    """Its own docstring has the mean, as the paper and we do: 1/9 here, and not 1/12."""
    p, target = torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.8, 0.2]]), torch.tensor([0, 1, 0])
    theirs = torch_uncertainty.AURC()
    theirs.update(p, target)
    assert theirs.compute().item() == pytest.approx(1 / 12, abs=1e-4)
    assert aurc(p, target, from_logits=False).item() == pytest.approx(1 / 9)
    p, target = 2 * torch.randn(4000, 5).softmax(1), torch.randint(5, (4000,))
    theirs = torch_uncertainty.AURC()
    theirs.update(p, target)
    assert theirs.compute().item() == pytest.approx(aurc(p, target, from_logits=False).item(), abs=2e-3)


@pytest.mark.parametrize(("errors", "value"), [([0, 0, 0], 0.0), ([1, 1, 1], 1.0)])
def test_all_right_or_all_wrong_leaves_no_excess(errors, value):
    p, target = rows([0.9, 0.5, 0.4], errors)
    assert aurc(p, target, from_logits=False).item() == value
    assert aurc(p, target, from_logits=False, excess=True).item() == 0


def test_confidences_that_round_to_1_keep_their_order():
    """In float32 the softmax of 40 and of 30 is 1."""
    logits, target = torch.tensor([[40.0, 0.0], [30.0, 0.0]]), torch.tensor([0, 1])
    assert aurc(logits, target).item() == pytest.approx(0.25)
    assert aurc(logits, 1 - target).item() == pytest.approx(0.75)


def test_rows_that_do_not_count_and_nan():
    logits, target = torch.randn(20, 3), torch.arange(20) % 3
    metric = AURC()
    metric.update(torch.cat([logits, torch.full((2, 3), torch.nan)]), torch.cat([target, torch.tensor([-100, -100])]))
    torch.testing.assert_close(metric.compute(), aurc(logits, target))
    assert aurc(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)).isnan()
    assert aurc(torch.full((2, 3), torch.nan), torch.tensor([0, 1])).isnan()


def test_laws_of_the_excess():
    assert_laws(AURC(excess=True))
