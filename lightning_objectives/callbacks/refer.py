"""Gives methods a reference to compare the network with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_objectives._files.fitting import Weights
from lightning_objectives._files.names import plain_name
from lightning_objectives._files.network import load_network, read_weights
from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.compiled import is_compiled
from lightning_objectives._step.frozen import Normalization
from lightning_objectives._step.plan import COMPILED, Plan
from lightning_objectives._step.reference import compared, logits_with, losses_of, state_of, tensors_in
from lightning_objectives._step.step import Step
from lightning_objectives._step.teacher import Teacher
from lightning_objectives._trainer.checkpoints import taking

_OF_OWN = {
    "a_compiled_module": COMPILED,
    "lazy_modules": "its lazy parameters have no values yet; run a batch through the module before the training",
}
_PREFIX = "weights."
"""What the names of the tensors begin with in the callback's state."""


@dataclass(eq=False)
class Refer(StepCallback):
    """Gives methods a reference: the network as it was, or another trained network.

    Methods of other callbacks ask for it by the signals ``reference_logits``, ``reference_losses`` and
    ``reference_weights``. Without such a method the callback does nothing.

    The reference is always in eval mode, and gets no gradient. It is called as your step calls the network, and its
    logits go the way of the network's to the criterion. Hooks that you set on the network see this pass too.
    ``"start"`` and ``"epoch"`` keep a copy of the network's parameters and buffers in memory, and in each checkpoint,
    so that a resumed training goes on with the same ones.

    Args:
        network: ``"start"``, the network before the first step of this training; ``"epoch"``, the network at the end of
            the epoch before; or another trained network, in the forms that ``Distill(teacher=...)`` takes.
        weights: a file of weights: of the network of this training if ``network`` is ``"start"``, in place of those
            that it starts with; else of the other network.
        prefix: what the names of the weights in that file begin with, if several networks in it fit.
        data_normalization: the (mean, std) by channel of the inputs of your network, if the other network was trained
            with another normalization.
        reference_normalization: the (mean, std) of the other network; None takes those that timm gives with it.
        cache: a directory for the other network's logits by sample, as of ``Distill(cache=...)``.
        cache_top_k: how many logits to keep for each sample. None keeps all.

    Raises:
        ValueError: a setting that does not fit the others.

    Example:
        >>> from lightning_objectives.callbacks import AddRegularizer
        >>> from lightning_objectives.regularizers import L2SP
        >>> callbacks = [AddRegularizer(L2SP()), Refer()]
    """

    place = "reference"
    provides = "reference"
    beside = ("ReweightSamples",)
    refuses: ClassVar = {"fsdp2": "each rank holds a shard of the weights alone; use DDPStrategy"}

    network: str | nn.Module | Callable[[], str | nn.Module] = "start"
    weights: str | None = None
    prefix: str | None = None
    data_normalization: Normalization | None = None
    reference_normalization: Normalization | None = None
    cache: str | None = None
    cache_top_k: int | None = None

    def __post_init__(self) -> None:
        if self._is_own and (self.cache is not None or self.data_normalization is not None):
            raise ValueError(
                f"network={self.network!r} is the network of the training, so cache= and data_normalization= have no "
                "effect. Remove them, or name another network."
            )
        if self.weights is not None and self.network == "epoch":
            raise ValueError(
                f"weights={self.weights!r} would be used in the first epoch alone. Say network='start' to compare with "
                "them in all epochs."
            )
        if self.cache_top_k is not None and (self.cache is None or self.cache_top_k < 1):
            raise ValueError(f"cache_top_k={self.cache_top_k} must be at least 1, and needs a directory, cache=.")
        self._tensors: dict[str, Tensor] = {}
        """The parameters and buffers of the network as it was."""
        self._epoch = -1
        """The epoch before which they were copied."""
        self._teacher: Teacher | None = None

    @property
    def _is_own(self) -> bool:
        return self.network in ("start", "epoch")

    @property
    def method(self) -> Any:
        """What it refers to."""
        return self.network if isinstance(self.network, str) else "another network"

    @property
    def passes(self) -> int:
        """Two, if the reference is the network itself: it runs once more for methods that ask what it says."""
        return 2 if self._is_own else 1

    def unsupported(self) -> dict[str, str]:
        """Add what hides the network, or has no weights yet, if the reference is the network itself."""
        return super().unsupported() | (_OF_OWN if self._is_own else {})

    @property
    def signals(self) -> tuple[str, ...]:
        """No signals of its own."""
        return ()

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew, and provide the signals of the fit."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._tensors, self._epoch = {}, -1
        plan = Plan.of(trainer, pl_module)
        plan.record_network()
        plan.providers |= {
            "reference_logits": lambda step: self._compared(step).logits.detach(),
            "reference_losses": lambda step: losses_of(step, self._compared(step)),
            "reference_weights": lambda step: self._weights(step.plan),
        }

    def build(self, plan: Plan, head: nn.Module | None) -> None:
        """Load the other network, or the file.

        Raises:
            ValueError: the network has no weights yet, or its calls are hidden, but a method asks for what it says.
        """
        if self._is_own and any(map(is_lazy, plan.network.parameters())):
            raise ValueError(f"Refer cannot copy {type(plan.network).__name__}: {_OF_OWN['lazy_modules']}.")
        runs = any({"reference_logits", "reference_losses"} & {*member.signals} for member in plan.members)
        if runs and self._is_own and is_compiled(plan.module):
            raise ValueError(f"Refer cannot run the network once more: {_OF_OWN['a_compiled_module']}.")
        if not self._is_own:
            network = self.network if isinstance(self.network, (str, nn.Module)) else self.network()
            self._teacher = Teacher(
                load_network(network, self.weights, prefix=self.prefix, options=""),
                rank=plan.trainer.global_rank,
                normalizations=(self.data_normalization, self.reference_normalization),
                cache=self.cache,
                cache_top_k=self.cache_top_k,
            )
        elif self.weights is not None:
            state = Weights(read_weights(self.weights), self.weights, self.prefix, options="").of(plan.network)
            self._tensors = state_of({name: state[name] for name in tensors_in(plan.network) if name in state})

    def start(self, plan: Plan) -> None:
        """Copy the network as it is; move a copy of a checkpoint or a file to its device."""
        own = tensors_in(plan.network)
        if self._tensors:
            self._tensors = {name: tensor.to(own[name].device) for name, tensor in self._tensors.items()}
        elif self._is_own:
            self._tensors = state_of(own)
            size = sum(tensor.nbytes for tensor in self._tensors.values()) / 1e6
            rank_zero_info(f"Refer keeps a copy of the network: {size:.3g} MB in memory, and in each checkpoint.")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to count the epochs, unless a checkpoint holds their number."""
        if self._epoch < 0:
            self._epoch = trainer.current_epoch
        # Lightning does not call it after a resume at the end of an epoch.
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Copy the network at the end of the epoch before."""
        if self.network == "epoch" and trainer.current_epoch > self._epoch:
            self._tensors = state_of(tensors_in(Plan.of(trainer, pl_module).network))
            self._epoch = trainer.current_epoch

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the other network's logits of this epoch to the cache, and read those of the other ranks."""
        if self._teacher is not None:
            self._teacher.share_cache(trainer)

    def _weights(self, plan: Plan) -> dict[str, Tensor]:
        """The parameters of the reference, by their names in the network."""
        if self._teacher is None:
            own, names = self._tensors, [name for name, _ in plan.network.named_parameters()]
            return {name: own[plain_name(name)] for name in names if plain_name(name) in own}
        network = self._teacher.frozen.network.to(plan.module.device)
        return {name: parameter.detach() for name, parameter in network.named_parameters()}

    def _compared(self, step: Step) -> Any:
        if self not in step.of_batch:
            teacher = self._teacher
            own = None if teacher is not None else logits_with(step, self._tensors)
            step.of_batch[self] = own if teacher is None else teacher.answer(step).logits
        return compared(step, step.of_batch[self])

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Give the module back as it was, and drop the other network."""
        self._teacher = None
        super().release(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The copy of the network; nothing for another network, or a file."""
        if not self._is_own or self.weights is not None or not self._tensors:
            return {}
        return {"epoch": self._epoch, **{f"{_PREFIX}{name}": tensor for name, tensor in self._tensors.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the copy of the training that goes on."""
        if not state_dict or not self._is_own or self.weights is not None:
            return
        with taking(self.state_key, Plan.trainer_of(self)):
            tensors = {n.removeprefix(_PREFIX): t for n, t in state_dict.items() if n.startswith(_PREFIX)}
            plan = Plan.holding(self)
            own = tensors_in(plan.network) if plan is not None else tensors
            if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in own.items()}:
                raise ValueError(
                    "The checkpoint holds a reference whose tensors have other names or shapes than the network's. "
                    "Resume with the network that was saved."
                )
            self._tensors, self._epoch = state_of(tensors), int(state_dict["epoch"])
