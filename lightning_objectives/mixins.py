"""Mixins for modules that you can edit: they bring their callbacks through Lightning's ``configure_callbacks``.

>>> import lightning as L
>>> class Net(BEMAMixin, MultiSampleDropoutMixin, L.LightningModule):
...     def configure_bema(self):
...         return BEMA(lag=20)
>>> [callback.carried for callback in Net().configure_callbacks()]  # doctest: +ELLIPSIS
[...WrapHead(..., ...AverageWeights...]
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
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

_PREFIXES = ("configure_", "objective_")
"""How the names of the hooks begin."""


class ObjectivesMixin:
    """Lets a module bring callbacks, and tell them what they would otherwise have to find.

    A mixin must stand before the LightningModule in the list of bases. If the Trainer gets a callback of the same
    class, both stay.
    """

    objective_head: str | nn.Module | None = None
    """The network's head, as a path or a module; None to let the callbacks find it."""
    objective_network: str | nn.Module | None = None
    """The module whose forward returns the logits, as a path or a module; None to let the callbacks find it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = [base.__name__ for base in cls.__mro__]
        if "LightningModule" in names and names.index("LightningModule") < names.index("ObjectivesMixin"):
            raise TypeError(
                f"class {cls.__name__} has a mixin behind the LightningModule, so the mixin's callbacks would be lost: "
                f"put the mixins first, as in class {cls.__name__}(BEMAMixin, YourModule)."
            )
        own = cls.__dict__.get("configure_callbacks")
        if own is not None and "__class__" not in own.__code__.co_freevars:
            raise TypeError(
                f"{cls.__name__}.configure_callbacks does not call super().configure_callbacks(), so the callbacks of "
                "the mixins would be lost: return [*super().configure_callbacks(), ...]."
            )
        _refuse_misspelt_hooks(cls)

    def configure_objectives(self) -> Sequence[Any]:
        """Return the callbacks that this module brings. Extend the list of ``super()``."""
        return []

    def configure_callbacks(self) -> Sequence[Any]:
        """Return the module's other callbacks and the mixins', when Lightning calls this hook."""
        others = super().configure_callbacks()  # type: ignore[misc]  # the LightningModule's
        others = list(others) if isinstance(others, Sequence) else [others]
        return [*others, *(Carried(c) if isinstance(c, Callback) else c for c in self.configure_objectives())]

    def objective_inputs(self, batch: Any) -> Tensor | None:
        """Return the network's inputs in a batch; None to let the callbacks find them."""
        return None

    def objective_batch_size(self, batch: Any) -> int | None:
        """Return the number of samples in a batch; None to let the callbacks find it."""
        return None

    def objective_target(self, batch: Any) -> Tensor | None:
        """Return the target in a batch, for a step without a criterion; None to let the callbacks find it."""
        return None

    def objective_index(self, batch: Any) -> Tensor | None:
        """Return the position of each sample in the data set; None if ``with_index`` gives it."""
        return None

    def objective_group(self, batch: Any) -> Tensor | None:
        """Return the group of each sample; None if the batch has the key ``group``."""
        return None

    def objective_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of a step that has no criterion of its own and calls this: cross entropy, as configured."""
        return F.cross_entropy(logits, target)


def _refuse_misspelt_hooks(cls: type[Any]) -> None:
    """Refuse a name that is nearly the name of a hook: nothing would call it, and the default would act instead."""
    mixins = [base for base in cls.__mro__[1:] if issubclass(base, ObjectivesMixin) and not _is_module(base)]
    hooks = {name for mixin in mixins for name in vars(mixin) if name.startswith(_PREFIXES)}
    for owner, name in _names_like_hooks(cls):
        prefix, _, suffix = name.partition("_")
        known = [hook.removeprefix(f"{prefix}_") for hook in hooks if hook.startswith(prefix)]
        close = get_close_matches(suffix, known, n=1, cutoff=0.75)
        if close and name not in hooks:
            raise TypeError(
                f"{owner.__name__}.{name} is no hook of a mixin, so nothing would call it. Did you mean "
                f"'{prefix}_{close[0]}'? If the name is your own, choose one that is less like the hook's."
            )


def _names_like_hooks(cls: type[Any]) -> Iterator[tuple[type[Any], str]]:
    """Give the names in the form of a hook that the class, or a base without a mixin, is the first to define."""
    for place, owner in enumerate(cls.__mro__):
        lightning = owner.__module__.startswith(("lightning.", "pytorch_lightning."))
        if lightning or (owner is not cls and issubclass(owner, ObjectivesMixin)):  # the latter had its own check
            continue
        inherited = {name for base in cls.__mro__[place + 1 :] for name in vars(base)}
        yield from ((owner, name) for name in vars(owner) if name.startswith(_PREFIXES) and name not in inherited)


def _is_module(cls: type[Any]) -> bool:
    return any(base.__name__ == "LightningModule" for base in cls.__mro__)


class BEMAMixin(ObjectivesMixin):
    """Averages the weights of the module over time by :class:`BEMA`."""

    def configure_bema(self) -> Rule:
        """Return the averaging rule with your settings."""
        return BEMA()

    def configure_objectives(self) -> Sequence[Any]:
        """Add the average."""
        return [*super().configure_objectives(), AverageWeights(self.configure_bema())]


class DualHeadKDMixin(ObjectivesMixin):
    """Lets the module learn from a teacher through a second head, by :class:`DualHead`."""

    def configure_dual_head_kd(self) -> Distillation:
        """Return the method with your settings."""
        return DualHead()

    def configure_teacher(self) -> str | nn.Module:
        """Return the teacher, in any form that :class:`Distill` takes. It is called once, at the start of a fit.

        Raises:
            NotImplementedError: the module does not define this method.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no teacher: define configure_teacher(self), and return a trained module or the "
            "name of a timm model."
        )

    def configure_objectives(self) -> Sequence[Any]:
        """Add the teacher's term."""
        return [
            *super().configure_objectives(),
            Distill(self.configure_dual_head_kd(), teacher=self.configure_teacher),
        ]


class LossReweightingMixin(ObjectivesMixin):
    """Weights each sample by its loss, by :class:`LossBasedReweighting`."""

    def configure_loss_reweighting(self) -> Weighting:
        """Return the method with your settings."""
        return LossBasedReweighting()

    def configure_objectives(self) -> Sequence[Any]:
        """Add the weights of the samples."""
        return [*super().configure_objectives(), ReweightSamples(self.configure_loss_reweighting())]


class MultiSampleDropoutMixin(ObjectivesMixin):
    """Trains the head under several dropout masks at once, by :class:`MultiSampleDropout`."""

    def configure_multi_sample_dropout(self) -> Head:
        """Return the method with your settings."""
        return MultiSampleDropout()

    def configure_objectives(self) -> Sequence[Any]:
        """Add the callback that wraps the head."""
        return [*super().configure_objectives(), WrapHead(self.configure_multi_sample_dropout())]


class WSMMixin(ObjectivesMixin):
    """Merges the last snapshots of the module in place of a learning rate decay, by :class:`WSM`."""

    def configure_wsm(self) -> Merge:
        """Return the method with your settings."""
        return WSM()

    def configure_wsm_snapshots(self) -> dict[str, Any]:
        """Return the settings of :class:`MergeCheckpoints`, such as ``last`` and ``every_n_steps``."""
        return {}

    def configure_objectives(self) -> Sequence[Any]:
        """Add the merge."""
        merge = MergeCheckpoints(self.configure_wsm(), **self.configure_wsm_snapshots())
        return [*super().configure_objectives(), merge]
