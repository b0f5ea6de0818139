"""Laws of every kind."""

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightning_objectives._trainer.random import private_stream
from lightning_objectives.kinds import BatchTransform
from lightning_objectives.testing.signals import arguments, call, example_signals


def require(holds: Any, method: Any, sentence: str) -> None:
    """Raise an AssertionError that names the method, unless the law holds.

    >>> require(1 > 2, "This", "one is more than two.")
    Traceback (most recent call last):
        ...
    AssertionError: This: one is more than two.
    """
    if not holds:
        raise AssertionError(f"{method}: {sentence}")


def close(actual: Any, expected: Any, tolerance: float = 1e-5) -> bool:
    """Whether two results agree in shape and value, NaN with NaN, whatever their types.

    >>> close(torch.ones(2), torch.ones(2, dtype=torch.float64)), close(torch.ones(2), torch.ones(1))
    (True, False)
    """
    try:
        torch.testing.assert_close(
            actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True, check_dtype=False, check_device=False
        )
    except AssertionError:
        return False
    return True


def function_of(method: Any) -> Callable[..., Any] | None:
    """Get the ``function`` that the class of a method or metric declares; None if it declares none.

    >>> from lightning_objectives.weighting import LossBasedReweighting
    >>> function_of(LossBasedReweighting()).__name__
    'loss_based_weights'
    """
    return getattr(method, "function", None)


def a_copy_is_the_same(method: Any) -> None:
    """A deep copy, a pickle and the evaluated ``repr`` have the same settings; the first two have the same state."""
    names = {type(method).__name__: type(method), "inf": float("inf"), "nan": float("nan")}
    try:
        copies = {
            "a deep copy": copy.deepcopy(method),
            "a pickle": pickle.loads(pickle.dumps(method)),
            "the evaluated repr": eval(repr(method), names),
        }
    except Exception as error:
        raise AssertionError(f"{method}: it must survive a deep copy, a pickle and eval(repr(...)): {error}") from error
    for how, other in copies.items():
        require(repr(other) == repr(method), method, f"{how} must have the same settings, not {other!r}.")
    if isinstance(method, nn.Module):
        for how in ("a deep copy", "a pickle"):
            same = close(copies[how].state_dict(), method.state_dict(), 0)
            require(same, method, f"{how} must have the same state.")


def going_on_from_a_state_is_going_on(method: nn.Module) -> None:
    """A method that was saved after some steps, and loaded into a new one, goes on as if it had never stopped."""
    new = copy.deepcopy(method)
    steps = [example_signals(seed=seed) for seed in range(3)]
    for signals in steps[:2]:
        _stepped(method, signals)
    saved = io.BytesIO()
    torch.save(method.state_dict(), saved)
    saved.seek(0)
    try:
        new.load_state_dict(torch.load(saved, weights_only=True))
    except Exception as error:
        raise AssertionError(f"{method}: a new one must load the state that it saves: {error}") from error
    same = close(_stepped(new, steps[2]), _stepped(method, steps[2]), 0)
    require(same, method, "what it remembers must lie in buffers, or a resumed training differs.")


def _stepped(method: nn.Module, signals: dict[str, Any]) -> Any:
    """What a method returns in a training step, remembering what it will."""
    with private_stream(0):
        return method(**arguments(method, signals))


def it_writes_to_nothing_that_it_is_given(method: Any) -> None:
    """A method leaves its signals as they are; only a batch transform may write to its copy of the inputs."""
    signals = example_signals()
    before = copy.deepcopy(signals)
    call(method, signals)
    for name in signals.keys() - ({"inputs"} if isinstance(method, BatchTransform) else set()):
        now, then = (x.state_dict() if isinstance(x, nn.Module) else x for x in (signals[name], before[name]))
        require(close(now, then, 0), method, f"it must not write to the {name} that it gets.")


def it_leaves_the_global_random_stream_alone(method: Any) -> None:
    """A method draws from the signal ``generator``; only heads may draw globally, as the dropout that they replace."""
    signals, stream = arguments(method, example_signals()), torch.get_rng_state()
    copy.deepcopy(method)(**signals)
    untouched = torch.equal(torch.get_rng_state(), stream)
    require(untouched, method, "it must draw from the signal `generator`, not from the global stream.")


def the_module_equals_its_function(method: Any) -> None:
    """A module returns what its function returns with the same settings, and their defaults are equal."""
    function = function_of(method)
    if function is None:
        return
    ours, theirs = inspect.signature(type(method)).parameters, inspect.signature(function).parameters
    shared = ours.keys() & theirs.keys()
    for name in sorted(shared):
        a, b = ours[name].default, theirs[name].default
        require(a == b, method, f"the default {name}={a!r} of the class is {b!r} in {function.__name__}.")
    signals = example_signals()
    result = call(function, signals, **{name: getattr(method, name) for name in shared})
    require(close(call(method, signals), result, 0), method, f"it must give what {function.__name__} gives.")
