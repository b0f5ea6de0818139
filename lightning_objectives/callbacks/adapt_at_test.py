"""Adapts a trained network to the test data, in test and predict."""

from dataclasses import KW_ONLY, dataclass
from typing import Any

from torch import nn

from lightning_objectives._files.network import load_network
from lightning_objectives._step.adapted import PREDICTS_FROM, AdaptedSteps, LogitsProblem
from lightning_objectives._step.evaluation import Where
from lightning_objectives._step.frozen import BY_MODULE, Frozen
from lightning_objectives._trainer.callback import STRATEGIES, Callback
from lightning_objectives._trainer.carried import callbacks_of
from lightning_objectives._trainer.configured import check_trained
from lightning_objectives.kinds import Adapter


@dataclass(eq=False)
class AdaptAtTest(Callback):
    """Adapts the network to the test batches, without targets, in ``trainer.test`` and ``trainer.predict``.

    Your ``test_step`` and ``predict_step`` run as they are, and only what the network computes in them differs. So the
    metrics that you log, those of :class:`LogMetrics`, and the predictions are those of the adapted network. A fit and
    a validation are the plain ones.

    The adaptation goes on from batch to batch and begins anew with each data loader and each test. When the test is
    over, also after an exception or Ctrl-C, the module is as it was: weights to the bit, buffers, ``requires_grad``. A
    checkpoint saved during the test holds the weights as they were. A step that needs gradients runs with Lightning's
    ``inference_mode`` off, under ``torch.no_grad``.

    The logits are the output of the network's head. The first batch proves it: they must be what the criterion of the
    step compares or, without a criterion, what the network returns. You can also name the head.

    With several processes each adapts to its own batches, so the results depend on their number. Lightning's sampler
    repeats samples if they do not divide evenly, and a repeated sample counts in the batch that it comes to.

    Args:
        adapter: the method.
        episodic: begin anew with each batch, so that no batch depends on those before it.
        problem: ``classes``, or ``binary`` for one logit of two classes, if no criterion of torch's and no whole
            numbers as targets say so. Needed in ``predict`` for an adapter that needs logits.
        reference: another trained network of the same classes, for an adapter that asks for its logits: a module, a
            timm name, or the path of a class or of a function. It is copied, and called as the step calls the network.
        reference_weights: a file of its weights.
        criterion: path of the model's criterion (``"loss_fn"``), if it is none of torch's functional losses.
        which: number of the criterion's call, from 0, if a step makes several.
        head: path of the network's head, if it is not found.
        target: path of the target in the batch (``"1.labels"``), if a step has no criterion; by default the last
            element.

    Raises:
        ValueError: an adapter that asks for a reference without one, or one that it does not ask for; a second
            AdaptAtTest; a sharded strategy; float16 with an adapter that needs gradients; in the first
            batch, a network that is compiled, lacks the layers that the adapter changes, or is not called as a whole,
            logits that are not proved, and a problem that the adapter is not for.

    Cost: that of the adapter, and a copy of the weights that it moves. The first batch is checked.

    Example:
        >>> from lightning_objectives.adaptation import TENT
        >>> AdaptAtTest(TENT(lr=1e-3), episodic=True).adapter
        TENT(lr=0.001, optimizer='adam', momentum=0.9)
    """

    kind = Adapter
    leaves_training_alone = True
    changes_tests = True

    adapter: Adapter
    _: KW_ONLY
    episodic: bool = False
    problem: LogitsProblem | None = None
    reference: str | nn.Module | None = None
    reference_weights: str | None = None
    criterion: str | None = None
    which: int | None = None
    head: str | None = None
    target: str | int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.adapter, Adapter):
            raise ValueError(f"adapter={self.adapter!r} must be an adapter, such as TENT().")
        if self.problem not in (None, "classes", "binary"):
            raise ValueError(f"problem={self.problem!r} must be 'classes', 'binary' or None.")
        strange = [name for name in self.adapter.predicts_from() if name not in PREDICTS_FROM]
        if strange:
            raise ValueError(
                f"{type(self.adapter).__name__}.predict asks for {strange[0]!r}, which a test does not have. It may "
                f"name {', '.join(PREDICTS_FROM)}."
            )
        if not self.needs_reference and (self.reference is not None or self.reference_weights is not None):
            raise ValueError(
                f"{self.adapter} asks for no logits of another network, so reference= and reference_weights= must be "
                "left out."
            )
        check_trained(self, "reference")
        self._steps: AdaptedSteps | None = None
        self._loop: tuple[Any, bool] | None = None
        """The loop whose inference mode is switched off, and what it was."""

    def __getstate__(self) -> dict[str, Any]:
        # A copy keeps the settings, and patches the steps of its own run. Other processes get copies too.
        return {**vars(self), "_steps": None, "_loop": None}

    @property
    def needs_reference(self) -> bool:
        """Whether the adapter asks for the logits of another network."""
        return "reference_logits" in self.adapter.predicts_from()

    def methods(self) -> list[Any]:
        """The adapter."""
        return [self.adapter]

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Patch the test and predict steps, and refuse what the adapter cannot work under."""
        super().setup(trainer, pl_module, stage)
        self._restore()
        if stage not in ("test", "predict"):
            return
        self._check(trainer)
        if self.adapter.defines("update"):
            # A step is too late: the loop enters inference mode before it, and no gradient can be taken in it.
            loop = trainer.test_loop if stage == "test" else trainer.predict_loop
            self._loop = (loop, loop.inference_mode)
            loop.inference_mode = False
        where = Where(criterion=self.criterion, which=self.which, head=self.head, target=self.target)
        reference = None
        if self.reference is not None:
            network = load_network(self.reference, self.reference_weights, options="reference_")
            reference = Frozen(network, name="reference", way_out=BY_MODULE)
        self._steps = AdaptedSteps(
            pl_module, self.adapter, where, problem=self.problem, episodic=self.episodic, reference=reference
        )

    def _check(self, trainer: Any) -> None:
        if self.needs_reference and self.reference is None:
            raise ValueError(f"{self.adapter} needs another network beside it: say reference= and the network.")
        others = callbacks_of(trainer, AdaptAtTest)
        if len(others) > 1:
            raise ValueError(
                f"{len(others)} AdaptAtTest callbacks ({', '.join(str(other.adapter) for other in others)}) would act "
                "on one network. Keep one of them."
            )
        for strategy in type(trainer.strategy).__mro__:
            if strategy.__name__ in STRATEGIES:
                raise ValueError(
                    f"AdaptAtTest cannot work under {strategy.__name__}: each process holds a part of the weights. "
                    "Test with one process, or with DDPStrategy."
                )
        if self.adapter.defines("update") and str(trainer.precision) in ("16-mixed", "16-true"):
            raise ValueError(
                f"AdaptAtTest({self.adapter}) takes gradients, which can vanish in float16, and a test has no gradient "
                f"scaler; the precision is {trainer.precision!r}. Use 'bf16-mixed' or '32-true'."
            )

    def release(self, trainer: Any, pl_module: Any) -> None:
        """Give the module and the loop back as they were."""
        self._restore()
        super().release(trainer, pl_module)

    def _restore(self) -> None:
        if self._steps is not None:
            self._steps.restore()
            self._steps = None
        if self._loop is not None:
            loop, self._loop = self._loop, None
            loop[0].inference_mode = loop[1]
