"""Ready-made callbacks: a method and the callback that places it, built by one constructor.

Each takes the settings of both. See the method for what its settings do to the training, when to use it and what it
costs, and the callback for where it acts and what it writes to a checkpoint.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lightning_objectives._step.added import Strength
from lightning_objectives._step.frozen import Normalization
from lightning_objectives._step.rows import Unit
from lightning_objectives._weights.averages import Buffers
from lightning_objectives.averaging import BEMA, EMA
from lightning_objectives.callbacks.average_weights import AverageWeights
from lightning_objectives.callbacks.distill import Distill
from lightning_objectives.callbacks.merge_checkpoints import MergeCheckpoints
from lightning_objectives.callbacks.reweight_samples import ReweightSamples
from lightning_objectives.callbacks.wrap_head import WrapHead
from lightning_objectives.distillation import DualHead
from lightning_objectives.distillation.dual_head import Auxiliary
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.merging import WSM
from lightning_objectives.merging.wsm import Shape
from lightning_objectives.weighting import LossBasedReweighting
from lightning_objectives.weighting.loss_based import Strategy


class EMACallback(AverageWeights):
    """Averages the weights exponentially over time: :class:`AverageWeights` with the rule :class:`EMA`.

    Args:
        decay: the share of the average that an update keeps, in [0, 1).
        warmup: let the decay grow from 0, so that the average forgets the early weights soon.
        power: how fast the decay grows during the warm-up.
        start_step: the number of optimizer steps after which the average begins; 0 by default.
        every_n_steps: the number of optimizer steps between two updates; 1 by default.
        buffers: the buffers that the average is evaluated with: ``copy``, ``average`` or ``recalibrate``.
        device: where the average is kept; beside the parameters by default.
        primary: whether this average is validated, saved and left in the module.
        parameters: pattern, or patterns, of the names of the parameters that are averaged; None averages all.
        start_epoch: in place of ``start_step``, the number of epochs after which the average begins.
        every_n_epochs: in place of ``every_n_steps``, the number of epochs between two updates.

    Example:
        >>> EMACallback(decay=0.99, start_step=100).rule
        EMA(decay=0.99, warmup=False, power=0.6666666666666666)
    """

    def __init__(
        self,
        *,
        decay: float = 0.999,
        warmup: bool = False,
        power: float = 2 / 3,
        start_step: int | None = None,
        every_n_steps: int | None = None,
        buffers: Buffers = "copy",
        device: str | torch.device | None = None,
        primary: bool = True,
        parameters: str | Sequence[str] | None = None,
        start_epoch: int | None = None,
        every_n_epochs: int | None = None,
    ) -> None:
        super().__init__(
            EMA(decay=decay, warmup=warmup, power=power),
            start_step=start_step,
            every_n_steps=every_n_steps,
            buffers=buffers,
            device=device,
            primary=primary,
            parameters=parameters,
            start_epoch=start_epoch,
            every_n_epochs=every_n_epochs,
        )


class BEMACallback(AverageWeights):
    """Averages the weights over time without lagging behind: :class:`AverageWeights` with the rule :class:`BEMA`.

    Args:
        ema_power: how fast the share of the newest weights falls, in [0, 1]; 0 keeps the newest weights alone.
        bias_power: how fast the correction of the lag fades; 0 corrects most, a large value gives a plain average.
        lag: a number of optimizer steps, at least 1, that is added to the step in both coefficients.
        multiplier: how fast both coefficients fall.
        min_ema: the least share of the newest weights in an update, in [0, 1].
        start_step: the number of optimizer steps after which the average begins; 0 by default.
        every_n_steps: the number of optimizer steps between two updates; 1 by default.
        buffers: the buffers that the average is evaluated with: ``copy``, ``average``, or ``recalibrate``, which
            networks with BatchNorm need here.
        device: where the average is kept; beside the parameters by default.
        primary: whether this average is validated, saved and left in the module.
        parameters: pattern, or patterns, of the names of the parameters that are averaged; None averages all.
        start_epoch: in place of ``start_step``, the number of epochs after which the average begins.
        every_n_epochs: in place of ``every_n_steps``, the number of epochs between two updates.

    Example:
        >>> BEMACallback(lag=20, buffers="recalibrate").rule
        BEMA(ema_power=0.5, bias_power=0.2, lag=20, multiplier=1.0, min_ema=0.0)
    """

    def __init__(
        self,
        *,
        ema_power: float = 0.5,
        bias_power: float = 0.2,
        lag: float = 10,
        multiplier: float = 1.0,
        min_ema: float = 0.0,
        start_step: int | None = None,
        every_n_steps: int | None = None,
        buffers: Buffers = "copy",
        device: str | torch.device | None = None,
        primary: bool = True,
        parameters: str | Sequence[str] | None = None,
        start_epoch: int | None = None,
        every_n_epochs: int | None = None,
    ) -> None:
        super().__init__(
            BEMA(ema_power=ema_power, bias_power=bias_power, lag=lag, multiplier=multiplier, min_ema=min_ema),
            start_step=start_step,
            every_n_steps=every_n_steps,
            buffers=buffers,
            device=device,
            primary=primary,
            parameters=parameters,
            start_epoch=start_epoch,
            every_n_epochs=every_n_epochs,
        )


class WSMCallback(MergeCheckpoints):
    """Merges the last snapshots in place of a learning rate decay: :class:`MergeCheckpoints` with :class:`WSM`.

    Args:
        shape: the decay that the merge replaces: ``1-sqrt``, ``linear``, ``cosine``, ``square``, ``ema``, or a falling
            function.
        ema_weight: the newest snapshot's share with ``shape="ema"``.
        last: the largest number of snapshots that are merged.
        every_n_steps: the number of optimizer steps between two snapshots; 500 by default.
        start_step: the first optimizer step after which a snapshot may be taken; 0 by default.
        evaluate: merge at each validation too, for ``LogMetrics(weights=["average"])``.
        buffers: ``average`` merges floating buffers like weights; ``recalibrate`` also re-estimates BatchNorm's
            statistics.
        keep: keep a file for each snapshot, or one ``sum`` of all in memory.
        directory: where the files go; by default the folder ``merge`` in the directory of the logger or the trainer.
        start_epoch: in place of ``start_step``, the number of epochs after which a snapshot may be taken.
        every_n_epochs: in place of ``every_n_steps``, the number of epochs between two snapshots.

    Example:
        >>> callback = WSMCallback(shape="linear", last=4, every_n_steps=100)
        >>> callback.method, callback.last
        (WSM(shape='linear', ema_weight=0.2), 4)
    """

    def __init__(
        self,
        *,
        shape: Shape | Callable[[float], float] = "1-sqrt",
        ema_weight: float = 0.2,
        last: int = 8,
        every_n_steps: int | None = None,
        start_step: int | None = None,
        evaluate: bool = False,
        buffers: Literal["average", "recalibrate"] = "average",
        keep: Literal["files", "sum"] = "files",
        directory: str | Path | None = None,
        start_epoch: int | None = None,
        every_n_epochs: int | None = None,
    ) -> None:
        super().__init__(
            WSM(shape=shape, ema_weight=ema_weight),
            last=last,
            every_n_steps=every_n_steps,
            start_step=start_step,
            evaluate=evaluate,
            buffers=buffers,
            keep=keep,
            directory=directory,
            start_epoch=start_epoch,
            every_n_epochs=every_n_epochs,
        )


class LossReweightingCallback(ReweightSamples):
    """Weights each sample by its loss: :class:`ReweightSamples` with :class:`LossBasedReweighting`.

    Args:
        strategy: which losses get a high weight: ``lin_upper``, ``quadratic`` or ``extremes``.
        temperature: how little the weights differ; infinity gives uniform weights.
        warmup_steps: the number of optimizer steps with uniform weights at the start.
        unit: weight whole samples (``sample``), or each token or pixel by itself (``element``).
        criterion: path of the model's criterion, if it is none of torch's functional losses.
        which: number of the criterion's call, from 0, if a step makes several.
        head: path of the network's head, if it is not found.
        input: path of the network's inputs in the batch, if they are not found.
        batch_size: the number of samples in each batch, or its path in the batch, if it is not found.
        sample_dim: the dimension of the criterion's input that counts the samples, if it is not found.

    Example:
        >>> LossReweightingCallback(temperature=0.4, warmup_steps=100).weighting
        LossBasedReweighting(strategy='lin_upper', temperature=0.4, warmup_steps=100)
    """

    def __init__(
        self,
        *,
        strategy: Strategy = "lin_upper",
        temperature: float = 1.0,
        warmup_steps: int = 0,
        unit: Unit = "sample",
        criterion: str | None = None,
        which: int | None = None,
        head: str | None = None,
        input: str | int | None = None,
        batch_size: int | str | None = None,
        sample_dim: int | None = None,
    ) -> None:
        super().__init__(
            LossBasedReweighting(strategy=strategy, temperature=temperature, warmup_steps=warmup_steps),
            unit=unit,
            criterion=criterion,
            which=which,
            head=head,
            input=input,
            batch_size=batch_size,
            sample_dim=sample_dim,
        )


class MultiSampleDropoutCallback(WrapHead):
    """Trains the head under several dropout masks at once: :class:`WrapHead` with :class:`MultiSampleDropout`.

    Args:
        num_samples: the number of masks per step.
        p: the share of the features that a mask drops, in [0, 1); 0 is the plain model.
        criterion: path of the model's criterion, if it is none of torch's functional losses.
        which: number of the criterion's call, from 0, if a step makes several.
        head: path of the network's head, if it is not found.
        input: path of the network's inputs in the batch, if they are not found.
        batch_size: the number of samples in each batch, or its path in the batch, if it is not found.
        sample_dim: the dimension of the criterion's input that counts the samples, if it is not found.

    Example:
        >>> MultiSampleDropoutCallback(num_samples=4, head="model.fc").wrapper
        MultiSampleDropout(num_samples=4, p=0.3)
    """

    def __init__(
        self,
        *,
        num_samples: int = 8,
        p: float = 0.3,
        criterion: str | None = None,
        which: int | None = None,
        head: str | None = None,
        input: str | int | None = None,
        batch_size: int | str | None = None,
        sample_dim: int | None = None,
    ) -> None:
        super().__init__(
            MultiSampleDropout(num_samples=num_samples, p=p),
            criterion=criterion,
            which=which,
            head=head,
            input=input,
            batch_size=batch_size,
            sample_dim=sample_dim,
        )


class DualHeadKDCallback(Distill):
    """Lets the network learn from a teacher through a second head: :class:`Distill` with :class:`DualHead`.

    Args:
        teacher: a trained module, a timm name (``"timm:resnet18"``), the path of a class, or a function that returns
            one of these.
        alpha: the weight of the teacher, at least 0.
        temperature: how much both distributions are smoothed, greater than 0.
        auxiliary: the second head: ``linear`` or ``mlp``.
        align: remove from the teacher's gradient what conflicts with that of the model's own loss.
        stop_epoch: the epoch from which the teacher is not used any more; None never stops.
        weight: a factor on the teacher's term, or a function of the part of the training that is done; at 0 nothing is
            touched.
        start_step: the number of optimizer steps after which the teacher is used.
        start_epoch: the number of completed epochs after which it is used, in place of ``start_step``.
        stop_step: the number of optimizer steps after which it is not used any more.
        warmup_steps: over how many optimizer steps the weight grows to its value.
        teacher_call: how to call the teacher, if not as the student's network: ``(teacher, batch) -> output``.
        teacher_weights: a file of the teacher's weights.
        teacher_prefix: what the names of its weights in that file begin with, if several networks in it fit.
        teacher_head: path of the teacher's head, if it is not found.
        data_normalization: the (mean, std) of the data, if the teacher was trained with others.
        teacher_normalization: the (mean, std) of the teacher; by default those that timm gives.
        cache: a directory for the teacher's logits, so that the teacher runs once a sample.
        cache_top_k: the number of logits that the cache keeps of each sample; None keeps all.
        seed: the seed of the second head's weights and dropout.
        criterion: path of the model's criterion, if it is none of torch's functional losses.
        which: number of the criterion's call, from 0, if a step makes several.
        head: path of the network's head, if it is not found.
        input: path of the network's inputs in the batch, if they are not found.
        batch_size: the number of samples in each batch, or its path in the batch, if it is not found.
        sample_dim: the dimension of the criterion's input that counts the samples, if it is not found.

    Example:
        >>> DualHeadKDCallback(teacher=nn.Linear(4, 3), alpha=0.5).distillation
        DualHead(alpha=0.5, temperature=2.0, auxiliary='linear', align=False, stop_epoch=None)
    """

    def __init__(
        self,
        *,
        teacher: str | nn.Module | Callable[[], str | nn.Module],
        alpha: float = 1.0,
        temperature: float = 2.0,
        auxiliary: Auxiliary = "linear",
        align: bool = False,
        stop_epoch: int | None = None,
        weight: Strength = 1.0,
        start_step: int | None = None,
        start_epoch: int | None = None,
        stop_step: int | None = None,
        warmup_steps: int = 0,
        teacher_call: Callable[[nn.Module, Any], Any] | None = None,
        teacher_weights: str | None = None,
        teacher_prefix: str | None = None,
        teacher_head: str | None = None,
        data_normalization: Normalization | None = None,
        teacher_normalization: Normalization | None = None,
        cache: str | None = None,
        cache_top_k: int | None = None,
        seed: int = 0,
        criterion: str | None = None,
        which: int | None = None,
        head: str | None = None,
        input: str | int | None = None,
        batch_size: int | str | None = None,
        sample_dim: int | None = None,
    ) -> None:
        super().__init__(
            DualHead(alpha=alpha, temperature=temperature, auxiliary=auxiliary, align=align, stop_epoch=stop_epoch),
            teacher=teacher,
            weight=weight,
            start_step=start_step,
            start_epoch=start_epoch,
            stop_step=stop_step,
            warmup_steps=warmup_steps,
            teacher_call=teacher_call,
            teacher_weights=teacher_weights,
            teacher_prefix=teacher_prefix,
            teacher_head=teacher_head,
            data_normalization=data_normalization,
            teacher_normalization=teacher_normalization,
            cache=cache,
            cache_top_k=cache_top_k,
            seed=seed,
            criterion=criterion,
            which=which,
            head=head,
            input=input,
            batch_size=batch_size,
            sample_dim=sample_dim,
        )
