"""The architecture on one page: what a method may ask for (signals), and what each kind of method promises.

A **method** is the mathematics of one paper. It belongs to a **kind**, which fixes the meaning of what it takes and
returns; one callback per kind places every method of that kind in the training step. A method names what it needs as
parameters of ``forward``, out of :data:`SIGNALS`, and gets exactly that:

>>> class Half(Weighting):
...     def forward(self, losses: Tensor) -> Tensor:
...         return losses.new_ones(len(losses))
>>> signals_of(Half())
('losses',)

A name outside the vocabulary is refused when the class is made:

>>> class Typo(Weighting):
...     def forward(self, loses: Tensor) -> Tensor: ...
Traceback (most recent call last):
    ...
TypeError: Typo.forward asks for 'loses', which is no signal. Did you mean 'losses'? Signals: ...

N is the number of samples (or of elements, where the callback says ``unit="element"``), C of classes, D of features,
M of stacks.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, ClassVar

from torch import Tensor, nn

SIGNALS: dict[str, str] = {
    "features": "(N, D): what the network's head is given",
    "generator": "torch.Generator of the callback's own, so that the user's random stream is untouched",
    "gradients": "(K, P): the flattened gradient of each of the K terms of the objective",
    "group": "(N,) int: the group of each sample, from `group=` or `objective_group`",
    "head": "the network's head, a callable (rows, D) -> (rows, C)",
    "index": "(N,) int: the position of each sample in the data set, from `with_index`",
    "inputs": "(N, ...): what the network is given",
    "logits": "(N, C): what the criterion is given",
    "losses": "(N,): the unreduced losses, without gradient for a weighting",
    "network": "the module whose head is taken",
    "progress": "0-d float tensor in [0, 1]: the part of the training that is done",
    "reference_losses": "(N,): the losses of the reference model on the same samples",
    "step": "0-d int tensor: optimizer steps taken",
    "epoch": "0-d int tensor: epochs completed",
    "target": "(N,) int or (N, C) float: what the criterion compares with",
    "teacher_features": "(N, D'): what the teacher's head is given, without gradient",
    "teacher_logits": "(N, C): the teacher's output on the same inputs, without gradient",
}


def signals_of(method: Callable[..., Any]) -> tuple[str, ...]:
    """The signals that a method (a module or a function) names as parameters, in order.

    Raises:
        TypeError: a parameter without a default is no signal, or the parameters cannot be named (``*args``).
    """
    forward = method.forward if isinstance(method, nn.Module) else method
    name = type(method).__name__ if isinstance(method, nn.Module) else getattr(method, "__name__", repr(method))
    return _checked(name, inspect.signature(forward).parameters.values())


def _checked(owner: str, parameters: Any) -> tuple[str, ...]:
    names = []
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"{owner}.forward takes {parameter}: name each signal that it needs, out of SIGNALS.")
        if parameter.name in SIGNALS:
            names.append(parameter.name)
        elif parameter.default is parameter.empty:
            close = get_close_matches(parameter.name, SIGNALS, n=1)
            hint = f"Did you mean {close[0]!r}? " if close else ""
            known = ", ".join(sorted(SIGNALS))
            raise TypeError(f"{owner}.forward asks for {parameter.name!r}, which is no signal. {hint}Signals: {known}.")
    return tuple(names)


class Method:
    """What all methods share: keyword-only settings kept under their own names, hence a ``repr`` that rebuilds them."""

    room: ClassVar[str] = ""
    """The sub-package that holds the methods of this kind."""
    callback: ClassVar[str] = ""
    """The callback that places them."""
    example: ClassVar[dict[str, Any]] = {}
    """Settings with which the method can be built for tests and docs, where it cannot be built without any."""
    unsupported: ClassVar[Mapping[str, str]] = {}
    """The conditions of ``testing.conformance`` that it cannot live with, and why; its callback refuses them."""

    by_process: ClassVar[str] = ""
    """Why several processes are not one with the joined batch; empty where they are."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__:
            _checked(cls.__name__, list(inspect.signature(cls.forward).parameters.values())[1:])  # type: ignore[attr-defined]  # only kinds with a forward
        if "__init__" in cls.__dict__:
            for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
                if parameter.kind is not parameter.KEYWORD_ONLY:
                    raise TypeError(
                        f"{cls.__name__}.__init__: {parameter.name!r} must be keyword-only (put `*,` first)."
                    )

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, by name."""
        parameters = inspect.signature(type(self)).parameters.values()
        # A class without a constructor of its own shows nn.Module's *args and **kwargs, which are no settings.
        return {p.name: getattr(self, p.name) for p in parameters if p.kind is p.KEYWORD_ONLY}

    def active(self, *, step: int) -> bool:
        """Whether the method changes anything at this optimizer step; where it does not, nothing is touched.

        It is asked outside any compiled region, once a step, with a plain number.
        """
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"


class BatchTransform(Method, nn.Module):
    """``(inputs, ...) -> (inputs, index, weight)``: a new batch made from the rows of the old.

    ``inputs (N, ...)`` is a copy that may be changed. Row n of the result has the label distribution
    ``sum_k weight[n, k] * one_hot(target[index[n, k]])``, with ``index (N, K) int`` and ``weight (N, K)``.
    Laws: the shape of ``inputs`` is kept; weights are >= 0 and sum to 1 along k; draws come from ``generator`` alone.
    """

    room, callback = "batches", "TransformBatch"
    by_process = "each process mixes its own rows, by draws of its own"
    forward: Callable[..., tuple[Tensor, Tensor, Tensor]]


class Head(Method, nn.Module):
    """``(features, head, ...) -> (M, N, ...)``: M stacks of logits in place of the head's one, in training only.

    Laws: the stacks have the shape of ``head(features)`` behind M; the head's weights are shared; the rows are
    independent of each other; evaluation is the plain model's.
    """

    room, callback = "heads", "WrapHead"
    forward: Callable[..., Tensor]


class Loss(Method, nn.Module):
    """``(logits, target, ...) -> (N,)``: a criterion, unreduced, in place of the model's own.

    Laws: one value a row; a permutation of the rows permutes the values; the gradient is that of finite differences;
    finite at ``|logits| = 1e4``; the module equals its function, defaults too.
    """

    room, callback = "losses", "ReplaceLoss"
    forward: Callable[..., Tensor]


class Weighting(Method, nn.Module):
    """``(losses, ...) -> (N,)``: weights of the samples of one micro-batch of all ranks, whose mean is 1.

    The callback gathers the signals over the ranks first and takes its own rows afterwards, so a method sees the
    global batch and never communicates. Laws: equal losses give equal weights; mean 1; permutation equivariant; no
    gradient flows through the weights; one non-finite loss leaves the other weights finite.
    """

    room, callback = "weighting", "ReweightSamples"
    forward: Callable[..., Tensor]


class Distillation(Method, nn.Module):
    """``(logits, teacher_logits, ...) -> (N,)``: the distance to a teacher, added to the model's own loss.

    ``logits`` are the model's, or those of a head of the method's own (``builds_head``) on the same features. Laws: a
    minimum where student equals teacher; no gradient to the teacher; finite at ``|logits| = 1e4``.
    """

    room, callback = "distillation", "Distill"
    forward: Callable[..., Tensor]
    builds_head: ClassVar[bool] = False
    """Whether :meth:`build` makes ``auxiliary_head``, whose logits ``forward`` is then given."""
    stop_epoch: int | None = None
    """The epoch from which the term is not computed any more."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary_head: nn.Module | None
        self.register_module("auxiliary_head", None)

    @property
    def idle(self) -> bool:
        """Whether the settings leave the training as it is at every step, so that nothing is attached."""
        return False

    def build(self, *, features: int, classes: int) -> None:
        """Make ``auxiliary_head``, (rows, D) -> (rows, C), anew; called once a fit, when the head is known."""

    def combination(self) -> "Combination | None":
        """How the model's own loss and the term are combined; None for their sum."""
        return None


class Regularizer(Method, nn.Module):
    """``(signals) -> (N,)`` or a scalar: a term that is added to the loss, the mean of it where it is per sample.

    Laws: a declared minimiser is stationary; the gradient is that of finite differences.
    """

    room, callback = "regularizers", "AddRegularizer"
    forward: Callable[..., Tensor]


class Combination(Method, nn.Module):
    """``(gradients) -> (K,)``: how much of each term of the objective goes into the update.

    Law: one term alone keeps the weight 1.
    """

    room, callback = "combination", "CombineTerms"
    forward: Callable[..., Tensor]


class GradientTransform(Method):
    """``init(params) -> state``, ``update(gradients, params, state) -> gradients``: gradients before the optimizer.

    ``params`` are all parameters of the module in a fixed order, and each has its gradient at the same place, None
    where it has none. Gradients are whole: accumulated, reduced over the ranks, unscaled. The state is a dictionary of
    tensors, numbers and lists of them, that ``update`` may write to. Laws: shape, dtype and device are kept; a missing
    gradient stays missing; nothing but the state is written to; nothing is drawn from the global random stream;
    resume equals the uninterrupted run.
    """

    room, callback = "gradients", "TransformGradients"

    def init(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """The state before the first step; empty where nothing is remembered."""
        return {}

    def update(
        self, gradients: Sequence[Tensor | None], params: Sequence[Tensor], state: dict[str, Any]
    ) -> list[Tensor | None]:
        """The gradients that the optimizer gets; called once for each optimizer step."""
        raise NotImplementedError(f"{type(self).__name__} defines no update(gradients, params, state).")


@dataclass
class AverageState:
    """What an averaging rule remembers: float32 tensors in the order of the parameters, by slot name."""

    slots: dict[str, list[Tensor]]
    updates: int = 0
    scratch: dict[str, Any] = field(default_factory=dict, repr=False)


class Rule(Method):
    """Weights over time, in memory: ``init`` once, ``update`` after optimizer steps, ``read`` the averaged weights.

    ``params`` are float32 tensors in a fixed order. ``step`` is the number of real optimizer steps taken, ``start``
    the step at which the average began (there ``init`` was called). Laws: constant weights are a fixed point; stopping,
    saving and going on equals going on; the live weights are never changed nor aliased.
    """

    room, callback = "averaging", "AverageWeights"
    by_tensor: ClassVar[bool] = False
    """Whether ``update`` writes each tensor in place, by what belongs to it alone: it may be given a part of them."""

    def init(self, params: Sequence[Tensor]) -> AverageState:
        """The state before the first update: a copy of the weights under the slot ``average``."""
        return AverageState({"average": [p.detach().clone() for p in params]})

    def update(self, state: AverageState, params: Sequence[Tensor], *, step: int, start: int = 0) -> None:
        """Take the weights after optimizer step ``step`` into the average, in place; counts ``state.updates``."""
        raise NotImplementedError(f"{type(self).__name__} defines no update(state, params, *, step, start).")

    def read(self, state: AverageState, params: Sequence[Tensor], *, step: int) -> list[Tensor]:
        """The averaged weights at ``step``; the state's own tensors, or fresh ones. Never write to them."""
        return state.slots["average"]


class Merge(Method):
    """``coefficients(steps) -> (K,)``: the share of each of K checkpoints, oldest first, in their merge.

    ``steps`` are the numbers of optimizer steps after which they were taken, increasing. The merge is the sum of the
    checkpoints times their shares; who reads, adds and writes them is no concern of the method. Laws: one finite
    coefficient a checkpoint; they sum to 1; identical checkpoints merge into themselves.
    """

    room, callback = "merging", "MergeCheckpoints"

    def coefficients(self, steps: Sequence[int]) -> Tensor:
        """(K,) float64 shares of the checkpoints taken after ``steps``."""
        raise NotImplementedError(f"{type(self).__name__} defines no coefficients(steps).")


class Calibrator(Method, nn.Module):
    """``fit(logits, target)``, then ``forward(logits) -> (N, C)`` probabilities: post hoc, after training.

    What is fitted lies in buffers, which ``fit`` writes in place. Laws: the rows of the probabilities sum to 1; the
    NLL on the fitted set is no worse than softmax's; the top class is kept where the method declares it; a state that
    is saved and loaded gives the same probabilities.
    """

    room, callback = "calibration", "Calibrate"
    keeps_top_class: ClassVar[bool] = False
    """Whether the most probable class is always that of the greatest logit."""
    forward: Callable[..., Tensor]

    def fit(self, logits: Tensor, target: Tensor) -> None:
        """Fit on (N, C) logits and (N,) classes, or (N, C) class probabilities, of all ranks."""
        raise NotImplementedError(f"{type(self).__name__} defines no fit(logits, target).")


class Adapter(Method, nn.Module):
    """``(network, inputs) -> logits``: test-time adaptation.

    Law: with zero strength it is the network.
    """

    room, callback = "adaptation", "AdaptAtTest"
    forward: Callable[..., Tensor]


KINDS: tuple[type[Method], ...] = (
    BatchTransform,
    Head,
    Loss,
    Weighting,
    Distillation,
    Regularizer,
    Combination,
    GradientTransform,
    Rule,
    Merge,
    Calibrator,
    Adapter,
)
"""The kinds in the order in which data flows. ``schedules/`` holds ``torch.optim.lr_scheduler`` classes and
``metrics/`` ``torchmetrics.Metric`` classes: their contracts are those libraries' own."""
