"""What ReweightSamples logs of the losses."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, fit

from lightning_objectives.callbacks import ReweightSamples


class Logged(L.Callback):
    """Keeps what each step logs."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        values = {name.removeprefix("train/"): float(value) for name, value in trainer.callback_metrics.items()}
        self.values.append(values | {"trained": float(outputs["loss"])})


@pytest.mark.parametrize("how", ["mean", "none, and their mean", "none, and half their masked sum"])
def test_the_losses_that_are_logged_are_those_that_train(how):
    """Whoever reduces them."""

    class Reduced(Net):
        def criterion(self, logits, y):
            if how == "mean":
                return F.cross_entropy(logits, y)
            losses = F.cross_entropy(logits, y, reduction="none")
            return losses.mean() if how.endswith("mean") else (losses * (y != 2)).sum() / 2

    def doubled(losses):
        return torch.full_like(losses, 2.0)

    logged = Logged()
    fit(ReweightSamples(doubled), logged, net=Reduced, log_every_n_steps=1)
    assert len(logged.values) == 6
    for values in logged.values:
        assert values["weighted_loss"] == pytest.approx(values["trained"], rel=1e-5)
        assert values["unweighted_loss"] == pytest.approx(values["trained"] / 2, rel=1e-5)


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_a_batch_in_which_nothing_counts_is_no_error(reduction):
    class Ignoring(Net):
        def criterion(self, logits, y):
            losses = F.cross_entropy(logits, torch.full_like(y, -100), reduction=reduction)
            return losses if reduction == "sum" else losses.sum()

    logged = Logged()
    fit(ReweightSamples(lambda losses: torch.ones_like(losses)), logged, net=Ignoring, log_every_n_steps=1)
    assert [values["trained"] for values in logged.values] == [0.0] * 6
