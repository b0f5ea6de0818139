"""The prediction by a slow loop, its limits, and what is refused."""

import math

import pytest
import torch

from lightning_objectives.adaptation import FrechetMeanPredictor, frechet_mean_logits
from lightning_objectives.testing import assert_laws

LINE = [[0, 1, 2, 3], [1, 0, 1, 2], [2, 1, 0, 1], [3, 2, 1, 0]]
UNEVEN = [[0, 1, 5], [2, 0, 1], [4, 3, 0]]
"""Not symmetric, so that rows and columns are told apart."""


def slow(logits, distances, observed, temperature):
    """One sample and class at a time, without torch."""
    found = []
    for row in logits:
        powers = {i: math.exp(row[i] / temperature) for i in observed}
        total = sum(powers.values())
        costs = [sum(p / total * distances[y][i] ** 2 for i, p in powers.items()) for y in range(len(row))]
        found.append([min(costs) - cost for cost in costs])
    return found


@pytest.mark.parametrize("observed", [None, (0, 2)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_slow_loop_gives_the_same(observed, temperature):
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = frechet_mean_logits(logits, distances=UNEVEN, observed=observed, temperature=temperature)
    expected = slow(logits.tolist(), UNEVEN, observed or range(3), temperature)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_a_class_between_two_observed_ones_is_predicted():
    """Of classes on a line, the network knows the ends alone; each mixture of them is one of the four."""
    shares = torch.tensor([0.0, 0.3, 0.7, 1.0])
    logits = torch.stack([1 - shares, torch.full((4,), 9.0), torch.full((4,), 9.0), shares], 1).log()
    found = frechet_mean_logits(logits, distances=LINE, observed=[0, 3])
    assert found.argmax(1).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_equal_distances_it_is_the_most_probable_class(dtype):
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    equal = (1 - torch.eye(4)).tolist()
    found = frechet_mean_logits(logits, distances=equal)
    assert torch.equal(found.argmax(1), logits.argmax(1))
    assert found.dtype == dtype


@pytest.mark.parametrize(("dtype", "far"), [(torch.float16, 1000.0), (torch.bfloat16, 1e19), (torch.float32, 1e19)])
def test_far_classes_stay_finite(dtype, far):
    """1000² is more than float16 can hold."""
    found = frechet_mean_logits(torch.zeros(2, 2, dtype=dtype), distances=[[0, far], [1, 0]])
    assert found.isfinite().all()
    assert found.argmax(1).tolist() == [1, 1]


def test_autocast_does_not_round():
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    plain = frechet_mean_logits(logits, distances=UNEVEN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(frechet_mean_logits(logits, distances=UNEVEN), plain, rtol=0, atol=0)


def test_laws_hold_with_settings():
    assert_laws(FrechetMeanPredictor(distances=UNEVEN, observed=[0, 1], temperature=2.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distances": [[0, 1], [1, 0], [1, 1]]}, r"distances\[0\]=\[0, 1\] must have 3 numbers"),
        ({"distances": []}, "a row and a column for each class"),
        ({"distances": [[0, 1], [1, 2]]}, r"distances\[1\]=\[1, 2\] must be numbers from 0 to 1e\+19,.* with a 0 at 1"),
        ({"distances": [[0, -1], [1, 0]]}, r"distances\[0\]"),
        ({"distances": [[0, math.nan], [1, 0]]}, r"distances\[0\]"),
        ({"distances": [[0, 1e30], [1, 0]]}, "whose squares float32 can hold"),
        ({"distances": UNEVEN, "observed": [-1]}, "observed"),
        ({"distances": UNEVEN, "observed": []}, "observed"),
        ({"distances": UNEVEN, "observed": [3]}, "one or more of the classes 0 to 2"),
        ({"distances": UNEVEN, "temperature": 0.0}, r"temperature=0\.0"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "make",
    [FrechetMeanPredictor, lambda **settings: frechet_mean_logits(torch.zeros(2, 3), **settings)],
    ids=["class", "function"],
)
def test_bad_settings_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_logits_of_another_shape_are_refused():
    for logits in (torch.zeros(3), torch.zeros(2, 3, 1), torch.zeros(2, 1)):
        with pytest.raises(ValueError, match="logits of the shape"):
            frechet_mean_logits(logits, distances=UNEVEN)


def test_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match=r"distances of 3 classes do not fit logits of the shape \(2, 4\)"):
        frechet_mean_logits(torch.zeros(2, 4), distances=UNEVEN)
