import pytest
import torch

from lightning_objectives.schedules import WarmupStableSchedule


def rates(schedule, steps):
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr())
        schedule.optimizer.step()
        schedule.step()
    return found


def optimizer():
    a, b = (torch.nn.Parameter(torch.zeros(())) for _ in range(2))
    return torch.optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.1}], lr=0.8)


def test_by_hand():
    """Peak times t / 4, t from 1; each group has its own peak."""
    found = rates(WarmupStableSchedule(optimizer(), warmup_steps=4), 6)
    expected = [[0.2, 0.025], [0.4, 0.05], [0.6, 0.075], [0.8, 0.1], [0.8, 0.1], [0.8, 0.1]]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected))


def test_without_a_warm_up_it_is_constant():
    assert rates(WarmupStableSchedule(optimizer()), 3) == [[0.8, 0.1]] * 3


def test_a_negative_warm_up_is_refused():
    with pytest.raises(ValueError, match=r"warmup_steps=-1 must be >= 0"):
        WarmupStableSchedule(optimizer(), warmup_steps=-1)
