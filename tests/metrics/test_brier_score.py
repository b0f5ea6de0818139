import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss

from lightning_objectives.metrics import BrierScore, brier_score


def test_hand_worked():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]])
    # .3² + .2² + .1², .5² + .5² + 1²; and against (.5, .5, 0): .2² + .3² + .1², 0
    torch.testing.assert_close(brier_score(p, torch.tensor([0, 2]), from_logits=False), torch.tensor([0.14, 1.5]))
    soft = torch.tensor([[0.5, 0.5, 0.0]] * 2)
    torch.testing.assert_close(brier_score(p, soft, from_logits=False), torch.tensor([0.14, 0.0]))
    torch.testing.assert_close(brier_score(p[:1].log() - 5, torch.tensor([0])), torch.tensor([0.14]))


def test_the_bounds():
    p = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert brier_score(p, torch.tensor([0, 1]), from_logits=False).tolist() == [0, 2]


def test_small_values_do_not_cancel():
    p = torch.tensor([[1 - 1e-6, 1e-6]], dtype=torch.float64)
    assert float(brier_score(p.float(), torch.tensor([0]), from_logits=False)) == pytest.approx(2e-12, rel=0.1)


def test_inputs_are_left_alone():
    p, y = torch.tensor([[0.7, 0.3]]), torch.tensor([0])
    brier_score(p, y, from_logits=False)
    assert p.tolist() == torch.tensor([[0.7, 0.3]]).tolist()


def test_two_classes_are_twice_scikit_learns():
    generator = np.random.default_rng(0)
    p, y = generator.uniform(size=40), generator.integers(0, 2, 40)
    metric = BrierScore(from_logits=False)
    metric.update(torch.from_numpy(p), torch.from_numpy(y))
    assert float(metric.compute()) == pytest.approx(2 * brier_score_loss(y, p), rel=1e-6)
