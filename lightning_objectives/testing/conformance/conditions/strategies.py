"""Strategies that need other devices than the CPU: a class of the same name stands in for each."""

from lightning.pytorch.strategies import SingleDeviceStrategy

from lightning_objectives.testing.conformance.check import Trial


def fsdp(trial: Trial) -> None:
    """FSDP1, which hides the parameters in flat shards, is refused at setup."""
    _refused(trial, "FSDPStrategy")


def deepspeed(trial: Trial) -> None:
    """DeepSpeed, which hides the parameters in flat shards, is refused at setup."""
    _refused(trial, "DeepSpeedStrategy")


def _refused(trial: Trial, name: str) -> None:
    trial.fit(strategy=type(name, (SingleDeviceStrategy,), {})("cpu"))
    trial.require(False, f"it trained under {name}, where nobody has seen it: declare in `refuses` why it does not.")
