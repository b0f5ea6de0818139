import pytest
import torch
from torch.optim.lr_scheduler import LinearLR, SequentialLR

from lightning_objectives.schedules import WSDSchedule


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)


def rates(schedule, steps):
    found = []
    for _ in range(steps):
        found += schedule.get_last_lr()
        schedule.optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("shape", "final_ratio", "decay"),
    [
        ("linear", 0.0, [0.75, 0.5, 0.25, 0, 0]),
        ("linear", 0.2, [0.8, 0.6, 0.4, 0.2, 0.2]),
        ("1-sqrt", 0.0, [0.5, 0.292893, 0.133975, 0, 0]),
        ("cosine", 0.0, [0.853553, 0.5, 0.146447, 0, 0]),
        ("exponential", 0.0625, [0.5, 0.25, 0.125, 0.0625, 0.0625]),
    ],
)
def test_by_hand(shape, final_ratio, decay):
    schedule = WSDSchedule(
        optimizer(), warmup_steps=2, stable_steps=3, decay_steps=4, shape=shape, final_ratio=final_ratio
    )
    expected = [0.5, 1.0, 1.0, 1.0, 1.0, *decay]
    torch.testing.assert_close(torch.tensor(rates(schedule, 10)), torch.tensor(expected), rtol=0, atol=1e-6)


def test_it_is_torchs_linear_schedules_one_after_the_other():
    mine = rates(WSDSchedule(optimizer(), warmup_steps=5, stable_steps=6, decay_steps=4, shape="linear"), 15)
    theirs = optimizer()
    rise = LinearLR(theirs, 1 / 5, 1.0, total_iters=4)
    fall = LinearLR(theirs, 1.0, 0.0, total_iters=4)
    torch.testing.assert_close(mine, rates(SequentialLR(theirs, [rise, fall], [10]), 15))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"stable_steps": -1}, "stable_steps=-1"),
        ({"decay_steps": 0}, "decay_steps=0 must be >= 1"),
        ({"shape": "step"}, "shape='step'"),
        ({"final_ratio": 1.5}, r"final_ratio=1\.5"),
        ({"shape": "exponential"}, "never reached"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        WSDSchedule(optimizer(), **{"stable_steps": 1, "decay_steps": 1, **settings})
