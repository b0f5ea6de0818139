"""The base class of the callbacks that act in the training step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import nn

from lightning_objectives._step.pipeline import BY_HAND, COMPILED, DRAWN, FROM_HEAD, Pipeline
from lightning_objectives._trainer.callback import StatefulCallback
from lightning_objectives._trainer.checkpoints import taking
from lightning_objectives.kinds import Method, signals_of

_UNSHARDED = {
    "fsdp2": "it adds parameters, which would not be sharded, so that the ranks would diverge; use DDPStrategy"
}


@dataclass(eq=False, kw_only=True)
class StepCallback(StatefulCallback):
    """Places one method of its kind in the training step.

    Args:
        criterion: path of the model's criterion (``"loss_fn"``), if it is none of torch's functional losses.
        which: number of the criterion's call, from 0, if a step makes several calls that need a gradient.
        head: path of the network's head (``"model.fc"``), if the callback does not find it, or finds another module.
        input: key or position of the network's inputs in the batch. If several loaders give a batch each, key or
            position of the batch that holds the inputs.
    """

    place: ClassVar[str]
    refuses: ClassVar = {"manual_optimization": BY_HAND, "several_optimizers": BY_HAND, "dataloader_iter": DRAWN}

    criterion: str | None = None
    which: int | None = None
    head: str | None = None
    input: str | int | None = None

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

    def unsupported(self) -> dict[str, str]:
        """Add a compiled module if the callback needs the head, and FSDP2 if it adds parameters."""
        needs_head = self.place == "head" or not FROM_HEAD.isdisjoint(self.signals)
        unsharded = _UNSHARDED if self.adds_parameters else {}
        return unsharded | super().unsupported() | ({"a_compiled_module": COMPILED} if needs_head else {})

    def active(self, step: int) -> bool:
        """Whether the callback changes anything at this optimizer step."""
        return self.method.active(step=step) if isinstance(self.method, Method) else True

    @property
    def adds_parameters(self) -> bool:
        """Whether the method has, or will have, parameters to train with those of the module."""
        return isinstance(self.method, nn.Module) and next(self.method.parameters(), None) is not None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Register with the pipeline of the module."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            Pipeline.of(trainer, pl_module).add(self)

    def build(self, pipeline: Pipeline, head: nn.Module | None) -> None:
        """Build what depends on the network's head, before the pipeline adds the extra modules."""

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Give the module back as it was."""
        Pipeline.detach_from(pl_module)
        super().release(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The state of the method; empty if it is a plain function."""
        return dict(self.method.state_dict()) if isinstance(self.method, nn.Module) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the method."""
        if isinstance(self.method, nn.Module):
            with taking(self.state_key, Pipeline.trainer_of(self)):
                self.method.load_state_dict(state_dict)
