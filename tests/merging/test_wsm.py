import math

import pytest
import torch

from lightning_objectives.kinds import Merge
from lightning_objectives.merging import WSM, wsm_coefficients

EVEN = [100, 200, 300, 400]


@pytest.mark.parametrize(
    ("n", "shape", "expected"),
    [
        (4, "1-sqrt", [0.5000, 0.2071, 0.1589, 0.1340]),
        (5, "1-sqrt", [0.4472, 0.1852, 0.1421, 0.1198, 0.1056]),
        (8, "1-sqrt", [0.3536, 0.1464, 0.1124, 0.0947, 0.0835, 0.0755, 0.0694, 0.0646]),
        (4, "linear", [0.25] * 4),
        (4, "cosine", [0.1464, 0.3536, 0.3536, 0.1464]),
        (4, "square", [1 / 16, 3 / 16, 5 / 16, 7 / 16]),
        (4, lambda x: 1 / math.sqrt(1 + 4 * x), [0.2929, 0.1298, 0.0774, 0.5000]),  # does not reach 0
    ],
)
def test_values_worked_by_hand(n, shape, expected):
    found = wsm_coefficients([50 * i for i in range(1, n + 1)], shape=shape)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=6e-5)
    assert found.sum().item() == pytest.approx(1, abs=1e-12)
    assert (found >= 0).all()


def test_ema_is_the_recursion_over_the_checkpoints():
    """e <- (1 - a) e + a theta, begun at the oldest: by a = 1/4 the shares are 27/64, 9/64, 12/64, 16/64."""
    found = wsm_coefficients(EVEN, shape="ema", ema_weight=0.25)
    torch.testing.assert_close(found, torch.tensor([27, 9, 12, 16]).double() / 64)
    values, average = [3.0, -1.0, 4.0, 1.0], 3.0
    for value in values[1:]:
        average = 0.75 * average + 0.25 * value
    assert sum(c * v for c, v in zip(found.tolist(), values)) == pytest.approx(average)
    assert wsm_coefficients(EVEN, shape="ema", ema_weight=1.0).tolist() == [0, 0, 0, 1]


def test_uneven_steps_by_hand():
    """Steps 0, 1, 4: the mean interval is 2, so the decay ends at 6; w = 1 - 1/6 and 1 - 4/6; c = 1/6, 3/6, 2/6."""
    found = wsm_coefficients([0, 1, 4], shape="linear")
    torch.testing.assert_close(found, torch.tensor([1 / 6, 3 / 6, 2 / 6], dtype=torch.float64))


@pytest.mark.parametrize("shape", ["1-sqrt", "linear", "cosine", "square", "ema"])
@pytest.mark.parametrize("steps", [EVEN, [3, 4, 9, 20, 21]])
def test_the_merge_is_the_newest_without_part_of_each_update(shape, steps):
    """theta_0 + sum w_i u_i, with the heights taken from the shape and the updates from SGD with momentum."""
    torch.manual_seed(0)
    weight, momentum, path = torch.randn(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64), {}
    for step in range(1, steps[-1] + 1):
        momentum = 0.9 * momentum + weight * torch.randn(5, dtype=torch.float64)
        weight = weight - 0.01 * momentum
        path[step] = weight
    n, first = len(steps), steps[0]
    interval = (steps[-1] - first) / (n - 1)
    merged = path[first].clone()
    for i in range(1, n):
        x = (steps[i] - first) / (steps[-1] + interval - first)
        kept = {
            "1-sqrt": 1 - x**0.5, "linear": 1 - x, "cosine": 0.5 + 0.5 * math.cos(math.pi * x), "square": 1 - x**2,
            "ema": 1 - 0.8 ** (n * (1 - x)),
        }[shape]  # fmt: skip
        merged += kept * (path[steps[i]] - path[steps[i - 1]])
    shares = WSM(shape=shape).coefficients(steps)
    ours = sum(share * path[step] for share, step in zip(shares, steps))
    torch.testing.assert_close(ours, merged, rtol=0, atol=1e-12)


def test_the_oldest_has_the_largest_share_and_none_is_zero():
    for n in range(2, 20):
        shares = wsm_coefficients(range(n))
        assert shares.argmax() == 0
        assert shares.min() > 0


def test_one_checkpoint_is_itself():
    assert wsm_coefficients([7]).tolist() == [1.0]


@pytest.mark.parametrize(
    "shape", [lambda x: math.cos(2 * math.pi * x) ** 2, lambda x: -x, lambda x: 2 - x, lambda x: math.nan]
)
def test_what_is_no_decay_is_refused(shape):
    with pytest.raises(ValueError, match="must fall from 1 to 0 without rising"):
        wsm_coefficients(EVEN, shape=shape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": "sqrt"}, r"shape='sqrt' must be '1-sqrt'"),
        ({"ema_weight": 0.0}, r"ema_weight=0\.0 must be in \(0, 1\]"),
        ({"ema_weight": 1.01}, r"ema_weight=1\.01 must be in \(0, 1\]"),
        ({"ema_weight": math.nan}, "ema_weight=nan"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        WSM(**settings)


@pytest.mark.parametrize("steps", [[], [1, 1], [2, 1]])
def test_steps_must_increase(steps):
    with pytest.raises(ValueError, match=r"steps=.* must increase"):
        wsm_coefficients(steps)


def test_a_merge_without_coefficients_says_so():
    with pytest.raises(NotImplementedError, match="Merge defines no coefficients"):
        Merge().coefficients([1])
