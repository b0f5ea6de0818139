"""Adds modules to the user's module for a fit, such as a head that a method trains with the network.

The optimizer trains them, but the module's state, its files and its optimizer's saved state do not contain them, so
that a training can go on with, without, or with newly added callbacks. The callback that brought a module saves its
weights; this file saves what the optimizer remembers of them.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_objectives._trainer.checkpoints import taking
from lightning_objectives._trainer.patch import Patch

NAME = "objective_modules"
"""The name of the child that holds the extra modules, and of their entry in a checkpoint."""
COPIED = "Lightning's WeightAveraging copies the module at setup, with or without the parameters that are added to it"
"""Why it is refused beside extra modules."""


class _Container(nn.ModuleDict):
    """Holds child modules without adding their keys to any state dict."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__(modules)
        self.register_load_state_dict_post_hook(_expect_no_keys)  # type: ignore[no-untyped-call]  # torch's

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Nothing, because the callback saves the state."""
        return {} if destination is None else destination


def _expect_no_keys(module: nn.Module, keys: Any) -> None:
    keys.missing_keys[:] = [key for key in keys.missing_keys if NAME not in key.split(".")]


class Extras:
    """Adds extra modules to one module for one fit, and takes them out again."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.container: _Container | None = None
        self.head: nn.Module | None = None
        self._away: list[tuple[nn.Module, torch.device]] = []
        """The modules that have buffers alone, and where these lie outside of the training."""
        self._patches: list[Patch] = []
        self._optimizers: list[Optimizer] = []
        self._loaded: dict[int, dict[str, Any]] = {}
        """By the number of the optimizer, the state of the extra parameters in the checkpoint that the fit resumes."""

    def build(self, modules: Mapping[str, nn.Module], head: nn.Module | None) -> None:
        """Add the modules that have parameters as a child of the user's module; :meth:`follow` moves the others.

        Raises:
            ValueError: Lightning averages the weights too. Whether its copy has these parameters would depend on the
                order of the callbacks.
        """
        buffers = {module: next(module.buffers(), None) for module in modules.values()}
        modules = {name: module for name, module in modules.items() if next(module.parameters(), None) is not None}
        for module, buffer in buffers.items():
            if buffer is not None and module not in modules.values():
                self._away.append((module, buffer.device))
        if not modules:
            return
        bases = {cls.__name__ for callback in self.module.trainer.callbacks for cls in type(callback).__mro__}
        if "WeightAveraging" in bases:
            raise ValueError(
                f"{list(modules)} would add parameters, but {COPIED}. Average with AverageWeights instead."
            )
        self.head = head
        self.container = _Container(modules)
        setattr(self.module, NAME, self.container)
        self._patches = [
            Patch(self.module, "configure_optimizers", self._configure_optimizers),
            Patch(self.module, "on_save_checkpoint", self._save),
            Patch(self.module, "on_load_checkpoint", self._load),
        ]

    def follow(self) -> None:
        """Move the buffers of the modules that are no child of the user's module to its device."""
        for module, _ in self._away:
            module.to(self.module.device)

    def detach(self) -> None:
        """Remove everything, also from the optimizers, so that later files are those of the plain module."""
        for patch in self._patches:
            patch.remove()
        for module, device in self._away:
            module.to(device)
        self._away = []
        if self.container is None:
            return
        extra = set(self.container.parameters())
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["params"] = [parameter for parameter in group["params"] if parameter not in extra]
            for parameter in extra & optimizer.state.keys():
                del optimizer.state[parameter]
        delattr(self.module, NAME)
        self.container = None

    def zero(self) -> Tensor | None:
        """A finite zero with a gradient to each extra parameter, because DDP waits for all of them."""
        if self.container is None:
            return None
        return torch.stack([parameter.sum() * 0 for parameter in self.container.parameters()]).sum()

    def _configure_optimizers(self, inner: Callable[[], Any]) -> Any:
        configured = inner()
        self._optimizers = list(_optimizers(configured))
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        assert self.container is not None
        optimized = {parameter for group in groups for parameter in group["params"]}
        of_head = set(self.head.parameters()) if self.head is not None else set()
        group = next((g for g in groups if of_head & set(g["params"])), groups[0])
        # The head's group gets them: a new group would break schedulers, which know the number of groups.
        group["params"].extend(p for p in self.container.parameters() if p.requires_grad and p not in optimized)
        for number, optimizer in enumerate(self._optimizers):
            self._patches.append(Patch(optimizer, "state_dict", self._without))
            self._patches.append(
                Patch(optimizer, "load_state_dict", lambda load, state, n=number: self._load_optimizer(load, n, state))
            )
        return configured

    def _load_optimizer(self, load: Callable[..., Any], number: int, state: dict[str, Any]) -> None:
        with taking(f"the optimizer, {NAME!r} included,", self.module.trainer):
            load(self._with(number, state))

    def _names(self) -> dict[Tensor, str]:
        assert self.container is not None
        return {parameter: name for name, parameter in self.container.named_parameters()}

    def _positions(self, optimizer: Optimizer) -> dict[int, str]:
        """The names of the extra parameters, by their position among the parameters of the optimizer."""
        names = self._names()
        flat = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        return {position: names[p] for position, p in enumerate(flat) if p in names}

    def _without(self, inner: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The state of an optimizer without the entries of the extra parameters."""
        state = inner()
        extra = self._positions(inner.__self__)  # type: ignore[attr-defined]  # a bound method of the optimizer
        new = {old: i for i, old in enumerate(o for o in _indices(state) if o not in extra)}
        return _renumbered(state, new)

    def _with(self, number: int, state: dict[str, Any]) -> dict[str, Any]:
        """The state of a plain optimizer, with the entries of the extra parameters added at their places."""
        optimizer = self._optimizers[number]
        extra = self._positions(optimizer)
        params = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state = _renumbered(state, dict(enumerate(i for i in range(len(params)) if i not in extra)))
        position = 0
        for saved, group in zip(state["param_groups"], optimizer.param_groups):
            saved["params"] = list(range(position, position + len(group["params"])))
            position += len(group["params"])
        loaded = self._loaded.pop(number, None)  # None: no Lightning checkpoint, or one without extra parameters.
        for position, name in extra.items():
            entry = optimizer.state.get(params[position]) if loaded is None else loaded.get(name)
            if entry:
                if not isinstance(entry, Mapping):
                    raise ValueError(f"{name} has the state {entry!r:.100}, which is no state of an optimizer")
                state["state"][position] = entry
        return state

    def _save(self, inner: Callable[..., Any], checkpoint: dict[str, Any]) -> None:
        inner(checkpoint)
        if self.container is None or "optimizer_states" not in checkpoint:
            return  # A file of the weights alone is that of the plain module.
        checkpoint[NAME] = [
            {name: optimizer.state[p] for p, name in self._names().items() if p in optimizer.state}
            for optimizer in self._optimizers
        ]

    def _load(self, inner: Callable[..., Any], checkpoint: dict[str, Any]) -> None:
        inner(checkpoint)
        self._loaded = dict(enumerate(checkpoint.get(NAME, [])))


def _optimizers(configured: Any) -> Iterator[Optimizer]:
    if isinstance(configured, Optimizer):
        yield configured
    elif isinstance(configured, Mapping):
        yield from _optimizers(configured.get("optimizer"))
    elif isinstance(configured, (list, tuple)):
        for item in configured:
            yield from _optimizers(item)


def _indices(state: dict[str, Any]) -> Iterator[int]:
    for group in state["param_groups"]:
        yield from group["params"]


def _renumbered(state: dict[str, Any], new: dict[int, int]) -> dict[str, Any]:
    groups = [{**g, "params": [new[i] for i in g["params"] if i in new]} for g in state["param_groups"]]
    return {**state, "state": {new[i]: s for i, s in state["state"].items() if i in new}, "param_groups": groups}
