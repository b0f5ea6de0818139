"""What the calibrator is fitted on, what is logged, and that the network is left alone."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, equal, fit, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives.averaging import EMA
from lightning_objectives.calibration import IsotonicCalibration, TemperatureScaling, VectorScaling, best_temperature
from lightning_objectives.callbacks import AverageWeights, Calibrate, LogMetrics
from lightning_objectives.kinds import Calibrator
from lightning_objectives.metrics import default_metrics
from lightning_objectives.prediction_sets import APS


def logits_of(net):
    net.eval()
    x, y = data().tensors
    with torch.no_grad():
        return net(x), y


@pytest.mark.parametrize("form", ["criterion", "log_softmax", "no criterion"])
def test_it_is_fitted_on_what_the_last_validation_saw(form):
    class Own(Net):
        def validation_step(self, batch, batch_idx):
            x, y = batch
            if form == "criterion":
                F.cross_entropy(self(x), y)
            elif form == "log_softmax":
                F.nll_loss(self(x).log_softmax(-1), y)
            else:
                self(x).argmax(1)

    callback = Calibrate(TemperatureScaling())
    net, runner = fit(callback, net=Own, val=loader())
    logits, y = logits_of(net)
    expected = best_temperature(logits, y)
    assert callback.calibrator.temperature.item() == pytest.approx(expected, rel=1e-4)
    metrics = default_metrics(3)
    metrics.update(logits / expected, y)
    for key, value in metrics.compute().items():
        assert runner.callback_metrics[f"val/calibrated/{key}"].item() == pytest.approx(value.item(), abs=1e-5)


def test_validate_then_test():
    callback, net = Calibrate(TemperatureScaling()), Net()
    net.test_step = net.validation_step
    runner = trainer(callback, LogMetrics())
    (val,) = runner.validate(net, loader(), verbose=False)
    (test,) = runner.test(net, loader(), verbose=False)
    for key in ("nll", "ece", "top1"):
        assert val[f"val/calibrated/{key}"] == pytest.approx(test[f"test/calibrated/{key}"], abs=1e-6)
    assert val["val/calibrated/nll"] < val["val/nll"]
    assert val["val/calibrated/top1"] == val["val/top1"]
    assert not {"validation_step", "configure_model"} & set(vars(net))
    runner.fit(net, loader(), loader())  # what validate made in inference mode is no hindrance


class Trained(Calibrator):
    """Is fitted by gradients, and puts a new tensor in the place of the old."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def fit(self, logits, target):
        scale = self.scale.clone().requires_grad_()
        F.cross_entropy(logits * scale, target).backward()
        self.scale = (scale - 0.1 * scale.grad).detach()

    def forward(self, logits):
        return (logits * self.scale).softmax(1)


@pytest.mark.parametrize("function", ["fit", "validate"])
def test_a_calibrator_may_be_trained_and_trained_through(function):
    """A validation of `validate` runs in inference mode, that of `fit` without gradients."""
    callback, net = Calibrate(Trained()), Net()
    runner = trainer(callback, max_epochs=1)
    (runner.fit(net, loader(), loader()) if function == "fit" else runner.validate(net, loader(), verbose=False))
    assert callback.calibrator.scale != 1
    callback.calibrator(net(data().tensors[0])).square().sum().backward()


def test_the_sanity_check_fits_nothing():
    callback = Calibrate(TemperatureScaling())
    fit(callback, val=loader(), check_val_every_n_epoch=5, num_sanity_val_steps=1)
    assert not callback.fitted
    assert callback.state_dict() == {}
    assert callback.calibrator.temperature == 1


def test_the_network_is_left_alone():
    plain, _ = fit(net=lambda: Net(dropout=0.5), val=loader())
    ours, _ = fit(Calibrate(TemperatureScaling()), net=lambda: Net(dropout=0.5), val=loader())
    assert equal(plain, ours)


def test_with_other_callbacks_on_the_same_step_in_either_order():
    """The step calls no criterion: the second forward of LogMetrics must not be taken for the step's own."""

    class Predicts(Net):
        def validation_step(self, batch, batch_idx):
            self(batch[0])

    def run(order):
        calibrate = Calibrate(TemperatureScaling())
        callbacks = [AverageWeights(EMA(decay=0.5)), LogMetrics(weights=["raw"]), calibrate]
        net, runner = fit(*[callbacks[k] for k in order], net=Predicts, val=loader())
        assert calibrate.calibrator.temperature.item() == pytest.approx(best_temperature(*logits_of(net)), rel=1e-4)
        return runner.callback_metrics["val/raw/nll"].item()

    assert run([0, 1, 2]) == run([0, 2, 1])


def test_ignored_rows_and_dense_logits():
    class Dense(Net):
        def validation_step(self, batch, batch_idx):
            x, y = batch
            logits = self(x).view(-1, 2, 3).movedim(2, 1)  # (B, C, 2)
            F.cross_entropy(logits, y.view(-1, 2), ignore_index=0)

    callback = Calibrate(TemperatureScaling())
    net, _ = fit(callback, net=Dense, val=loader())
    logits, y = logits_of(net)
    assert callback.calibrator.temperature.item() == pytest.approx(best_temperature(logits[y > 0], y[y > 0]), rel=1e-4)


def test_two_classes_in_one_column():
    class Binary(Net):
        def training_step(self, batch, batch_idx):
            return F.binary_cross_entropy_with_logits(self(batch[0])[:, 0], batch[1].float())

        def validation_step(self, batch, batch_idx):
            self.training_step(batch, batch_idx)

    x, y = data(classes=2).tensors
    batches = DataLoader(TensorDataset(x, y), batch_size=8)
    callback = Calibrate(TemperatureScaling())
    net, _ = fit(callback, net=Binary, train=batches, val=batches)
    with torch.no_grad():
        z = net.eval()(x)[:, 0]
    expected = best_temperature(torch.stack([torch.zeros_like(z), z], 1), y)
    assert callback.calibrator.temperature.item() == pytest.approx(expected, rel=1e-4)


def test_several_loaders_fit_on_the_first():
    class Own(Net):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            F.cross_entropy(self(batch[0]), batch[1])

    callback = Calibrate(TemperatureScaling())
    net, runner = fit(callback, net=Own, val=[loader(), loader(seed=1)])
    assert callback.calibrator.temperature.item() == pytest.approx(best_temperature(*logits_of(net)), rel=1e-4)
    keys = {"val/calibrated/nll/dataloader_idx_0", "val/calibrated/nll/dataloader_idx_1"}
    assert keys <= set(runner.callback_metrics)


def test_a_checkpoint_holds_the_calibration(tmp_path):
    best = ModelCheckpoint(tmp_path, monitor="val/calibrated/nll", filename="best")
    fit(Calibrate(TemperatureScaling()), best, val=loader(), enable_checkpointing=True)
    state = torch.load(best.best_model_path, weights_only=True)["state_dict"]
    assert state.keys() == Net().state_dict().keys()
    callback, found = Calibrate(TemperatureScaling()), Net()
    found.test_step = found.validation_step
    trainer(callback).test(found, loader(), ckpt_path=best.best_model_path, verbose=False, weights_only=True)
    assert callback.calibrator.temperature.item() == pytest.approx(best_temperature(*logits_of(found)), rel=1e-4)


def same_probabilities(method, other):
    logits = torch.randn(20, 3)
    return torch.equal(method(logits), other(logits)) and not torch.equal(method(logits), logits.softmax(1))


def test_buffers_that_depend_on_the_data_lie_in_checkpoints_too(tmp_path):
    """A new, unfitted calibrator gets them by a test, by a fit that goes on, and by the callback's own state."""
    first = Calibrate(IsotonicCalibration())
    net, runner = fit(first, val=loader(), max_epochs=1)
    runner.save_checkpoint(tmp_path / "end.ckpt")
    tested, resumed, loaded = (Calibrate(IsotonicCalibration()) for _ in range(3))
    net.test_step = net.validation_step
    trainer(tested).test(net, loader(), ckpt_path=tmp_path / "end.ckpt", verbose=False, weights_only=True)
    trainer(resumed, max_epochs=1).fit(Net(), loader(), loader(seed=1), ckpt_path=tmp_path / "end.ckpt")
    loaded.load_state_dict(first.state_dict())
    for callback in (tested, resumed, loaded):
        assert callback.fitted
        assert same_probabilities(callback.calibrator, first.calibrator)


def test_a_state_that_does_not_fit_is_refused_with_the_file_and_changes_nothing(tmp_path):
    fitted, other = Calibrate(VectorScaling()), Calibrate(VectorScaling())
    _, runner = fit(fitted, val=loader(), max_epochs=1)
    runner.save_checkpoint(tmp_path / "end.ckpt")
    content = torch.load(tmp_path / "end.ckpt", weights_only=True)
    content["callbacks"][fitted.state_key]["scale"] = torch.ones(5, dtype=torch.float64)
    torch.save(content, tmp_path / "wrong.ckpt")
    net = Net()
    net.test_step = net.validation_step
    with pytest.raises(ValueError, match=r"(?s)wrong\.ckpt holds a state of .*bias of the shape \(3,\).* with C = 5"):
        trainer(other).test(net, loader(), ckpt_path=tmp_path / "wrong.ckpt", verbose=False, weights_only=True)
    assert not other.fitted
    assert not other.calibrator.scale.numel()


@pytest.mark.parametrize("method", [IsotonicCalibration, VectorScaling])
def test_images_one_column_and_soft_targets(method):
    class Pixels(Net):
        def validation_step(self, batch, batch_idx):
            logits = self(batch[0])[:, :, None, None].expand(-1, -1, 2, 1)
            F.cross_entropy(logits, batch[1][:, None, None].expand(-1, 2, 1))

    class Binary(Net):
        def validation_step(self, batch, batch_idx):
            F.binary_cross_entropy_with_logits(self(batch[0])[:, :1], (batch[1] == 1)[:, None].float())

    class Soft(Net):
        def validation_step(self, batch, batch_idx):
            F.cross_entropy(self(batch[0]), F.one_hot(batch[1], 3) * 0.7 + 0.1)

    for form in (Pixels, Binary, Soft):
        callback = Calibrate(method())
        net, _ = fit(callback, net=form, val=loader(), max_epochs=1)
        (logits, y), expected = logits_of(net), method()
        if form is Binary:
            logits, y = torch.stack([torch.zeros(len(logits)), logits[:, 0]], 1), (y == 1).long()
        expected.fit(logits, F.one_hot(y, 3) * 0.7 + 0.1 if form is Soft else y)
        torch.testing.assert_close(callback.calibrator(logits), expected(logits), atol=1e-4, rtol=1e-3)


# -- prediction sets ---------------------------------------------------------------------------------------------------


def by_hand(net, **settings):
    """Coverage and size of the sets that are fitted on what the validation saw."""
    method, (logits, y) = APS(randomized=False, **settings), logits_of(net)
    method.fit(logits, y)
    sets = method(logits)
    return sets.gather(1, y[:, None]).float().mean().item(), sets.sum(1).float().mean().item()


def test_sets_are_fitted_and_measured():
    callback = Calibrate(APS(alpha=0.2, randomized=False))
    net, runner = fit(callback, LogMetrics(), val=loader())
    logged, (coverage, size) = runner.callback_metrics, by_hand(net, alpha=0.2)
    assert logged["val/sets/coverage"].item() == pytest.approx(coverage)
    assert logged["val/sets/size"].item() == pytest.approx(size)
    assert 0.8 <= coverage < 1
    net.test_step = net.validation_step
    (test,) = runner.test(net, loader(), verbose=False)
    assert test["test/sets/coverage"] == pytest.approx(coverage)
    assert not {"val/calibrated/nll", "val/calibrated/coverage"} & logged.keys()


def test_the_draws_of_sets_are_those_of_the_seed_and_leave_the_training_alone():
    def run(seed):
        callback = Calibrate(APS(alpha=0.4), seed=seed)
        net, runner = fit(callback, net=lambda: Net(dropout=0.5), val=loader())
        return net, callback.calibrator.threshold.item(), runner.callback_metrics["val/sets/size"].item()

    plain, _ = fit(net=lambda: Net(dropout=0.5), val=loader())
    first, again, other = run(0), run(0), run(1)
    assert equal(plain, first[0])
    assert first[1:] == again[1:]
    assert first[1] != other[1]


def test_the_draws_of_the_fit_are_not_those_of_the_sets():
    """They would make the coverage of a test that has the rows of the fit exactly that of the fit."""
    seeds = []

    class Notes(APS):
        def _scores(self, logits, generator):
            seeds.append(generator.initial_seed())
            return super()._scores(logits, generator)

    class Two(Net):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx)

    fit(Calibrate(Notes()), net=Two, val=[loader(), loader(seed=1)], max_epochs=2)
    fitted, by_loader = {seeds[0], seeds[7]}, {*seeds[1:4], *seeds[4:7], *seeds[8:11], *seeds[11:]}
    assert (len(fitted), len(by_loader), len(fitted | by_loader)) == (2, 4, 6)


def test_sets_of_images_one_column_and_of_a_checkpoint(tmp_path):
    class Pixels(Net):
        def validation_step(self, batch, batch_idx):
            logits = self(batch[0])[:, :, None, None].expand(-1, -1, 2, 1)
            F.cross_entropy(logits, batch[1][:, None, None].expand(-1, 2, 1))

    class Binary(Net):
        def validation_step(self, batch, batch_idx):
            F.binary_cross_entropy_with_logits(self(batch[0])[:, 0], (batch[1] == 1).float())

    callback, one = Calibrate(APS(randomized=False)), Calibrate(APS(randomized=False))
    net, runner = fit(callback, net=Pixels, val=loader())
    (logits, y), expected = logits_of(net), APS(randomized=False)
    expected.fit(logits.repeat(2, 1), y.repeat(2))
    assert callback.calibrator.threshold.item() == pytest.approx(expected.threshold.item(), abs=1e-5)
    runner.save_checkpoint(tmp_path / "end.ckpt")
    loaded = Calibrate(APS(randomized=False))
    net.test_step = net.validation_step
    trainer(loaded).test(net, loader(), ckpt_path=tmp_path / "end.ckpt", verbose=False, weights_only=True)
    assert loaded.calibrator.threshold == callback.calibrator.threshold
    net, _ = fit(one, net=Binary, val=loader())
    assert one.calibrator(torch.stack([torch.zeros(24), logits_of(net)[0][:, 0]], 1)).shape == (24, 2)


def test_sets_of_soft_targets_are_refused_and_so_is_a_test_before_a_fit():
    class Soft(Net):
        def validation_step(self, batch, batch_idx):
            F.cross_entropy(self(batch[0]), F.one_hot(batch[1], 3) * 0.7 + 0.1)

    with pytest.raises(ValueError, match=r"needs one class for each row, .* with probabilities, \(8, 3\)"):
        fit(Calibrate(APS()), net=Soft, val=loader())
    net = Net()
    net.test_step = net.validation_step
    with pytest.raises(ValueError, match="has not been fitted"):
        trainer(Calibrate(APS())).test(net, loader(), verbose=False)


class Regression(Net):
    def validation_step(self, batch, batch_idx):
        F.mse_loss(self(batch[0]), F.one_hot(batch[1], 3).float())


def test_what_cannot_be_calibrated_is_refused():
    with pytest.raises(ValueError, match=r"needs one class of several for each row, .* \(mse_loss of \(8, 3\)\)"):
        fit(Calibrate(TemperatureScaling()), net=Regression, val=loader())
    net = Net()
    net.test_step = net.validation_step
    with pytest.raises(ValueError, match=r"has not been fitted, .* run trainer\.validate"):
        trainer(Calibrate(TemperatureScaling())).test(net, loader(), verbose=False)
    assert "validation_step" not in vars(net)
