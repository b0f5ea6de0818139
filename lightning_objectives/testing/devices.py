"""The law of every method on a GPU, tried on one that is not there."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torchmetrics import Metric

from lightning_objectives.kinds import Adapter, GradientTransform, Perturbation, Rule, Surgery
from lightning_objectives.testing import adaptation, averaging, gradients, metrics, perturbations, surgery
from lightning_objectives.testing.common import require
from lightning_objectives.testing.fake_gpu import FakeGPU, MixedDevicesError
from lightning_objectives.testing.signals import arguments, example_signals

DIFFERENTIABLE = ("logits", "features", "losses", "inputs")
OF_TRAINER = {"step", "epoch", "progress"}
"""Numbers that the trainer knows, on the host."""


def it_waits_for_no_gpu(method: Any) -> None:
    """On a GPU a second step mixes no devices, and waits only if the method declares in ``waits`` why it must."""
    with FakeGPU() as gpu:
        gpu.counts = False
        try:
            step = _step(copy.deepcopy(method))
            step()
            gpu.counts = True
            result = step()
            _backward(result)
        except MixedDevicesError as error:
            way_out = "Make tensors on the device of the signals, and keep others as buffers."
            raise AssertionError(f"{method}: {error} {way_out}") from error
        gpu.counts = False
        away = [tuple(t.shape) for t in _tensors(result) if t.dim() and gpu.place(t) != "gpu"]
    require(not away, method, f"its results must lie on the GPU as the signals do, but those of shape {away} do not.")
    declared, waits = getattr(method, "waits", ""), "; ".join(dict.fromkeys(map(str, gpu.waits)))
    require(declared or not waits, method, f"it waits for the device ({waits}): mend it, or say why in `waits`.")
    require(waits or not declared, method, f"it says that it waits for the device ({declared}), but it does not.")


def _step(method: Any) -> Callable[[], Any]:
    """What the method does in each step, on tensors of the GPU."""
    if isinstance(method, Perturbation):
        return partial(_offsets, method, _on_gpu(perturbations._params()), _on_gpu(perturbations._gradients()))
    if isinstance(method, GradientTransform):
        parameters = _on_gpu(gradients._draw(0))
        return partial(method.update, _on_gpu(gradients._gradients(1)), parameters, method.init(parameters))
    if isinstance(method, Rule):
        weights = _on_gpu(averaging._weights(0))
        return partial(_averaged, method, method.init(weights), weights)
    if isinstance(method, Adapter):
        network = adaptation.AdaptedExample(method).to("cuda")
        params = method.adapts(network) if method.defines("update") else {}
        return partial(network.adapt, _on_gpu(adaptation.inputs_of(0)), method.init(params), params)
    if isinstance(method, Surgery):
        layer = surgery.layer_for(method).to("cuda")
        if method.defines("prepare"):  # once in each fit
            method.prepare(layer, surgery.place())
        return partial(_operated, method, layer, _on_gpu(surgery.inputs()))
    method.to("cuda")
    if isinstance(method, Metric):
        return partial(_measured, method, _on_gpu(metrics._signals(method, metrics.FIRST)))
    signals = example_signals()
    for name in signals.keys() - OF_TRAINER:
        signals[name] = _on_gpu(signals[name])
    for name in DIFFERENTIABLE:
        signals[name].requires_grad_()
    return lambda: method(**arguments(method, signals))


def _offsets(method: Perturbation, params: Any, gradients: Any) -> Any:
    gradients = {name: g.clone() for name, g in gradients.items()} if method.uses_gradients else {}
    return method.offsets(gradients, params, generator=torch.Generator("cuda").manual_seed(0))


def _operated(method: Surgery, layer: nn.Module, inputs: Tensor) -> Any:
    return method.call(layer, surgery.place(), layer.forward, inputs) if method.defines("call") else layer(inputs)


def _averaged(rule: Rule, state: Any, weights: list[Tensor]) -> Any:
    rule.update(state, weights, step=state.updates + 1)
    return rule.read(state, weights, step=state.updates)


def _measured(metric: Metric, signals: dict[str, Any]) -> Any:
    metric.update(**signals)
    return list(metric.metric_state.values())


def _backward(result: Any) -> None:
    """Send a gradient back through what a step returned."""
    totals = [t.sum() for t in _tensors(result) if t.requires_grad]
    if totals:
        torch.stack(totals).sum().backward()  # type: ignore[no-untyped-call]  # torch


def _on_gpu(value: Any) -> Any:
    """The tensors and modules in a value on the GPU."""
    return tree_map(lambda leaf: leaf.to("cuda") if isinstance(leaf, (Tensor, nn.Module)) else leaf, value)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
