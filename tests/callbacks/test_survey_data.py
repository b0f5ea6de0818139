"""Surveys in an unedited training."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, fit, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

import lightning_objectives as lo
from lightning_objectives.kinds import Survey

COUNTS = data().tensors[1].bincount().double()


def test_the_counts_reach_the_loss_before_the_first_step():
    survey, loss = lo.SurveyData(lo.ClassCounts(), sets="counts"), lo.BalancedSoftmaxLoss(counts=())
    ours, _ = fit(survey, lo.ReplaceLoss(loss))
    assert torch.equal(survey.result["counts"], COUNTS)
    theirs, _ = fit(lo.ReplaceLoss(lo.BalancedSoftmaxLoss(counts=COUNTS)))
    assert ours.losses == theirs.losses
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize(
    "loss",
    [lo.ClassBalancedLoss(counts=()), lo.LDAMLoss(counts=(), scale=2.0), lo.LogitAdjustedLoss(counts=())],
    ids=lambda loss: type(loss).__name__,
)
def test_each_loss_takes_them(loss):
    fit(lo.SurveyData(lo.ClassCounts(), sets=["counts"]), lo.ReplaceLoss(loss), max_epochs=1)
    assert loss.counts == tuple(COUNTS.tolist())
    assert getattr(loss, "scale", 2.0) == 2.0


def test_a_loss_without_counts_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"counts=\(\) are to be set before the loss is used"):
        fit(lo.ReplaceLoss(lo.BalancedSoftmaxLoss(counts=())))
    with pytest.raises(ValueError, match="hold no class"):
        lo.losses.class_balanced_weights(())


class Tabled(lo.kinds.Loss):
    def __init__(self, *, counts=(1.0,)):
        super().__init__()
        self.counts = counts
        self.register_buffer("table", torch.tensor(counts))

    def forward(self, logits, target):
        return F.cross_entropy(logits, target, self.table.to(logits), reduction="none")


def test_buffers_follow_a_setting():
    loss = Tabled()
    fit(lo.SurveyData(lo.ClassCounts(), sets="counts"), lo.ReplaceLoss(loss), max_epochs=1)
    assert loss.table.tolist() == COUNTS.tolist()


class Habits(Net):
    """It logs, keeps outputs, counts, has a metric, BatchNorm's statistics and draws."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.register_buffer("rows", torch.zeros(()))
        self.norm, self.mean, self.outputs, self.count, self.found = nn.BatchNorm1d(6), MeanMetric(), [], 0, {}

    def forward(self, x):
        return self.fc(self.norm(self.backbone(x)))

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.mean(loss.detach())
        self.log("loss", loss)
        self.log("mean", self.mean)
        self.outputs.append(loss.detach())
        self.found[batch_idx] = torch.rand(1).item()
        self.count += 1
        self.rows += len(x)
        self.new = self.count
        return loss


@pytest.mark.parametrize("when", ["end", "start"])
def test_nothing_is_left_behind(when):
    shuffled = [DataLoader(data(), batch_size=8, shuffle=True) for _ in range(2)]
    plain, one = fit(net=Habits, train=shuffled[0])
    survey = lo.SurveyData(lo.Fisher(), when=when)
    ours, two = fit(survey, net=Habits, train=shuffled[1])
    assert all(torch.equal(v, ours.state_dict()[k]) for k, v in plain.state_dict().items())
    assert (ours.outputs, ours.found, ours.count, ours.new) == (plain.outputs, plain.found, plain.count, plain.new)
    assert one.callback_metrics == two.callback_metrics
    assert [m.training for m in ours.modules()] == [m.training for m in plain.modules()]


class Wrapped(L.LightningModule):
    """The network is a part of the module."""

    def __init__(self):
        super().__init__()
        self.model = nn.Sequential()
        self.model.add_module("body", nn.Linear(4, 6))
        self.model.add_module("fc", nn.Linear(6, 3))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_importance_has_the_names_of_the_module(tmp_path):
    path = tmp_path / "importance.safetensors"
    survey = lo.SurveyData(lo.Fisher(), when="end", path=path)
    net, _ = fit(survey, net=Wrapped, max_epochs=1)
    assert survey.result.keys() == net.state_dict().keys()
    expected = lo.survey_data(lo.Fisher(), net.model, loader())
    torch.testing.assert_close({k.removeprefix("model."): v for k, v in survey.result.items()}, expected)
    assert all(torch.equal(v, survey.result[k]) for k, v in load_file(path).items())


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_other_precisions(precision):
    """The step runs as in the training, and the gradients of mixed precision are taken in single."""
    survey = lo.SurveyData(lo.Fisher())
    fit(survey, net=Wrapped, max_epochs=1, precision=precision)
    exact = lo.SurveyData(lo.Fisher())
    fit(exact, net=Wrapped, max_epochs=1)
    tolerance = {"bf16-mixed": 0.0, "bf16-true": 0.05, "64-true": 1e-5}[precision]
    torch.testing.assert_close(survey.result, exact.result, rtol=tolerance, atol=tolerance, check_dtype=False)


def test_at_the_end_the_average_is_surveyed():
    survey = lo.SurveyData(lo.Fisher(), when="end")
    net, _ = fit(survey, lo.EMACallback(decay=0.5))
    assert torch.equal(survey.result["fc.bias"], lo.survey_data(lo.Fisher(), net, loader())["fc.bias"])


def test_other_callbacks_do_not_change_what_is_surveyed():
    """The user's own step runs, without mixing, another loss or moved weights."""
    plain = lo.SurveyData(lo.Fisher(empirical=True))
    fit(plain, max_epochs=1)
    survey = lo.SurveyData(lo.Fisher(empirical=True))
    others = [lo.TransformBatch(lo.Mixup()), lo.ReplaceLoss(lo.FocalLoss()), lo.PerturbWeights(lo.SAM())]
    fit(*others, survey, max_epochs=1)
    assert all(torch.equal(v, survey.result[k]) for k, v in plain.result.items())


def test_a_resumed_training_goes_on_with_the_result(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="last", enable_version_counter=False)
    first = lo.SurveyData(lo.Fisher())
    fit(first, saver, enable_checkpointing=True, max_epochs=1)
    second = lo.SurveyData(lo.Fisher())
    trainer(second, max_epochs=2).fit(Net(), loader(), ckpt_path=tmp_path / "last.ckpt")
    assert all(torch.equal(v, second.result[k]) for k, v in first.result.items())
    counts, loss = lo.SurveyData(lo.ClassCounts(), sets="counts"), lo.BalancedSoftmaxLoss(counts=())
    saver = ModelCheckpoint(tmp_path, filename="counts", enable_version_counter=False)
    fit(counts, lo.ReplaceLoss(loss), saver, enable_checkpointing=True, max_epochs=1)
    again, anew = lo.SurveyData(lo.ClassCounts(), sets="counts"), lo.BalancedSoftmaxLoss(counts=())
    resumed = trainer(again, lo.ReplaceLoss(anew), max_epochs=2)
    resumed.fit(Net(), loader(n=16), ckpt_path=tmp_path / "counts.ckpt")
    assert anew.counts == tuple(COUNTS.tolist())  # of the data that the training began with


def test_a_second_fit_surveys_anew():
    survey = lo.SurveyData(lo.ClassCounts())
    fit(survey, max_epochs=1)
    fit(survey, max_epochs=1, train=loader(n=9))
    assert survey.result["counts"].sum() == 9


class Fails(L.Callback):
    def on_fit_start(self, trainer, pl_module):
        raise KeyError("planted")


def test_a_training_that_does_not_begin_has_no_result():
    survey = lo.SurveyData(lo.ClassCounts())
    fit(survey, max_epochs=1)
    with pytest.raises(KeyError):
        fit(survey, Fails())
    with pytest.raises(RuntimeError, match="no result"):
        _ = survey.result


def test_a_short_training_is_surveyed_shortly():
    survey = lo.SurveyData(lo.ClassCounts())
    fit(survey, limit_train_batches=2)
    assert survey.result["counts"].sum() == 16
    survey = lo.SurveyData(lo.ClassCounts(), max_batches=1)
    fit(survey, limit_train_batches=2)
    assert survey.result["counts"].sum() == 8


def test_two_classes_by_one_logit():
    class Binary(Wrapped):
        def training_step(self, batch, batch_idx):
            logits = self.model(batch[0])[:, 0]
            return F.binary_cross_entropy_with_logits(logits, (batch[1] > 0).float())

    survey = lo.SurveyData(lo.ClassCounts())
    fit(survey, net=Binary, max_epochs=1)
    assert survey.result["counts"].tolist() == [COUNTS[0], COUNTS[1:].sum()]


def test_a_named_criterion_and_one_of_several():
    class Several(Wrapped):
        def training_step(self, batch, batch_idx):
            logits = self.model(batch[0])
            return F.cross_entropy(logits, batch[1]) + F.mse_loss(logits, torch.zeros_like(logits))

    with pytest.raises(ValueError, match=r"calls 2 criteria .* say which=0, 1"):
        fit(lo.SurveyData(lo.ClassCounts()), net=Several)
    survey = lo.SurveyData(lo.ClassCounts(), which=0)
    fit(survey, net=Several)
    assert torch.equal(survey.result["counts"], COUNTS)
    named = lo.SurveyData(lo.ClassCounts(), criterion="criterion")
    fit(named)
    assert torch.equal(named.result["counts"], COUNTS)


class Boom(Survey):
    def forward(self, logits):
        raise RuntimeError("boom")


def test_an_error_leaves_the_module_as_it_was():
    net = Habits()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="boom"):
        fit(lo.SurveyData(Boom()), net=net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(m.training for m in net.modules())
    assert (net.outputs, net.count, net.found, hasattr(net, "new")) == ([], 0, {}, False)
    assert not {"log", "log_dict", "training_step", "forward"} & set(vars(net))
    survey = lo.SurveyData(lo.ClassCounts())
    fit(survey, net=net)
    assert torch.equal(survey.result["counts"], COUNTS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"survey": len}, "must be a survey, such as ClassCounts"),
        ({"when": "middle"}, "when='middle' must be 'start' or 'end'"),
        ({"max_batches": 0}, "max_batches=0 must be >= 1"),
        ({"when": "end", "sets": "counts"}, "would change settings after the training"),
        ({"path": "counts.pt"}, r"must end in \.safetensors"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        lo.SurveyData(**{"survey": lo.ClassCounts(), **settings})


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([lo.SurveyData(lo.ClassCounts(), sets="counts")], "no method of this training has the setting 'counts'"),
        ([lo.SurveyData(lo.ClassCounts(), sets="count")], r"measures \['counts'\], but not 'count'"),
    ],
)
def test_a_result_that_nobody_takes_is_refused(callbacks, message):
    with pytest.raises(ValueError, match=message):
        fit(*callbacks)


def test_there_is_no_result_before_a_training():
    with pytest.raises(RuntimeError, match=r"no result of ClassCounts\(min_count=0\.0\)"):
        _ = lo.SurveyData(lo.ClassCounts()).result
