"""Runs a survey over batches, and leaves the network as it was."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lightning_objectives._step.batch import unwrap
from lightning_objectives._step.calls import Call
from lightning_objectives._step.capture import Capture
from lightning_objectives._step.evaluation import Where, agree, call_to_read
from lightning_objectives._step.head import path_of, resolve, view_of
from lightning_objectives._step.passes import unchanged_attributes, unchanged_state
from lightning_objectives._step.problems import adapted, check_problem
from lightning_objectives._step.signals import Signals
from lightning_objectives._trainer.ranks import sum_over_ranks
from lightning_objectives.kinds import Survey
from lightning_objectives.signals import BY_ROW, signals_from, signals_of

GIVEN = signals_from("batch", "criterion", "head")
"""The signals that a survey can ask for."""
_OF_CALL = signals_from("criterion")
_OF_HEAD = frozenset({"features", "head"})


class SurveyPass:
    """One pass of a survey over batches: the step runs on each, in evaluation mode, and the sums are added up.

    Args:
        survey: the method.
        module: the module whose step runs.
        step: runs the user's step on a batch with a number; its value is not used.
        where: what the user says about the step.
        networks: the parts of the module that may be the signal ``network``; the first that maps the inputs to the
            logits is it.
        input: the path of the network's inputs in the batch.
        owner: what runs the survey, for messages.
        context: what the step runs in, such as autocast.

    Raises:
        ValueError: the survey asks for a signal that there is not.
    """

    def __init__(
        self,
        survey: Survey,
        module: nn.Module,
        step: Callable[[Any, int], Any],
        where: Where,
        *,
        networks: Iterable[nn.Module],
        input: str | int | None = None,
        owner: str,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.survey, self.module, self.step, self.where = survey, module, step, where
        self.networks, self.input, self.owner = list(dict.fromkeys(networks)), input, owner
        self.context = context
        self.names = signals_of(survey)
        missing = [name for name in self.names if name not in GIVEN]
        if missing:
            raise ValueError(
                f"{owner}: {survey} asks for the signal {missing[0]!r}, which there is only in a training step. A "
                f"survey may ask for {', '.join(sorted(GIVEN))}."
            )
        self.network: nn.Module | None = None
        self._sums: dict[str, Tensor] = {}
        self._rows = self._batches = 0
        self._calls: list[Call] = []
        self._heads: list[dict[str, Any]] = []

    def run(
        self, batches: Iterable[Any], *, max_batches: int | None, device: torch.device, visible: bool
    ) -> dict[str, Tensor]:
        """The result of the survey over the batches of all ranks.

        Args:
            batches: those of this rank, on the device.
            max_batches: how many of them at most; None for all.
            device: where the sums are.
            visible: whether there is a progress bar.

        Raises:
            ValueError: no row was there to survey, or the survey refuses the step.
        """
        error: Exception | None = None
        try:
            length = _length(batches, max_batches)
            with (
                tqdm(total=length, desc=str(self.survey), unit="batch", disable=not visible) as bar,
                self._ready() as capture,
            ):
                for number, batch in enumerate(islice(batches, max_batches)):
                    self._add(batch, number, capture)
                    bar.update()
        except Exception as caught:
            error = caught
        sums, rows = sum_over_ranks(self._sums, self._rows, device, error)
        if not rows:
            seen = f"In {self._batches} batches" if self._batches else "In a loader without batches"
            raise ValueError(
                f"{self.owner}: {seen} there was no row for {self.survey}: no criterion was seen, or it ignores all "
                "targets. Name the criterion with criterion='path.to.it', or check the loader."
            )
        return self.survey.result(sums, rows)

    @contextmanager
    def _ready(self) -> Iterator[Capture]:
        """Bring the module into evaluation mode, and give everything back."""
        modes = {module: module.training for module in self.module.modules()}
        capture = Capture(self.module)
        try:
            capture.criterion(self.where.criterion, mode=False)
            if not _OF_HEAD.isdisjoint(self.names):
                named = self.where.head or getattr(self.module, "objective_head", None)
                self._head = resolve(self.module, named)[1]
                capture.head(self._head)
            with (
                torch.compiler.set_stance("force_eager"),  # A graph for the survey alone would be compiled for nothing.
                torch.no_grad(),
                unchanged_state(self.module),
                unchanged_attributes(self.module),
            ):
                for module in modes:
                    module.training = False
                yield capture
        finally:
            capture.remove()
            for module, training in modes.items():
                module.training = training

    def on_call(self, call: Call) -> Tensor:
        """Note a call of a criterion."""
        self._calls.append(call)
        return call.value()

    def on_head(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note what the head gets."""
        features = (*args, *kwargs.values())
        if len(features) == 1:
            self._heads.append({"features": features[0], "head": view_of(self._head, inner)})
        return inner(*args, **kwargs)

    def _add(self, batch: Any, number: int, capture: Capture) -> None:
        """Add the sums of one batch."""
        self._batches += 1
        self._calls, self._heads = [], []
        batch, index = unwrap(batch, self.input)
        try:
            with capture.listening(self), self.context():
                self.step(batch, number)
            call = call_to_read(self._calls, self.where.which, f"{self.owner}: the step of {self._user}")
            if call is None and not _OF_CALL.isdisjoint(self.names):
                return  # A step that skips a batch compares nothing.
            if call is not None and not self._sums:
                check_problem(self.owner, self.survey, call)
            signals = _OfBatch(self.module, batch, call, input=self.input, index=index)
            if not _OF_HEAD.isdisjoint(self.names):
                signals.values |= self._of_head()
            with Capture.closed():
                if "network" in self.names:
                    self.network = self.network or self._proved(signals, call)
                    signals.values["network"] = self.network
                arguments = {name: signals.counted(name) for name in self.names}
                if call is not None:
                    arguments = {n: adapted(self.survey, n, value, call) for n, value in arguments.items()}
                self._add_sums(self.survey(**arguments))
        finally:
            capture.forget()
            self._calls, self._heads = [], []
        self._rows += len(next(arguments[name] for name in self.names if name in BY_ROW))

    def _of_head(self) -> dict[str, Any]:
        if len(self._heads) != 1:
            raise ValueError(
                f"{self.owner}: {self._user} calls its head {len(self._heads)} times with its features alone, so there "
                "are no features of a batch. Name a module that the step calls once with head='path.to.it'."
            )
        return self._heads[0]

    def _add_sums(self, sums: Mapping[str, Tensor]) -> None:
        prefix = self._prefix() if self.survey.by_parameter else ""
        new = {f"{prefix}{name}": value.detach().to(_wide(value)) for name, value in sums.items()}
        forms = {name: tuple(value.shape) for name, value in new.items()}
        before = {name: tuple(value.shape) for name, value in self._sums.items()}
        if self._sums and forms != before:
            raise ValueError(
                f"{self.survey} returned sums of the shapes {forms} for one batch, after {before} for those before: "
                "names and shapes must not depend on the batch."
            )
        for name, value in new.items():
            # A survey may return tensors that it keeps.
            self._sums[name] = self._sums[name].add_(value) if name in self._sums else value.clone()

    def _proved(self, signals: "_OfBatch", call: Call | None) -> nn.Module:
        """The network that maps the inputs to the logits."""
        inputs, reasons = signals.get("inputs"), []
        for network in self.networks:
            try:
                with self.context():
                    output = network(inputs)
            except Exception as error:  # Any network may fail in its own way on inputs that are not its own.
                reasons.append(f"{type(network).__name__}(inputs) fails ({type(error).__name__}: {error})")
                continue
            if call is None or (isinstance(output, Tensor) and _is_same(output, call.logits)):
                return network
            reasons.append(f"{type(network).__name__}(inputs) is not what the criterion compares")
        raise ValueError(
            f"{self.owner}: {self.survey} needs a network that maps the inputs of a batch to the logits, but "
            f"{' and '.join(reasons)}. Say input=, leave out an autocast of the step's own, or survey the network by "
            "survey_data(survey, network, loader)."
        )

    def _prefix(self) -> str:
        path = "" if self.network is None else path_of(self.module, self.network)
        return f"{path}." if path else ""

    @property
    def _user(self) -> str:
        return type(self.module).__name__


class _OfBatch(Signals):
    """The signals of one batch."""

    def __init__(self, module: nn.Module, batch: Any, call: Call | None, *, input: Any, index: Tensor | None) -> None:
        super().__init__(module, batch, input=input, index=index)
        self.call = call
        self._total = None if call is None else len(call.logits)
        counts = None if call is None else call.counted
        # A criterion without an ignore_index in use answers with a mask all the same.
        self._kept = None if counts is None else counts.flatten().nonzero().squeeze(1)

    def _logits(self) -> Tensor:
        assert self.call is not None
        return self.call.logits

    def _target(self) -> Tensor:
        assert self.call is not None
        return self.call.targets

    def _losses(self) -> Tensor:
        assert self.call is not None
        elements = self.call.elements
        return elements.flatten() if self.call.by_class or elements.dim() < 2 else elements.flatten(1).mean(1)

    def counted(self, name: str) -> Any:
        """A signal, with the rows that count.

        Raises:
            ValueError: it has another number of rows than the criterion compares.
        """
        value = self.get(name)
        if name not in BY_ROW or self._total is None:
            return value
        if len(value) != self._total:
            raise ValueError(
                f"The signal {name!r} has {len(value)} rows, but the criterion compares {self._total}, so the two "
                "cannot be matched. Use a survey that does not ask for it."
            )
        return value if self._kept is None else value[self._kept]


def _is_same(output: Tensor, logits: Tensor) -> bool:
    if output.dim() == 1:
        output = output[:, None]
    return output.shape == logits.shape and agree(output.to(logits.dtype), logits)


def _wide(value: Tensor) -> torch.dtype:
    """The type of a sum over many rows."""
    if not (value.is_floating_point() or value.is_complex()):
        return torch.int64
    return value.dtype if value.device.type == "mps" else torch.promote_types(value.dtype, torch.float64)


def _length(batches: Any, most: int | None) -> int | None:
    try:
        length = len(batches)
    except TypeError:
        return most
    return length if most is None else min(length, most)
