"""A term of the kind `Distillation`: the network learns from a frozen teacher too."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_objectives._files.logit_cache import LogitCache, fingerprint
from lightning_objectives._files.network import load_network
from lightning_objectives._step.callback import StepCallback
from lightning_objectives._step.extras import COPIED
from lightning_objectives._step.frozen import Answer, Frozen, Normalization
from lightning_objectives._step.gradients import WHOLE_GRADIENTS, Gradients
from lightning_objectives._step.pipeline import Pipeline
from lightning_objectives._step.signals import Signals
from lightning_objectives._trainer.random import private_stream
from lightning_objectives.kinds import Distillation, signals_of

_TEACHERS = frozenset({"teacher_logits", "teacher_features"})


@dataclass(eq=False)
class Distill(StepCallback):
    """Adds ``weight`` times the distance to a teacher to the loss that the model's step returns.

    The teacher is a copy of the callback's own, made at the start of the fit and dropped at its end: it is no part of
    the module, its state, its optimizer, its averages or its process group, and is always in eval mode. It sees the
    batch's inputs as the training step gets them, augmented and mixed. All rows of the batch are distilled, also those
    whose label the model's criterion ignores. Logged as ``train/<name>``, before the weight.

    A method with a head of its own (an auxiliary head) has it built on the features that the network's head is given;
    it is trained with the network, kept with the callback, and absent from the module's state and files.

    Args:
        distillation: the method, ``(logits, teacher_logits, ...) -> (N,)``, of which the mean is taken.
        teacher: a trained module; a timm name (``"timm:resnet18"``), with its pretrained weights or those of a file;
            the path of a class (``"package.module.Net"``) with a Lightning checkpoint; or a function that returns one
            of these, called at the start of a fit. The teacher is called with the inputs alone, and may return a
            tensor, a tuple that begins with one, or anything with ``logits``.
        weight: the factor of the term; at 0 nothing is touched.
        teacher_weights: a file of the teacher's weights: safetensors, a state dict, or a Lightning checkpoint.
        teacher_head: path of the teacher's head, where ``teacher_features`` are asked for and it is not found.
        data_normalization: the (mean, std) by channel that the data come with, where the teacher was trained with
            others: the inputs are then translated for it.
        teacher_normalization: the (mean, std) of the teacher; None takes those that timm gives with it.
        cache: a directory in which the teacher's logits are kept by sample, so that it is asked once a sample and not
            once a step. The training set must be wrapped by ``with_index``. A sample whose inputs change is an error,
            so that random augmentation is found out when samples come the second time. The files grow with the data
            set times the classes (50 000 x 100: 20 MB), are written at the end of each epoch, and serve later trainings
            under the same teacher.
        cache_top_k: how many logits of a sample are kept; the others share the probability that is left. None is all.
        seed: of the auxiliary head's initial weights and of its dropout.
    """

    kind = Distillation
    place = "term"
    zero: ClassVar = {"weight": 0.0}

    distillation: nn.Module | Callable[..., Tensor]
    _: KW_ONLY
    teacher: str | nn.Module | Callable[[], str | nn.Module]
    weight: float = 1.0
    teacher_weights: str | None = None
    teacher_head: str | None = None
    data_normalization: Normalization | None = None
    teacher_normalization: Normalization | None = None
    cache: str | None = None
    cache_top_k: int | None = None
    seed: int = 0

    def methods(self) -> list[Any]:
        """The one method."""
        return [self.distillation]

    def __post_init__(self) -> None:
        if isinstance(self.teacher, type) or not (isinstance(self.teacher, str) or callable(self.teacher)):
            raise ValueError(
                f"teacher={self.teacher!r} must be a trained module, a timm name, the path of a class, or a function "
                "that returns one of them: a class itself has no weights."
            )
        if self.teacher_normalization is not None and self.data_normalization is None:
            raise ValueError(
                f"teacher_normalization={self.teacher_normalization} needs data_normalization=(mean, std) beside it; "
                "for data in [0, 1] that is zeros and ones."
            )
        if self.cache_top_k is not None and (self.cache is None or self.cache_top_k < 1):
            raise ValueError(f"cache_top_k={self.cache_top_k} must be at least 1, and needs a directory, cache=.")
        self._frozen: Frozen | None = None
        self._cache: LogitCache | None = None
        self._epoch = 0

    @cached_property
    def signals(self) -> tuple[str, ...]:
        """What the step must tap: features in the place of logits, where the method builds a head on them."""
        asked = signals_of(self.method)
        return tuple("features" if name == "logits" and self._own_head else name for name in asked)

    @property
    def _own_head(self) -> bool:
        return isinstance(self.method, Distillation) and self.method.builds_head

    @property
    def adds_parameters(self) -> bool:
        """Also those of a head that is built later."""
        return self._own_head or super().adds_parameters

    def unsupported(self) -> dict[str, str]:
        """Where it compares gradients, they must be whole; where it adds a head, the module must not be copied."""
        combines = isinstance(self.method, Distillation) and self.method.combination() is not None
        whole = {"fsdp2": WHOLE_GRADIENTS} if combines else {}
        return whole | super().unsupported() | ({"beside_weight_averaging": COPIED} if self._own_head else {})

    # -- before the training -------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Register with the pipeline of the module, unless there is nothing to do."""
        idle = self.weight == 0 or (isinstance(self.method, Distillation) and self.method.idle)
        if stage != "fit" or idle:
            return
        super().setup(trainer, pl_module, stage)
        pipeline = Pipeline.of(trainer, pl_module)
        for name in _TEACHERS:
            pipeline.makers.setdefault(name, partial(self._told, name))

    def build(self, pipeline: Pipeline, head: nn.Module | None) -> None:
        """Take the teacher, and build the method's own head beside the network's."""
        if isinstance(self.method, Distillation):
            if self.method.combination() is not None:
                self._refuse_rivals(pipeline)
            if self.method.builds_head:
                assert head is not None
                self._build_head(self.method, head)
        self._take_teacher(pipeline)

    def _refuse_rivals(self, pipeline: Pipeline) -> None:
        rival = next((m for m in pipeline.members if m.place == "combination"), None)
        if rival is not None:
            raise ValueError(
                f"{self.method} combines its term with the model's own loss itself, and so does "
                f"{type(rival).__name__}({rival.method}); keep one of them."
            )

    def _build_head(self, method: Distillation, head: nn.Module) -> None:
        features, classes = _sizes_of(head)
        with private_stream(self.seed):
            method.build(features=features, classes=classes)
        assert method.auxiliary_head is not None
        beside = next(head.parameters())
        method.auxiliary_head.to(beside.device, beside.dtype)

    def _take_teacher(self, pipeline: Pipeline) -> None:
        named = self.teacher if isinstance(self.teacher, (str, nn.Module)) else self.teacher()
        network = load_network(named, self.teacher_weights)
        tap = any("teacher_features" in member.signals for member in pipeline.members)
        self._frozen = Frozen(network, head=self.teacher_head, tap=tap, translate=self._translation(network))
        if self.cache is not None:
            if tap:
                raise ValueError(f"cache={self.cache!r} keeps logits, but teacher_features are asked for: take it out.")
            known_by = fingerprint(network, self.data_normalization, self.teacher_normalization)
            rank = pipeline.trainer.global_rank
            self._cache = LogitCache(self.cache, top_k=self.cache_top_k, teacher=known_by, rank=rank)

    def _translation(self, network: nn.Module) -> tuple[Normalization, Normalization] | None:
        if self.data_normalization is None:
            return None
        theirs = self.teacher_normalization
        if theirs is None:
            config = getattr(network, "pretrained_cfg", None) or {}
            if not {"mean", "std"} <= set(config):
                raise ValueError(
                    f"data_normalization={self.data_normalization} is given, but {type(network).__name__} does not "
                    "say its own: give teacher_normalization=(mean, std)."
                )
            theirs = config["mean"], config["std"]
        return self.data_normalization, theirs

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Give the module back as it was, and let the teacher go."""
        super().release(trainer, pl_module)
        self._frozen = self._cache = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the auxiliary head's weights back; outside of a training there is none to take them."""
        if self._frozen is not None:
            super().load_state_dict(state_dict)

    # -- during a step -------------------------------------------------------------------------------------------------

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Know the epoch, by which a method may stop."""
        self._epoch = trainer.current_epoch

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Write what the teacher said, and learn what the other ranks were told."""
        if self._cache is not None:
            self._cache.save()
            trainer.strategy.barrier()
            if trainer.world_size > 1:
                self._cache.load()

    def active(self, step: int) -> bool:
        """False from the method's ``stop_epoch`` on."""
        stop = self.method.stop_epoch if isinstance(self.method, Distillation) else None
        return (stop is None or self._epoch < stop) and super().active(step)

    def term(self, pipeline: Pipeline) -> Tensor:
        """The term of this step."""
        method = self.method
        given = {name: self._signal(name, pipeline) for name in signals_of(method)}
        if {"logits", "teacher_logits"} <= given.keys():
            given["teacher_logits"] = _as_rows(given["teacher_logits"], given["logits"])
        value: Tensor = method(**given).mean()
        pipeline.log_term(self, value)
        value = self.weight * value
        combination = method.combination() if isinstance(method, Distillation) else None
        if combination is not None:
            gradients = Gradients([pipeline.loss, value], pipeline)
            weights = combination(gradients.rows)
            pipeline.logged["own_loss_weight"] = weights[0]
            pipeline.loss, value = gradients.weighted(weights), torch.zeros_like(value)
        return value

    def _signal(self, name: str, pipeline: Pipeline) -> Any:
        if name in _TEACHERS:
            return self._told(name, pipeline.signals)  # another callback's teacher may be the one that others see
        if name == "logits" and self._own_head:
            return self._auxiliary_logits(pipeline)
        return pipeline.signals.get(name)

    def _auxiliary_logits(self, pipeline: Pipeline) -> Tensor:
        features, trainer = pipeline.signals.get("features"), pipeline.trainer
        assert isinstance(self.method, Distillation)
        assert self.method.auxiliary_head is not None
        draw = (self.seed << 40) + (trainer.global_rank << 32) + trainer.fit_loop.total_batch_idx
        with private_stream(draw % 2**63, features.device):
            logits: Tensor = self.method.auxiliary_head(features.flatten(0, -2))
        return logits

    def _told(self, name: str, signals: Signals) -> Any:
        """What the teacher says of the batch, asked once a step."""
        if self.state_key not in signals.made:
            assert self._frozen is not None
            ask = partial(self._frozen, dtype=signals.module.dtype)
            inputs = signals.get("inputs")
            if self._cache is not None:
                logits = self._cache(signals.get("index"), inputs, lambda rows: ask(rows).logits)
                answer = Answer(logits, None)
            else:
                answer = ask(inputs)
            signals.made[self.state_key] = {"teacher_logits": answer.logits, "teacher_features": answer.features}
        return signals.made[self.state_key][name]


def _sizes_of(head: nn.Module) -> tuple[int, int]:
    """The numbers of features and of classes of a head."""
    linears = [child for child in head.modules() if isinstance(child, nn.Linear)]
    if not linears:
        raise ValueError(
            f"The head {type(head).__name__} holds no Linear layer, which would tell the sizes of an auxiliary head; "
            "name one that does with head='path.to.it'."
        )
    return linears[0].in_features, linears[-1].out_features


def _as_rows(teacher: Tensor, student: Tensor) -> Tensor:
    """The teacher's logits as rows (N, C) like the student's, whatever dimension its classes are in.

    Raises:
        ValueError: the classes or the rows are not the student's.
    """
    rows, classes = student.shape
    where = {d % teacher.dim() for d in (1, -1) if teacher.dim() > 1 and teacher.shape[d] == classes}
    if len(where) == 1:
        found = teacher.movedim(where.pop(), -1).flatten(0, -2)
        if len(found) == rows:
            return found
    raise ValueError(
        f"The teacher gives logits of shape {tuple(teacher.shape)}, the student {rows} rows of {classes} classes: they "
        "must be of the same samples and the same classes, in the same order. Use a teacher of these classes, or wrap "
        "it in a module that selects them."
    )
