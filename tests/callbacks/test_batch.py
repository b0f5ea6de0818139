"""Batches of every shape that users have: where the inputs are, how many rows there are, and the index beside them."""

import dataclasses
from collections import namedtuple

import pytest
import torch
from torch import Tensor

from lightning_objectives._step.batch import batch_size_of, inputs_of, part_of, unwrap, with_tensor
from lightning_objectives.data.with_index import Indexed

X, Y = torch.zeros(3, 4), torch.arange(3)
Pair = namedtuple("Pair", "x y")


def test_the_part_under_a_key():
    assert part_of([X, Y], None) == [X, Y]
    assert part_of({"a": X}, "a") is X
    assert part_of({"a": X}, "b") is None
    assert part_of((X, Y), 1) is Y
    assert part_of((X, Y), "a") is None
    assert part_of(X, 0) is X


class Graph:
    """A batch that is an object."""

    def __init__(self, x, y):
        self.nodes, self.y = {"x": x}, y


@dataclasses.dataclass(frozen=True)
class Encoded:
    encoder: Tensor
    target: Tensor


@pytest.mark.parametrize(
    ("batch", "key"),
    [
        (({"encoder_cont": X, "other": Y}, (Y, None)), "0.encoder_cont"),
        ({"parts": [Y, {"image": X}]}, "parts.1"),
        (Encoded(X, Y), "encoder"),
        ((Encoded(X, Y), Y), "0.encoder"),
        (Graph(X, Y), "nodes.x"),
        ([Graph(X, Y)], "0.nodes.x"),
        (X, None),
        ((X, Y), None),
        ((Y, X), 1),
        ({"y": Y, "image": X}, None),
        ({"y": Y, "left": X}, "left"),
        ([(X, Y), (Y, Y)], None),
        ({"labelled": {"x": X, "y": Y}, "more": Y}, "labelled"),
    ],
)
def test_the_inputs_are_found_and_exchanged_in_a_copy(batch, key):
    assert inputs_of(batch, key) is X
    new = torch.ones(3, 4)
    assert inputs_of(with_tensor(batch, X, new), key) is new
    assert inputs_of(batch, key) is X


def test_a_copy_with_other_inputs_keeps_the_rest():
    rest = {"z": Y}
    new = with_tensor(Pair(X, rest), X, Y)
    assert isinstance(new, Pair)
    assert new.x is Y
    assert new.y is rest


@pytest.mark.parametrize(("batch", "key"), [({"y": Y}, None), ((), None), (3, None), ((X, Y), "x")])
def test_a_batch_without_inputs_is_refused(batch, key):
    with pytest.raises(ValueError, match=f"no tensor of inputs at input={key!r}"):
        inputs_of(batch, key)


def test_the_size_is_that_of_the_first_tensor_with_a_dimension():
    assert batch_size_of(X) == 3
    assert batch_size_of({"name": "a", "scale": torch.tensor(2.0), "parts": [(), (torch.zeros(5),), X]}) == 5
    assert batch_size_of(torch.tensor(2.0)) is None
    assert batch_size_of(["a", 1]) is None


def test_the_index_is_taken_off_the_batch():
    assert unwrap(Indexed([X, Y], Y)) == ([X, Y], Y)
    batch = [X, Y]
    assert unwrap(batch) == (batch, None)
    assert unwrap(batch)[0] is batch


def test_of_several_loaders_the_index_is_that_of_the_batch_under_the_key():
    of_one, of_other = torch.tensor([7]), torch.tensor([8])
    batch = {"one": Indexed(X, of_one), "other": Indexed((X, Y), of_other), "plain": Y}
    for key, index in ((None, of_one), ("one", of_one), ("other", of_other), ("plain", of_one)):
        plain, of_key = unwrap(batch, key)
        assert plain["one"] is X
        assert plain["other"] == (X, Y)
        assert plain["plain"] is Y
        assert of_key is index
