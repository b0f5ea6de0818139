"""Metrics of an unedited step: what is measured, under which keys, and of which weights."""

import copy
import pickle

import lightning as L
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from helpers import Net, data, fit, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_objectives.averaging import BEMA, EMA
from lightning_objectives.calibration import TemperatureScaling
from lightning_objectives.callbacks import AverageWeights, Calibrate, LogMetrics
from lightning_objectives.metrics import default_metrics


def reference(net, prefix="val/"):
    net.eval()
    x, y = data().tensors
    metrics = default_metrics(3)
    with torch.no_grad():
        metrics.update(net(x), y)
    return {prefix + key: value for key, value in metrics.compute().items()}


def close(logged, expected):
    for key, value in expected.items():
        torch.testing.assert_close(logged[key].double(), value.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["criterion", "log_softmax", "no criterion", "dict batch"])
def test_an_unedited_step_is_measured(form):
    class Own(Net):
        def validation_step(self, batch, batch_idx):
            x, y = batch
            if form == "log_softmax":
                F.nll_loss(self(x).log_softmax(-1), y)
            elif form == "criterion":
                F.cross_entropy(self(x), y, label_smoothing=0.1)
            else:
                self(x).argmax(1)

        test_step = validation_step

    net, runner = fit(LogMetrics(), net=Own, val=loader())
    close(runner.callback_metrics, reference(net))
    assert "val/top5" not in runner.callback_metrics
    results = trainer(LogMetrics()).test(net, loader(), verbose=False)[0]
    close({k: torch.tensor(v) for k, v in results.items()}, reference(net, "test/"))
    assert not {"validation_step", "test_step", "configure_model"} & set(vars(net))
    assert not net.fc._forward_hooks


def test_keys_with_several_loaders_and_a_prefix():
    class Own(Net):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            F.cross_entropy(self(batch[0]), batch[1])

    other = loader(seed=1)
    metric = torchmetrics.classification.MulticlassAccuracy(3, average="micro")
    _, runner = fit(LogMetrics(metric, prefix="mine/"), net=Own, val=[loader(), other])
    keys = {"mine/val/MulticlassAccuracy/dataloader_idx_0", "mine/val/MulticlassAccuracy/dataloader_idx_1"}
    assert keys <= set(runner.callback_metrics)


def test_averages_of_several_callbacks_keep_their_own_keys():
    """The second callback's EMA and BEMA are ema_2 and bema_2, and not measured into the first's."""
    one, two = AverageWeights([EMA(decay=0.5), BEMA()]), AverageWeights([EMA(decay=0.9), BEMA(lag=3)], primary=False)
    net, runner = fit(one, two, LogMetrics(weights=["average"]), val=loader())
    for callback, names in ((one, ("ema", "bema")), (two, ("ema_2", "bema_2"))):
        for name, own in zip(names, ("ema", "bema")):
            with callback.applied(net, own):
                close(runner.callback_metrics, reference(net, f"val/{name}/"))


def test_averages_of_a_network_whose_step_flattens_the_positions():
    """As language models do: (N, T, C) logits are compared as N * T rows."""

    class Positions(Net):
        def forward(self, x):
            return super().forward(x[:, None].expand(-1, 2, -1))

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]).flatten(0, 1), batch[1].repeat_interleave(2))

        def validation_step(self, batch, batch_idx):
            self.training_step(batch, batch_idx)

    averages = AverageWeights(EMA(decay=0.5))
    _, runner = fit(averages, LogMetrics(default_metrics(3), weights=["average"]), net=Positions, val=loader())
    logged = runner.callback_metrics
    torch.testing.assert_close(logged["val/ema/nll"], logged["val/nll"])


def test_raw_and_averaged_weights_beside_each_other():
    averages = AverageWeights([EMA(decay=0.5), BEMA()])
    net, runner = fit(averages, LogMetrics(weights=["raw", "average"]), val=loader())
    logged = runner.callback_metrics
    close(logged, reference(net))  # after the fit the module holds the primary average, which was validated
    close(logged, reference(net, "val/ema/"))
    with averages.applied(net, "bema"):
        close(logged, reference(net, "val/bema/"))
    plain, _ = fit()
    close(logged, reference(plain, "val/raw/"))
    assert logged["val/raw/nll"] != logged["val/ema/nll"] != logged["val/bema/nll"]


class Normed(Net):
    def __init__(self):
        super().__init__()
        self.backbone = torch.nn.Sequential(self.backbone, torch.nn.BatchNorm1d(6))


@pytest.mark.parametrize("buffers", ["copy", "average", "recalibrate"])
def test_raw_weights_are_measured_with_raw_statistics(buffers):
    """Also while those of the primary average stand in the module."""
    _, plain = fit(LogMetrics(), net=Normed, val=loader())
    _, beside = fit(AverageWeights(EMA(decay=0.5)), LogMetrics(weights=["average"]), net=Normed, val=loader())
    averages = [
        AverageWeights(BEMA(), buffers=buffers),
        AverageWeights(EMA(decay=0.5), primary=False),
    ]
    _, runner = fit(*averages, LogMetrics(weights=["raw", "average"]), net=Normed, val=loader())
    logged = runner.callback_metrics
    close(logged, {f"val/raw/{key}": plain.callback_metrics[f"val/{key}"] for key in ("nll", "ece", "top1")})
    close(logged, {f"val/ema/{key}": beside.callback_metrics[f"val/ema/{key}"] for key in ("nll", "ece", "top1")})
    close(logged, {f"val/{key}": logged[f"val/bema/{key}"] for key in ("nll", "ece", "top1")})


def test_logging_changes_no_weight():
    plain, _ = fit(net=lambda: Net(dropout=0.5), val=loader())
    measured, runner = fit(LogMetrics(weights=["average"]), net=lambda: Net(dropout=0.5), val=loader())
    assert "val/nll" in runner.callback_metrics
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), measured.parameters()))


def test_a_checkpoint_can_be_chosen_by_a_key(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val/top1", mode="max", filename="best")
    fit(EMAs := AverageWeights(EMA(decay=0.5)), LogMetrics(), best, val=loader(), enable_checkpointing=True)
    assert EMAs.names == ("ema",)
    found = Net.load_from_checkpoint(best.best_model_path)
    assert reference(found)["val/top1"] == pytest.approx(best.best_model_score.item())


def test_validate_then_fit():
    callback = LogMetrics()
    net = Net()
    runner = trainer(callback)
    runner.validate(net, loader(), verbose=False)
    runner.fit(net, loader(), loader())
    close(runner.callback_metrics, reference(net))


class Regression(Net):
    def validation_step(self, batch, batch_idx):
        F.mse_loss(self(batch[0]), F.one_hot(batch[1], 3).float())


class Labels(Net):
    def validation_step(self, batch, batch_idx):
        F.binary_cross_entropy_with_logits(self(batch[0]), F.one_hot(batch[1], 3).float())


class Twice(Net):
    def validation_step(self, batch, batch_idx):
        F.cross_entropy(self(batch[0]), batch[1])
        F.cross_entropy(-self(batch[0]), batch[1])


class Scaled(Net):
    def validation_step(self, batch, batch_idx):
        F.cross_entropy(self(batch[0]) / 3, batch[1])


class WithoutNetwork(Net):
    def validation_step(self, batch, batch_idx):
        F.cross_entropy(batch[0][:, :3], batch[1])


class Nothing(Net):
    def validation_step(self, batch, batch_idx):
        pass


class Predicts(Net):
    def validation_step(self, batch, batch_idx):
        self(batch[0])


@pytest.mark.parametrize(
    ("net", "callback", "message"),
    [
        (Labels, LogMetrics(), "several labels that may hold together.* Say metrics="),
        (Twice, LogMetrics(), r"calls 2 criteria \(0: cross_entropy of \(8, 3\), 1: .*\); say which="),
        (Twice, LogMetrics(which=3), "which=3, but"),
        (Nothing, LogMetrics(), "no criterion and no head was seen"),
        (Predicts, LogMetrics(target="label"), "target='label'"),
        (Predicts, LogMetrics(head="model.fc"), "head='model.fc' does not exist"),
        (Scaled, LogMetrics(weights=["average"]), "cannot be repeated"),
        (WithoutNetwork, LogMetrics(weights=["average"]), "forward, but the evaluation step did not call it"),
    ],
)
def test_what_cannot_be_measured_is_refused(net, callback, message):
    net = net()
    extra = [AverageWeights(EMA())] if callback.weights else []
    with pytest.raises(ValueError, match=message):
        fit(*extra, callback, net=net, val=loader())
    assert "validation_step" not in vars(net)


@pytest.mark.parametrize("callback", [LogMetrics(), Calibrate(TemperatureScaling())], ids=lambda c: type(c).__name__)
def test_metrics_of_the_user_are_measured_by_copies(callback):
    """Otherwise each loader, and each epoch, would go on with the sums of the one before."""

    class Two(Net):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)

    own = callback.metrics = default_metrics(3)
    _, runner = fit(callback, net=Two, val=[loader(), loader(seed=1)])
    assert not any(metric.update_called for metric in own.values())
    first, second = (value for key, value in sorted(runner.callback_metrics.items()) if "nll/" in key)
    assert first != second


def test_the_second_criterion_and_other_metrics():
    net, runner = fit(LogMetrics(which=0), net=Twice, val=loader())
    close(runner.callback_metrics, reference(net))
    _, turned = fit(LogMetrics(which=1), net=Twice, val=loader())
    assert turned.callback_metrics["val/nll"] != runner.callback_metrics["val/nll"]  # of the negated logits
    metrics = torchmetrics.MetricCollection({"mse": torchmetrics.MeanSquaredError()})
    _, runner = fit(LogMetrics(metrics), net=Regression, val=loader())
    assert "val/mse" in runner.callback_metrics


@pytest.mark.parametrize("how", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
@pytest.mark.parametrize("make", [lambda: LogMetrics(weights=["raw"]), lambda: Calibrate(TemperatureScaling())])
def test_callback_and_module_are_copied_in_a_validation(how, make):
    callback, found = make(), []

    class Copies(L.Callback):
        def on_validation_end(self, trainer, module):
            found.append(how((callback, module)))

    fit(callback, Copies(), val=loader())
    again, net = found[-1]
    assert again._steps is None
    copied = trainer(again).validate(net, loader(), verbose=False)[0]
    assert any("val/" in key for key in copied)
    assert copied == trainer(make()).validate(net, loader(), verbose=False)[0]
