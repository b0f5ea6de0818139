import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss

from lightning_objectives.metrics import NegativeLogLikelihood, negative_log_likelihood


def test_hand_worked():
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    expected = torch.tensor([math.log(4), -math.log(0.8)])
    torch.testing.assert_close(negative_log_likelihood(p, torch.tensor([1, 2]), from_logits=False), expected)
    torch.testing.assert_close(negative_log_likelihood(p.log() + 3, torch.tensor([1, 2])), expected)


def test_soft_targets_against_a_loop():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 4, generator=generator)
    q = torch.rand(5, 4, generator=generator).softmax(1)
    for row, got in enumerate(negative_log_likelihood(logits, q).tolist()):
        e = [math.exp(x) for x in logits[row].tolist()]
        expected = -sum(float(q[row, c]) * math.log(e[c] / sum(e)) for c in range(4))
        assert got == pytest.approx(expected, rel=1e-5)


def test_against_scikit_learn():
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.ones(6), 50)
    y = generator.integers(0, 6, 50)
    metric = NegativeLogLikelihood(from_logits=False)
    metric.update(torch.from_numpy(p), torch.from_numpy(y))
    assert float(metric.compute()) == pytest.approx(log_loss(y, p, labels=range(6)), rel=1e-6)


def test_certain_and_wrong():
    p = torch.tensor([[1.0, 0.0]])
    assert negative_log_likelihood(p, torch.tensor([0]), from_logits=False) == 0
    assert negative_log_likelihood(p, torch.tensor([1]), from_logits=False) == math.inf
    assert negative_log_likelihood(p, p, from_logits=False) == 0  # 0 log 0 is 0
    assert negative_log_likelihood(p, 1 - p, from_logits=False) == math.inf
    assert negative_log_likelihood(torch.tensor([[1e4, 0.0]]), torch.tensor([1])) == 1e4


def test_a_nan_of_any_class_is_seen():
    p = torch.tensor([[torch.nan, 1.0], [0.0, 1.0]])
    for target in (torch.tensor([1, 1]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])):
        assert negative_log_likelihood(p, target, from_logits=False).isnan().tolist() == [True, False]


def test_sums_go_on_where_float32_stops():
    metric = NegativeLogLikelihood()
    one = (torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    metric.update(*one)
    # As after 2^30 rows of log 2: a float32 sum would take in nothing more, and the count neither.
    big = {name: state * 2**30 for name, state in metric.metric_state.items()}
    metric.merge_state(big)
    before = {name: state.clone() for name, state in metric.metric_state.items()}
    metric.update(*one)
    grown = [float(metric.metric_state[name] - state) for name, state in before.items()]
    assert sorted(grown) == pytest.approx([0, math.log(2), 1], abs=1e-6)
