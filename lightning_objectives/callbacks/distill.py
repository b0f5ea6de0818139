"""Trains the network on the output of a frozen teacher too."""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_objectives._files.network import load_network
from lightning_objectives._step.added import AddedTerm, Strength
from lightning_objectives._step.building import head_sizes
from lightning_objectives._step.chunks import by_rows
from lightning_objectives._step.extras import COPIED
from lightning_objectives._step.frozen import Normalization
from lightning_objectives._step.gradients import WHOLE_GRADIENTS, Gradients
from lightning_objectives._step.plan import Plan
from lightning_objectives._step.step import Step
from lightning_objectives._step.taps import sizes_of
from lightning_objectives._step.teacher import Teacher, as_rows, rows_of
from lightning_objectives._trainer.configured import is_built_from_config
from lightning_objectives._trainer.random import batch_seed, private_stream
from lightning_objectives.kinds import Distillation
from lightning_objectives.signals import signals_from, signals_of

_OF_TEACHER = signals_from("teacher")
_ROWS = ("logits", "teacher_logits", "target")
"""Signals with a row for each comparison."""


@dataclass(eq=False)
class Distill(AddedTerm):
    """Adds ``weight`` times the distance to a teacher to the loss that the model's step returns.

    The callback copies the teacher at the start of the fit and drops the copy at the end. The copy is no part of the
    module, its state, its optimizer, its averages or its process group, and it always runs in eval mode. It gets the
    same inputs as the training step, augmented and mixed. The term covers all rows of the batch, also those whose label
    the model's criterion ignores. The term is logged as ``train/<name>``, before it is multiplied by the weight.

    Some methods have a head of their own (an auxiliary head). The callback builds it on the features of the network's
    head. The optimizer trains it with the network; the callback saves it, and the module's state and files do not
    contain it.

    Args:
        distillation: the method, ``(logits, teacher_logits, ...) -> (N,)``; the term is the mean of its values.
        teacher: a trained module; a timm name (``"timm:resnet18"``), with its pretrained weights or those of a file;
            the path of a class (``"package.module.Net"``) with a Lightning checkpoint; the path of a function that
            returns a trained module; or a function that returns one of these, called at the start of a fit. A module
            that Lightning's command line builds from a configuration has random weights, so it needs a file. The
            callback calls the teacher as your step calls the student's network, with its masks and keywords; if the
            step calls the network several times, or not with its inputs, with the inputs of the batch alone. The
            teacher may return a tensor, a tuple that begins with one, or anything with ``logits``.
        teacher_call: how to call the teacher, if it takes something else: a function ``(teacher, batch) -> output``.
            The batch is the one that your step gets.
        weight: the factor of the term; at 0 nothing changes. A function gets the part of the training that is done, in
            [0, 1], and returns the factor.
        teacher_weights: a file of the teacher's weights: safetensors, a state dict, or a Lightning checkpoint.
        teacher_prefix: what the names of the teacher's weights in that file begin with (``"teacher."``,
            ``"model_ema.module."``), if several networks in it fit.
        teacher_head: path of the teacher's head, if the method asks for ``teacher_features`` and the head is not found.
        teacher_layers: the paths of layers of the teacher, or patterns, for a method that compares hidden layers: as
            many as ``layers`` names in the network, in the same order.
        data_normalization: the (mean, std) by channel of the inputs of your network, if the teacher was trained with
            another normalization: the callback then translates the inputs for the teacher.
        teacher_normalization: the (mean, std) of the teacher; None takes those that timm gives with it.
        cache: a directory for the teacher's logits by sample, so that the teacher runs once for each sample instead of
            once in each step. Wrap the training set in ``with_index``. A sample whose inputs change is an error, so
            random augmentation raises an error when the first sample comes a second time. The files grow with the size
            of the data set times the number of classes (50 000 x 100: 20 MB). The callback writes them at the end of
            each epoch, and later trainings with the same teacher use them too.
        cache_top_k: how many logits to keep for each sample; the other classes share the probability that is left. None
            keeps all.
        seed: the seed of the auxiliary head's initial weights and of its dropout, and of the method's draws.
    """

    kind = Distillation
    zero: ClassVar = {"weight": 0.0}

    distillation: nn.Module | Callable[..., Tensor]
    _: KW_ONLY
    teacher: str | nn.Module | Callable[[], str | nn.Module]
    weight: Strength = 1.0
    teacher_call: Callable[[nn.Module, Any], Any] | None = None
    teacher_weights: str | None = None
    teacher_prefix: str | None = None
    teacher_head: str | None = None
    teacher_layers: str | Sequence[str] | None = None
    data_normalization: Normalization | None = None
    teacher_normalization: Normalization | None = None
    cache: str | None = None
    cache_top_k: int | None = None
    seed: int = 0

    def methods(self) -> list[Any]:
        """The distillation."""
        return [self.distillation]

    @property
    def strength_setting(self) -> Strength:
        """The factor of the term."""
        return self.weight

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.teacher, type) or not (isinstance(self.teacher, str) or callable(self.teacher)):
            raise ValueError(
                f"teacher={self.teacher!r} must be a trained module, a timm name, the path of a class, or a function "
                "that returns one of them, because anything else has no weights."
            )
        if isinstance(self.teacher, nn.Module) and self.teacher_weights is None and is_built_from_config(self):
            raise ValueError(
                f"The teacher {type(self.teacher).__name__} of the configuration has random weights, which teach "
                "nothing: give a file of its weights, teacher_weights=, or for teacher= the path of a function that "
                "returns the trained network."
            )
        if self.teacher_normalization is not None and self.data_normalization is None:
            raise ValueError(
                f"teacher_normalization={self.teacher_normalization} needs data_normalization=(mean, std) beside it "
                "to translate the inputs. For data in [0, 1] that is zeros and ones."
            )
        if self.cache_top_k is not None and (self.cache is None or self.cache_top_k < 1):
            raise ValueError(f"cache_top_k={self.cache_top_k} must be at least 1, and needs a directory, cache=.")
        if self.teacher_call is not None and (self.cache is not None or self.data_normalization is not None):
            raise ValueError(
                "teacher_call= gives the teacher what you choose, so cache= and data_normalization= cannot know its "
                "inputs. Translate them in teacher_call, and remove the other two."
            )
        self._teacher: Teacher | None = None
        self._dense_head = False
        """Whether the classes of the network's head lie along dimension 1, as those of a convolution."""

    @cached_property
    def signals(self) -> tuple[str, ...]:
        """The names of the signals of the step; a method that builds a head needs features in place of logits."""
        names = signals_of(self.method)
        return tuple("features" if name == "logits" and self._own_head else name for name in names)

    @property
    def _own_head(self) -> bool:
        return isinstance(self.method, Distillation) and self.method.builds_head

    def unsupported(self) -> dict[str, str]:
        """Add FSDP2 if the method compares gradients, and Lightning's WeightAveraging if it adds a head."""
        combines = isinstance(self.method, Distillation) and self.method.combination() is not None
        whole = {"fsdp2": WHOLE_GRADIENTS} if combines else {}
        return whole | super().unsupported() | ({"beside_weight_averaging": COPIED} if self.builds else {})

    # -- before the training -------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Register with the plan of the fit, unless the settings change nothing."""
        # The plan takes the index out of the batches, so that the user's step gets what it knows, also at weight 0.
        indexed = self.remembers or self.cache is not None or "index" in self.signals
        if stage != "fit" or (self._is_idle and not indexed):
            return
        super().setup(trainer, pl_module, stage)
        if self._is_idle:
            return
        plan = Plan.of(trainer, pl_module)
        plan.record_network()
        for name in _OF_TEACHER:
            plan.providers.setdefault(name, partial(self._answer, name))

    @property
    def _is_idle(self) -> bool:
        return self.weight == 0 or (isinstance(self.method, Distillation) and self.method.idle)

    def build(self, plan: Plan, head: nn.Module | None) -> None:
        """Load the teacher, and build the method's own head beside the network's; nothing if nothing is added."""
        if self._is_idle:
            return
        if isinstance(self.method, Distillation) and self.method.combination() is not None:
            self._refuse_rivals(plan)
        self._load_teacher(plan)
        assert self._teacher is not None
        frozen = self._teacher.frozen
        self.tap_layers(plan)
        if self.builds:
            self._dense_head = self._own_head and head_sizes(head)[2]
            self.build_parts(
                head,
                teacher_features=lambda: head_sizes(frozen.head, option="teacher_head")[0],
                teacher_hidden=lambda: sizes_of(frozen.taps, option="teacher_layers"),
            )

    def _refuse_rivals(self, plan: Plan) -> None:
        rival = next((m for m in plan.members if m.place == "combination"), None)
        if rival is not None:
            raise ValueError(
                f"{self.method} combines its term with the model's own loss itself, and so does "
                f"{type(rival).__name__}({rival.method}): the loss would be weighted twice. Keep one of them."
            )

    def _load_teacher(self, plan: Plan) -> None:
        teacher = self.teacher if isinstance(self.teacher, (str, nn.Module)) else self.teacher()
        network = load_network(teacher, self.teacher_weights, prefix=self.teacher_prefix)
        features = any("teacher_features" in member.signals for member in plan.members)
        self._teacher = Teacher(
            network,
            rank=plan.trainer.global_rank,
            call=self.teacher_call,
            head=self.teacher_head,
            features=features,
            layers=self.teacher_layers if "teacher_hidden" in self.signals else None,
            normalizations=(self.data_normalization, self.teacher_normalization),
            cache=self.cache,
            cache_top_k=self.cache_top_k,
        )

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Give the module back as it was, and drop the teacher."""
        super().release(trainer, pl_module)
        self._teacher = None

    # -- during a step -------------------------------------------------------------------------------------------------

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the teacher's logits of this epoch to the cache, and read those of the other ranks."""
        if self._teacher is not None:
            self._teacher.share_cache(trainer)

    def active(self, step: int) -> bool:
        """Whether the term is added at this step: from the method's ``stop_epoch`` on it is not."""
        stop = self.method.stop_epoch if isinstance(self.method, Distillation) else None
        return (stop is None or Plan.trainer_of(self).current_epoch < stop) and super().active(step)

    def term(self, step: Step) -> Tensor:
        """Compute the term of this step."""
        method = self.method
        signals = {name: self.signal(name, step) for name in signals_of(method)}
        if {"logits", "teacher_logits"} <= signals.keys():
            signals["teacher_logits"] = self._as_rows(signals["teacher_logits"], signals["logits"], step)
        signals = {name: self.adapted(name, value, step.call) for name, value in signals.items()}
        rows = {name: signals[name] for name in _ROWS if name in signals}
        value = by_rows(method, rows, {n: v for n, v in signals.items() if n not in _ROWS}).mean()
        self.learn(step, signals)
        step.log_term(self, value)
        value = self.strength_at(step.trainer.global_step) * value
        combination = method.combination() if isinstance(method, Distillation) else None
        if combination is not None:
            gradients = Gradients([step.loss, value], step)
            weights = combination(gradients.rows)
            step.logged["own_loss_weight"] = weights[0]
            step.loss, value = gradients.weighted(weights), torch.zeros_like(value)
        return value

    def signal(self, name: str, step: Step) -> Any:
        """One signal of this step, with the logits of the method's own head and the features of its own teacher."""
        if name in _OF_TEACHER:
            return self._answer(name, step)  # This signal of the step may be another callback's teacher.
        if name == "logits" and self._own_head:
            return self._auxiliary_logits(step)
        return super().signal(name, step)

    def _auxiliary_logits(self, step: Step) -> Tensor:
        features = step.get("features")
        assert isinstance(self.method, Distillation)
        assert self.method.auxiliary_head is not None
        rows = features.movedim(1, -1) if self._dense_head else features
        with private_stream(batch_seed(self.seed, step.trainer), features.device):
            logits: Tensor = self.method.auxiliary_head(rows.flatten(0, -2))
        return logits

    def _as_rows(self, teacher: Tensor, student: Tensor, step: Step) -> Tensor:
        """Turn the teacher's logits into rows (N, C) like the student's."""
        if not self._own_head:
            return as_rows(step, teacher, like=student)
        output = step.head_output
        if output is not None and output.shape == teacher.shape and teacher.dim() > 1:
            return (teacher.movedim(1, -1) if self._dense_head else teacher).flatten(0, -2)
        return rows_of(teacher, student)

    def _answer(self, name: str, step: Step) -> Any:
        """Read what the teacher says of the batch."""
        assert self._teacher is not None
        return getattr(self._teacher.answer(step), name.removeprefix("teacher_"))
