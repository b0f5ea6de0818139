"""Sums up the last snapshots of a training whose length is known, in the memory of one."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_objectives._files.linear_merge import copies_sentence
from lightning_objectives._snapshots.entries import Entries
from lightning_objectives._snapshots.rates import varying_rates
from lightning_objectives._trainer.lightning import rank_zero_info, rank_zero_warn
from lightning_objectives._weights.optimizer_steps import Rates
from lightning_objectives._weights.shards import local, whole
from lightning_objectives._weights.whole_state import buffer_names, persistent_tensors
from lightning_objectives.kinds import Merge


class RunningSum(Entries):
    """Adds up snapshots, each with its share, as the training goes on; the steps of all of them are known beforehand.

    It keeps the mean of the snapshots so far, weighted by their shares: one copy, in float32 at least. Tensors that are
    equal in all snapshots stay so to the bit. Every process knows the steps; the one with ``writes`` has the mean.

    Args:
        folder: where the merge goes.
        module: the module whose snapshots are summed up.
        method: gives the shares.
        plan: the steps of the snapshots.
        every_n_steps: optimizer steps between two snapshots.
        after: the step from which the sum began; no snapshot can be of it or of an earlier one.
        writes: whether this process keeps the mean.

    Raises:
        ValueError: a share is negative.
    """

    def __init__(
        self,
        folder: Path,
        module: Any,
        method: Merge,
        plan: Sequence[int],
        *,
        every_n_steps: int,
        after: int,
        writes: bool,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.module = module
        self.method = method
        self.plan = list(plan)
        self.every_n_steps = every_n_steps
        self.after = after
        self.writes = writes
        self._means: dict[str, Tensor] = {}
        """By the first name of each tensor."""
        self._copied: set[str] = set()
        """The buffers whose mean is not a number, and which hold the newest value instead."""
        shares = method.coefficients(self.plan).tolist() if self.plan else []
        self._shares: dict[int, float] = dict(zip(self.plan, shares))
        if min(shares, default=0.0) < 0:
            raise ValueError(
                f"keep='sum' adds up shares >= 0, but {method!r} gives {shares} for the steps {self.plan}. "
                "Use keep='files'."
            )

    @classmethod
    def begin(
        cls,
        trainer: Any,
        module: Any,
        method: Merge,
        *,
        last: int,
        every_n_steps: int,
        start_step: int,
        state: Mapping[str, Any] | None,
        folder: Callable[[], Path],
    ) -> "RunningSum":
        """Begin the sum of a training's last snapshots, or go on with that of a state, if it has the same plan."""
        total = total_steps(trainer)

        def steps(after: int) -> list[int]:
            return planned_steps(total, last=last, every_n_steps=every_n_steps, start_step=max(start_step, after + 1))

        def empty(folder: Path, after: int) -> "RunningSum":
            settings = {"every_n_steps": every_n_steps, "after": after, "writes": trainer.is_global_zero}
            return cls(folder, module, method, steps(after), **settings)

        if state is not None and state["plan"] == steps(state["after"]):
            running = empty(Path(state["folder"]), state["after"])
            running.load_state_dict(state)
            running.check_module(state["means"])
            return running
        now = trainer.global_step
        if steps(now) != steps(0):
            rank_zero_warn(
                f"keep='sum': this training ends after {total} steps and merges those of {steps(0)}, but it goes on "
                f"from step {now} without their sum. The merge is of {steps(now)} alone. With keep='files' a training "
                "can be prolonged."
            )
        return empty(folder(), now)

    @torch.no_grad()
    def take(self, step: int, rates: Rates) -> None:
        """Add a snapshot of the module, if this step is one of the plan; all ranks take part."""
        if step not in self._shares or step in self.steps:
            return
        entries, before = [*self.entries, {"step": step, "rates": dict(rates)}], self._means
        # An interrupt must not leave a sum to which half of a snapshot was added, because it could still be saved.
        self.entries, self._means = [], {}
        so_far = math.fsum(self._shares[entry["step"]] for entry in entries)
        rate = self._shares[step] / so_far if so_far else 1.0
        means: dict[str, Tensor] = {}
        buffers = buffer_names(self.module)
        for name, tensor in self._tensors().items():
            if hasattr(tensor, "to_local"):
                tensor = whole(local(tensor), tensor)
            if self.writes:
                means[name] = self._moved(name, before.get(name), tensor.detach(), rate, is_buffer=name in buffers)
        if before:
            _check_names(before, means)
        self.entries, self._means = entries, means

    def _moved(self, name: str, mean: Tensor | None, value: Tensor, rate: float, *, is_buffer: bool) -> Tensor:
        moved = _moved_mean(None if name in self._copied else mean, value, rate, name)
        if is_buffer and moved.isnan().any():
            self._copied.add(name)
            moved = _moved_mean(None, value, rate, name)
        return moved

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors of the module, tied ones under their first name."""
        return {name: tensor for name, (first, tensor) in self._first_names().items() if name == first}

    def _first_names(self) -> dict[str, tuple[str, Tensor]]:
        first: dict[int, str] = {}
        return {name: (first.setdefault(id(t), name), t) for name, t in persistent_tensors(self.module).items()}

    def has_merge_at(self, steps: int) -> bool:
        """Whether there is a merge if the training ends after so many steps; warns if this was not the plan."""
        if self.steps == self.plan and (not self.plan or steps < self.plan[-1] + self.every_n_steps):
            return True
        message = (
            f"keep='sum' was to merge the snapshots {self.plan}, but the training ended after {steps} steps with those "
            f"of {self.steps} in the sum."
        )
        if self._in_proportion():
            rank_zero_warn(f"{message} The merge is of these.")
            return True
        reason = f"Their shares are not those of a merge by {self.method!r}, so that none" if self.steps else "No merge"
        rank_zero_warn(f"{message} {reason} is written. Use keep='files' if you do not know the last step beforehand.")
        return False

    def _in_proportion(self) -> bool:
        """Whether the sum is the merge of the snapshots in it: for some methods, shares of fewer are in proportion."""
        if not self.steps:
            return False
        shares = torch.tensor([self._shares[step] for step in self.steps], dtype=torch.float64)
        return torch.allclose(shares / shares.sum(), self.method.coefficients(self.steps), rtol=0, atol=1e-9)

    def merge(self) -> dict[str, Tensor]:
        """The merge, in the types of the module; tied names share a tensor.

        Raises:
            ValueError: it would not be finite, except for infinities that all snapshots have at the same places.
        """
        if self._copied:
            rank_zero_info(copies_sentence(sorted(self._copied)))
        merged: dict[str, Tensor] = {}
        for name, (first, tensor) in self._first_names().items():
            mean = self._means[first]
            merged[name] = merged[first] if first in merged else mean.to(tensor.dtype)
            bad = merged[name].isnan() | (merged[name].isinf() & mean.isfinite())
            if first not in self._copied and bad.any():
                raise ValueError(
                    f"{name} is NaN or infinite in a snapshot of the steps {self.steps}, or too large for its type, so "
                    "that the merge would not be finite: the training has failed. Train again with a smaller learning "
                    "rate, or let the window end earlier."
                )
        return merged

    def state_dict(self) -> dict[str, Any]:
        """The plan, the folder, and the mean with its steps: all that is needed to go on."""
        entries = [dict(entry) for entry in self.entries]
        state = {"plan": self.plan, "after": self.after, "entries": entries, "folder": str(self.folder)}
        copied = {"copied": sorted(self._copied)} if self._copied else {}
        return {**state, **copied, "means": dict(self._means)}

    @staticmethod
    def check(state: Mapping[str, Any]) -> None:
        """Check that a state has the right form.

        Raises:
            ValueError: it does not.
        """
        if not all(isinstance(mean, Tensor) for mean in state["means"].values()):
            raise ValueError("'means' holds something other than tensors")
        varying_rates(entry["rates"] for entry in state["entries"])

    def check_module(self, means: Mapping[str, Tensor]) -> None:
        """Refuse the sum of a checkpoint to which the module's snapshots cannot be added.

        Raises:
            ValueError: its tensors have other names or forms than the module's.
        """
        tensors = self._tensors()
        try:
            if means:
                _check_names(means, tensors)
            for name, mean in means.items():
                _check_form(mean, tensors[name], name)
        except ValueError as error:
            raise ValueError(
                f"The checkpoint's sum of the steps {self.steps} cannot go on: {error} Resume with the module as it "
                "was, or begin a new training from its weights."
            ) from error

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same plan."""
        self.entries = [dict(entry) for entry in state["entries"]]
        self._means = {name: t.to("cpu", copy=True) for name, t in state["means"].items()} if self.writes else {}
        self._copied = set(state.get("copied", ()))


def planned_steps(total: int, *, last: int, every_n_steps: int, start_step: int) -> list[int]:
    """List the steps of the last snapshots of a training of ``total`` steps.

    >>> planned_steps(1050, last=3, every_n_steps=100, start_step=900)
    [900, 1000]
    """
    first = -(-max(start_step, 1) // every_n_steps) * every_n_steps
    return list(range(first, total + 1, every_n_steps))[-last:]


def refuse_manual_steps(module: Any) -> None:
    """Raise a ``ValueError`` if only the module knows how many steps there will be."""
    if not module.automatic_optimization:
        raise ValueError(
            "keep='sum' must know the last step beforehand, but with manual optimization the module decides which "
            "batches step. Use keep='files'."
        )


def total_steps(trainer: Any) -> int:
    """The number of steps after which the training will end.

    Raises:
        ValueError: the number cannot be known beforehand.
    """
    needs = "keep='sum' must know the last step beforehand, but"
    schedulers = [callback for callback in trainer.callbacks if hasattr(callback, "get_accumulate_grad_batches")]
    if any(len(set(callback.scheduling.values())) > 1 for callback in schedulers):
        raise ValueError(
            f"{needs} {[callback.scheduling for callback in schedulers]} changes how many batches make a step, which "
            "the trainer's estimate does not follow. Use keep='files'."
        )
    total = trainer.estimated_stepping_batches
    if not 0 <= total < math.inf:
        raise ValueError(
            f"{needs} max_epochs={trainer.max_epochs} and max_steps={trainer.max_steps} with "
            f"{trainer.num_training_batches} batches an epoch have no end. Set max_steps, or use keep='files'."
        )
    return int(total)


def steps_per_epoch(trainer: Any) -> int:
    """The number of steps of each epoch.

    Raises:
        ValueError: the number cannot be known beforehand.
    """
    batches = trainer.num_training_batches
    if not batches < math.inf:
        raise ValueError(
            f"keep='sum' must know beforehand at which step an epoch ends, but this one has {batches} batches. Use "
            "every_n_steps and start_step, or keep='files'."
        )
    return int(-(-batches // trainer.accumulate_grad_batches))


def _check_names(means: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    changed = sorted(tensors.keys() ^ means.keys())
    if changed:
        raise ValueError(
            f"keep='sum': {changed} came, went or were tied between two snapshots, so they have no common mean. "
            "Use keep='files'."
        )


def _summed_dtype(value: Tensor) -> torch.dtype:
    """The type of the mean of such values: that of a float, in float32 at least, and any other type as it is."""
    is_narrow = value.is_floating_point() and value.dtype.itemsize < 4
    return torch.float32 if is_narrow else value.dtype


def _check_form(mean: Tensor, value: Tensor, name: str) -> None:
    dtype = _summed_dtype(value)
    if (mean.dtype, mean.shape) != (dtype, value.shape):
        raise ValueError(
            f"keep='sum': {name} was {mean.dtype} {tuple(mean.shape)} in the sum, but is {value.dtype} "
            f"{tuple(value.shape)} now. Merge snapshots of one network only."
        )


def _moved_mean(mean: Tensor | None, value: Tensor, rate: float, name: str) -> Tensor:
    """Move a mean towards a value, in place; returns the value itself if it is the first, or no float."""
    if not (value.is_floating_point() or value.is_complex()):
        return value.to("cpu", copy=True)
    dtype = _summed_dtype(value)
    if mean is None or rate == 1.0:
        return value.to("cpu", dtype, copy=True)
    _check_form(mean, value, name)
    value = value.to("cpu", dtype)
    if torch.equal(mean, value):  # Equal values stay so to the bit.
        return mean
    moved = mean.isfinite() & value.isfinite()
    if moved.all():
        return mean.lerp_(value, rate)
    # Equal infinities, for example of a mask, stay; the mean of an infinity and another number is none.
    others = torch.where(mean == value, value, torch.nan)
    return torch.where(moved, mean.lerp(value, rate), others)
