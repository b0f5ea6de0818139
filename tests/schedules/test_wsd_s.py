import pytest
import torch

from lightning_objectives.schedules import WSDSchedule, WSDSSchedule, wsd_s_factor


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
    ("shape", "decay"),
    [
        ("inverse", [1 / 2.5, 1 / 4]),  # 1 / η goes from 1 to 4 in two steps
        ("linear", [0.625, 0.25]),
        ("cosine", [0.625, 0.25]),
        ("1-sqrt", [0.469670, 0.25]),
    ],
)
def test_by_hand(shape, decay):
    """Segments of 4 and 5 steps; of the second, 0.4 · 5 = 2 steps decay, as 0.4 · 4 rounded up of the first."""
    schedule = WSDSSchedule(optimizer(), ends=(4, 9), warmup_steps=2, decay=0.4, shape=shape, final_ratio=0.25)
    expected = [0.5, 1.0, *decay, 1.0, 1.0, 1.0, *decay, 0.25, 0.25]
    torch.testing.assert_close(torch.tensor(rates(schedule, 11)), torch.tensor(expected), rtol=0, atol=1e-6)


def test_with_one_end_it_is_wsd():
    ours = WSDSSchedule(optimizer(), ends=(20,), warmup_steps=3, decay=0.25, shape="1-sqrt", final_ratio=0.1)
    theirs = WSDSchedule(optimizer(), warmup_steps=3, stable_steps=12, decay_steps=5, final_ratio=0.1)
    torch.testing.assert_close(rates(ours, 25), rates(theirs, 25))


@pytest.mark.parametrize("length", range(1, 60))
def test_each_segment_ends_at_the_final_ratio(length):
    assert wsd_s_factor(length - 1, ends=(length, 2 * length)) == pytest.approx(0.1)
    assert wsd_s_factor(2 * length - 1, ends=(length, 2 * length)) == pytest.approx(0.1)
    if length > 1:
        assert wsd_s_factor(length, ends=(length, 2 * length)) == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ends": ()}, r"ends=\(\) must be increasing"),
        ({"ends": (5, 5)}, r"ends=\(5, 5\) must be increasing"),
        ({"warmup_steps": 10}, "warmup_steps=10 must be >= 0 and below"),
        ({"decay": 0.0}, r"decay=0\.0 must be in"),
        ({"shape": "step"}, "shape='step' must be"),
        ({"final_ratio": 0.0}, r"final_ratio=0\.0 must be in"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        WSDSSchedule(optimizer(), **{"ends": (10,), **settings})
