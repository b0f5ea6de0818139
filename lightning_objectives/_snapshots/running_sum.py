"""The last snapshots of a training whose length is known, in the memory of one."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_objectives._snapshots.rates import varied
from lightning_objectives._trainer.lightning import rank_zero_warn
from lightning_objectives._weights.optimizer_steps import Rates
from lightning_objectives._weights.shards import local, whole
from lightning_objectives._weights.whole_state import persistent_tensors
from lightning_objectives.kinds import Merge


class RunningSum:
    """Adds each snapshot, with its share, when it is taken; the steps of all of them are given beforehand.

    What is kept is the mean of those so far, weighted by their shares: one copy, in float32 at least, and what is equal
    in all of them stays so to the bit. Every process knows the steps; the one with ``writes`` has the mean.
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
        self.folder = folder
        self.module = module
        self.method = method
        self.plan = list(plan)
        self.every_n_steps = every_n_steps
        self.after = after
        """No step up to this one could have a snapshot."""
        self.writes = writes
        self.entries: list[dict[str, Any]] = []
        """``step``, and the learning rates since the one before, oldest first."""
        self._means: dict[str, Tensor] = {}
        """By the first name of each tensor."""
        shares = method.coefficients(self.plan).tolist() if self.plan else []
        self._shares: dict[int, float] = dict(zip(self.plan, shares))
        if min(shares, default=0.0) < 0:
            raise ValueError(
                f"keep='sum' adds up shares >= 0, but {method!r} gives {shares} for the steps {self.plan}. "
                "Use keep='files'."
            )

    @classmethod
    def begun(
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
        """The sum of the last snapshots of this training; goes on with that of a state, where it is the same."""
        total = total_steps(trainer)

        def steps(after: int) -> list[int]:
            return planned(total, last=last, every_n_steps=every_n_steps, start_step=max(start_step, after + 1))

        def at(folder: Path, after: int) -> "RunningSum":
            known = {"every_n_steps": every_n_steps, "after": after, "writes": trainer.is_global_zero}
            return cls(folder, module, method, steps(after), **known)

        if state is not None and state["plan"] == steps(state["after"]):
            mine = at(Path(state["folder"]), state["after"])
            mine.load_state_dict(state)
            return mine
        now = trainer.global_step
        if steps(now) != steps(0):
            rank_zero_warn(
                f"keep='sum': this training ends after {total} steps and merges those of {steps(0)}, but it goes on "
                f"from step {now} without their sum. The merge is of {steps(now)} alone. With keep='files' a training "
                "can be prolonged."
            )
        return at(folder(), now)

    @property
    def steps(self) -> list[int]:
        """The steps of the snapshots that are in the sum."""
        return [entry["step"] for entry in self.entries]

    @property
    def rates(self) -> list[Rates]:
        """The learning rates between them."""
        return [entry["rates"] for entry in self.entries[1:]]

    @torch.no_grad()
    def take(self, step: int, rates: Rates) -> None:
        """Add what the module holds now, if this step is one of the plan; all ranks take part."""
        if step not in self._shares or step in self.steps:
            return
        entries, before = [*self.entries, {"step": step, "rates": dict(rates)}], self._means
        self.entries, self._means = [], {}  # or an interruption could leave, and save, a sum to which half was added
        so_far = math.fsum(self._shares[entry["step"]] for entry in entries)
        rate = self._shares[step] / so_far if so_far else 1.0
        means: dict[str, Tensor] = {}
        for name, tensor in self._tensors().items():
            if hasattr(tensor, "to_local"):
                tensor = whole(local(tensor), tensor)
            if self.writes:
                means[name] = _mixed(before.get(name), tensor.detach(), rate, name)
        if before and means.keys() != before.keys():
            changed = sorted(means.keys() ^ before.keys())
            raise ValueError(f"keep='sum': {changed} came, went or were tied between two snapshots. Use keep='files'.")
        self.entries, self._means = entries, means

    def _tensors(self) -> dict[str, Tensor]:
        """The live ones, tied ones under their first name."""
        return {name: tensor for name, (first, tensor) in self._named().items() if name == first}

    def _named(self) -> dict[str, tuple[str, Tensor]]:
        first: dict[int, str] = {}
        return {name: (first.setdefault(id(t), name), t) for name, t in persistent_tensors(self.module).items()}

    def ended(self, steps: int) -> bool:
        """Whether there is a merge when the training has ended after so many steps; warns of what was not planned."""
        if self.steps == self.plan and (not self.plan or steps < self.plan[-1] + self.every_n_steps):
            return True
        told = (
            f"keep='sum' was to merge the snapshots {self.plan}, but the training ended after {steps} steps with those "
            f"of {self.steps} in the sum."
        )
        if self._in_proportion():
            rank_zero_warn(f"{told} The merge is of these.")
            return True
        reason = f"Their shares are not those of a merge by {self.method!r}, so that none" if self.steps else "No merge"
        rank_zero_warn(f"{told} {reason} is written. Where the last step is not known beforehand use keep='files'.")
        return False

    def _in_proportion(self) -> bool:
        """Whether the sum is the method's merge of the snapshots in it: the mean of a part is a part of the mean."""
        if not self.steps:
            return False
        shares = torch.tensor([self._shares[step] for step in self.steps], dtype=torch.float64)
        return torch.allclose(shares / shares.sum(), self.method.coefficients(self.steps), rtol=0, atol=1e-9)

    def merge(self) -> dict[str, Tensor]:
        """The merge, in the types of the module; tied names share a tensor."""
        return {name: self._means[first].to(tensor.dtype) for name, (first, tensor) in self._named().items()}

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on."""
        entries = [dict(entry) for entry in self.entries]
        state = {"plan": self.plan, "after": self.after, "entries": entries, "folder": str(self.folder)}
        return {**state, "means": dict(self._means)}

    @staticmethod
    def check(state: Mapping[str, Any]) -> None:
        """See that a state has the form of one.

        Raises:
            ValueError: it has not.
        """
        if not all(isinstance(mean, Tensor) for mean in state["means"].values()):
            raise ValueError("'means' holds something else than tensors")
        varied(entry["rates"] for entry in state["entries"])

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of the same plan."""
        self.entries = [dict(entry) for entry in state["entries"]]
        self._means = {name: t.to("cpu", copy=True) for name, t in state["means"].items()} if self.writes else {}


def planned(total: int, *, last: int, every_n_steps: int, start_step: int) -> list[int]:
    """The steps of the last snapshots of a training of ``total`` steps.

    >>> planned(1050, last=3, every_n_steps=100, start_step=900)
    [900, 1000]
    """
    first = -(-max(start_step, 1) // every_n_steps) * every_n_steps
    return list(range(first, total + 1, every_n_steps))[-last:]


def refuse_manual_steps(module: Any) -> None:
    """Raise a ``ValueError`` where nobody but the module knows how many steps there will be."""
    if not module.automatic_optimization:
        raise ValueError(
            "keep='sum' must know the last step beforehand, but with manual optimization the module decides which "
            "batches step. Use keep='files'."
        )


def total_steps(trainer: Any) -> int:
    """After how many steps the training will have ended.

    Raises:
        ValueError: nobody knows beforehand.
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


def _mixed(mean: Tensor | None, value: Tensor, rate: float, name: str) -> Tensor:
    """The mean moved towards the value, in place; the value itself where that is all, or where it is no float."""
    if not (value.is_floating_point() or value.is_complex()):
        return value.to("cpu", copy=True)
    wide = value.dtype if value.dtype.itemsize >= 4 else torch.float32
    if mean is None or rate == 1.0:
        return value.to("cpu", wide, copy=True)
    if (mean.dtype, mean.shape) != (wide, value.shape):
        raise ValueError(
            f"keep='sum': {name} was {mean.dtype} {tuple(mean.shape)} in the sum, but is {value.dtype} "
            f"{tuple(value.shape)} now. Merge snapshots of one network only."
        )
    value = value.to("cpu", wide)
    # What is equal stays so to the bit; infinities of a mask, say, have no difference.
    return mean if torch.equal(mean, value) else mean.lerp_(value, rate)
