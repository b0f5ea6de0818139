"""Laws of the adapters, on a small network with BatchNorm and LayerNorm."""

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives._trainer.random import private_stream
from lightning_objectives.kinds import Adapter
from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.shapes import refuses, refuses_shapes, wrong_signals
from lightning_objectives.testing.signals import example_signals, take_rows


class AdaptedExample(nn.Module):
    """Inputs (N, 5) to logits (N, 3) and features (N, 6), where an adapter gives BatchNorm its statistics.

    Args:
        adapter: the method.
    """

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        with private_stream(0):
            self.linear, self.norm, self.scale = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.LayerNorm(6)
            self.fc = nn.Linear(6, 3)
            assert self.norm.running_mean is not None  # BatchNorm's default
            assert self.norm.running_var is not None
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)
        self._adapter = (adapter,)  # in a tuple, because it is no part of the network

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The logits and the features."""
        hidden, adapter, norm = self.linear(inputs), self._adapter[0], self.norm
        own = (norm.running_mean, norm.running_var)
        found = adapter.statistics(hidden, *own) if adapter.defines("statistics") else own
        mean, var = (None, None) if found is None else found
        hidden = F.batch_norm(hidden, mean, var, norm.weight, norm.bias, training=found is None, eps=norm.eps)
        features = self.scale(hidden).relu()
        return self.fc(features), features

    def adapt(self, inputs: Tensor, state: dict[str, Any], params: dict[str, nn.Parameter]) -> Tensor:
        """One batch, as the callback runs it; returns the logits for the user's code."""
        adapter = self._adapter[0]
        logits, features = self(inputs)
        signals = {
            "logits": logits.detach(),
            "features": features.detach(),
            "reference_logits": logits.detach().roll(1, 1),
        }
        returned = predicted(adapter, signals) if adapter.defines("predict") else logits
        if adapter.defines("update"):
            adapter.update(logits, features, params, state, again=lambda: self(inputs))
        return returned.detach()


def predicted(method: Adapter, signals: dict[str, Any]) -> Tensor:
    """The predictions of a method from what it names."""
    return method.predict(**{name: signals[name] for name in method.predicts_from()})


def inputs_of(batch: int) -> Tensor:
    """The inputs (8, 5) of one of several batches."""
    return torch.randn(8, 5, generator=torch.Generator().manual_seed(batch)) + batch


def _adapted(network: AdaptedExample, method: Adapter, batches: int = 3) -> list[Tensor]:
    """The logits of some batches, from a reset on."""
    params = method.adapts(network) if method.defines("update") else {}
    state = method.init(params)
    return [network.adapt(inputs_of(batch), state, params) for batch in range(batches)]


def what_it_adapts_are_parameters_of_the_network(method: Adapter) -> None:
    """``adapts`` names parameters of the network, and at least one."""
    if method.defines("update"):
        network = AdaptedExample(method)
        known, found = dict(network.named_parameters()), method.adapts(network)
        require(found, method, "it must name a parameter of a network with BatchNorm, LayerNorm and Linear layers.")
        strange = [name for name, parameter in found.items() if known.get(name) is not parameter]
        require(not strange, method, f"{strange} are no parameters of the network under these names.")


def a_network_without_what_it_adapts_is_refused(method: Adapter) -> None:
    """A network without any parameter is a ValueError that names its class."""
    if method.defines("update"):
        refuses(partial(method.adapts, nn.Flatten()), method, "a network without parameters", "Flatten")


def an_update_moves_what_it_names_and_nothing_else(method: Adapter) -> None:
    """After some batches one of the named parameters has moved; other parameters, and buffers, are the same bits."""
    network = AdaptedExample(method)
    before = copy.deepcopy(network.state_dict())
    named = set(method.adapts(network)) if method.defines("update") else set()
    _adapted(network, method)
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    require(moved <= named, method, f"it must not move {sorted(moved - named)}.")
    require(moved or not named, method, f"it must move a parameter that it names ({', '.join(sorted(named))}).")


def a_reset_begins_anew(method: Adapter) -> None:
    """From the same weights and ``init``, the same batches give the same logits: nothing is kept beside the state."""
    network = AdaptedExample(method)
    before = copy.deepcopy(network.state_dict())
    first = _adapted(network, method)
    network.load_state_dict(before)
    again = close(_adapted(network, method), first, 0)
    require(again, method, "after a reset the same batches must give the same logits.")


def statistics_have_the_form_of_those_they_replace(method: Adapter) -> None:
    """They are new, finite tensors (C,) of the type of the running ones, without gradient; no variance is negative."""
    if not method.defines("statistics"):
        return
    for inputs in (inputs_of(0), inputs_of(0).bfloat16(), inputs_of(0)[..., None].expand(8, 5, 4).requires_grad_()):
        mean, var = torch.zeros(5), torch.full((5,), 2.0)
        before = copy.deepcopy((inputs.detach(), mean, var))
        found = method.statistics(inputs, mean, var)
        untouched = close((inputs.detach(), mean, var), before, 0)
        require(untouched, method, "it must not write to the inputs or the running statistics.")
        for name, value in zip(("mean", "variance"), found or ()):
            form = (tuple(value.shape), value.dtype)
            require(form == ((5,), torch.float32), method, f"the {name} must be (5,) float32 here, not {form}.")
            require(not value.requires_grad, method, f"the {name} must have no gradient.")
            require(value.isfinite().all(), method, f"the {name} must be finite.")
        require(found is None or (found[1] >= 0).all(), method, "no variance may be negative.")


def predictions_have_the_form_of_the_logits(method: Adapter) -> None:
    """They are finite, of the shape and type of the logits, also at ``|logits| = 1e4``; nothing is written to."""
    if not method.defines("predict"):
        return
    signals = example_signals()
    for logits in (signals["logits"], 1e4 * signals["logits"], signals["logits"].bfloat16()):
        before = {**signals, "logits": logits}
        given = {name: before[name].clone() for name in method.predicts_from()}
        found = method.predict(**given)
        form = (found.shape, found.dtype) == (logits.shape, logits.dtype)
        require(form, method, f"it must return the shape and type of the logits, not {found.shape}, {found.dtype}.")
        require(found.isfinite().all(), method, "its predictions must be finite.")
        untouched = all(close(value, before[name], 0) for name, value in given.items())
        require(untouched, method, f"it must not write to {' or '.join(given)}.")


def predictions_follow_the_order_of_the_rows(method: Adapter) -> None:
    """A permutation of the rows permutes the predictions."""
    if method.defines("predict"):
        signals = example_signals()
        order = torch.tensor([3, 1, 5, 0, 4, 2])
        found, turned = (predicted(method, s) for s in (signals, take_rows(signals, order)))
        require(close(turned, found[order], 1e-9), method, "another order of the rows must only turn the predictions.")


def predictions_refuse_signals_of_a_wrong_shape(method: Adapter) -> None:
    """What it names is refused in another shape: a ValueError that shows the shape."""
    if method.defines("predict"):
        names = method.predicts_from()
        signals = example_signals()
        for name, value in wrong_signals(signals, names):
            refuses_shapes(partial(predicted, method), method, names, {**signals, name: value}, name)


def nothing_is_drawn_from_the_global_stream(method: Adapter) -> None:
    """The global random stream is where it was."""
    network, stream = AdaptedExample(method), torch.get_rng_state()
    _adapted(network, method)
    untouched = torch.equal(torch.get_rng_state(), stream)
    require(untouched, method, "it must not draw from the global random stream, which is the user's.")


def an_adapter_equals_its_function(method: Adapter) -> None:
    """The method's function gives the same predictions, or statistics, and has the same defaults."""
    function = method.function
    if function is None:
        return
    for name, parameter in inspect.signature(type(method)).parameters.items():
        theirs = inspect.signature(function).parameters[name].default
        require(parameter.default == theirs, method, f"the default {name}={parameter.default!r} differs: {theirs!r}.")
    signals = example_signals()
    given: tuple[Tensor, ...] = tuple(signals[name] for name in method.predicts_from())
    ours: Callable[..., Any] = method.predict if given else method.statistics
    if not given:
        given = (signals["features"], torch.zeros(5).double(), torch.ones(5).double())
    same = close(ours(*given), function(*given, **method.settings()), 0)
    require(same, method, f"it must give what {function.__name__} gives.")
