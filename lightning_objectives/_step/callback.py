"""What the callbacks of the step have in common."""

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
    """A callback that places one method of its kind in the training step.

    Args:
        criterion: path of the model's criterion (``"loss_fn"``), where it is none of torch's functional losses.
        which: number of the criterion's call, from 0, where a step makes several that need a gradient.
        head: path of the network's head (``"model.fc"``), where it is not found or not the right one.
        input: key or position of the network's inputs in the batch, or of the batch that holds them, where several
            loaders give one each.
    """

    place: ClassVar[str]
    refuses: ClassVar = {"manual_optimization": BY_HAND, "several_optimizers": BY_HAND, "dataloader_iter": DRAWN}

    criterion: str | None = None
    which: int | None = None
    head: str | None = None
    input: str | int | None = None

    @property
    def method(self) -> Callable[..., Any]:
        """The method that is placed."""
        return self.methods()[0]  # type: ignore[no-any-return]  # of the callback's kind

    @cached_property
    def signals(self) -> tuple[str, ...]:
        """The signals that the method asks for."""
        return signals_of(self.method)

    @cached_property  # Lightning's profiler asks for it at every hook of every step
    def state_key(self) -> str:
        """One entry in the checkpoint for each method."""
        return f"{type(self).__name__}({self.method!r})"

    def unsupported(self) -> dict[str, str]:
        """A head that cannot be reached, where it needs one; parameters that FSDP2 would not shard."""
        taken = self.place == "head" or not FROM_HEAD.isdisjoint(self.signals)
        unsharded = _UNSHARDED if self.adds_parameters else {}
        return unsharded | super().unsupported() | ({"a_compiled_module": COMPILED} if taken else {})

    def active(self, step: int) -> bool:
        """Whether anything is touched at this optimizer step."""
        return self.method.active(step=step) if isinstance(self.method, Method) else True

    @property
    def adds_parameters(self) -> bool:
        """Whether the method has parameters, or will have, that are trained with the module's."""
        return isinstance(self.method, nn.Module) and next(self.method.parameters(), None) is not None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Register with the pipeline of the module."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            Pipeline.of(trainer, pl_module).add(self)

    def build(self, pipeline: Pipeline, head: nn.Module | None) -> None:
        """Make what depends on the network, whose head is known now, before the extra modules are taken."""

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Give the module back as it was."""
        Pipeline.detach_from(pl_module)
        super().release(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The method's state, where it has any."""
        return dict(self.method.state_dict()) if isinstance(self.method, nn.Module) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the method's state back."""
        if isinstance(self.method, nn.Module):
            with taking(self.state_key, Pipeline.trainer_of(self)):
                self.method.load_state_dict(state_dict)
