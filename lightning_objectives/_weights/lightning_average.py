"""Keeps Lightning's own averages apart from ours, and goes on from one that a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_objectives._trainer.checkpoints import taking
from lightning_objectives._trainer.lightning import rank_zero_warn
from lightning_objectives._weights.averages import Averages

ONE_IS_LEFT = "only one average can be validated, saved and left in the module"
"""Why a training has one primary average, ours or Lightning's."""
_CLASSES = {"StochasticWeightAveraging", "WeightAveraging"}
_NAME = "WeightAveraging"


def refuse_lightning_averages(trainer: Any, names: tuple[str, ...]) -> None:
    """Refuse to train the averages of these names beside an average of Lightning's.

    Raises:
        ValueError: the trainer has such a callback.
    """
    for callback in trainer.callbacks:
        rivals = _CLASSES & {cls.__name__ for cls in type(callback).__mro__}
        if rivals:
            raise ValueError(
                f"AverageWeights of {names} stands beside Lightning's {rivals.pop()}, but {ONE_IS_LEFT}. "
                "Keep one of the two, or pass primary=False to AverageWeights."
            )


@dataclass(frozen=True)
class LightningAverage:
    """Holds the average that a checkpoint of Lightning's ``WeightAveraging`` has in place of the weights."""

    weights: Mapping[str, Tensor]
    updates: int

    @classmethod
    def load(cls, checkpoint: Mapping[str, Any], trainer: Any, module: Any) -> "LightningAverage | None":
        """Put the raw weights of such a checkpoint into the module; returns the average, or None if there is none."""
        if not {"current_model_state", "averaging_state"} <= checkpoint.keys():
            return None
        with taking(_NAME, trainer):
            average = cls(checkpoint["state_dict"], int(checkpoint["averaging_state"]["n_averaged"]))
            module.load_state_dict(checkpoint["current_model_state"], strict=module.strict_loading)
        return average if average.updates else None

    def continue_in(self, averages: Averages, trainer: Any) -> None:
        """Let our averages go on from this one; warns of rules that need more than an average."""
        with taking(_NAME, trainer):
            rules = averages.adopt(self.weights, updates=self.updates)
        if rules:
            rank_zero_warn(f"The checkpoint's average is a plain one; {rules} need more than that and begin anew.")
