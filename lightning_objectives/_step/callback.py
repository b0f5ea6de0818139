"""The base class of the callbacks that act in the training step."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import nn

from lightning_objectives._step.building import Building
from lightning_objectives._step.calls import TARGETS, Call
from lightning_objectives._step.member import PLACES
from lightning_objectives._step.plan import BY_HAND, COMPILED, DRAWN, FROM_HEAD, Plan
from lightning_objectives._step.problems import adapted, check_problem
from lightning_objectives._step.remembering import Remembering
from lightning_objectives._step.step import Step
from lightning_objectives._trainer.callback import StatefulCallback
from lightning_objectives._trainer.checkpoints import taking
from lightning_objectives._trainer.random import batch_seed
from lightning_objectives.kinds import Method, Problem, signals_of

_UNSHARDED = {
    "fsdp2": "it adds parameters, which would not be sharded, so that the ranks would diverge; use DDPStrategy"
}


@dataclass(eq=False, kw_only=True)
class StepCallback(StatefulCallback, Remembering, Building):
    """Places one method of its kind in the training step.

    Args:
        criterion: path of the model's criterion (``"loss_fn"``), if it is none of torch's functional losses.
        which: number of the criterion's call, from 0, if a step makes several calls that need a gradient.
        head: path of the network's head (``"model.fc"``), if the callback does not find it, or finds another module.
        input: path of the network's inputs in the batch: keys, positions and attributes with dots between them
            (``"0.encoder_cont"``). If several loaders give a batch each, the path may end at the batch that holds the
            inputs.
        batch_size: the number of samples in each batch, or its path in the batch (``"num_graphs"``), if it is not the
            length of the batch's tensors.
        sample_dim: the dimension of the criterion's input that counts the samples, if the callback does not find it.
        samples: the number of samples in the whole data set, for a method that remembers something of each, if the
            callback does not find it.
        seed: the seed of the method's draws, together with the number of the batch and, where the method sees the rows
            of one process, the rank. The random stream of the training stays as it is.
        layers: the paths in the module of the layers whose outputs the method asks for, or patterns such as
            ``"model.layer*"``; the method gets them in this order.
    """

    place: ClassVar[str]
    refuses: ClassVar = {"manual_optimization": BY_HAND, "several_optimizers": BY_HAND, "dataloader_iter": DRAWN}

    criterion: str | None = None
    which: int | None = None
    head: str | None = None
    input: str | int | None = None
    batch_size: int | str | None = None
    sample_dim: int | None = None
    samples: int | None = None
    seed: int = 0
    layers: str | Sequence[str] | None = None

    draws_by_rank: ClassVar[bool] = True
    """Whether each process draws for its own rows; if not, all processes draw the same."""

    @property
    def method(self) -> Callable[..., Any]:
        """The method that the callback places."""
        return self.methods()[0]  # type: ignore[no-any-return]  # of the callback's kind

    @cached_property
    def signals(self) -> tuple[str, ...]:
        """The names of the signals that the method asks for."""
        return signals_of(self.method)

    @cached_property  # Lightning's profiler reads it at every hook of every step.
    def state_key(self) -> str:
        """Its name in a checkpoint: another one for each method."""
        return f"{type(self).__name__}({self.method!r})"

    def build(self, plan: Plan, head: nn.Module | None) -> None:
        """Tap the layers that the method asks for, and let it build its parts."""
        self.tap_layers(plan)
        if self.builds:
            self.build_parts(head)

    def unsupported(self) -> dict[str, str]:
        """Add a compiled module if the callback needs the head, FSDP2 if it adds parameters, and other problems."""
        needs_head = self.place == "head" or not FROM_HEAD.isdisjoint(self.signals)
        unsharded = _UNSHARDED if self.adds_parameters else {}
        for_others = self.problems and "labels" not in self.problems
        labels = {"binary_cross_entropy": TARGETS["labels"]} if for_others else {}
        return unsharded | labels | super().unsupported() | ({"a_compiled_module": COMPILED} if needs_head else {})

    def active(self, step: int) -> bool:
        """Whether the callback changes anything at this optimizer step."""
        return self.method.active(step=step) if isinstance(self.method, Method) else True

    @property
    def adds_parameters(self) -> bool:
        """Whether the method has, or will have, parameters to train with those of the module."""
        method = self.method
        return self.builds or (isinstance(method, nn.Module) and next(method.parameters(), None) is not None)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Register with the plan of the fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.forget()
            Plan.of(trainer, pl_module).add(self)

    @property
    def problems(self) -> tuple[Problem, ...]:
        """The problems that the method is for; empty for all."""
        problems: tuple[Problem, ...] = getattr(self.method, "problems", ())
        return problems

    def check(self, call: Call) -> None:
        """Refuse a criterion of another problem than the method is for.

        Raises:
            ValueError: with the problem, and the way out.
        """
        check_problem(type(self).__name__, self.method, call)

    def arguments(self, step: Step, names: Iterable[str]) -> dict[str, Any]:
        """The signals of this step, in the form that the method takes."""
        return {name: self.adapted(name, self.signal(name, step), step.call) for name in names}

    def signal(self, name: str, step: Step) -> Any:
        """One signal of this step; the generator is the callback's own, and begins anew at each call."""
        if name == "hidden":
            return tuple(tap.read() for tap in self.taps)
        if name == "memory":
            return self.memory_in(step).of(step.get("index"))
        if name == "memory_bank":
            return self.memory_in(step).rows
        if name != "generator":
            return step.get(name)
        alike = [member for member in step.plan.members if member.place == self.place]
        number = PLACES.index(self.place) * 100 + alike.index(self)
        seed = batch_seed(self.seed, step.trainer, by_rank=self.draws_by_rank, stream=number)
        return torch.Generator().manual_seed(seed)

    def adapted(self, name: str, value: Any, call: Call | None) -> Any:
        """A signal in the form that the method takes: one logit z becomes two columns (0, z) for a method for classes.

        With one logit t is the probability of the second class, so the target becomes (1 - t, t).
        """
        return value if call is None else adapted(self.method, name, value, call)

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Give the module back as it was."""
        self.taps, self.has_parts = (), False
        Plan.detach_from(pl_module)
        super().release(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The state of the method; empty if it is a plain function."""
        own = dict(self.method.state_dict()) if isinstance(self.method, nn.Module) else {}
        return own | self.saved_rows()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the method; its parts exist during a training only."""
        if self.builds and not self.has_parts:
            return
        with taking(self.state_key, Plan.trainer_of(self)):
            own = self.load_rows(state_dict)
            if isinstance(self.method, nn.Module):
                self.method.load_state_dict(own)
