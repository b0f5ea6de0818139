"""Laws of shapes: a tensor of the wrong shape is an error in a sentence, never a wrong number."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from lightning_objectives.kinds import Head
from lightning_objectives.shapes import FORMS, forms
from lightning_objectives.signals import signals_of
from lightning_objectives.testing.common import require
from lightning_objectives.testing.signals import call, example_signals

OPEN = forms("(N, ..., D)")
"""The features of a head, which may have positions between samples and features."""


def refuses(run: Callable[[], Any], method: Any, shapes: str, *mentioned: str) -> None:
    """Require that a call raises a ValueError that mentions what is wrong.

    Args:
        run: the call.
        method: the method, for the message.
        shapes: what the call passes, in words.
        mentioned: texts of which the error must contain one.
    """
    try:
        run()
    except ValueError as error:
        said = any(text in str(error) for text in mentioned)
        require(said, method, f"the error for {shapes} must say {' or '.join(mentioned)}, but is: {error}")
    except Exception as error:
        raise AssertionError(f"{method}: {shapes} must raise a ValueError that says so, not {error!r}.") from error
    else:
        raise AssertionError(f"{method}: {shapes} must be refused: call check_shapes of lightning_objectives.shapes.")


def wrong_signals(signals: dict[str, Any], names: Sequence[str], *, head: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Change one signal at a time: no dimension, one less, one more, another type of number, another length.

    >>> [tuple(value.shape) for _, value in wrong_signals(example_signals(), ["logits", "target"])][:4]
    [(), (3,), (6, 3, 2), (5, 3)]
    """
    allowed = {name: OPEN if head and name == "features" else FORMS[name] for name in names if name in FORMS}
    letters = {name: next(f for f in options if f.fits(signals[name])).first for name, options in allowed.items()}
    count = Counter(letter for first in letters.values() for letter in first)
    for name, options in allowed.items():
        value = signals[name]
        if value.dim() == 0:  # a number that the trainer gives
            continue
        changed = value.new_zeros(()), value[0], value[..., None].expand(*value.shape, 2), value.double()
        yield from ((name, other) for other in changed if not any(form.fits(other) for form in options))
        for dim, letter in enumerate(letters[name]):
            if count[letter] > 1:
                yield name, value.narrow(dim, 0, value.shape[dim] - 1)


def signals_of_a_wrong_shape_are_refused(method: Any) -> None:
    """Signals of other dimensions, or of another length than the others, are a ValueError that shows the shape."""
    signals = example_signals()
    for name, value in wrong_signals(signals, signals_of(method), head=isinstance(method, Head)):
        refuses_shapes(partial(call, method), method, signals_of(method), {**signals, name: value}, name)


def refuses_shapes(
    run: Callable[[dict[str, Any]], Any], method: Any, names: Sequence[str], signals: dict[str, Any], wrong: str
) -> None:
    """Require a ValueError that shows the shape of a signal, if one of them is wrong."""
    tensors = {name: signals[name] for name in names if isinstance(signals.get(name), Tensor)}
    mentioned = [f"{name} of the shape {tuple(tensor.shape)}" for name, tensor in tensors.items()]
    what = f"{wrong} of the shape {tuple(tensors[wrong].shape)}, {tensors[wrong].dtype},"
    refuses(partial(run, signals), method, what, *mentioned)
