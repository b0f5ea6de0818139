"""The plan of a fit: which callbacks act in its training steps, and what is patched for them.

Each callback of the step registers with the plan of its module, which gives the module back at the end of the fit. The
order of the callbacks does not matter.
"""

import re
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cached_property
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from lightning_objectives._step.again import Again
from lightning_objectives._step.batch import part_of, unwrap
from lightning_objectives._step.capture import Capture
from lightning_objectives._step.compiled import is_compiled, lies_in_compiled
from lightning_objectives._step.extras import Extras
from lightning_objectives._step.head import network_of, path_of, resolve
from lightning_objectives._step.host import HostCopies
from lightning_objectives._step.member import CHAINED, CHANGES, PLACES, Member
from lightning_objectives._step.samples import SampleFinder, loader_sizes
from lightning_objectives._step.step import Step
from lightning_objectives._trainer.lightning import is_param_in_hook_signature
from lightning_objectives._trainer.patch import Patch
from lightning_objectives._trainer.progress import progress_of
from lightning_objectives.signals import signals_from

BY_HAND = (
    "it sets `automatic_optimization = False`: Lightning then ignores the loss that `training_step` returns, so "
    "changing it has no effect"
)
DRAWN = "a training_step(dataloader_iter) draws its batches itself, so that there is none to see before it"
"""Why no callback of the step can work with such a module."""
COMPILED = "its head lies in a compiled module, in which it cannot be reached"
FROM_HEAD = signals_from("head") - {"network"}
_FROM_NETWORK = signals_from("network")
_FROM_CALLS = FROM_HEAD | signals_from("criterion") | _FROM_NETWORK | {"reference_logits", "reference_losses"}
"""The signals that come from the calls of the head and the criterion, which the step must catch."""


class Plan:
    """What the training steps of one module do during one fit."""

    _all: ClassVar[MutableMapping[Any, "Plan"]] = WeakKeyDictionary()

    def __init__(self, trainer: Any, module: Any) -> None:
        self.trainer = trainer
        self.module = module
        self.members: list[Member] = []
        self.extras = Extras(module)
        self.capture = Capture(module)
        self.finder = SampleFinder()
        self.providers: dict[str, Callable[[Step], Any]] = {
            "step": lambda step: torch.tensor(self.trainer.global_step),
            "epoch": lambda step: torch.tensor(self.trainer.current_epoch),
            "progress": lambda step: torch.tensor(progress_of(self.trainer)),
            "network": lambda step: self.network,
            "again": Again,
        }
        """The functions that compute the signals that neither the batch nor the criterion gives, by name."""
        self.steps = 0
        """Training steps that went through the plan."""
        self.caught_calls = 0
        """Calls of the criterion that were changed or read, over all steps."""
        self.chosen: tuple[str, int] | None = None
        """The criterion that is the loss, as the first step has proved: its name, and its number among those of it."""
        self.verified = False
        """Whether a step has proved that the plan has its effect."""
        self.is_partly_compiled = False
        """Whether a network in the module is compiled by itself."""
        self.needs_head = self.catches = False
        """Whether a callback needs the head, and whether one needs the criterion."""
        self.chunks_criterion = False
        """Whether a step has computed the criterion in chunks of rows, beside a term that reads the same logits."""
        self.host: HostCopies
        """What is known on the host of the batch on the device, if a callback needs the criterion."""
        self.head: nn.Module | None = None
        self.head_path = self.line = ""
        """The path of the head, and what is told of the plan before the training."""
        self._records_network = self._repeats = self._built = self._changed = self._needs_samples = False
        self._tap: Patch | None = None
        """The patch of a head that is followed only to know the samples."""
        self._undo: list[Callable[[], None]] = [
            Patch(module, "configure_model", self._configure_model, visible=True).remove,
            Patch(module, "training_step", self._training_step).remove,
            self.capture.remove,
        ]

    @classmethod
    def of(cls, trainer: Any, module: Any) -> "Plan":
        """The plan of a module in this fit; the first call makes it."""
        if module not in cls._all:
            cls._all[module] = cls(trainer, module)
        return cls._all[module]

    @classmethod
    def trainer_of(cls, member: Member) -> Any:
        """The trainer of the plan that a callback is registered with; None if there is none."""
        return getattr(cls.holding(member), "trainer", None)

    @classmethod
    def holding(cls, member: Member) -> "Plan | None":
        """The plan that a callback is registered with; None if there is none."""
        return next((plan for plan in cls._all.values() if member in plan.members), None)

    @classmethod
    def detach_from(cls, module: Any) -> None:
        """Remove all patches, hooks and extra modules; does nothing if there is no plan."""
        plan = cls._all.pop(module, None)
        if plan is not None:
            for undo in reversed(plan._undo):
                undo()

    # -- before the training -------------------------------------------------------------------------------------------

    def add(self, member: Member) -> None:
        """Register a callback.

        Raises:
            ValueError: the module optimizes by hand or draws its batches itself, or another callback has the place.
        """
        name, user = type(member).__name__, type(self.module).__name__
        if not self.module.automatic_optimization:
            raise ValueError(
                f"{name} cannot work with {user} because {BY_HAND}. Call the method inside your own step instead: "
                f"{member.method}."
            )
        if is_param_in_hook_signature(self.module.training_step, "dataloader_iter", explicit=True):
            raise ValueError(f"{name} needs the batch of a step, but {user}'s has none: {DRAWN}. Take (batch) instead.")
        rival = next((m for m in self.members if m.place == member.place and m.place not in CHAINED), None)
        if rival is not None:
            raise ValueError(
                f"{type(rival).__name__}({rival.method}) and {name}({member.method}) both take the place "
                f"{member.place!r} of the training step, where only one can act. Keep one of them."
            )
        self.members.append(member)
        self.members.sort(key=_order)

    def record_network(self) -> None:
        """Let each step record the call of the network, for :attr:`Capture.network_calls`."""
        self._records_network = True

    def option(self, name: str) -> Any:
        """The value of an option that the callbacks of a step share.

        Raises:
            ValueError: two callbacks have different values.
        """
        owners = {getattr(m, name): type(m).__name__ for m in self.members if getattr(m, name) is not None}
        if len(owners) > 1:
            parts = ", ".join(f"{owner}({name}={value!r})" for value, owner in owners.items())
            raise ValueError(f"{parts}: there is one training step, so they must agree on {name!r}.")
        return next(iter(owners), None)

    def words(self) -> str:
        """What happens in a step, in words."""
        parts = [f"{type(m).__name__}({m.method})" for m in self.members]
        return " -> ".join(parts) + (f"; head: {self.head_path}" if self.needs_head and self.head is not None else "")

    def _configure_model(self, inner: Callable[[], Any]) -> None:
        inner()
        if self._built:
            return
        self._built = True
        for name in ("which", "input", "batch_size"):
            self.option(name)
        self.finder.sample_dim = self.option("sample_dim")
        signals = {signal for member in self.members for signal in member.signals}
        self._repeats = bool(signals & _FROM_NETWORK)
        self._records_network = self._records_network or self._repeats
        wrap = any(member.place == "head" for member in self.members)
        built = {name for member in self.members for name in member.sizes}
        self.needs_head = wrap or bool(signals & FROM_HEAD) or bool(built & {"features", "classes"})
        self.catches = bool(signals & _FROM_CALLS) or any(m.place in CHANGES for m in self.members)
        combining = next((member for member in self.members if member.criteria), None)
        if self.catches or combining is not None:
            self.capture.criterion(self.option("criterion"))
        if combining is not None and not isinstance(combining.criteria, bool):
            self.capture.terms(combining.criteria)
        if self.catches:
            self.host = HostCopies(self.trainer)
            self._undo.append(self.host.remove)
        if self.needs_head:
            self._find_head(wrap)
            assert self.head is not None
            self.capture.head(self.head)
        self._needs_samples = any(member.needs_samples for member in self.members) and not is_compiled(self.module)
        if self._needs_samples and not self.needs_head:
            self._follow_head()
        if self._records_network:
            for network in dict.fromkeys((self.module, self.network)):
                parent = path_of(self.module, network).rpartition(".")[0]
                if not lies_in_compiled(self.module, parent):  # There its calls could not be seen.
                    self.capture.network(network)
            if self._tap is None and not self.needs_head:
                self._follow_head()
        for member in self.members:
            member.build(self, self.head)
        self.extras.build(self._methods(), self.head)
        self._undo.append(self.extras.detach)
        self.line = f"Training step of {type(self.module).__name__}: {self.words()}"
        rank_zero_info(self.line)

    def _methods(self) -> dict[str, nn.Module]:
        """The methods that are modules, by names that other callbacks do not change: checkpoints keep these names."""
        named: dict[str, nn.Module] = {}
        for member in self.members:
            if isinstance(member.method, nn.Module):
                name = f"{member.place}_{type(member.method).__name__}"
                again = sum(key.rpartition("_")[0] == name for key in named)
                named[f"{name}_{again}"] = member.method
        return named

    def _find_head(self, wrap: bool) -> None:
        named = self.option("head") or getattr(self.module, "objective_head", None)
        self.head_path, self.head = resolve(self.module, named)
        if lies_in_compiled(self.module, self.head_path):
            raise ValueError(
                f"{self.words()} needs the head of {type(self.module).__name__}, {self.head_path!r}, but {COMPILED}. "
                "Compile the part of the network before the head instead."
            )
        norms = [n or "itself" for n, m in self.head.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if wrap and norms:
            raise ValueError(
                f"The head {self.head_path!r} holds a BatchNorm ({norms[0]}), whose statistics would mix the stacks. "
                "Name the part of the head that comes after it with head=."
            )

    def _follow_head(self) -> None:
        """Follow the head's output, where there is a head, to know which losses belong to one sample."""
        named = self.option("head") or getattr(self.module, "objective_head", None)
        try:
            path, head = resolve(self.module, named)
        except ValueError:
            if named is not None:
                raise
            return
        if not lies_in_compiled(self.module, path):
            self._tap = self.capture.head(head)

    @cached_property
    def network(self) -> nn.Module:
        """The part of the module that holds the head, or the module."""
        path = self.head_path
        if not path:
            with suppress(ValueError):
                path, _ = resolve(self.module, self.option("head") or getattr(self.module, "objective_head", None))
        return network_of(self.module, path)

    # -- during a step -------------------------------------------------------------------------------------------------

    def _training_step(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.trainer.training:  # the user's validation_step calls it
            return inner(*args, **kwargs)
        if not self.steps:
            self.extras.follow()
            for member in self.members:
                member.start(self)
        batch, index = unwrap(args[0] if args else kwargs.get("batch"), self.option("input"))
        self.batch = batch
        of_batch: dict[Any, Any] = {}

        def run() -> Any:
            self.capture.begin()
            return Step(self, batch, index, of_batch).run(inner, args, kwargs)

        moving = [m for m in self.members if m.place == "perturbation" and m.active(self.trainer.global_step)]
        output = moving[0].perturbed(run, self) if moving else run()
        for member in self.members:
            member.finish_batch(of_batch)
        if self._tap is not None and self.finder.is_plain and not self._records_network:
            self._tap.remove()  # Nothing on the path can move a sample to another place.
            self._tap = None
        self.steps += 1
        return output

    @property
    def follows(self) -> bool:
        """Whether what happens to the head's output is recorded."""
        return self._records_network or any(m.place == "head" for m in self.members) or self.follows_batch

    @property
    def follows_batch(self) -> bool:
        """Whether what happens to the tensors of the batch is recorded.

        It says which losses belong to one sample, and what the step does to the inputs before it calls the network.
        """
        if self._repeats:
            return True
        return not self.finder.is_plain and self.finder.sample_dim is None and self._needs_samples

    def mode_of(self, step: Step) -> AbstractContextManager[Any] | None:
        """The mode in which a step runs; None for that of the capture.

        If the mode only reads the criterion's calls, they do not break the graph of a compiled step; torch compiles one
        graph for reading and one for changing. In the first step it changes calls, because the proof needs that. After
        a step that changed a call it always does, so that no method costs a compilation when it begins or ends. A
        network that is compiled by itself stays in the mode, and so has one graph only.
        """
        mode = self.capture.mode
        if mode is None or self.capture.named is not None:
            return None
        if not self.verified:
            self.is_partly_compiled = any(map(is_compiled, self.module.modules()))
        self._changed = self._changed or (step.changes and self.verified)
        mode.reads = self.verified and not self._changed
        idle = mode.reads and not step.running["term"]
        return nullcontext() if idle and not self.is_partly_compiled else None

    @cached_property
    def loader_sizes(self) -> frozenset[int]:
        """How many samples the batches of the training's data loader may have."""
        loaders = self.trainer.train_dataloader
        where = self.option("input")
        part = part_of(loaders, where) if isinstance(loaders, (dict, list, tuple)) else loaders
        return loader_sizes(loaders if part is None else part)


def _order(member: Member) -> tuple[int, str]:
    """Sorts by place, and by name within it, because the rounding of a sum must not depend on the user's list.

    The order of transforms is that of the list, since another order is another training.
    """
    if member.place == "transform":
        return PLACES.index(member.place), ""
    name = re.sub(r" at 0x\w+", "", member.state_key)  # The address of a function differs between processes.
    return PLACES.index(member.place), name
