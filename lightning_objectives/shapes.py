"""Refuses tensors of the wrong shape in a sentence, before they become wrong numbers.

A check looks at shapes and types, never at values, so it waits for no device.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_objectives.signals import SIGNALS


class Form(NamedTuple):
    """One shape that a tensor may have, such as ``(N, ..., D) float``."""

    first: tuple[str, ...]
    """The letters of the first dimensions."""
    last: tuple[str, ...]
    """The letters of the dimensions after ``...``."""
    dims: int
    """The number of letters."""
    open: bool
    """Whether ``...`` stands for any number of dimensions."""
    number: str
    """``int``, ``float``, ``bool``, or empty for any type."""

    def fits(self, tensor: Tensor) -> bool:
        """Whether a tensor has this number of dimensions and this type."""
        dims = tensor.dim()
        if dims != self.dims and not (self.open and dims > self.dims):
            return False
        if self.number == "float":
            return tensor.is_floating_point() or tensor.is_complex()
        if self.number == "bool":
            return tensor.dtype == torch.bool
        return not self.number or not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def forms(shape: str) -> tuple[Form, ...]:
    """Read a shape as :data:`SIGNALS` and docstrings write it.

    >>> [form.number for form in forms("(N,) int or (N, ..., C) float")]
    ['int', 'float']
    """
    read = []
    for part in shape.split(" or "):
        letters, _, number = part.strip("(").partition(")")
        first, dots, last = letters.replace(" ", "").partition("...")
        left, right = (tuple(letter for letter in side.split(",") if letter) for side in (first, last))
        read.append(Form(left, right, len(left) + len(right), bool(dots), number.strip()))
    return tuple(read)


FORMS: dict[str, tuple[Form, ...]] = {name: forms(signal.shape) for name, signal in SIGNALS.items() if signal.shape}
"""The forms of each signal that is a tensor."""


def check_shapes(others: Mapping[str, tuple[Form, ...]] | None = None, /, **tensors: Tensor) -> None:
    """Refuse tensors whose shapes or types are not those of their names, or do not fit each other.

    Call it first in a method's function, with the signals as keywords. An empty batch is allowed; no class is not.

    Args:
        others: the forms of names that are no signals, or that differ from the signal's, from :func:`forms`.
        tensors: the tensors by name. A letter means the same size in all of them.

    Raises:
        ValueError: with the shape, the rule and the way out.

    Example:
        >>> check_shapes(logits=torch.zeros(4, 3), target=torch.zeros(4, dtype=torch.long))
        >>> check_shapes(losses=torch.zeros(4, 6))
        Traceback (most recent call last):
            ...
        ValueError: losses of the shape (4, 6), torch.float32, must be (N,), or the result would be wrong. Take the mean
        of each row, as losses.flatten(1).mean(1), or make each element a row: losses.flatten().
    """
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        allowed = others[name] if others is not None and name in others else FORMS[name]
        for form in allowed:
            if form.fits(tensor):
                break
        else:
            raise ValueError(_refusal(name, tensor, allowed, sizes, _way_out(name, tensor, allowed)))
        shape = tensor.shape
        for letter, size in zip(form.first, shape) if not form.last else _named(form, shape):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(
                    _refusal(name, tensor, allowed, sizes, f"Pass the same {_MEANINGS.get(letter, letter)}.")
                )
            if size == 0 and letter in "CHKW":
                raise ValueError(
                    _refusal(name, tensor, allowed, {}, f"There are no {_MEANINGS[letter]}: pass one or more.")
                )


def check_classes(logits: Tensor, name: str = "logits") -> None:
    """Refuse (N, 1) logits where a softmax needs two classes or more: that of one class is 1, whatever the logit.

    Raises:
        ValueError: with the way out.

    >>> check_classes(torch.zeros(4, 2))
    """
    if logits.shape[1] < 2:
        raise ValueError(
            f"{name} of the shape {tuple(logits.shape)} have one class, but there must be two or more: the softmax of "
            "one class is always 1, so nothing could be learned. If the column is the logit of the second of two "
            f"classes, pass torch.cat([torch.zeros_like({name}), {name}], 1)."
        )


def check_tensors(params: Sequence[Tensor], /, **lists: Sequence[Tensor | None]) -> None:
    """Refuse lists of tensors that do not fit the parameters one by one; None stands for a missing tensor.

    Args:
        params: the parameters.
        lists: the lists of tensors by name, such as ``gradients``.

    Raises:
        ValueError: with the position and the shapes.

    >>> check_tensors([torch.zeros(3)], gradients=[torch.zeros(2)])
    Traceback (most recent call last):
        ...
    ValueError: gradients[0] of the shape (2,) does not fit the parameter of the shape (3,) at the same place. Pass both
    lists in the order of the parameters.
    """
    for name, tensors in lists.items():
        if len(tensors) != len(params):
            raise ValueError(
                f"{name} of {len(tensors)} tensors do not fit {len(params)} parameters. Pass one tensor for each "
                "parameter, in the same order."
            )
        for place, (tensor, param) in enumerate(zip(tensors, params)):
            if tensor is not None and tensor.shape != param.shape:
                raise ValueError(
                    f"{name}[{place}] of the shape {tuple(tensor.shape)} does not fit the parameter of the shape "
                    f"{tuple(param.shape)} at the same place. Pass both lists in the order of the parameters."
                )


def check_steps(steps: Sequence[int]) -> list[int]:
    """Refuse the steps of checkpoints that are none, not whole, or not in the order of the training.

    Returns:
        the steps, as plain numbers.

    Raises:
        ValueError: with the steps.

    >>> check_steps([10, 20])
    [10, 20]
    """
    numbers = [float(step) for step in steps]
    if not numbers or any(later <= earlier for earlier, later in pairwise(numbers)):
        raise ValueError(
            f"steps={list(steps)} must increase from one checkpoint to the next, and must not be empty: a merge needs "
            "the checkpoints in the order of the training."
        )
    if not all(number.is_integer() for number in numbers):
        raise ValueError(
            f"steps={list(steps)} must be whole numbers: count the optimizer steps before each checkpoint."
        )
    return [int(step) for step in steps]


_MEANINGS = {"N": "samples in the same order", "C": "classes", "H": "pixels", "K": "terms", "W": "pixels"}


def _named(form: Form, shape: torch.Size) -> Iterator[tuple[str, int]]:
    """Give each letter of a form with the size of its dimension."""
    yield from zip(form.first, shape)
    yield from zip(form.last, shape[len(shape) - len(form.last) :])


def _refusal(name: str, tensor: Tensor, allowed: Sequence[Form], sizes: Mapping[str, int], way_out: str) -> str:
    rule = " or ".join(map(_written, allowed))
    known = ", ".join(f"{letter} = {size}" for letter, size in sizes.items())
    rule += f" with {known}" if known else ""
    shape = tuple(tensor.shape)
    return f"{name} of the shape {shape}, {tensor.dtype}, must be {rule}, or the result would be wrong. {way_out}"


def _written(form: Form) -> str:
    letters = ", ".join([*form.first, *(["..."] if form.open else []), *form.last])
    return f"({letters}{',' if len(form.first) == 1 and not form.open else ''}) {form.number}".rstrip()


def _way_out(name: str, tensor: Tensor, allowed: Sequence[Form]) -> str:
    """Tell how to turn a tensor of the wrong dimensions or type into one that fits."""
    for form in allowed:
        if form._replace(number="").fits(tensor):
            return f"Convert the numbers, as {name}{'.long()' if form.number == 'int' else '.float()'}."
    dims = [form.dims for form in allowed]
    if tensor.dim() < min(dims):
        column = f", or {name}[:, None] for one column" if tensor.dim() == 1 else ""
        return f"Add the missing dimension, as {name}[None] for one sample{column}."
    if max(dims) == 1:
        return f"Take the mean of each row, as {name}.flatten(1).mean(1), or make each element a row: {name}.flatten()."
    return f"Make each position a row: {name}.movedim(1, -1).flatten(0, -2) if dimension 1 holds the columns."
