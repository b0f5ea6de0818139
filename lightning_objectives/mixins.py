"""For who owns the module: mixins that bring their callbacks through Lightning's own ``configure_callbacks``.

>>> import lightning as L
>>> class Net(BEMAMixin, MultiSampleDropoutMixin, L.LightningModule):
...     def configure_bema(self):
...         return BEMA(lag=20)
>>> [callback.carried for callback in Net().configure_callbacks()]  # doctest: +ELLIPSIS
[...WrapHead(..., ...AverageWeights...]
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives._trainer.callback import Callback
from lightning_objectives._trainer.carried import Carried
from lightning_objectives.averaging import BEMA
from lightning_objectives.callbacks.average_weights import AverageWeights
from lightning_objectives.callbacks.distill import Distill
from lightning_objectives.callbacks.merge_checkpoints import MergeCheckpoints
from lightning_objectives.callbacks.reweight_samples import ReweightSamples
from lightning_objectives.callbacks.wrap_head import WrapHead
from lightning_objectives.distillation import DualHead
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.kinds import Distillation, Head, Merge, Rule, Weighting
from lightning_objectives.merging import WSM
from lightning_objectives.weighting import LossBasedReweighting

__all__ = [
    "BEMAMixin",
    "DualHeadKDMixin",
    "LossReweightingMixin",
    "MultiSampleDropoutMixin",
    "ObjectivesMixin",
    "WSMMixin",
]


class ObjectivesMixin:
    """Callbacks from the module itself, and answers to what the callbacks would otherwise find on their own.

    It stands before the module in the list of bases. A callback of the same class given to the Trainer stays beside the
    mixin's.
    """

    objective_head: str | nn.Module | None = None
    """The head, as a path or a module."""
    objective_network: str | nn.Module | None = None
    """The module whose forward gives the logits, as a path or a module."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = [base.__name__ for base in cls.__mro__]
        if "LightningModule" in names and names.index("LightningModule") < names.index("ObjectivesMixin"):
            raise TypeError(
                f"class {cls.__name__}: the mixins must stand before the LightningModule, as in "
                f"class {cls.__name__}(BEMAMixin, YourModule), or their callbacks would be lost."
            )
        own = cls.__dict__.get("configure_callbacks")
        if own is not None and "__class__" not in own.__code__.co_freevars:
            raise TypeError(
                f"{cls.__name__}.configure_callbacks does not call super().configure_callbacks(), so that the mixins' "
                "callbacks would be lost; return [*super().configure_callbacks(), ...]."
            )

    def configure_objectives(self) -> Sequence[Any]:
        """The callbacks that this module brings; extend what ``super()`` returns."""
        return []

    def configure_callbacks(self) -> Sequence[Any]:
        """Lightning's hook: the module's other callbacks, and these."""
        others = super().configure_callbacks()  # type: ignore[misc]  # the LightningModule's
        others = list(others) if isinstance(others, Sequence) else [others]
        return [*others, *(Carried(c) if isinstance(c, Callback) else c for c in self.configure_objectives())]

    def objective_inputs(self, batch: Any) -> Tensor | None:
        """The network's inputs in a batch; None to let them be found."""
        return None

    def objective_target(self, batch: Any) -> Tensor | None:
        """The target in a batch, where a step has no criterion; None to let it be found."""
        return None

    def objective_index(self, batch: Any) -> Tensor | None:
        """The position of each sample in the data set; None where ``with_index`` gives it."""
        return None

    def objective_group(self, batch: Any) -> Tensor | None:
        """The group of each sample; None where the batch has the key ``group``."""
        return None

    def objective_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """The objective, called by name in a step that has no criterion of its own: cross entropy, as configured."""
        return F.cross_entropy(logits, target)


class BEMAMixin(ObjectivesMixin):
    """Averages the module's weights by :class:`BEMA`."""

    def configure_bema(self) -> Rule:
        """The rule, with its settings."""
        return BEMA()

    def configure_objectives(self) -> Sequence[Any]:
        """Adds the average."""
        return [*super().configure_objectives(), AverageWeights(self.configure_bema())]


class DualHeadKDMixin(ObjectivesMixin):
    """Distils a teacher into the module's features by :class:`DualHead`."""

    def configure_dual_head_kd(self) -> Distillation:
        """The method, with its settings."""
        return DualHead()

    def configure_teacher(self) -> str | nn.Module:
        """The teacher, asked for at the start of a fit alone: what the callback ``Distill`` takes.

        Raises:
            NotImplementedError: the module does not say it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} must say who teaches it: let configure_teacher(self) return a trained module, or "
            "the name of a timm model."
        )

    def configure_objectives(self) -> Sequence[Any]:
        """Adds the teacher's term."""
        return [
            *super().configure_objectives(),
            Distill(self.configure_dual_head_kd(), teacher=self.configure_teacher),
        ]


class LossReweightingMixin(ObjectivesMixin):
    """Weights the samples by :class:`LossBasedReweighting`."""

    def configure_loss_reweighting(self) -> Weighting:
        """The method, with its settings."""
        return LossBasedReweighting()

    def configure_objectives(self) -> Sequence[Any]:
        """Adds the weights."""
        return [*super().configure_objectives(), ReweightSamples(self.configure_loss_reweighting())]


class MultiSampleDropoutMixin(ObjectivesMixin):
    """Wraps the head by :class:`MultiSampleDropout`."""

    def configure_multi_sample_dropout(self) -> Head:
        """The method, with its settings."""
        return MultiSampleDropout()

    def configure_objectives(self) -> Sequence[Any]:
        """Adds the wrap."""
        return [*super().configure_objectives(), WrapHead(self.configure_multi_sample_dropout())]


class WSMMixin(ObjectivesMixin):
    """Merges the module's last snapshots by :class:`WSM`."""

    def configure_wsm(self) -> Merge:
        """The method, with its settings."""
        return WSM()

    def configure_wsm_snapshots(self) -> dict[str, Any]:
        """The settings of :class:`MergeCheckpoints`: which snapshots are taken, how many are merged, and where."""
        return {}

    def configure_objectives(self) -> Sequence[Any]:
        """Adds the merge."""
        merge = MergeCheckpoints(self.configure_wsm(), **self.configure_wsm_snapshots())
        return [*super().configure_objectives(), merge]
