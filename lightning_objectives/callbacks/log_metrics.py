"""Metrics of an unedited validation or test step."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_objectives.callbacks.average_weights import AverageWeights
from lightning_objectives.callbacks.base import Callback, callbacks_of
from lightning_objectives.callbacks.criterion import Call, CriterionMode, Named, locate
from lightning_objectives.callbacks.head import is_compiled, network_of, resolve
from lightning_objectives.callbacks.merge_checkpoints import MergeCheckpoints
from lightning_objectives.callbacks.patch import Patch
from lightning_objectives.callbacks.signals import unwrap
from lightning_objectives.metrics import default_metrics

_STAGES = {"validation_step": "val", "test_step": "test"}
_NOT_CLASSES = (F.mse_loss, F.binary_cross_entropy, F.binary_cross_entropy_with_logits)


class LogMetrics(Callback):
    """Logs metrics of the logits and targets that the model's own validation or test step compares.

    They are what the step's criterion is given; where a step has no criterion, the head's output and the target in the
    batch. The keys are ``val/ece``, ``val/nll``, ``val/brier``, ``val/top1`` and, above five classes, ``val/top5``
    (``test/...`` when testing), of the weights that the step ran with: the primary average where there is one. With
    several data loaders they end in ``/dataloader_idx_0``, ``/dataloader_idx_1``, ..., as Lightning's own.

    Args:
        metrics: what to log; any torchmetrics metric or collection whose ``update`` takes ``(logits, target)``. By
            default :func:`~lightning_objectives.metrics.default_metrics` for as many classes as the logits have.
        prefix: what the keys begin with, before the stage.
        weights: other weights whose metrics are logged too, by one more forward pass of the network each: ``"raw"``
            under ``val/raw/...``, ``"average"`` for each average under its name (``val/ema/top1``, ``val/bema/top1``),
            and each merge that is evaluated under its (``val/wsm/top1``).
        criterion: path of the model's criterion (``"loss_fn"``), where it is none of torch's functional losses.
        which: number of the criterion's call, from 0, where a step makes several.
        head: path of the network's head, where a step has no criterion and the head is not found.
        target: key or position of the target in the batch, where a step has no criterion; by default its last element.

    Raises:
        ValueError: the step gives nothing to measure, or no classification; the message says what to do.

    Example:
        >>> LogMetrics(weights=["raw", "average"]).weights
        ('raw', 'average')
    """

    def __init__(
        self,
        metrics: Metric | MetricCollection | None = None,
        *,
        prefix: str = "",
        weights: Sequence[Literal["raw", "average"]] = (),
        criterion: str | None = None,
        which: int | None = None,
        head: str | None = None,
        target: str | int | None = None,
    ) -> None:
        if not set(weights) <= {"raw", "average"}:
            raise ValueError(f"weights={weights!r} may hold 'raw' and 'average'.")
        self.metrics = metrics
        self.prefix = prefix
        self.weights = tuple(weights)
        self.criterion = criterion
        self.which = which
        self.head = head
        self.target = target
        self._measured: dict[tuple[str, int], MetricCollection] = {}
        self._undo: list[Callable[[], None]] = []

    # -- attach and detach ---------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Take the evaluation steps."""
        self._restore()
        self._trainer, self._module = trainer, pl_module
        self._live = self._checked = False
        self._call: Call | None = None
        self._calls = 0
        self._output: Tensor | None = None
        self._forward: tuple[tuple[Any, ...], dict[str, Any], Any] | None = None
        self._network: nn.Module | None = None
        self._undo = [Patch(pl_module, name, self._step).remove for name in _STAGES]
        self._undo.append(Patch(pl_module, "configure_model", self._configure_model, visible=True).remove)
        self._mode = None if self.criterion else CriterionMode(self._caught)

    def _configure_model(self, inner: Callable[[], Any]) -> None:
        inner()
        if self._network is not None:
            return
        module = self._module
        if self.criterion is not None:
            owner, name = locate(module, self.criterion)
            self._named = Named(self.criterion)
            self._undo.append(Patch(owner, name, self._caught_named).remove)
        try:
            path, head = resolve(module, self.head or getattr(module, "objective_head", None))
        except ValueError:
            if self.head or self.weights:
                raise
            return  # the criterion will do
        self._network = network_of(module, path)
        if not is_compiled(module, path):
            self._undo.append(head.register_forward_hook(self._head_hook).remove)
        if self.weights:
            self._undo.append(self._network.register_forward_hook(self._network_hook, with_kwargs=True).remove)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the steps back."""
        self._restore()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the steps back: `teardown` is not called after an exception."""
        self._restore()

    def _restore(self) -> None:
        while self._undo:
            self._undo.pop()()

    # -- one batch -----------------------------------------------------------------------------------------------------

    def _step(self, inner: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        batch, _ = unwrap(batch)
        self._call, self._calls, self._output, self._forward = None, 0, None, None
        self._live = True
        try:
            with self._mode or nullcontext():
                result = inner(batch, *args, **kwargs)
        finally:
            self._live = False
        loader = args[1] if len(args) > 1 else kwargs.get("dataloader_idx", 0)
        logits, target = self._compared(batch)
        self._update("", loader, logits, target)
        for name, weights in self._others():
            self._update(f"{name}/", loader, self._repeated(weights, logits), target)
        return result

    def _caught(self, call: Call) -> Tensor:
        if self._live and self._calls == (self.which or 0):
            self._call = call
        self._calls += 1
        return call.value()

    def _caught_named(self, inner: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        return self._caught(self._named.parse(inner, args, kwargs)) if self._live else inner(*args, **kwargs)

    def _head_hook(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._live and isinstance(output, Tensor):
            self._output = output

    def _network_hook(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self._live:
            self._forward = args, kwargs, output

    def _compared(self, batch: Any) -> tuple[Tensor, Tensor]:
        user = type(self._module).__name__
        if self._calls > 1 and self.which is None:
            raise ValueError(f"{user}'s evaluation step calls {self._calls} criteria; say which=0, 1, ... is meant.")
        if self._call is not None:
            if self.metrics is None and self._call.function in _NOT_CLASSES and self._call.input.dim() > 1:
                raise ValueError(
                    f"{user} is evaluated by {self._call.function.__name__} on {tuple(self._call.input.shape)}, which "
                    "is no choice of one class; say metrics=, any torchmetrics metric of (input, target)."
                )
            return self._call.input.detach(), self._call.target
        if self._calls:
            raise ValueError(f"which={self.which}, but {user}'s evaluation step calls {self._calls} criteria.")
        if self._output is None:
            raise ValueError(
                f"{user}'s evaluation step calls no criterion and no head was seen; name it with head='path.to.it'."
            )
        return self._output.detach(), self._target(batch)

    def _target(self, batch: Any) -> Tensor:
        answer = getattr(self._module, "objective_target", None)
        found = answer(batch) if answer is not None else None
        if found is None:
            items = list(batch.values()) if isinstance(batch, Mapping) else batch
            key = self.target if self.target is not None else -1
            found = batch.get(key) if isinstance(batch, Mapping) and self.target is not None else None
            if found is None and isinstance(items, (tuple, list)) and isinstance(key, int) and -len(items) <= key:
                found = items[key] if key < len(items) else None
        if not isinstance(found, Tensor):
            raise ValueError(
                f"The target was not found (target={self.target!r}) in a batch that is a {type(batch).__name__}; say "
                "target='key' or target=position, or answer `objective_target(batch)` with the mixin."
            )
        return found

    def _update(self, name: str, loader: int, logits: Tensor, target: Tensor) -> None:
        key = name, loader
        if key not in self._measured:
            metrics = self.metrics or default_metrics(logits.shape[1] if logits.dim() > 1 else 1)
            metrics = metrics if isinstance(metrics, MetricCollection) else MetricCollection([metrics])
            self._measured[key] = metrics.clone().to(logits.device)
        self._measured[key].update(logits, target)

    # -- other weights -------------------------------------------------------------------------------------------------

    def _others(self) -> list[tuple[str, dict[str, Tensor]]]:
        trainer = self._trainer
        fitting = trainer.state.fn == "fit" and not trainer.sanity_checking  # the averages begin with the training
        averages = callbacks_of(trainer, AverageWeights) if fitting else []
        found = []
        if averages and "raw" in self.weights:
            found.append(("raw", averages[0].weights("raw")))
        if "average" in self.weights:
            owners: list[Any] = [*averages, *(callbacks_of(trainer, MergeCheckpoints) if fitting else ())]
            found += [(name, owner.weights(name)) for owner in owners for name in owner.names]
        return found

    def _repeated(self, weights: dict[str, Tensor], logits: Tensor) -> Tensor:
        """The logits under other weights."""
        if self._network is None or self._forward is None:
            raise ValueError("weights= needs the network's own forward, which the evaluation step did not call.")
        args, kwargs, output = self._forward
        if not self._checked:
            same = isinstance(output, Tensor) and output.shape == logits.shape
            if not same or not torch.allclose(output.softmax(1), logits.softmax(1), atol=1e-5):
                raise ValueError(
                    f"weights=: the logits are not what {type(self._network).__name__} gives, so that its forward "
                    "cannot be repeated with other weights. Name the network with the mixin's `objective_network`."
                )
            self._checked = True
        prefix = next(path for path, child in self._module.named_modules() if child is self._network)
        prefix = f"{prefix}." if prefix else ""
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        return torch.func.functional_call(self._network, own, args, kwargs)  # type: ignore[no-any-return]  # a Tensor

    # -- an epoch ------------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to measure."""
        self._measured = {}

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what was measured."""
        self._log(pl_module, "val")

    def on_test_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to measure."""
        self._measured = {}

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Log what was measured."""
        self._log(pl_module, "test")

    def _log(self, module: Any, stage: str) -> None:
        several = len({loader for _, loader in self._measured}) > 1
        for (name, loader), metrics in self._measured.items():
            suffix = f"/dataloader_idx_{loader}" if several else ""
            for key, value in metrics.compute().items():
                # every rank has computed the same value, over the samples of all
                module.log(
                    f"{self.prefix}{stage}/{name}{key}{suffix}",
                    value,
                    sync_dist=self._trainer.world_size > 1,
                    add_dataloader_idx=False,
                )
