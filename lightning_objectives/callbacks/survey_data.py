"""Measures something of a network and its training data, at the start of a training or at its end."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_objectives._files.writing import write_tensors
from lightning_objectives._step.calls import TARGETS
from lightning_objectives._step.evaluation import Where
from lightning_objectives._step.head import network_of, resolve
from lightning_objectives._step.passes import Muted
from lightning_objectives._step.surveyed import SurveyPass
from lightning_objectives._trainer.callback import Callback, StatefulCallback
from lightning_objectives._trainer.carried import callbacks_of
from lightning_objectives._trainer.checkpoints import taking
from lightning_objectives._trainer.lightning import is_param_in_hook_signature, rank_zero_warn
from lightning_objectives._trainer.loaders import OnePass, own_draws
from lightning_objectives._trainer.patch import Patch
from lightning_objectives._trainer.ranks import on_rank_zero
from lightning_objectives._trainer.training_pass import on_device
from lightning_objectives.kinds import Method, Survey

_BY_HAND = "its training_step steps the optimizers itself, so it cannot run without a training; use survey_data"
_DRAWN = "its training_step draws its batches itself, so there is none to survey; use survey_data"
_SEVERAL = "its batches come from several loaders, and some samples more than once; use survey_data on one loader"
_LAZY = "its lazy parameters would be initialised by the survey; run a batch through the module before the training"
_SHARDED = (
    "each forward pass gathers the shards of all ranks, which have different numbers of batches and would wait for "
    "each other forever; use survey_data on the whole network after the training"
)


@dataclass(eq=False)
class SurveyData(StatefulCallback):
    """Runs a survey over the training data, before the first step of a training or after the last one.

    The pass runs your ``training_step`` on each batch, in evaluation mode and without gradients, and reads what its
    criterion compares. Each sample of the training data counts once, on all ranks together, whatever the sampler's
    order, and also those that ``drop_last`` leaves out. The samples that a ``DistributedSampler`` repeats count once.
    Nothing is left behind: what the step logs is dropped, and buffers, metrics, public attributes of the module and the
    random streams are as before.

    The result is a dictionary of tensors, :attr:`result`. It can be handed to other callbacks of the same training
    (``sets``), and written to a file (``path``).

    Args:
        survey: the method.
        when: ``start`` surveys before the first step of a fit, ``end`` after it, with the weights that stay in the
            module.
        sets: the names of results that are settings of methods in other callbacks, such as ``"counts"``. The methods
            that have this setting get the value, before the first step.
        path: a safetensors file for the result, written by rank 0.
        max_batches: the most batches of each process; None for all.
        criterion: path of the model's criterion (``"loss_fn"``), if it is none of torch's functional losses.
        which: number of the criterion's call, from 0, if a step makes several.
        head: path of the network's head, if the callback does not find it.
        input: path of the network's inputs in the batch.
        seed: the seed of what the data set draws meanwhile, such as random crops.

    Raises:
        ValueError: a setting outside its range; at setup: a module that optimizes by hand or draws its batches itself;
            at the survey: several loaders, no criterion, a survey for another problem, or a setting that no method has.

    Checkpoints: the result of a survey at the start lies in this callback's state, so that a resumed training goes on
    with it and surveys nothing. A survey that was interrupted begins anew, and gives the same bits: it draws from a
    seed, in an order that is fixed. A result at the end is in no checkpoint.

    When to use: see the surveys. Cost: one pass over the data; a result at the start is in each checkpoint.
    Interactions: with ``limit_train_batches`` the pass is as long as an epoch. A primary average is what is surveyed at
    the end. An iterable data set, and samplers of your own, are read as they are: if several processes train, a warning
    says that their samples may count more than once.

    Example:
        >>> from lightning_objectives.surveys import ClassCounts
        >>> SurveyData(ClassCounts(), sets="counts").survey
        ClassCounts(min_count=0.0)
    """

    kind = Survey
    leaves_training_alone = True
    passes_before: ClassVar[int] = 1
    refuses: ClassVar = {
        "manual_optimization": _BY_HAND,
        "several_optimizers": _BY_HAND,
        "dataloader_iter": _DRAWN,
        "a_batch_of_several_loaders": _SEVERAL,
        "a_combined_loader": _SEVERAL,
        "fsdp2": _SHARDED,
    }

    survey: Survey
    _: KW_ONLY
    when: Literal["start", "end"] = "start"
    sets: str | Sequence[str] = ()
    path: str | Path | None = None
    max_batches: int | None = None
    criterion: str | None = None
    which: int | None = None
    head: str | None = None
    input: str | int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.survey, Survey):
            raise ValueError(f"survey={self.survey!r} must be a survey, such as ClassCounts().")
        if self.when not in ("start", "end"):
            raise ValueError(f"when={self.when!r} must be 'start' or 'end'.")
        if self.max_batches is not None and self.max_batches < 1:
            raise ValueError(f"max_batches={self.max_batches} must be >= 1, or None for all.")
        if self.sets and self.when == "end":
            raise ValueError(f"sets={self.sets!r} would change settings after the training: use when='start'.")
        if self.path is not None and Path(self.path).suffix != ".safetensors":
            raise ValueError(f"path={str(self.path)!r} must end in .safetensors.")
        self._result: dict[str, Tensor] | None = None

    def methods(self) -> list[Any]:
        """The survey."""
        return [self.survey]

    @property
    def result(self) -> dict[str, Tensor]:
        """What the survey of the latest training measured.

        Raises:
            RuntimeError: there was none yet.
        """
        if self._result is None:
            raise self.not_trained(f"no result of {self.survey}")
        return self._result

    def unsupported(self) -> dict[str, str]:
        """Add lazy modules before a training, and other problems than the survey is for."""
        for_others = self.survey.problems and "labels" not in self.survey.problems
        labels = {"binary_cross_entropy": TARGETS["labels"]} if for_others else {}
        return super().unsupported() | labels | ({"lazy_modules": _LAZY} if self.when == "start" else {})

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Begin anew for a fit, and refuse a module whose step cannot run by itself."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._result = None
        user = type(pl_module).__name__
        if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            raise ValueError(f"SurveyData cannot work with {user}: {_DRAWN}.")
        if not pl_module.automatic_optimization:
            raise ValueError(f"SurveyData cannot work with {user}: {_BY_HAND}.")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Survey before the first step, or take the result of the checkpoint."""
        _check_loader(trainer)
        if self.when == "end" or not self.survey.active(step=trainer.global_step):
            return
        state = self.take_pending()
        if state is None and any(map(is_lazy, pl_module.parameters())):
            raise ValueError(f"SurveyData cannot survey {type(pl_module).__name__} before the training: {_LAZY}.")
        if state is not None:
            with taking(self.state_key, trainer):
                self._result = {name: value.to(pl_module.device) for name, value in state["result"].items()}
        else:
            self._result = self._measured(trainer, pl_module)
        for name in [self.sets] if isinstance(self.sets, str) else self.sets:
            self._hand_over(name, trainer)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Survey after the training, with the weights that stay in the module."""
        if self.when == "end" and self.survey.active(step=trainer.global_step):
            self._result = self._measured(trainer, pl_module)

    def _measured(self, trainer: Any, module: Any) -> dict[str, Tensor]:
        loader = OnePass(trainer.train_dataloader)
        if loader.doubt:
            rank_zero_warn(f"SurveyData({self.survey}): {loader.doubt}. Use a DistributedSampler, or ignore this.")
        step, takes_number = _own_step(module)

        def run(batch: Any, number: int) -> None:
            step(batch, number) if takes_number else step(batch)

        where = Where(criterion=self.criterion, which=self.which, head=self.head)
        networks = _networks(module, self.head) if self.survey.by_parameter else [module]
        survey = SurveyPass(
            self.survey,
            module,
            run,
            where,
            networks=networks,
            input=self.input,
            owner="SurveyData",
            context=trainer.precision_plugin.forward_context,
        )
        limits = [self.max_batches] if self.max_batches is not None else []
        if trainer.limit_train_batches != 1.0 or trainer.overfit_batches:
            limits.append(int(trainer.num_training_batches))
        visible = trainer.is_global_zero and trainer.progress_bar_callback is not None
        with Muted(module), own_draws(trainer.train_dataloader, self.seed, module.device):
            batches = _Sized(loader, on_device(trainer, module, loader))
            result = survey.run(batches, max_batches=min(limits, default=None), device=module.device, visible=visible)
        path = self.path
        if path is not None:
            on_rank_zero(trainer, lambda: write_tensors(Path(path), result))
        return result

    def _hand_over(self, name: str, trainer: Any) -> None:
        """Give a result to the methods that have a setting of this name."""
        if name not in self.result:
            raise ValueError(f"sets={self.sets!r}: {self.survey} measures {list(self.result)}, but not {name!r}.")
        methods = [method for callback in callbacks_of(trainer, Callback) for method in callback.methods()]
        takers = [m for m in methods if isinstance(m, Method) and m is not self.survey and name in m.settings()]
        if not takers:
            raise ValueError(
                f"sets={self.sets!r}: no method of this training has the setting {name!r}. Add the callback with the "
                "method that takes it, or remove sets=."
            )
        for method in takers:
            _change(method, name, self.result[name].tolist())

    @cached_property  # Lightning's profiler asks for it at every hook of every step
    def state_key(self) -> str:
        """One entry in the checkpoint for each survey."""
        return f"{type(self).__name__}({self.survey!r}, when={self.when!r})"

    def state_dict(self) -> dict[str, Any]:
        """The result; empty if there is none."""
        if self._result is None:
            return dict(self.pending or {})
        return {"result": {name: value.cpu() for name, value in self._result.items()}}


class _Sized:
    """Batches with the length of their loader, if that is known."""

    def __init__(self, loader: OnePass, batches: Any) -> None:
        self.loader, self.batches = loader, batches

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Any:
        return iter(self.batches)


def _check_loader(trainer: Any) -> None:
    loader = trainer.train_dataloader
    if isinstance(loader, (dict, list, tuple)) or hasattr(loader, "flattened"):
        raise ValueError(f"SurveyData cannot read a {type(loader).__name__}: {_SEVERAL}.")


def _own_step(module: Any) -> tuple[Any, bool]:
    """The user's training step, without what other callbacks make of it, and whether it takes the batch's number."""
    step = module.training_step
    while isinstance(step, Patch):
        step = step.inner
    return step, is_param_in_hook_signature(step, "batch_idx", min_args=2)


def _networks(module: nn.Module, head: str | None) -> list[nn.Module]:
    """The parts of a module that may map inputs to logits: the one with the head, or the module."""
    try:
        path, _ = resolve(module, head or getattr(module, "objective_head", None))
    except ValueError:
        return [module]
    return [network_of(module, path), module]


def _change(method: Method, name: str, value: Any) -> None:
    """Give a method another value of a setting, as if it had been built with it."""
    new = type(method)(**{**method.settings(), name: value})
    own = {key: value for key, value in vars(new).items() if not key.startswith("_") and key != "training"}
    for key, value in own.items():
        setattr(method, key, value)
    if isinstance(method, nn.Module) and isinstance(new, nn.Module):
        for key, buffer in new.named_buffers():
            owner = method.get_submodule(key.rpartition(".")[0])
            before = owner.get_buffer(key.rpartition(".")[2])
            owner._buffers[key.rpartition(".")[2]] = buffer.to(before.device)
