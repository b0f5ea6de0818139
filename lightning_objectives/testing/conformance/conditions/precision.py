"""Number types, and a gradient scaler."""

import torch
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_objectives.testing.conformance.check import Trial


def float32(trial: Trial) -> None:
    """Lightning's default."""
    trial.holds(twice=True)


def bf16_mixed(trial: Trial) -> None:
    """bfloat16 autocast; the weights stay float32, and the losses are near those of float32."""
    _, run = trial.holds(twice=True, precision="bf16-mixed")
    exact = trial.usual()
    types = {value.dtype for value in run.weights.values() if value.is_floating_point()}
    trial.require(types == {torch.float32}, f"the weights must stay float32, not {types}.")
    near = torch.allclose(torch.tensor(run.losses), torch.tensor(exact.losses), rtol=0.1, atol=0.1)
    trial.require(near, f"the losses must be near those of float32, but are {run.losses}, not {exact.losses}.")


def bf16_true(trial: Trial) -> None:
    """bfloat16 weights."""
    _, run = trial.holds(twice=True, precision="bf16-true")
    types = {value.dtype for value in run.weights.values() if value.is_floating_point()}
    trial.require(types == {torch.bfloat16}, f"the weights must stay bfloat16, not {types}.")


def float64(trial: Trial) -> None:
    """float64 weights, which stay float64."""
    _, run = trial.holds(twice=True, precision="64-true")
    types = {value.dtype for value in run.weights.values() if value.is_floating_point()}
    trial.require(types == {torch.float64}, f"the weights must stay float64, not {types}.")


def a_scaler_that_skips(trial: Trial) -> None:
    """A gradient scaler that skips every step: the weights stay as they were."""

    def scaled() -> MixedPrecision:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=10**6, backoff_factor=0.99)
        return MixedPrecision("16-mixed", "cpu", scaler=scaler)

    run = trial.fit(plugins=[scaled()])
    plain = trial.plain(plugins=[scaled()])
    still = {name for name, _ in run.module.named_parameters()}
    moved = [name for name in still if not torch.equal(run.weights[name], plain.weights[name])]
    trial.require(not moved, f"no step was taken, but these moved: {moved}.")
