import pytest
import torch

from lightning_objectives.combination import UncertaintyWeighting


def test_by_hand():
    """L = (2, 1/2), s = (0.3, -0.4): (2 e^-0.3 + e^0.4 / 2) / 2 + (0.3 - 0.4) / 2 = 1.063774."""
    method = UncertaintyWeighting(tasks=["regression", "regression"])
    method.log_variances.data = torch.tensor([0.3, -0.4])
    terms = torch.tensor([2.0, 0.5])
    torch.testing.assert_close((method(terms) * terms).sum() + method.penalty(), torch.tensor(1.063774))


def test_the_best_log_variances():
    """Fixed losses: log 2L of a classification, log L of a regression."""
    method, terms = UncertaintyWeighting(tasks=["classification", "regression"]), torch.tensor([2.0, 0.5])
    optimizer = torch.optim.SGD(method.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        ((method(terms) * terms).sum() + method.penalty()).backward()
        optimizer.step()
    torch.testing.assert_close(method.log_variances.data, torch.tensor([4.0, 0.5]).log())


def test_at_the_start_tasks_weigh_as_without_noise():
    method = UncertaintyWeighting(tasks=["classification", "regression"])
    assert method(torch.tensor([1.0, 1.0])).tolist() == [1.0, 0.5]
    assert method.penalty() == 0


def test_wrong_tasks_are_refused():
    for tasks in ([], ["classes"], "classification"):
        with pytest.raises(ValueError, match="must hold 'classification' or 'regression' for each term"):
            UncertaintyWeighting(tasks=tasks)
    with pytest.raises(ValueError, match=r"The loss has 3 terms, but tasks=\('regression',\) names 1"):
        UncertaintyWeighting(tasks=["regression"])(torch.ones(3))
