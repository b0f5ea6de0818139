"""Shows what an evaluation step has computed to metrics that ask for it by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_objectives._step.capture import Capture, NetworkCall
from lightning_objectives._step.compared import Compared
from lightning_objectives._step.head import by_position, view_of
from lightning_objectives._step.shown_teacher import ShownTeacher
from lightning_objectives._step.signals import Signals
from lightning_objectives.metrics import classification_rows


@dataclass(frozen=True, eq=False)
class HeadCall:
    """One call of the head."""

    features: Tensor | None
    output: Tensor


@dataclass(eq=False)
class SeenHead:
    """What is known of the head from all steps so far."""

    module: nn.Module | None = None
    """None if there is none, or if its calls cannot be seen."""
    path: str = ""
    missing: str = ""
    """Why there is none."""
    problem: str = "classes"
    """What the criterion compares."""
    is_compared: bool | None = None
    """Whether the criterion compares the head's output as it is; None before a step that calls both."""
    trusted: bool = False
    """Whether the head's output was shown as logits in a step without a criterion."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What one evaluation step has computed: one row for each sample, or for each position of a sample."""

    module: Any
    batch: Any
    loader: int
    """The number of the data loader."""
    compared: Compared | None
    """What the criterion compared, or the head's output and the target; None if there is no target."""
    has_criterion: bool
    calls: Sequence[HeadCall]
    head: SeenHead
    network_calls: Sequence[NetworkCall] = ()
    """How the step called its network and the module, if there is a teacher."""
    teacher: ShownTeacher | None = None

    def values(self, metric: str, names: Sequence[str]) -> dict[str, Any] | None:
        """What a metric asks for, by name, without the rows that the criterion ignores.

        Returns:
            the values, or None if the step has no logits or no target, or did not call the head, so that it is left
            out.

        Raises:
            ValueError: what the metric asks for is not there, or the numbers of rows differ.
        """
        if self.compared is None and not self.calls:
            return None
        rows, kept = self._rows(metric, names)
        if any(value is None for value in rows.values()):
            return None
        count = len(next(iter(rows.values())))
        counts = {name: len(value) for name, value in rows.items()} | ({} if kept is None else {"criterion": len(kept)})
        if any(other != count for other in counts.values()):
            numbers = ", ".join(f"{number} of {name}" for name, number in counts.items())
            raise ValueError(
                f"{metric} asks for {', '.join(names)}, but the numbers of rows differ ({numbers}), so they cannot be "
                "matched. Name the head and the criterion that belong together by head=, criterion= or which=."
            )
        if kept is not None:
            rows = {name: value[kept] for name, value in rows.items()}
        first = next(iter(rows.values()))
        if not len(first):
            return None
        others: dict[str, Callable[[], Any]] = {
            "head": lambda: self._view(metric),
            "loader": lambda: torch.full((len(first),), self.loader, device=first.device),
        }
        return {name: rows[name] if name in rows else others[name]() for name in names}

    def _rows(self, metric: str, names: Sequence[str]) -> tuple[dict[str, Any], Tensor | None]:
        """The tensors by name, each with all rows, and which rows count; None for all."""
        logits, target, kept = self._compared() if self.compared is not None else (self._bare_logits(), None, None)
        rows: dict[str, Any] = {name: logits for name in ("logits", "preds") if name in names}
        if rows:
            self._prove(metric)
        if "target" in names:
            rows["target"] = target
        if "features" in names:
            rows["features"] = self._features(metric)
        if "teacher_features" in names:
            rows["teacher_features"] = self._teacher_features
        if "group" in names:
            rows["group"] = Signals(self.module, self.batch).get("group").to(logits.device)
        return rows or {"logits": logits}, kept

    def _compared(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits and target, one row for each position, and which rows count; None for all."""
        assert self.compared is not None
        if self.compared.problem not in ("classes", "binary"):
            return (*self.compared.plain, None)
        rows = classification_rows(*self.compared.pair)
        counts = None if rows.target.is_floating_point() or bool(rows.kept.all()) else rows.kept
        return rows.preds, rows.target, counts

    def _bare_logits(self) -> Tensor:
        """The head's output in the form in which logits that are compared are shown."""
        logits = self._by_position(self.calls[-1].output)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.head.problem in ("classes", "binary") and logits.shape[1] == 1:
            logits = torch.cat([torch.zeros_like(logits), logits], 1)
        return logits

    def _by_position(self, value: Tensor) -> Tensor:
        return by_position(value, self.head.module)

    @cached_property
    def _teacher_features(self) -> Tensor:
        """Computed once for all metrics."""
        assert self.teacher is not None  # the callback refuses a metric that asks for one
        return self.teacher.features(self.module, self.batch, self.network_calls)

    def _prove(self, metric: str) -> None:
        """Refuse the head's output in place of logits if the criterion compares something else."""
        if not self.has_criterion:
            self.head.trusted = True
        elif self.head.is_compared is None and self.calls and self.compared is not None:
            self.head.is_compared = any(self._is_compared(call.output) for call in self.calls)
        if self.head.trusted and self.head.is_compared is False:
            raise ValueError(
                f"{metric} asks for logits, but only some evaluation steps call a criterion, which compares something "
                f"else than the output of {self.head.path!r}. So the logits of the other steps are unknown. Call the "
                "same criterion for every loader, or name by head= the module that returns what is compared."
            )

    def _is_compared(self, output: Tensor) -> bool:
        assert self.compared is not None
        compared = self.compared.input.squeeze()
        forms = (output.squeeze(), self._by_position(output).squeeze())
        return any(form.shape == compared.shape and torch.equal(form.to(compared.dtype), compared) for form in forms)

    def _features(self, metric: str) -> Tensor:
        self._check_head(metric, "features")
        calls = self.calls
        if len(calls) > 1 and self.has_criterion and self.compared is not None:
            place = self.compared.input.data_ptr()
            calls = [call for call in calls if call.output.data_ptr() == place]
            if len(calls) != 1:
                raise ValueError(
                    f"{metric} asks for features, but the evaluation step calls the head {self.head.path!r} "
                    f"{len(self.calls)} times, and it is unknown which call belongs to the criterion. Call it once."
                )
        features = calls[-1].features
        if features is None:
            raise ValueError(
                f"{metric} asks for features, but the head {self.head.path!r} is called without a tensor. Name the "
                "module that turns features into logits by head=."
            )
        return self._by_position(features)

    def _check_head(self, metric: str, name: str) -> None:
        missing = self.head.missing
        if not missing and not self.calls:
            missing = f"the evaluation step does not call {self.head.path!r}, which was taken for the head"
        if missing:
            raise ValueError(
                f"{metric} asks for {name}, but {missing}. Name the module that turns features into logits by head=."
            )

    def _view(self, metric: str) -> nn.Module:
        self._check_head(metric, "head")
        head = self.head.module
        assert head is not None  # it has been called

        def forward(*args: Any, **kwargs: Any) -> Any:
            with Capture.closed():
                return head.forward(*args, **kwargs)

        return view_of(head, forward)
