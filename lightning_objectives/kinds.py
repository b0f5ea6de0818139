"""The architecture on one page: what a method may ask for, and what each kind of method promises.

A **method** is the mathematics of one paper. Each method has a **kind**, which fixes what the method takes and returns.
Each kind has one callback, which runs any method of that kind at its place in the training. A method names what it
needs as parameters of ``forward``. The names come from :data:`SIGNALS`, and the callback passes exactly those signals:

>>> class Half(Weighting):
...     def forward(self, losses: Tensor) -> Tensor:
...         return losses.new_ones(len(losses))
>>> signals_of(Half())
('losses',)

A name that is no signal is an error as soon as Python defines the class:

>>> class Typo(Weighting):
...     def forward(self, loses: Tensor) -> Tensor: ...
Traceback (most recent call last):
    ...
TypeError: Typo.forward asks for 'loses', which is no signal. Did you mean 'losses'? Signals: ...

In all shapes, N is the number of samples (or of elements, if the callback has ``unit="element"``), C of classes, D of
features and M of stacks. Every method refuses other shapes, because broadcasting would turn them into wrong numbers:
``check_shapes(losses=losses)`` of :mod:`lightning_objectives.shapes` does it, first in the method's function.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_objectives.fitted import FittedBuffers
from lightning_objectives.records import AverageState as AverageState
from lightning_objectives.records import LayerPlace as LayerPlace
from lightning_objectives.records import MergePiece as MergePiece
from lightning_objectives.records import Row as Row
from lightning_objectives.shapes import check_tensors
from lightning_objectives.signals import SIGNALS as SIGNALS
from lightning_objectives.signals import signals_among
from lightning_objectives.signals import signals_of as signals_of

Problem = Literal["classes", "binary", "labels", "regression", "distribution"]
"""What a criterion compares: one class of several, one of two classes by one logit, several labels that may hold
together, numbers, or two distributions."""


class Method:
    """What all methods share: keyword-only settings.

    Each setting is an attribute of the same name, so that the ``repr`` of a method builds an equal method.
    """

    room: ClassVar[str] = ""
    """The sub-package that holds the methods of this kind."""
    callback: ClassVar[str] = ""
    """The name of the callback that runs them."""
    example: ClassVar[dict[str, Any]] = {}
    """Settings for tests and docs to build the method with, if it cannot be built without any."""
    exemplar: ClassVar[bool] = False
    """Whether its callback is tried under every condition of the Trainer with this method, and not with another."""
    function: ClassVar[Callable[..., Any] | None] = None
    """The public function that takes the same signals and settings and returns the same; None without one.

    Declare it as ``function = staticmethod(focal_loss)``. A subclass that computes something else declares its own.
    """
    unsupported: ClassVar[Mapping[str, str]] = {}
    """Conditions of ``testing.conformance`` that the method cannot work under, and why. Its callback refuses them."""

    problems: ClassVar[tuple[Problem, ...]] = ()
    """The problems that the method is for; its callback refuses others at the first batch. Empty for all of them.

    A method for ``classes`` gets the logits of a binary problem as two columns, (0, z).
    """
    family: ClassVar[str] = ""
    """The problem it is for, as "label noise"; groups the methods in docs and commands."""
    by_process: ClassVar[str] = ""
    """Why several processes differ from one process with the joined batch; empty if they do not differ."""
    remembers: ClassVar[Mapping[str, Row]] = {}
    """What the method remembers of each sample of the data set, by name. ``forward`` gets the rows of its samples as
    the signal ``memory``, as they were before the step, and ``learn`` returns what to write in their place. The signal
    ``memory_bank`` is the rows of all samples. To know whether a sample has come, remember ``Row()`` and return ones.
    The callback keeps the rows, by the signal ``index``; a resumed training goes on with them, and another training
    begins anew."""
    learn: Callable[..., dict[str, Tensor]]
    """``(memory, signals) -> {name: rows}``; called after ``forward`` in each step, without gradients."""
    build: Callable[..., None]
    """``(features, classes, hidden, teacher_features, teacher_hidden)``, any of them by name: builds parts that are
    trained with the network, such as a projection; called once in each fit, before its first step. ``features`` and
    ``classes`` are the sizes of the head, ``teacher_features`` is that of the teacher's head, and the others are the
    numbers of channels of the layers that the user names. The parts lie in the
    method, are saved with it, and are no part of the user's module."""
    coupled: str = ""
    """Why a row's value depends on the other rows too; empty if it does not. Losses, distances and added terms on many
    large rows are computed in chunks of rows, if the rows are not coupled. A method whose settings decide it sets it in
    its constructor."""
    waits: ClassVar[str] = ""
    """Why the method must wait for the device in every step, as ``item()`` and a boolean index do; empty if it never
    waits."""

    unkept_laws: ClassVar[Mapping[str, str]] = {}
    """The laws of its kind that the method does not keep, by the name of the law's function, and why."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for place in {"forward", "learn", "predict"} & {*cls.__dict__}:
            parameters = list(inspect.signature(getattr(cls, place)).parameters.values())
            signals_among(parameters[1:], owner=f"{cls.__name__}.{place}")
        if cls.remembers and not hasattr(cls, "learn"):
            raise TypeError(f"{cls.__name__} remembers {sorted(cls.remembers)}, but defines no learn(memory, ...).")
        if "__init__" in cls.__dict__:
            for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
                if parameter.kind is not parameter.KEYWORD_ONLY:
                    raise TypeError(
                        f"{cls.__name__}.__init__: {parameter.name!r} must be keyword-only (put `*,` first)."
                    )

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, by name."""
        parameters = inspect.signature(type(self)).parameters.values()
        # A class without its own constructor shows the *args and **kwargs of nn.Module, which are no settings.
        return {p.name: getattr(self, p.name) for p in parameters if p.kind is p.KEYWORD_ONLY}

    def active(self, *, step: int) -> bool:
        """Whether the method changes anything at this optimizer step; if not, its callback changes nothing at all.

        The callback asks once in each step, outside any compiled region, with a plain number.
        """
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.settings().items())})"


class BatchTransform(Method, nn.Module):
    """Mixes the rows of a batch into a new batch: ``(inputs, ...) -> (inputs, index, weight)``.

    ``inputs (N, ...)`` is a copy that the method may write to. Row n of the result has the label distribution
    ``sum_k weight[n, k] * one_hot(target[index[n, k]])``, with ``index (N, K) int`` and ``weight (N, K)``.
    Laws: ``inputs`` keep their shape, or at least their rows and channels if ``keeps_size`` is false; weights are >= 0
    and sum to 1 along k; all draws come from ``generator``.
    """

    room, callback = "batches", "TransformBatch"
    by_process = "each process mixes its own rows, by draws of its own"
    keeps_size: ClassVar[bool] = True
    """Whether the inputs keep their size; if not, only criteria that compare whole samples fit."""
    draw_layer: Callable[..., int]
    """``(layers, generator) -> int``: draws for each batch what is mixed. 0 stands for the inputs, and k for the output
    of the k-th of the layers that the user names, which ``forward`` then gets as ``inputs (N, ...)``. A method without
    it mixes the inputs."""
    forward: Callable[..., tuple[Tensor, Tensor, Tensor]]


class Head(Method, nn.Module):
    """Computes M stacks of logits in place of one, in training only: ``(features, head, ...) -> (M, N, ...)``.

    Laws: each stack has the shape of ``head(features)``; all stacks share the head's weights; the rows are independent
    of each other; evaluation is that of the plain model; the stacks are the head's logits of ``stacked_features``, if
    the method defines it.
    """

    room, callback = "heads", "WrapHead"
    forward: Callable[..., Tensor]
    stacked_features: Callable[..., Tensor]
    """``(features, ...) -> (M, N, ..., D)``: what the head gets in each stack. If a method defines it, stacks of large
    logits are computed one after the other, and never held together."""


class Loss(Method, nn.Module):
    """Replaces the model's own criterion: ``(logits, target, ...) -> (N,)`` unreduced losses.

    Laws: one value per row; a permutation of the rows permutes the values; the gradient agrees with finite differences;
    values are finite at ``|logits| = 1e4``; the module equals its function, and so do its defaults.
    """

    room, callback = "losses", "ReplaceLoss"
    forward: Callable[..., Tensor]
    unit: ClassVar[Literal["row", "sample"]] = "row"
    """``"sample"`` for a loss of whole samples, such as the overlap of an image's regions: it gets
    ``logits (N, C, ...)``, ``target (N, ...)`` or ``(N, C, ...)``, and ``mask (N, ...)``: which positions count. So do
    ``reference_logits (N, C, ...)``. A row is then a sample with all of its positions."""


class Weighting(Method, nn.Module):
    """Weights the samples of one micro-batch of all ranks: ``(losses, ...) -> (N,)`` weights with the mean 1.

    The callback gathers the signals from all ranks first, and afterwards takes the rows of its own rank. So a method
    sees the global batch and never communicates. Laws: equal losses give equal weights; the mean is 1; a permutation of
    the rows permutes the weights; no gradient flows through the weights; one non-finite loss leaves the other weights
    finite.
    """

    room, callback = "weighting", "ReweightSamples"
    forward: Callable[..., Tensor]


class Surgery(Method):
    """Changes layers of the network for a training, at up to three places: ``prepare``, ``call`` and ``frozen``.

    - ``prepare(layer, place)`` sets the weights of a layer before the first step. They stay after the training.
    - ``call(layer, place, inner, *args, **kwargs)`` is what the layer returns in training in place of
      ``inner(*args, **kwargs)``, its own forward. Evaluation is that of the plain layer.
    - ``frozen(place)`` is whether the weights of the layer stay as they are in this step, and its running statistics
      with them. It depends on the place alone.

    A method defines the places that it needs, and keeps nothing between steps. Draws come from the global random stream
    of the layer's device, as those of dropout do, because checkpointing repeats only these. Laws: an output keeps its
    form and its type; the layer is left as it was, but for what its own forward changes; a layer in evaluation mode is
    plain; a second ``prepare`` changes nothing; a method that never acts leaves the stream alone.
    """

    room, callback = "surgery", "ChangeLayers"
    changes: ClassVar["tuple[type[nn.Module], ...] | Literal['head']"] = ()
    """The layers that it changes if the user names none: all of these classes, or the head; if empty, the user must
    name them."""

    @classmethod
    def defines(cls, *places: str) -> bool:
        """Whether the method acts at any of these places.

        >>> Surgery.defines("call", "frozen")
        False
        """
        return any(getattr(cls, place) is not getattr(Surgery, place) for place in places)

    def check(self, layer: nn.Module, count: int) -> None:
        """Refuse a layer that the method cannot change; ``count`` is the number of all layers.

        Raises:
            ValueError: with the reason.
        """

    def prepare(self, layer: nn.Module, place: LayerPlace) -> None:
        """Set the weights of a layer in place, without draws."""
        raise NotImplementedError(f"{type(self).__name__} defines no prepare(layer, place).")

    def call(self, layer: nn.Module, place: LayerPlace, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What the layer returns in this step of the training."""
        raise NotImplementedError(f"{type(self).__name__} defines no call(layer, place, inner, ...).")

    def frozen(self, place: LayerPlace) -> bool:
        """Whether the layer is not trained in this step."""
        raise NotImplementedError(f"{type(self).__name__} defines no frozen(place).")


class Distillation(Method, nn.Module):
    """Adds the distance to a teacher to the model's own loss: ``(logits, teacher_logits, ...) -> (N,)``.

    ``logits`` come from the model, or from a head that the method builds on the same features (``builds_head``). Laws:
    a minimum where the student equals the teacher; the teacher gets no gradient; values are finite at
    ``|logits| = 1e4``.
    """

    room, callback = "distillation", "Distill"
    forward: Callable[..., Tensor]
    builds_head: ClassVar[bool] = False
    """Whether ``build`` makes an ``auxiliary_head``, (rows, D) -> (rows, C); ``forward`` then gets its logits."""
    stop_epoch: int | None = None
    """The epoch from which on the term is not computed; None for every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary_head: nn.Module | None
        self.register_module("auxiliary_head", None)

    @property
    def idle(self) -> bool:
        """Whether these settings change nothing at any step, so that the callback need not touch the training."""
        return False

    def combination(self) -> "Combination | None":
        """How to combine the model's own loss and the term; None for their sum."""
        return None


class Regularizer(Method, nn.Module):
    """Adds a term to the loss: ``(signals) -> (N,)``, which the callback averages, or a scalar.

    Laws: a row's value does not depend on other rows, unless ``coupled`` says why; the gradient agrees with finite
    differences. A schedule of the paper belongs in the docstring, as ``strength=lambda progress: ...``.
    """

    room, callback = "regularizers", "AddRegularizer"
    default_strength: ClassVar[float] = 1.0
    """The factor of the term that the paper sets, which the callback uses if you give no ``strength``."""
    forward: Callable[..., Tensor]


class Combination(Method, nn.Module):
    """Weights the K terms of the objective, by their gradients or their values: ``(gradients, terms) -> (K,)``.

    A method may have parameters, which the optimizer trains with the network: the weights may have a gradient, and
    :meth:`penalty` is added to the weighted sum. Laws: one weight for each term; a single term keeps the weight 1, if
    the method works with any number of terms.
    """

    room, callback = "combination", "CombineTerms"
    forward: Callable[..., Tensor]

    def penalty(self) -> Tensor | None:
        """A scalar to add to the weighted sum, such as one that keeps weights from becoming zero; None for none."""
        return None


class Perturbation(Method):
    """Moves the weights before the gradient is taken: ``offsets(gradients, params) -> offsets``, each by name.

    ``params`` are the trained parameters, and ``gradients`` those of one batch's loss at these weights, unscaled, for
    each parameter that has one. A method keeps nothing between steps. The callback adds the offsets, takes the gradient
    at the moved weights, and puts the weights back to the bit. Laws: an offset has the shape, dtype and device of its
    parameter, and belongs to one with a gradient; gradients of zero give offsets of zero; an offset never points down
    the gradient; nothing is written to; all draws come from ``generator``; ``rho=0`` is never active.
    """

    room, callback = "perturbations", "PerturbWeights"
    uses_gradients: ClassVar[bool] = True
    """Whether the offsets depend on the gradients, so that a step takes two passes; if not, it takes one."""

    def offsets(
        self,
        gradients: Mapping[str, Tensor],
        params: Mapping[str, Tensor],
        *,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """What to add to the parameters, in new tensors: of the gradients two may be one tensor, or an expanded number.

        If it does not use gradients, ``gradients`` is empty. Without a ``generator`` draws come from the global stream.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no offsets(gradients, params).")


class GradientTransform(Method):
    """Changes gradients before the optimizer: ``init(params) -> state``, ``update(...) -> gradients``.

    ``params`` are all parameters of the module in a fixed order. ``gradients`` has the gradient of each parameter at
    the same place, or None for a parameter without one. Gradients are complete: accumulated, reduced over the ranks and
    unscaled. The state is a dictionary of tensors, numbers and lists of them; ``update`` may write to it. Laws:
    gradients keep their shape, dtype and device; a missing gradient stays missing; ``update`` writes to nothing but the
    state; it draws nothing from the global random stream; a resumed run equals the uninterrupted run.
    """

    room, callback = "gradients", "TransformGradients"
    keeps_still: ClassVar[bool] = False
    """Whether weights with a gradient of 0 must stay as they are; if so, the callback refuses weight decay."""

    def init(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """The state before the first step; empty if the method remembers nothing."""
        return {}

    def update(
        self, gradients: Sequence[Tensor | None], params: Sequence[Tensor], state: dict[str, Any]
    ) -> list[Tensor | None]:
        """The gradients for the optimizer; called once in each optimizer step."""
        raise NotImplementedError(f"{type(self).__name__} defines no update(gradients, params, state).")


class Rule(Method):
    """Averages weights over time, in memory: ``init`` once, ``update`` after optimizer steps, ``read`` the average.

    ``params`` are float32 tensors in a fixed order. ``step`` is the number of completed optimizer steps, without those
    that a gradient scaler skipped. ``start`` is the step at which the average began, when the callback called ``init``.
    Laws: constant weights are a fixed point; stopping, saving and going on equals going on; the live weights are
    neither changed nor aliased.
    """

    room, callback = "averaging", "AverageWeights"
    by_tensor: ClassVar[bool] = False
    """Whether ``update`` and ``read`` treat each tensor by itself, and ``update`` writes it in place, so that a call
    may pass a part of them."""

    @staticmethod
    def check(state: AverageState, params: Sequence[Tensor]) -> None:
        """Refuse parameters whose shapes are not those of the average. The same list is checked only once.

        Raises:
            ValueError: with the position and the shapes.
        """
        if params is not state.checked:
            check_tensors(params, average=state.slots["average"])
            state.checked = params

    def init(self, params: Sequence[Tensor]) -> AverageState:
        """The state before the first update: a copy of the weights under the slot ``average``."""
        return AverageState({"average": [p.detach().clone() for p in params]})

    def update(self, state: AverageState, params: Sequence[Tensor], *, step: int, start: int = 0) -> None:
        """Add the weights after optimizer step ``step`` to the average, in place, and count ``state.updates``."""
        raise NotImplementedError(f"{type(self).__name__} defines no update(state, params, *, step, start).")

    def read(self, state: AverageState, params: Sequence[Tensor], *, step: int) -> list[Tensor]:
        """The averaged weights at ``step``: the state's own tensors or new ones. Never write to them."""
        return state.slots["average"]


class Merge(Method):
    """Merges K checkpoints into one, oldest first: by one share for each file, or tensor by tensor.

    A **linear** merge is the sum of the checkpoints times their shares: ``coefficients(steps) -> (K,)``. ``steps`` are
    the increasing numbers of optimizer steps after which the checkpoints were saved. A merge that asks for
    ``"evaluate"`` finds the shares by scores instead: ``search(evaluate, steps) -> (K,)``. One that asks for
    ``"gradient"`` searches too, and gets as ``evaluate`` the (K,) inner products of a loss's gradient with each file.

    Any other merge declares ``linear = False`` and defines ``tensor(weights, ...)``, which gets one tensor of all files
    at a time. What it must know of the whole network first (a threshold, a norm), it computes in ``statistics``.

    The method does not read, add or write files. Laws of all merges: identical checkpoints, equal to the base if there
    is one, merge into themselves to the bit; nothing is written to; all draws come from ``generator``. A linear merge
    has one finite coefficient per checkpoint, they sum to 1, and it is linear in the checkpoints. Of a merge that does
    not use the steps, a permutation of the files changes nothing.
    """

    room, callback = "merging", "MergeCheckpoints"
    linear: ClassVar[bool] = True
    """Whether the merge is the sum of the files times their shares."""
    asks: ClassVar[tuple[str, ...]] = ()
    """What the merge needs beside the files: ``base``, ``importance``, ``evaluate`` or ``gradient``."""
    files: ClassVar[int | None] = None
    """How many files the merge takes, if it takes no other number of them; it refuses others itself."""
    every_importance: ClassVar[bool] = True
    """Whether each tensor must have an importance; otherwise the plain mean is taken of those that have none."""
    by_element: ClassVar[bool] = False
    """Whether ``tensor`` computes each element from the same element alone, so that a call may pass a part of them."""
    by_row: ClassVar[bool] = False
    """Whether it computes each row, of the last dimension, from the same row alone, so that a call may pass some."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        unknown = [name for name in cls.asks if name not in ("base", "importance", "evaluate", "gradient")]
        if unknown:
            raise TypeError(
                f"{cls.__name__}.asks={cls.asks!r}: {unknown[0]!r} must be base, importance, evaluate or gradient."
            )
        if cls.linear and (cls.tensor is not Merge.tensor or {"base", "importance"} & {*cls.asks}):
            raise TypeError(f"{cls.__name__} is linear, and uses no tensor, base or importance: say linear = False.")
        if not cls.linear and cls.searches():
            raise TypeError(f"{cls.__name__} is not linear, but only the shares of a linear merge can be searched.")

    @classmethod
    def uses_steps(cls) -> bool:
        """Whether the result depends on the steps, and with them on the order of the files."""
        return cls.linear and not cls.searches()

    @classmethod
    def searches(cls) -> bool:
        """Whether the shares are found by scores or gradients of merges."""
        return not {"evaluate", "gradient"}.isdisjoint(cls.asks)

    def coefficients(self, steps: Sequence[int]) -> Tensor:
        """(K,) float64 shares of the checkpoints that were saved after ``steps``."""
        raise NotImplementedError(f"{type(self).__name__} defines no coefficients(steps).")

    def search(self, evaluate: Callable[[Tensor], Any], steps: Sequence[int]) -> Tensor:
        """(K,) float64 shares of the best merge; ``evaluate`` gives the score of any shares, and greater is better.

        Of a merge that asks for ``gradient`` it gives the slopes of the loss: smaller is better.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no search(evaluate, steps).")

    def importance_shape(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        """The shape of the importance of a tensor of this shape: by default the same. None if it cannot have any."""
        return tuple(shape)

    def statistics(self, network: Iterable[MergePiece]) -> Any:
        """What ``tensor`` must know of the whole network; each iteration over it reads all files once."""
        return None

    def tensor(
        self,
        weights: Sequence[Tensor],
        *,
        base: Tensor | None = None,
        importance: Sequence[Tensor] | None = None,
        generator: torch.Generator | None = None,
        statistics: Any = None,
    ) -> Tensor:
        """The merge of one tensor of K files, in a new tensor.

        ``weights`` may be read one by one to save memory. Never write to them. ``statistics`` are those of the whole
        network; without them these tensors are the whole network.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no tensor(weights, ...).")


class Fitted(Method, FittedBuffers):
    """What calibrators and set predictors share: ``fit(logits, target)`` after training, with results in buffers.

    A buffer whose shape depends on the classes or on the data is declared in ``fitted_shapes``. It is empty before the
    first fit, and ``fit`` sets it by assignment. Other buffers keep their shape, and ``fit`` may write to them.
    """

    callback = "Calibrate"
    forward: Callable[..., Tensor]

    def fit(self, logits: Tensor, target: Tensor) -> None:
        """Fit on (N, C) logits and (N,) classes, or (N, C) class probabilities, of all ranks."""
        raise NotImplementedError(f"{type(self).__name__} defines no fit(logits, target).")


class Calibrator(Fitted):
    """Turns logits into probabilities after training: ``fit(logits, target)``, then ``forward(logits) -> (N, C)``.

    Laws: the rows of the probabilities sum to 1; the NLL on the fitted set is no worse than that of softmax; the top
    class stays the same if the method declares it; a saved and loaded state gives the same probabilities. Before the
    first fit the probabilities are those of softmax.
    """

    room = "calibration"
    keeps_top_class: ClassVar[bool] = False
    """Whether the class with the highest probability is always the one with the highest logit."""


class SetPredictor(Fitted):
    """Turns logits into sets of classes after training: ``fit(logits, target, generator=None)``, then ``forward``.

    ``forward(logits, generator=None)`` returns (N, C) bool: the classes in the set of each row. Of rows that were drawn
    as those of the fit, a share of at least ``1 - alpha`` has the target in the set. Both take a ``generator``, whether
    they draw or not; without one, draws come from the global stream.

    Laws: at least ``(n + 1)(1 - alpha)`` of n fitted rows have the target in their set, with the draws of the fit; a
    larger ``alpha`` gives subsets; a permutation of the classes permutes the sets; fewer than ``1 / alpha - 1`` rows,
    or none, give sets of all classes; all draws come from ``generator``; a saved and loaded state gives the same sets.
    """

    room = "prediction_sets"
    alpha: float
    """The share of rows that may lack the target: a setting of every method."""

    def fit(self, logits: Tensor, target: Tensor, generator: torch.Generator | None = None) -> None:
        """Fit on (N, C) logits and (N,) classes of all ranks, which the network was not trained on."""
        raise NotImplementedError(f"{type(self).__name__} defines no fit(logits, target, generator).")


class Adapter(Method):
    """Adapts a trained network to the test batches, which have no targets, at up to three places of its forward pass.

    - ``statistics(inputs, mean, var)``: what each BatchNorm layer normalizes with in place of its running statistics.
    - ``predict(logits, features, reference_logits)``, any of them by name: the logits that the head returns in place of
      its own. The last are those of another network, ``AdaptAtTest(reference=...)``.
    - ``update(logits, features, params, state)``: moves ``params`` after each batch, in place. ``params`` are what
      ``adapts(network)`` names; ``init(params)`` makes the state that the updates remember.

    A method defines the places that it needs; the others are left as they are. The callback finds the logits, puts the
    weights back to the bit after the test, and begins anew with the same weights and ``init`` at each reset, so a
    method keeps nothing beside its state. Laws: what it adapts are parameters of the network, and an update moves
    nothing else; the same batches give the same weights after a reset; statistics and predictions have the form of
    those that they replace; predictions follow the order of the rows, and stay finite at ``|logits| = 1e4``; nothing is
    written to but the parameters and the state; nothing is drawn from the global random stream.
    """

    room, callback = "adaptation", "AdaptAtTest"
    by_process = "each process adapts to its own batches"

    predict: Callable[..., Tensor]
    """New logits (N, C) in place of the head's own, without gradient; ``features`` (N, D) are the head's inputs."""

    @classmethod
    def defines(cls, *places: str) -> bool:
        """Whether the method acts at any of these places.

        >>> Adapter.defines("statistics", "predict")
        False
        """
        return any(getattr(cls, place, None) is not getattr(Adapter, place, None) for place in places)

    @classmethod
    def predicts_from(cls) -> tuple[str, ...]:
        """The names of what ``predict`` asks for; none without one."""
        if not cls.defines("predict"):
            return ()
        parameters = list(inspect.signature(cls.predict).parameters.values())
        return signals_among(parameters[1:], owner=f"{cls.__name__}.predict")

    def statistics(self, inputs: Tensor, mean: Tensor | None, var: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """The mean (C,) and the variance (C,) for a BatchNorm layer, in new tensors and without gradient.

        ``inputs (N, C, ...)`` are those of the layer, and ``mean`` and ``var`` its running statistics; None for a layer
        without any. The answer None stands for the statistics of the batch itself, through which gradients flow.

        Raises:
            ValueError: there are too few values, or the layer lacks what the method needs.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no statistics(inputs, mean, var).")

    def adapts(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that ``update`` moves, by their names in the network.

        Raises:
            ValueError: the network has none of them.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no adapts(network).")

    def init(self, params: Mapping[str, nn.Parameter]) -> dict[str, Any]:
        """The state before the first batch; empty if the method remembers nothing."""
        return {}

    def update(
        self,
        logits: Tensor,
        features: Tensor,
        params: Mapping[str, nn.Parameter],
        state: dict[str, Any],
        *,
        again: Callable[[], tuple[Tensor, Tensor]],
    ) -> None:
        """Move the parameters in place, by a gradient of the logits (N, C) or of the features (N, D) of a batch.

        ``again()`` runs the network once more on the batch, at the parameters as they are now, and returns its logits
        and features. The user's code has the logits from before the update.
        """
        raise NotImplementedError(
            f"{type(self).__name__} defines no update(logits, features, params, state, *, again)."
        )


class Survey(Method, nn.Module):
    """Measures something of a network and its data, in one pass over a loader: ``(signals) -> sums over rows``.

    ``forward`` gets the rows of one batch and returns tensors by name. The callback adds them up, in float64, over the
    batches and over the ranks; ``result`` makes of the sums what was asked for. Each sample counts once. The network is
    in evaluation mode and no gradient is recorded: a survey that needs gradients takes them itself. Laws: the sums of
    two batches are those of the joined batch; a permutation of the rows changes nothing; the names, shapes and types
    do not depend on the rows; nothing is written to; it draws nothing from the global random stream.
    """

    room, callback = "surveys", "SurveyData"
    by_parameter: ClassVar[bool] = False
    """Whether the names are those of parts of the signal ``network``. The callback then puts the path of the network
    before them, so that ``result`` gets, and returns, the names in the state dict of the whole module."""
    forward: Callable[..., dict[str, Tensor]]

    def result(self, sums: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        """What the survey measures, from the sums over ``rows`` rows; by default the sums themselves."""
        return dict(sums)


KINDS: tuple[type[Method], ...] = (
    BatchTransform,
    Surgery,
    Head,
    Loss,
    Weighting,
    Distillation,
    Regularizer,
    Combination,
    Perturbation,
    GradientTransform,
    Rule,
    Merge,
    Calibrator,
    Adapter,
    SetPredictor,
    Survey,
)
"""The kinds, in the order in which data flows.

Two rooms have no kind here, because their contracts belong to other libraries: ``schedules/`` holds
``torch.optim.lr_scheduler`` classes, and ``metrics/`` holds ``torchmetrics.Metric`` classes.
"""
