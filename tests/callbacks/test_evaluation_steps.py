"""Evaluation steps as people write them: nested, with batches left out, without labels, binary, dense, regressions."""

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from helpers import Net, data, loader, trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives._step.compared import Compared
from lightning_objectives.calibration import TemperatureScaling
from lightning_objectives.calibration.temperature_scaling import best_temperature
from lightning_objectives.callbacks import Calibrate, LogMetrics
from lightning_objectives.metrics import TopKAccuracy


def validated(net, *callbacks, batches=None):
    """What is logged by a validation."""
    runner = trainer(*callbacks)
    runner.validate(net, loader() if batches is None else batches, verbose=False)
    return {key: value.item() for key, value in runner.callback_metrics.items()}


def logits_of(net):
    x, y = data().tensors
    with torch.no_grad():
        return net.eval()(x), y


# -- which calls are read ----------------------------------------------------------------------------------------------


def test_a_test_step_that_calls_the_validation_step_is_one_step():
    class Nested(Net):
        def test_step(self, batch, batch_idx):
            return self.validation_step(batch, batch_idx)

    net = Nested()
    runner = trainer(LogMetrics())
    runner.test(net, loader(), verbose=False)
    logits, y = logits_of(net)
    assert runner.callback_metrics["test/nll"].item() == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert runner.callback_metrics["test/top1"].item() == pytest.approx((logits.argmax(1) == y).float().mean().item())


def test_a_loss_and_a_metric_of_the_same_predictions_are_one_comparison():
    class Two(Net):
        def validation_step(self, batch, batch_idx):
            logits = self(batch[0])
            F.cross_entropy(logits, batch[1], label_smoothing=0.1)
            F.cross_entropy(logits, batch[1])

    net = Two()
    logits, y = logits_of(net)
    assert validated(net, LogMetrics())["val/nll"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)


@pytest.mark.parametrize("early", [True, False])
def test_batches_that_the_step_leaves_out_are_left_out(early):
    class Skips(Net):
        def validation_step(self, batch, batch_idx):
            if (batch_idx == 0) == early:
                return
            F.cross_entropy(self(batch[0]), batch[1])

    net = Skips()
    x, y = data().tensors
    kept = slice(8, None) if early else slice(0, 8)
    with torch.no_grad():
        expected = F.cross_entropy(net.eval()(x[kept]), y[kept]).item()
    assert validated(net, LogMetrics())["val/nll"] == pytest.approx(expected, rel=1e-5)


def test_a_loader_without_labels_is_left_out():
    class Own(Net):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            logits = self(batch[0] if isinstance(batch, list) else batch)
            if dataloader_idx == 0:
                F.cross_entropy(logits, batch[1])

    unlabelled = DataLoader(data().tensors[0], batch_size=8)
    net = Own()
    logits, y = logits_of(net)
    logged = validated(net, LogMetrics(), Calibrate(TemperatureScaling()), batches=[loader(), unlabelled])
    assert logged["val/nll"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
    assert "val/calibrated/nll" in logged


def test_an_evaluation_without_anything_to_measure_is_an_error_that_says_so():
    class Nothing(Net):
        def validation_step(self, batch, batch_idx):
            self(batch)

    for callback in (LogMetrics(), Calibrate(TemperatureScaling())):
        with pytest.raises(ValueError, match="no tensor of targets at target=None in a batch that is a Tensor"):
            validated(Nothing(), callback, batches=DataLoader(data().tensors[0], batch_size=8))


# -- what the numbers are ----------------------------------------------------------------------------------------------


class Binary(Net):
    """Two classes in one column, as probabilities or logits, in any shape."""

    def __init__(self, shape, probabilities):
        super().__init__(classes=1)
        self.shape, self.probabilities = shape, probabilities

    def compare(self, batch):
        z, y = self(batch[0]).view(-1, *self.shape), (batch[1] > 0).float().view(-1, *self.shape)
        if self.probabilities:
            return z.sigmoid(), y
        return z, y

    def validation_step(self, batch, batch_idx):
        preds, y = self.compare(batch)
        (F.binary_cross_entropy if self.probabilities else F.binary_cross_entropy_with_logits)(preds, y)


@pytest.mark.parametrize("shape", [(), (1,), (1, 2, 2)], ids=str)
@pytest.mark.parametrize("probabilities", [True, False])
def test_two_classes_in_one_column(shape, probabilities):
    net = Binary(shape, probabilities)
    x, y = data().tensors
    with torch.no_grad():
        z, y = net.eval()(x)[:, 0], (y > 0).long()
    calibrate = Calibrate(TemperatureScaling())
    logged = validated(net, LogMetrics(), calibrate)
    assert logged["val/nll"] == pytest.approx(F.binary_cross_entropy_with_logits(z, y.float()).item(), rel=1e-5)
    assert logged["val/top1"] == pytest.approx(((z > 0).long() == y).float().mean().item())
    assert logged["val/brier"] == pytest.approx(2 * (z.sigmoid() - y).square().mean().item(), rel=1e-5)
    expected = best_temperature(torch.stack([torch.zeros_like(z), z], 1), y)
    assert calibrate.calibrator.temperature.item() == pytest.approx(expected, rel=1e-3)


def test_probabilities_of_nought_and_one_cost_what_torch_says():
    class Sure(Binary):
        def compare(self, batch):
            preds, y = super().compare(batch)
            return (preds > 0.5).float(), y

    net = Sure((), True)
    expected = F.binary_cross_entropy(*net.eval().compare(data().tensors)).item()
    assert expected > 1
    assert validated(net, LogMetrics())["val/nll"] == pytest.approx(expected, rel=1e-5)


def test_a_minus_100_that_nobody_ignores_is_no_class():
    """Metrics ignore it by their own default, so it must not get through to them."""
    target = torch.tensor([0, -100, 255, 2])
    compared = Compared(torch.zeros(4, 3), target, "classes", "a test", ignore_index=255)
    assert compared.pair[1].tolist() == [0, -101, -100, 2]
    metric = TopKAccuracy()
    metric.update(*compared.pair)
    with pytest.raises(ValueError, match="1 of 3 rows break a rule"):
        metric.compute()


@pytest.mark.parametrize("ignored", [0, 255, -100])
def test_what_the_criterion_ignores_does_not_count(ignored):
    class Dense(Net):
        def validation_step(self, batch, batch_idx):
            logits = self(batch[0]).view(-1, 2, 3).movedim(2, 1)
            y = batch[1].view(-1, 2).clone()
            y[:, 1] = ignored
            self.log("loss", F.cross_entropy(logits, y, ignore_index=ignored))

    net = Dense()
    logits, y = logits_of(net)
    kept = (torch.arange(24) % 2 == 0) & (y != ignored)
    if ignored == 0:
        assert kept.sum() < 12
    calibrate = Calibrate(TemperatureScaling())
    metric = torchmetrics.classification.MulticlassAccuracy(3, average="micro")
    logged = validated(net, LogMetrics(), LogMetrics(metric, prefix="own/"), calibrate)
    assert logged["val/nll"] == pytest.approx(F.cross_entropy(logits[kept], y[kept]).item(), rel=1e-5)
    accuracy = (logits[kept].argmax(1) == y[kept]).float().mean().item()
    assert logged["val/top1"] == logged["own/val/MulticlassAccuracy"] == pytest.approx(accuracy), "each sees the call"
    assert calibrate.calibrator.temperature.item() == pytest.approx(best_temperature(logits[kept], y[kept]), rel=1e-3)


REGRESSIONS = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "huber": F.huber_loss,
    "gaussian": lambda p, y: F.gaussian_nll_loss(p, y, torch.ones_like(p)),
}


@pytest.mark.parametrize("name", REGRESSIONS)
@pytest.mark.parametrize("flat", [True, False])
def test_a_regression_has_metrics_of_its_own(name, flat):
    class Regression(Net):
        def validation_step(self, batch, batch_idx):
            p, y = self(batch[0]), batch[0][:, :3] * 2
            REGRESSIONS[name](p.flatten() if flat else p, y.flatten() if flat else y)

    net = Regression()
    x, _ = data().tensors
    with torch.no_grad():
        p, y = net.eval()(x), x[:, :3] * 2
    logged = validated(net, LogMetrics())
    assert set(logged) == {"val/mae", "val/rmse", "val/r2"}
    assert logged["val/mae"] == pytest.approx((p - y).abs().mean().item(), rel=1e-5)
    assert logged["val/rmse"] == pytest.approx((p - y).square().mean().sqrt().item(), rel=1e-5)
    residual = (p - y).square().sum() / (y - y.mean()).square().sum()
    assert logged["val/r2"] == pytest.approx(1 - residual.item(), rel=1e-4)
    with pytest.raises(ValueError, match="needs one class of several for each row"):
        validated(net, Calibrate(TemperatureScaling()))


def test_rates_are_the_predictions_of_a_poisson_regression():
    class Counts(Net):
        def validation_step(self, batch, batch_idx):
            F.poisson_nll_loss(self(batch[0])[:, 0], batch[1].float())

    net = Counts()
    logits, y = logits_of(net)
    assert validated(net, LogMetrics())["val/mae"] == pytest.approx(
        (logits[:, 0].exp() - y).abs().mean().item(), rel=1e-5
    )


def test_one_number_has_no_share_of_explained_variance():
    class Regression(Net):
        def validation_step(self, batch, batch_idx):
            F.mse_loss(self(batch[0])[:, 0], batch[1].float())

    batches = DataLoader(TensorDataset(*data(n=1).tensors), batch_size=1)
    logged = validated(Regression(), LogMetrics(), batches=batches)
    assert logged["val/r2"] != logged["val/r2"]
    assert logged["val/mae"] == logged["val/rmse"]


def test_numbers_without_a_criterion_are_no_classes():
    class Own(Net):
        def validation_step(self, batch, batch_idx):
            (self(batch[0])[:, 0] - batch[-1]).abs().mean()

    x, y = data().tensors
    batches = DataLoader(TensorDataset(x, y.float()), batch_size=8)
    with pytest.raises(ValueError, match=r"\(no criterion\): its targets are numbers that show neither.* Say metrics="):
        validated(Own(), LogMetrics(), batches=batches)


def test_log_probabilities_against_a_distribution():
    class Soft(Net):
        def validation_step(self, batch, batch_idx):
            F.kl_div(self(batch[0]).log_softmax(1), F.one_hot(batch[1], 3).float(), reduction="batchmean")

    net = Soft()
    logits, y = logits_of(net)
    assert validated(net, LogMetrics())["val/nll"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)


def test_a_target_by_its_path():
    class Own(Net):
        def validation_step(self, batch, batch_idx):
            self(batch["x"])

    rows = [{"x": x, "labels": {"y": y}} for x, y in data()]
    net = Own()
    logits, y = logits_of(net)
    logged = validated(net, LogMetrics(target="labels.y"), batches=DataLoader(rows, batch_size=8))
    assert logged["val/nll"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-5)
