"""The comparison under all conditions of conformance: what it must call different, and what equal."""

from types import SimpleNamespace

import pytest
import torch

from lightning_objectives.testing.conformance.check import Trial, differing

NAN = float("nan")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.tensor([NAN, 1.0]), torch.tensor([NAN, 2.0])),
        (torch.tensor([NAN, 1.0]), torch.tensor([NAN, NAN])),
        (torch.tensor([NAN, 1.0]), torch.tensor([1.0, NAN])),
        (torch.tensor([NAN, 1 + 2j]), torch.tensor([NAN, 1 - 2j])),
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
        (torch.tensor([True, False]), torch.tensor([True, True])),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
        (torch.tensor([1.0]), torch.tensor([1.0, 1.0])),
        (torch.tensor([1.0]), torch.tensor([[1.0]])),
        (torch.tensor(1.0), torch.tensor(1.0 + 2**-23)),
        (torch.tensor(1.0), 1.0),
        (1.0, 1.0 + 2**-52),
        (NAN, 1.0),
        (None, 0.0),
    ],
)
def test_different(a, b):
    assert differing({"value": a}, {"value": b}) == ["value"]
    assert differing({"value": b}, {"value": a}) == ["value"]


@pytest.mark.parametrize(
    "value",
    [
        torch.tensor([NAN, 1.0, torch.inf]),
        torch.tensor([NAN, 1 + 2j]),
        torch.tensor([1, 2]),
        torch.tensor([True, False]),
        torch.empty(0, 3),
        NAN,
        None,
        "name",
    ],
    ids=str,
)
def test_equal(value):
    other = value.clone() if isinstance(value, torch.Tensor) else value
    assert not differing({"value": value}, {"value": other})


def test_a_name_that_only_one_has():
    assert differing({"a": 1, "b": 2}, {"a": 1, "c": 2}) == ["b", "c"]


@pytest.mark.parametrize(
    "losses", [[1.0], [1.0, NAN, 3.0], [1.0, 2.0 + 2**-51, NAN], [1.0, None, NAN], [torch.tensor(1.0), 2.0, NAN]]
)
def test_losses_that_differ(losses):
    run, other = (SimpleNamespace(weights={}, losses=values) for values in ([1.0, 2.0, NAN], losses))
    trial = Trial(plug_in=None)
    trial.require_same(run, SimpleNamespace(weights={}, losses=list(run.losses)), "two equal trainings.")
    with pytest.raises(AssertionError, match="The losses differ"):
        trial.require_same(run, other, "two trainings.")
