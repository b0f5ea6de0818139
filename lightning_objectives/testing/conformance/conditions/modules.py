"""What a user's module is made of, and when."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from lightning_objectives.testing.conformance.case import CLASSES, Classifier
from lightning_objectives.testing.conformance.check import Trial
from lightning_objectives.testing.conformance.variants import (
    frozen_norms,
    loud,
    norms_of,
    own,
    variant,
)

# -- when it is built


def a_net_of_configure_model(trial: Trial) -> None:
    """The network is built in ``configure_model``: the training is that of one built in the constructor."""
    _built_late(trial, "configure_model")


def a_net_of_setup(trial: Trial) -> None:
    """The network is built in the module's own ``setup``, after that of the callbacks."""
    _built_late(trial, "setup")


def lazy_modules(trial: Trial) -> None:
    """A layer whose weights take their shape in the first batch."""
    mine = own(trial, _Lazy)
    plain, run = mine.once(lambda: mine.case.fit([]).outcome, "lazy"), mine.case.fit(trial.make())
    idle = mine.case.fit(trial.plug_in.idle(mine.case))
    trial.require_same(plain, idle, "at zero strength it must be the training without it.")
    trial.require_to_act(plain, run)
    trial.require(plain.weights.keys() == run.weights.keys(), "the keys must be those of the training without it.")


# -- its weights


def tied_weights(trial: Trial) -> None:
    """Two layers share their weight, and still do after the training."""
    _, run = own(trial, variant(_Tied, loud)).holds()
    backbone: Any = run.module.backbone
    same = backbone[1].weight is backbone[3].weight
    trial.require(same, "weights that were tied must stay tied.")


def frozen_weights(trial: Trial) -> None:
    """The first half of the weights does not train, and stays what it was to the bit."""

    def freeze(module: Any) -> None:
        parameters = list(module.parameters())
        for parameter in parameters[: len(parameters) // 2]:
            parameter.requires_grad_(False)

    module = variant(trial.case.module, loud, freeze)
    torch.manual_seed(0)
    before = module()
    start = {name: p.detach().clone() for name, p in before.named_parameters() if not p.requires_grad}
    _, run = trial.holds(module=module)
    moved = [name for name, value in start.items() if not torch.equal(value, run.weights[name])]
    trial.require(not moved, f"frozen weights must stay as they are, but {moved} moved.")


def parametrised_weights(trial: Trial) -> None:
    """``torch.nn.utils.parametrizations.weight_norm`` on every linear layer."""
    trial.holds(module=variant(trial.case.module, prepare=_on_linears(nn.utils.parametrizations.weight_norm)))


def old_weight_norm(trial: Trial) -> None:
    """``torch.nn.utils.weight_norm``, whose weight is a tensor of the graph and cannot be copied."""

    def apply(layer: nn.Module) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # there is a newer one
            nn.utils.weight_norm(layer)

    trial.holds(module=variant(trial.case.module, prepare=_on_linears(apply)))


# -- its buffers


def batch_norm_of_no_momentum(trial: Trial) -> None:
    """BatchNorm with ``momentum=None``: a mean over all batches, each of which is counted once."""

    def cumulative(module: Any) -> None:
        for norm in norms_of(module):
            norm.momentum = None

    plain, run = trial.holds(module=variant(trial.case.module, prepare=cumulative))
    counts = [[int(n) for key, n in each.weights.items() if key.endswith("tracked")] for each in (plain, run)]
    trial.require(counts[0] == counts[1], f"BatchNorm must count {counts[0]} batches, not {counts[1]}.")


def frozen_batch_norm(trial: Trial) -> None:
    """BatchNorm that is kept in eval mode: its statistics stay what they were."""
    torch.manual_seed(0)
    start = trial.case.module()
    _, run = trial.holds(module=frozen_norms(variant(trial.case.module, loud)))
    for before, after in zip(norms_of(start), norms_of(run.module)):
        trial.require(not after.training, "a BatchNorm that its user keeps in eval mode must stay in it.")
        still = all(torch.equal(a, b) for a, b in zip(before.buffers(), after.buffers()))
        trial.require(still, "the statistics of a frozen BatchNorm must stay as they are.")


def buffers_of_all_types(trial: Trial) -> None:
    """Integer, bool, complex and non-persistent buffers, which stay what they were to the bit."""
    buffers = {
        "whole": torch.arange(200),
        "short": torch.arange(200, dtype=torch.int16),
        "mask": torch.arange(200) % 3 == 0,
        "phase": torch.polar(torch.ones(5), torch.arange(5.0)),
    }

    def register(module: Any) -> None:
        for name, value in buffers.items():
            module.register_buffer(f"an_{name}", value.clone())
            module.register_buffer(f"a_passing_{name}", value.clone(), persistent=False)

    _, run = trial.holds(module=variant(trial.case.module, prepare=register))
    found = dict(run.module.named_buffers())
    for name, value in buffers.items():
        for key in (f"an_{name}", f"a_passing_{name}"):
            same = found[key].dtype == value.dtype and torch.equal(found[key], value)
            trial.require(same, f"the buffer {key} must stay as it is, but is {found[key]}.")


def sync_batch_norm(trial: Trial) -> None:
    """BatchNorm converted when the training starts, as ``sync_batchnorm=True`` does: hooks and patches survive it.

    In one process a converted layer is an ordinary one; its training forward over several needs a GPU.
    """

    def converted() -> SingleDeviceStrategy:
        return _Converting(device=torch.device("cpu"))

    usual, run = trial.usual(), trial.case.fit(trial.make(), strategy=converted())
    trial.require_same(usual, run, "converted BatchNorm trains the same in one process.")


# -- how


def _built_late(trial: Trial, hook: str) -> None:
    def methods(user: Any) -> dict[str, Any]:
        def build(self: Any, **given: Any) -> Any:
            for name, child in self.held.items():
                setattr(self, name, child)
            self.held.clear()
            return getattr(user, hook)(self, **given)

        return {hook: build}

    def hold(module: Any) -> None:
        module.held = dict(module.named_children())
        module._modules.clear()

    late = variant(trial.case.module, methods, hold)
    usual, run = trial.usual(), trial.case.fit(trial.make(), module=late)
    # the children come behind the module's own parameters and buffers, in the same order
    trial.require_same(usual, run, f"a network that is built in {hook} must train as one of the constructor.")
    attributes = trial.once(lambda: list(vars(trial.fit([]).module)), "attributes")
    left = sorted(vars(run.module).keys() - {*attributes, "held"})
    trial.require(not left, f"the module must be given back as it was, but has {left}.")


def _on_linears(apply: Callable[[nn.Module], Any]) -> Callable[[Any], None]:
    def prepare(module: Any) -> None:
        for layer in [part for part in module.modules() if isinstance(part, nn.Linear)]:
            apply(layer)

    return prepare


class _Lazy(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.backbone[1] = nn.LazyLinear(6)


class _Tied(Classifier):
    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Linear(12, 12), nn.Linear(12, 12)
        second.weight = first.weight
        self.backbone = nn.Sequential(nn.Flatten(), first, nn.Tanh(), second, nn.Tanh())
        self.fc = nn.Linear(12, CLASSES)


class _Converting(SingleDeviceStrategy):
    """Converts BatchNorm where DDP does under ``sync_batchnorm=True``, and back where it does."""

    def setup(self, trainer: Any) -> None:
        assert self.model is not None
        self.model = TorchSyncBatchNorm().apply(self.model)
        super().setup(trainer)

    def teardown(self) -> None:
        assert self.model is not None
        self.model = TorchSyncBatchNorm().revert(self.model)
        super().teardown()
