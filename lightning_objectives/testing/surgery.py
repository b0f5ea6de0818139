"""Laws of the surgeries, each on a layer that the method is made for."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from lightning_objectives._trainer.random import private_stream
from lightning_objectives.kinds import LayerPlace, Surgery
from lightning_objectives.testing.common import close, require

WIDTH = 6
LAYERS: Mapping[type[nn.Module], Callable[[], nn.Module]] = {
    _BatchNorm: lambda: nn.BatchNorm1d(WIDTH),
    _DropoutNd: lambda: nn.Dropout(0.5),
}
"""An example of each class of layers that methods are made for."""


def layer_for(method: Surgery) -> nn.Module:
    """A layer (N, 6) -> (N, 6) that the method changes, in training mode; for a head (N, 6) -> (N, 3).

    >>> layer_for(Surgery())
    Linear(in_features=6, out_features=6, bias=True)
    """
    with private_stream(0):
        if not method.changes or method.changes == "head":
            return nn.Linear(WIDTH, 3 if method.changes else WIDTH)
        made: list[nn.Module] = [make() for cls, make in LAYERS.items() if cls in method.changes]
    require(made, method, f"testing/surgery.py has no example of {method.changes}: add one to LAYERS.")
    return made[0]


def inputs() -> Tensor:
    """Example inputs (8, 6)."""
    return torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(0))


def place(part_done: float = 0.5, number: int = 0) -> LayerPlace:
    """The place of one of three layers."""
    return LayerPlace(number, 3, "layer", 8, lambda: part_done)


def _called(method: Surgery, layer: nn.Module, seed: int = 0) -> Any:
    with private_stream(seed):
        return method.call(layer, place(), layer.forward, inputs())


def an_output_keeps_its_form(method: Surgery) -> None:
    """What the layer returns has the shape, the type and a gradient as before."""
    if not method.defines("call"):
        return
    for dtype in (torch.float32, torch.float64):
        layer = layer_for(method).to(dtype)
        rows = inputs().to(dtype).requires_grad_()
        with private_stream(0):
            plain, changed = layer(rows), method.call(layer, place(), layer.forward, rows)
        form, expected = (changed.shape, changed.dtype), (plain.shape, plain.dtype)
        require(form == expected, method, f"an output must keep its form {expected}, not become {form}.")
        require(changed.requires_grad, method, "an output must keep its gradient.")
        changed.sum().backward()
        require(rows.grad is not None and rows.grad.isfinite().all(), method, "the gradient must be finite.")


def the_layer_is_left_as_it_was(method: Surgery) -> None:
    """A call leaves the layer's attributes, hooks, mode and weights alone, and runs the layer's own forward."""
    if not method.defines("call"):
        return
    layer, other = layer_for(method), layer_for(method)
    before = {name: value for name, value in vars(layer).items() if not name.startswith("_")}
    weights = copy.deepcopy(dict(layer.named_parameters()))
    _called(method, layer)
    after = {name: value for name, value in vars(layer).items() if not name.startswith("_")}
    require(after == before, method, f"a call must leave the layer as it was, but {set(after) ^ set(before)} changed.")
    require(close(dict(layer.named_parameters()), weights, 0), method, "a call must not write to the weights.")
    require(repr(layer) == repr(other), method, "a call must leave the layer's settings as they were.")


def the_global_stream_alone_decides(method: Surgery) -> None:
    """The same state of the global random stream gives the same output: checkpointing repeats a layer so."""
    if method.defines("call"):
        first, second = (_called(method, layer_for(method)) for _ in range(2))
        require(close(first, second, 0), method, "the same random state must give the same output.")


def preparing_twice_is_preparing_once(method: Surgery) -> None:
    """What ``prepare`` sets depends on nothing but the layer's form, draws nothing, and is the same the second time."""
    if not method.defines("prepare"):
        return
    layer, other = layer_for(method), layer_for(method)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    stream = torch.get_rng_state()
    for prepared in (layer, layer, other):
        method.prepare(prepared, place())
    require(torch.equal(torch.get_rng_state(), stream), method, "prepare must not draw from the global random stream.")
    same = close(layer.state_dict(), other.state_dict(), 0)
    require(same, method, "prepare must set the same weights whatever they were, so that a resumed training goes on.")


def freezing_depends_on_the_place_alone(method: Surgery) -> None:
    """``frozen`` answers True or False, and the same for the same place."""
    if not method.defines("frozen"):
        return
    for number in range(3):
        answers = [method.frozen(place(done / 10, number)) for done in range(11)]
        require(all(answer in (True, False) for answer in answers), method, "frozen must give True or False.")
        again = [method.frozen(place(done / 10, number)) for done in range(11)]
        require(answers == again, method, "the same place must give the same answer.")


def it_defines_a_place(method: Surgery) -> None:
    """A method that defines no place would do nothing."""
    require(method.defines("prepare", "call", "frozen"), method, "it must define prepare, call or frozen.")
