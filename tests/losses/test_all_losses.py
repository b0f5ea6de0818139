"""What every loss keeps beside the laws, whichever it is: discovered, none is named here."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.discovery import methods
from lightning_objectives.testing import build

ASKED = {"self", "logits", "target", "mask", "generator"}
CLASSES = [cls for _, cls in methods("losses") if {*inspect.signature(cls.forward).parameters} <= ASKED]
"""Those on logits; losses on features have tests of their own."""
each = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
TARGET = torch.tensor([0, 1, 2, 0, 1, 1])


def run(cls, logits, target):
    """The losses, and the gradient of their sum, with the same draws each time."""
    torch.manual_seed(0)
    logits = logits.clone().requires_grad_()
    losses = build(cls)(logits, target)
    return losses, torch.autograd.grad(losses.sum(), logits)[0]


@each
def test_one_hot_probabilities_are_classes(cls):
    logits = 2 * torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(run(cls, logits, F.one_hot(TARGET, 3).double()), run(cls, logits, TARGET))


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(cls, dtype):
    logits = (2 * torch.randn(6, 3)).to(dtype)
    losses, gradient = run(cls, logits, TARGET)
    expected, _ = run(cls, logits.float(), TARGET)
    assert losses.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(losses, expected)


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [20.0, 200.0, 6e4])
def test_probabilities_of_zero_and_one_have_finite_gradients(cls, dtype, size):
    """Right, wrong, and two classes that share everything, with classes and with probabilities."""
    rows = torch.tensor([[1, -1, -1], [-1, -1, 1], [1, 1, -1], [-1, -1, -1], [0, 0, -1], [-1, 1, 1]])
    mixed = torch.tensor([[0.5, 0.5, 0], [1, 0, 0], [0, 0.2, 0.8], [0.2, 0.3, 0.5], [0, 1, 0], [0, 0, 1]])
    for target in (TARGET, mixed):
        losses, gradient = run(cls, (size * rows).to(dtype), target)
        assert losses.isfinite().all()
        assert gradient.isfinite().all()


@each
def test_small_integers_are_classes_too(cls):
    logits = torch.randn(6, 3)
    torch.testing.assert_close(run(cls, logits, TARGET.to(torch.uint8)), run(cls, logits, TARGET))
