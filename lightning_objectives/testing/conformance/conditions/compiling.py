"""``torch.compile``: nothing is compiled again once the training is warm."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.utilities.compile import from_compiled

from lightning_objectives.testing.conformance.case import Classifier, Outcome
from lightning_objectives.testing.conformance.check import Trial
from lightning_objectives.testing.conformance.variants import Make, Probe, own, variant

_EPOCHS, _WARM = 7, 4
"""14 steps, of which the first 4 may compile."""


def a_compiled_part(trial: Trial) -> None:
    """``net.backbone = torch.compile(net.backbone)``: its graph is not broken, and no state is named after it."""

    def compiled(backend: Any) -> Make:
        def prepare(module: Any) -> None:
            module.backbone = torch.compile(module.backbone, backend=backend)

        return variant(Classifier, _scheduled, prepare)

    plain, run = _holds(trial, compiled)
    _require_unbroken(trial, plain, run)


def a_part_compiled_in_place(trial: Trial) -> None:
    """``net.backbone.compile()``: its graph is not broken, and the keys are those of the module as it is."""

    def compiled(backend: Any) -> Make:
        return variant(Classifier, _scheduled, lambda module: module.backbone.compile(backend=backend))

    plain, run = _holds(trial, compiled)
    _require_unbroken(trial, plain, run)
    trial.require(run.weights.keys() == Classifier().state_dict().keys(), f"the keys are {list(run.weights)}.")


def a_part_compiled_late(trial: Trial) -> None:
    """The same in the user's ``on_fit_start``, after that of the callbacks."""

    def compiled(backend: Any) -> Make:
        def methods(user: Any) -> dict[str, Any]:
            def on_fit_start(self: Any) -> None:
                self.backbone.compile(backend=backend)

            return {"on_fit_start": on_fit_start, **_scheduled(user)}

        return variant(Classifier, methods, lambda module: module.backbone.__dict__.update(_compiled_call_impl=None))

    plain, run = _holds(trial, compiled)
    _require_unbroken(trial, plain, run)


def a_compiled_module(trial: Trial) -> None:
    """``torch.compile(module)``: the step is broken where something new happens, and never compiled again."""

    def compiled(backend: Any) -> Make:
        make = variant(Classifier, _scheduled)
        return lambda: from_compiled(torch.compile(make(), backend=backend))  # type: ignore[arg-type]  # a module

    _holds(trial, compiled)


# -- how


class _Backend:
    """Compiles nothing, and counts."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


@dataclass
class _Compiled(Outcome):
    graphs: list[int]
    """How many there were after each step."""
    callbacks: list[Any] = field(default_factory=list)


def _scheduled(user: Any) -> dict[str, Any]:
    def configure_optimizers(self: Any) -> Any:
        optimizer = user.configure_optimizers(self)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.95**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return {"configure_optimizers": configure_optimizers}


def _holds(trial: Trial, compiled: Callable[[Any], Make]) -> tuple[_Compiled, _Compiled]:
    """Zero strength is the plain training, at work it is the one that is not compiled, and nothing is compiled late."""
    mine = own(trial, Classifier, batch_size=11)

    def fit(callbacks: list[Any]) -> _Compiled:
        torch._dynamo.reset()
        backend = _Backend()
        probe = Probe(end=lambda module: backend.graphs)
        run = mine.fit([*callbacks, probe], module=compiled(backend), max_epochs=_EPOCHS, val=[])
        return _Compiled(run.weights, run.losses, probe.ends, callbacks)

    run, plain = fit(mine.make()), mine.once(lambda: fit([]), "compiled", compiled)
    trial.require_same(plain, fit(list(trial.plug_in.idle(mine.case))), "at zero strength it is plain.")
    trial.require(run.graphs[0] > 0, "the network must run as it is compiled.")
    trial.require(run.graphs[_WARM] == run.graphs[-1], f"graphs must be compiled at the start only, not {run.graphs}.")
    eager = mine.usual(module=variant(Classifier, _scheduled), max_epochs=_EPOCHS, val=[])
    near = torch.allclose(torch.tensor(run.losses), torch.tensor(eager.losses), atol=1e-4)
    trial.require(near, f"the losses must be those without compilation, {eager.losses}, not {run.losses}.")
    names = [text for callback in run.callbacks for text in _texts(callback.state_dict()) if "_orig_mod" in text]
    trial.require(not names, f"a state must not be named after the compilation, as {names} are.")
    return plain, run


def _require_unbroken(trial: Trial, plain: _Compiled, run: _Compiled) -> None:
    once = run.graphs[-1] == plain.graphs[-1]
    trial.require(once, f"{plain.graphs[-1]} graphs are compiled without it, but {run.graphs[-1]} with it.")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value
