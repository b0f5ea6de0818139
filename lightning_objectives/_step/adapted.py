"""Lets an adapter act in the unedited test and predict steps of a module."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_objectives._step.adapted_network import AdaptedNetwork
from lightning_objectives._step.batch import unwrap
from lightning_objectives._step.calls import TARGETS
from lightning_objectives._step.compared import Compared
from lightning_objectives._step.compiled import is_compiled, lies_in_compiled
from lightning_objectives._step.evaluation import EvaluationSteps, Where, agree, in_shape_of
from lightning_objectives._step.frozen import Frozen
from lightning_objectives._step.head import network_of, resolve
from lightning_objectives._trainer.patch import Patch
from lightning_objectives.kinds import Adapter

LogitsProblem = Literal["classes", "binary"]
"""What the logits of a network stand for: one class of several, or one logit for two classes."""

PREDICTS_FROM = ("logits", "features", "reference_logits")
"""What the predictions of an adapter may be made from."""


class AdaptedSteps:
    """Patches a module's test and predict steps, and lets an adapter act on the network that they call.

    The first batch on which the adapter is active proves where the logits are; see :meth:`_prove`.

    Args:
        module: the LightningModule.
        adapter: the method.
        where: what the user says about the step.
        problem: what the user says of the logits; None to know it from the step's criterion.
        episodic: whether each batch begins with the weights as they were.
        reference: another network, whose logits the adapter asks for; None for an adapter that does not.
    """

    def __init__(
        self,
        module: Any,
        adapter: Adapter,
        where: Where,
        *,
        problem: LogitsProblem | None,
        episodic: bool,
        reference: Frozen | None = None,
    ) -> None:
        self.module = module
        self.adapter = adapter
        self.where = where
        self.problem = problem
        self.episodic = episodic
        self.reference = reference
        self.network: AdaptedNetwork | None = None
        """The network, from the first batch on which the adapter is active."""
        self._needs_logits = adapter.defines("predict", "update")
        self._batches = 0
        self._loader: int | None = None
        self._compared: Compared | None = None
        self._running = self._proved = False
        # Before our own patches, so that ours are around these and know what the step compares when it is over.
        self._reads = EvaluationSteps(module, self._note, where) if self._needs_logits else None
        self._patches = [Patch(module, name, self._step) for name in ("test_step", "predict_step")]

    def restore(self) -> None:
        """Remove the patches, and give the network back as it was found; does nothing the second time."""
        if self.network is not None:
            self.network.restore()
            self.network = None
        while self._patches:
            self._patches.pop().remove()
        self._stop_reading()

    def _stop_reading(self) -> None:
        if self._reads is not None:
            self._reads.restore()
            self._reads = None

    def _note(self, loader: int, compared: Compared) -> None:
        self._compared = compared

    # -- one batch -----------------------------------------------------------------------------------------------------

    def _step(self, inner: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        if self._running:  # The user's test_step calls the predict_step.
            return inner(batch, *args, **kwargs)
        batch, _ = unwrap(batch)
        number, self._batches = self._batches, self._batches + 1
        if not self.adapter.active(step=number):
            return inner(batch, *args, **kwargs)
        network = self.network = self.network or self._begin()
        loader = args[1] if len(args) > 1 else kwargs.get("dataloader_idx", 0)
        if self.episodic or loader != self._loader:
            network.reset()
        self._loader, self._running = loader, True
        try:
            with network.listening():
                result = inner(batch, *args, **kwargs)
            self._check(network)
            if self.adapter.defines("update"):
                network.update()
        finally:
            self._running, self._compared = False, None
            network.forget()
        return result

    def _begin(self) -> AdaptedNetwork:
        """Find the network and its head, and refuse what the adapter cannot work on."""
        module, user = self.module, type(self.module).__name__
        named = self.where.head or getattr(module, "objective_head", None)
        path, head = "", None
        try:
            path, head = resolve(module, named)
        except ValueError:
            if named is not None or self._needs_logits:
                raise  # BatchNorm's statistics need no head.
        network = network_of(module, path) if head is not None or hasattr(module, "objective_network") else module
        inside = next((name for name, part in module.named_modules() if part is network), "")
        if lies_in_compiled(module, inside) or any(is_compiled(part) for part in network.modules()):
            raise ValueError(
                f"AdaptAtTest({self.adapter}) cannot reach into a network that is compiled, and {user} or a part of it "
                "is. Test the network without torch.compile: a compiled module keeps the original in `_orig_mod`."
            )
        if self.adapter.defines("statistics"):
            self._check_layers(network, inside, told=named is not None)
        if self.adapter.defines("update"):
            self._patches.append(Patch(module, "on_save_checkpoint", self._on_save_checkpoint))
        return AdaptedNetwork(network, head if self._needs_logits else None, self.adapter, self.reference)

    def _on_save_checkpoint(self, inner: Callable[..., Any], checkpoint: dict[str, Any]) -> None:
        """Save the weights as they were, if a checkpoint is saved during a test.

        Not by a hook of the callback, which Lightning does not call for weights alone.
        """
        sources = {} if self.network is None else self.network.source_by_place()
        weights = checkpoint["state_dict"]
        for name, tensor in weights.items():
            if isinstance(tensor, Tensor) and tensor.data_ptr() in sources:
                weights[name] = sources[tensor.data_ptr()].clone()
        inner(checkpoint)

    def _check_layers(self, network: nn.Module, inside: str, *, told: bool) -> None:
        """Refuse a network without BatchNorm for an adapter of nothing else, and a guess among several networks."""
        user = type(self.module).__name__
        everywhere = {name: part for name, part in self.module.named_modules() if isinstance(part, _BatchNorm)}
        mine = [name for name, part in everywhere.items() if any(part is child for child in network.modules())]
        if not mine and not self._needs_logits:
            raise ValueError(
                f"AdaptAtTest({self.adapter}) changes the statistics of BatchNorm layers, but the network "
                f"{inside or user!r} of {user} has none. Use an adapter that changes the outputs alone."
            )
        others = [name for name in everywhere if name not in mine]
        if others and not told and not self._needs_logits:
            raise ValueError(
                f"{user} has BatchNorm layers outside of its network {inside!r} too, such as {others[0]!r}, so which "
                "network is to be adapted is unknown. Name the head of that network with head='path.to.it'."
            )

    # -- what the first batch proves -----------------------------------------------------------------------------------

    def _check(self, network: AdaptedNetwork) -> None:
        user, name = type(self.module).__name__, type(network.network).__name__
        if not network.network_calls:
            raise ValueError(
                f"AdaptAtTest({self.adapter}) acts while {name} runs, but the step of {user} did not call it as a "
                "whole. Call it in the step, as in self(inputs), or name the head of the network that the step calls "
                "with head='path.to.it'."
            )
        if not self._needs_logits:
            return
        if not network.head_calls:
            raise ValueError(
                f"AdaptAtTest({self.adapter}) needs logits, but the step of {user} did not call the head "
                f"{type(network.head).__name__} of {name}. Name the module that returns them with head='path.to.it'."
            )
        if self.adapter.defines("update") and len(network.head_calls) > 1:
            raise ValueError(
                f"AdaptAtTest({self.adapter}) takes one step for each batch, but the step of {user} calls the head "
                f"{len(network.head_calls)} times, so which logits it adapts to is unknown. Call the network once in "
                "a step."
            )
        if self.adapter.defines("update") and not network.head_calls[-1].logits.requires_grad:
            raise ValueError(
                f"AdaptAtTest({self.adapter}) needs the gradient of the logits, but none of the weights that it adapts "
                f"lies before the head of {name}, or its forward runs under torch.no_grad(). Remove that, or use an "
                "adapter that takes no gradient."
            )
        if not self._proved:
            self._prove(network)
            self._proved = True
            self._stop_reading()

    def _prove(self, network: AdaptedNetwork) -> None:
        """Refuse logits that are not proved to be what the network predicts with.

        The output of the head must be what the step's criterion compares, or what the network returns, up to a constant
        in each row, which no softmax sees; if the user names the head, it is what the user says.

        Raises:
            ValueError: with the shapes, and the way out.
        """
        call, compared = network.head_calls[-1], self._compared
        if self.where.head is None and getattr(self.module, "objective_head", None) is None:
            has_criterion = compared is not None and compared.source != "no criterion"
            goal: Any = compared.input if compared is not None and has_criterion else network.output
            shaped = in_shape_of(goal, call.returned) if isinstance(goal, Tensor) else None
            if shaped is None or not agree(shaped, goal):
                what = "the criterion compares" if has_criterion else f"{type(network.network).__name__} returns"
                raise ValueError(
                    f"AdaptAtTest({self.adapter}) needs the logits, but what the head {type(network.head).__name__} "
                    f"returned, of the shape {tuple(call.logits.shape)}, is not what {what}. Name the module that "
                    "returns the logits with head='path.to.it'."
                )
        self._check_problem(call.logits, compared)

    def _check_problem(self, logits: Tensor, compared: Compared | None) -> None:
        problems = self.adapter.problems
        problem = self.problem or (None if compared is None else compared.problem)
        if not problems:
            return
        if problem is None:
            raise ValueError(
                f"AdaptAtTest({self.adapter}) is for {' or '.join(map(repr, problems))}, but the step of "
                f"{type(self.module).__name__} does not say what its logits of the shape {tuple(logits.shape)} stand "
                "for, because no criterion of torch's compares them. Pass problem='classes', or problem='binary' for "
                "one logit of two classes."
            )
        columns = 1 if logits.dim() < 2 else logits.shape[1]
        if problem not in problems or (problem == "binary") != (columns == 1):
            raise ValueError(
                f"AdaptAtTest({self.adapter}) needs one class of several for each row, but {TARGETS[problem]}, and the "
                f"logits have the shape {tuple(logits.shape)}. Remove AdaptAtTest, or use an adapter that needs no "
                "logits."
            )
