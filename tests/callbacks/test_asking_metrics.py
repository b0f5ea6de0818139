"""Metrics that ask for what they need: what they get, from which steps, and what is refused."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, fit, loader, trainer
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_objectives._step.asking import asked
from lightning_objectives.averaging import EMA
from lightning_objectives.callbacks import AverageWeights, Calibrate, LogMetrics
from lightning_objectives.metrics import CKA, BrierScore, OODDetection, RankMe, default_metrics, linear_cka, rank_me
from lightning_objectives.prediction_sets import APS


def asks(*names, optional=()):
    """A metric that keeps what it gets."""

    def update(self, **values):
        self.got.append(tuple(values[name] for name in names))

    required = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    others = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None) for name in optional]
    update.__signature__ = inspect.Signature([*required, *others])
    members = {"update": update, "compute": lambda self: torch.tensor(0.0), "full_state_update": False}
    metric = type("Keeps", (Metric,), {**members, "clone": lambda self: self})()  # the test looks into this one
    metric.got = []
    return metric


def validated(net, *callbacks, batches=None):
    runner = trainer(*callbacks)
    runner.validate(net, loader() if batches is None else batches, verbose=False)
    return {key: value.item() for key, value in runner.callback_metrics.items()}


def joined(metric):
    return [torch.cat(part) for part in zip(*metric.got)]


def outputs(net, seed=0):
    x, y = data(seed=seed).tensors
    with torch.no_grad():
        features = net.eval().backbone(x)
        return features, net.fc(features), y


class Grouped(Net):
    def validation_step(self, batch, batch_idx):
        F.cross_entropy(self(batch["x"]), batch["y"])


class TwoLoaders(Net):
    """Only usual samples have targets."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if dataloader_idx == 0:
            super().validation_step(batch, batch_idx)
        else:
            self(batch)

    test_step = validation_step


def inputs_alone(seed=1):
    return DataLoader(data(seed=seed).tensors[0], batch_size=8)


# -- what a metric gets ------------------------------------------------------------------------------------------------


def test_features_logits_target_group_and_the_head():
    rows = [{"x": x, "y": y, "group": i % 2} for i, (x, y) in enumerate(data())]
    metric, heads, net = asks("features", "logits", "target", "group"), asks("features", "head"), Grouped()
    metrics = MetricCollection({"a": metric, "b": heads})
    validated(net, LogMetrics(metrics), batches=DataLoader(rows, batch_size=8))
    features, logits, target, group = joined(metric)
    for ours, theirs in zip((features, logits, target), outputs(net)):
        torch.testing.assert_close(ours, theirs)
    assert group.tolist() == [0, 1] * 12
    shown, head = heads.got[0]
    assert isinstance(head, nn.Linear)
    assert head.weight is net.fc.weight
    with torch.no_grad():
        torch.testing.assert_close(head(shown), logits[:8])
    assert "forward" not in vars(net.fc)


def test_names_in_any_order_and_as_torchmetrics_says():
    metric, net = asks("target", "group", "preds", optional=("weight",)), Grouped()
    rows = [{"x": x, "y": y, "group": 3} for x, y in data()]
    validated(net, LogMetrics(metric), batches=DataLoader(rows, batch_size=8))
    target, group, preds = joined(metric)
    torch.testing.assert_close((preds, target), outputs(net)[1:])
    assert group.unique().tolist() == [3]


def test_rows_that_the_criterion_ignores_do_not_count():
    class Ignores(Net):
        def validation_step(self, batch, batch_idx):
            F.cross_entropy(self(batch[0]), batch[1], ignore_index=0)

    metric, net = asks("features", "logits", "target", "loader"), Ignores()
    validated(net, LogMetrics(metric))
    features, logits, y = outputs(net)
    for ours, theirs in zip(joined(metric), (features, logits, y, torch.zeros_like(y))):
        torch.testing.assert_close(ours, theirs[y > 0])


def test_one_column_becomes_two_and_positions_become_rows():
    class Binary(Net):
        def validation_step(self, batch, batch_idx):
            F.binary_cross_entropy_with_logits(self(batch[0])[:, 0], (batch[1] == 1).float())

    class Pixels(Net):
        def __init__(self):
            super().__init__()
            self.backbone, self.fc = nn.Conv2d(1, 5, 1), nn.Conv2d(5, 3, 1)

        def validation_step(self, batch, batch_idx):
            x, y = batch[0].view(-1, 1, 2, 2), batch[1][:, None, None].expand(-1, 2, 2)
            F.cross_entropy(self(x), y, ignore_index=0)

    metric, net = asks("features", "logits", "target"), Binary()
    validated(net, LogMetrics(metric))
    (features, logits, target), theirs = joined(metric), outputs(net)
    torch.testing.assert_close(features, theirs[0])
    torch.testing.assert_close(logits, F.pad(theirs[1][:, :1], (1, 0)))
    assert target.tolist() == (theirs[2] == 1).long().tolist()
    metric, net = asks("features", "logits", "target"), Pixels()
    validated(net, LogMetrics(metric))
    features, logits, target = joined(metric)
    assert features.shape == (4 * int((data().tensors[1] > 0).sum()), 5)
    torch.testing.assert_close(F.linear(features, net.fc.weight[:, :, 0, 0], net.fc.bias), logits)
    assert target.min() > 0


def test_positions_of_a_sequence_are_rows():
    class Words(Net):
        def validation_step(self, batch, batch_idx):
            F.cross_entropy(self(batch[0][:, None].expand(-1, 2, -1)).flatten(0, 1), batch[1].repeat_interleave(2))

    metric, net = asks("features", "logits", "target"), Words()
    validated(net, LogMetrics(metric))
    for ours, theirs in zip(joined(metric), outputs(net)):
        torch.testing.assert_close(ours, theirs.repeat_interleave(2, 0))


def test_of_two_calls_of_the_head_that_of_the_criterion():
    class Twice(Net):
        def validation_step(self, batch, batch_idx):
            first = self(batch[0])
            self(-batch[0])
            F.cross_entropy(first, batch[1])

    metric, net = asks("features", "target"), Twice()
    validated(net, LogMetrics(metric))
    torch.testing.assert_close(joined(metric)[0], outputs(net)[0])


def test_a_metric_of_predictions_and_target_is_measured_as_ever():
    """By whatever names, beside one that asks, and to the bit."""

    class Own(Metric):
        def __init__(self):
            super().__init__()
            self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

        def update(self, logits, target):
            self.total = self.total + logits.sum() + target.sum()

        def compute(self):
            return self.total

    members = {"own": Own(), "accuracy": MulticlassAccuracy(3), **default_metrics(3)}
    net = Net()
    beside = LogMetrics(MetricCollection({**members, "rank": RankMe()}, prefix="p_"))
    plain = validated(net, LogMetrics(MetricCollection(dict(members), prefix="p_")), batches=loader(n=21))
    ours = validated(net, beside, batches=loader(n=21))
    assert ours.pop("val/p_rank") > 1
    assert ours == plain


# -- RankMe and OODDetection in a validation ---------------------------------------------------------------------------


def test_rank_me_of_a_validation_and_of_each_loader():
    net = TwoLoaders()
    logged = validated(net, LogMetrics(MetricCollection([RankMe(), BrierScore()])), batches=[loader(), inputs_alone()])
    for number in (0, 1):
        expected = rank_me(outputs(net, number)[0]).item()
        assert logged[f"val/RankMe/dataloader_idx_{number}"] == pytest.approx(expected, rel=1e-5)
    assert "val/BrierScore" in logged  # of the one loader with targets
    assert validated(net, LogMetrics(RankMe()))["val/RankMe"] == pytest.approx(
        rank_me(outputs(net)[0]).item(), rel=1e-5
    )


def expected_detection(net, usual=0, other=1):
    metric = OODDetection()
    for number, seed in enumerate((usual, other)):
        logits = outputs(net, seed)[1]
        metric.update(logits, torch.full((len(logits),), number))
    return {name: value.item() for name, value in metric.compute().items()}


def test_other_inputs_need_no_targets():
    net = TwoLoaders()
    callback = LogMetrics(MetricCollection({"ood": OODDetection(), "rank": RankMe(), **default_metrics(3)}))
    logged = validated(net, callback, batches=[loader(), inputs_alone()])
    for name, value in expected_detection(net).items():
        assert logged[f"val/{name}"] == pytest.approx(value)
    plain = validated(net, LogMetrics(), batches=[loader(), inputs_alone()])
    assert {key: logged[key] for key in plain} == plain
    test = trainer(callback).test(net, [loader(), inputs_alone()], verbose=False)[0]
    assert test["test/ood_auroc"] == pytest.approx(logged["val/ood_auroc"])


def test_other_inputs_first_and_two_detections():
    class Turned(Net):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            if dataloader_idx == 1:
                super().validation_step(batch, batch_idx)
            else:
                self(batch)

    net, near = Turned(), OODDetection(id_loader=1, ood_loader=0)
    metrics = MetricCollection({"near": near, "far": OODDetection(id_loader=1, ood_loader=2)})
    logged = validated(net, LogMetrics(metrics), batches=[inputs_alone(1), loader(), inputs_alone(2)])
    assert logged["val/near_ood_auroc"] == pytest.approx(expected_detection(net)["ood_auroc"])
    assert logged["val/far_ood_auroc"] == pytest.approx(expected_detection(net, 0, 2)["ood_auroc"])


def test_each_epoch_begins_anew_and_fits_a_schedule():
    """Two epochs of validation, and the second is measured alone."""
    callback = LogMetrics(MetricCollection([OODDetection(), RankMe()]))
    net, runner = fit(callback, net=TwoLoaders, val=[loader(), inputs_alone()])
    expected = expected_detection(net)["ood_auroc"]
    assert runner.callback_metrics["val/ood_auroc"].item() == pytest.approx(expected)
    rank = rank_me(outputs(net)[0]).item()
    assert runner.callback_metrics["val/RankMe/dataloader_idx_0"].item() == pytest.approx(rank, rel=1e-5)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_a_copy_measures_the_same(how):
    net, callback = TwoLoaders(), LogMetrics(OODDetection())
    first = validated(net, callback, batches=[loader(), inputs_alone()])
    assert validated(net, how(callback), batches=[loader(), inputs_alone()]) == first


def test_beside_a_calibrator_of_the_same_step():
    """The step calls no criterion: what a metric calls must not be taken for the step's own call of the head."""

    class Predicts(Net):
        def validation_step(self, batch, batch_idx):
            self(batch[0])

    class Calls(Metric):
        def update(self, features, head):
            head(0 * features)

        def compute(self):
            return torch.tensor(0.0)

    net, found = Predicts(), []
    for callbacks in ([], [LogMetrics(Calls())], [LogMetrics(Calls())]):
        sets = Calibrate(APS(randomized=False))
        validated(net, *[sets, *callbacks][:: -1 if found else 1])
        found.append(sets.calibrator.threshold.item())
    assert found[0] == found[1] == found[2] > 0


def test_one_column_without_a_criterion():
    """Has two columns like the logits of the other loader."""

    class Binary(Net):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            if dataloader_idx:
                self(batch)
            else:
                F.binary_cross_entropy_with_logits(self(batch[0])[:, 0], (batch[1] == 1).float())

    net, metric = Binary(classes=1), asks("logits", "loader")
    validated(net, LogMetrics(metric), batches=[loader(), inputs_alone()])
    logits, number = joined(metric)
    expected = torch.cat([outputs(net)[1], outputs(net, 1)[1]])
    torch.testing.assert_close(logits, F.pad(expected, (1, 0)))
    assert number.tolist() == [0] * 24 + [1] * 24


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_a_metric_asks_for():
    assert asked(asks("features")) == ("features",)
    assert asked(asks("logits")) == ("logits",)
    for names in (("logits", "target"), ("preds", "target"), ("input", "y")):
        assert asked(asks(*names)) == ()
    assert asked(asks("preds", optional=("target",))) == ()
    assert asked(MeanMetric()) == ()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("feature",), "asks for 'feature', which LogMetrics does not have. Did you mean 'features'"),
        (("feature", "target"), "Did you mean 'features'"),
        (
            ("features", "teacher_logits"),
            "asks for 'teacher_logits', which LogMetrics does not have. A metric may name",
        ),
        (("loader", "losses"), "asks for 'losses'"),
    ],
)
def test_a_name_that_is_not_shown_is_refused_at_once(names, message):
    with pytest.raises(ValueError, match=message):
        LogMetrics(asks(*names))


def test_other_weights_are_refused():
    with pytest.raises(ValueError, match=r"weights=\('average',\) .* but RankMe asks for other values"):
        LogMetrics(MetricCollection([RankMe(), BrierScore()]), weights=["average"])
    averages = AverageWeights(EMA(decay=0.5))  # the primary average is validated
    net, runner = fit(averages, LogMetrics(RankMe()), val=loader())
    rank = rank_me(outputs(net)[0]).item()
    assert runner.callback_metrics["val/RankMe"].item() == pytest.approx(rank, rel=1e-5)


class WithoutHead(Net):
    def __init__(self):
        super().__init__()
        self.fc = self.backbone = nn.Identity()

    def validation_step(self, batch, batch_idx):
        F.cross_entropy(batch[0][:, :3], batch[1])


class AroundTheHead(Net):
    def validation_step(self, batch, batch_idx):
        F.cross_entropy(F.linear(self.backbone(batch[0]), self.fc.weight), batch[1])


class Mean(Net):
    """The criterion compares the mean of two calls."""

    def validation_step(self, batch, batch_idx):
        F.cross_entropy((self(batch[0]) + self(-batch[0])) / 2, batch[1])


class Halves(Net):
    def validation_step(self, batch, batch_idx):
        F.cross_entropy(self(batch[0])[:4], batch[1][:4])


class Scaled(TwoLoaders):
    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if dataloader_idx == 0:
            F.cross_entropy(self(batch[0]) / 3, batch[1])
        else:
            self(batch)


@pytest.mark.parametrize(
    ("net", "metric", "message"),
    [
        (Net, asks("features", "group"), "asks for the signal 'group', but the batch has no key 'group'"),
        (WithoutHead, RankMe(), "RankMe asks for features, but no head was found in WithoutHead. Name the module"),
        (AroundTheHead, RankMe(), "RankMe asks for features, but the evaluation step does not call 'fc'"),
        (AroundTheHead, asks("logits", "head"), "asks for head, but the evaluation step does not call 'fc'"),
        (Mean, RankMe(), r"calls the head 'fc' 2 times, and it is unknown which"),
        (Halves, asks("features", "target"), r"numbers of rows differ \(4 of target, 8 of features\)"),
        (Net, OODDetection(), r"24 rows of loader 0 and 0 of loader 1, .* pass two loaders"),
    ],
)
def test_what_is_not_there_is_refused(net, metric, message):
    net = net()
    with pytest.raises(ValueError, match=message):
        validated(net, LogMetrics(metric))
    assert not {"validation_step", "configure_model"} & vars(net).keys()


@pytest.mark.parametrize("turned", [False, True])
def test_logits_that_are_not_the_heads_output_are_not_mixed_with_it(turned):
    """Dividing by 3 in one loader alone would make its samples look less sure."""

    class Turned(Scaled):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            super().validation_step(batch, batch_idx, 1 - dataloader_idx)

    batches = [loader(), inputs_alone()]
    net, metric = (Turned() if turned else Scaled()), OODDetection(id_loader=int(turned), ood_loader=1 - turned)
    with pytest.raises(ValueError, match=r"compares something else than the output of 'fc'.* Call the same criterion"):
        validated(net, LogMetrics(metric), batches=batches[::-1] if turned else batches)
    assert validated(net, LogMetrics(RankMe()), batches=batches[::-1] if turned else batches)


def test_a_metric_that_no_step_can_serve_is_refused():
    class Unlabelled(Net):
        def validation_step(self, batch, batch_idx):
            self(batch)

    metrics = MetricCollection({"rank": RankMe(), "other": asks("features", "target")})
    with pytest.raises(ValueError, match="other has measured nothing: none of 3 evaluation steps had features, target"):
        validated(Unlabelled(), LogMetrics(metrics), batches=inputs_alone())
    with pytest.raises(ValueError, match="There is no tensor of targets"):
        validated(Unlabelled(), LogMetrics(asks("features", "target")), batches=inputs_alone())


# -- a teacher ---------------------------------------------------------------------------------------------------------


class Teacher(nn.Module):
    """Of other sizes, with a dropout that an evaluation must not see, and a criterion of its own."""

    def __init__(self, inputs=4):
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Dropout(0.9))
        self.out = nn.Linear(5, 2)

    def forward(self, x):
        logits = self.out(self.body(x))
        F.cross_entropy(logits, logits.argmax(1))
        return logits


def test_features_of_a_teacher():
    metric, net, teacher = asks("features", "teacher_features", "target"), Net(), Teacher()
    callback = LogMetrics(metric, teacher=teacher)
    for measured in (callback, copy.deepcopy(callback)):
        metric.got.clear()
        validated(net, measured if measured is callback else LogMetrics(metric, teacher=teacher))
        features, theirs, target = joined(metric)
        expected, _, y = outputs(net)
        torch.testing.assert_close(features, expected)
        torch.testing.assert_close(theirs, teacher.eval().body(data().tensors[0]).detach())
        assert torch.equal(target, y)
    assert teacher.out.weight.requires_grad, "the user's own teacher stays as it is"


@pytest.mark.parametrize("stage", ["validate", "fit"])
def test_cka_of_a_network_and_a_teacher(stage):
    net, teacher = Net(), Teacher()
    metrics = MetricCollection({"cka": CKA(), "biased": CKA(debiased=False), "rank": RankMe()})
    callback = LogMetrics(metrics, teacher=teacher)
    if stage == "fit":
        _, runner = fit(callback, net=net, val=loader(batch_size=5), num_sanity_val_steps=0)
        found = {key: value.item() for key, value in runner.callback_metrics.items()}
    else:
        found = validated(net, callback, batches=loader(batch_size=5))
    features, _, _ = outputs(net)
    theirs = teacher.eval().body(data().tensors[0])
    assert found["val/cka"] == pytest.approx(linear_cka(features, theirs).item(), abs=1e-5)
    assert found["val/biased"] == pytest.approx(linear_cka(features, theirs, debiased=False).item(), abs=1e-5)
    assert found["val/rank"] == pytest.approx(rank_me(features).item(), abs=1e-5)
    assert not net.state_dict().keys() - Net().state_dict().keys()


def test_a_copy_of_the_network_is_alike():
    net = Net()
    assert validated(net, LogMetrics(CKA(), teacher=net))["val/CKA"] == pytest.approx(1, abs=1e-6)
    assert validated(net, LogMetrics(CKA(), teacher=nn.Sequential(net.backbone, net.fc)))["val/CKA"] == pytest.approx(
        1, abs=1e-6
    )


class Backbone(Net):
    """The part that holds the head gets features, which have the shape of the inputs."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(4, 4)
        self.fc = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        self.turned = False

    def forward(self, x):
        return self.fc(self.backbone(x.flip(1) if self.turned else x))


def test_the_teacher_gets_the_inputs_and_not_features():
    metric, teacher = asks("teacher_features"), Teacher()
    validated(Backbone(), LogMetrics(metric, teacher=teacher))
    torch.testing.assert_close(joined(metric)[0], teacher.eval().body(data().tensors[0]).detach())


class Apart(Backbone):
    """The step never calls the module as a whole."""

    def validation_step(self, batch, batch_idx):
        x, y = batch
        F.cross_entropy(self.fc(self.backbone(x)), y)


class Twice(Net):
    def validation_step(self, batch, batch_idx):
        x, y = batch
        F.cross_entropy(self(x) + self(x.flip(1)), y)


@pytest.mark.parametrize("net", [Apart, Twice])
def test_a_step_that_does_not_say_what_the_teacher_gets_is_refused(net):
    metric, teacher = asks("teacher_features", "target"), Teacher()
    with pytest.raises(ValueError, match=r"does not call its network once.*teacher_call=lambda"):
        validated(net(), LogMetrics(metric, teacher=teacher))
    validated(net(), LogMetrics(metric, teacher=teacher, teacher_call=lambda teacher, batch: teacher(batch[0].flip(1))))
    torch.testing.assert_close(joined(metric)[0], teacher.eval().body(data().tensors[0].flip(1)).detach())


def test_positions_of_a_convolution_are_rows():
    class Maps(Net):
        def __init__(self, width):
            super().__init__()
            self.backbone, self.fc = nn.Conv1d(1, width, 1), nn.Conv1d(width, 3, 1)

        def forward(self, x):
            return self.fc(self.backbone(x[:, None]))

        def validation_step(self, batch, batch_idx):
            x, y = batch
            target = y[:, None].expand(-1, 4).clone()
            target[:, 0] = -100
            F.cross_entropy(self(x), target)

    metric, net, teacher = asks("features", "teacher_features", "target"), Maps(6), Maps(5)
    validated(net, LogMetrics(metric, teacher=teacher, teacher_head="fc"))
    _, theirs, target = joined(metric)
    x = data().tensors[0]
    expected = teacher.backbone(x[:, None])[:, :, 1:].movedim(1, -1).flatten(0, 1)
    torch.testing.assert_close(theirs, expected.detach())
    assert len(target) == 24 * 3


def test_what_a_teacher_needs_is_refused_at_once():
    with pytest.raises(ValueError, match="CKA asks for the features of a teacher: say teacher="):
        LogMetrics(CKA())
    with pytest.raises(ValueError, match=r"teacher= is for a metric that asks for teacher_features, but none does"):
        LogMetrics(RankMe(), teacher=Teacher())
    with pytest.raises(ValueError, match=r"teacher_head= is for a metric"):
        LogMetrics(teacher_head="out")
    with pytest.raises(ValueError, match="teacher=3 must be a trained module"):
        LogMetrics(CKA(), teacher=3)
    with pytest.raises(ValueError, match="The teacher Teacher failed when it was called"):
        validated(Net(), LogMetrics(CKA(), teacher=Teacher(inputs=9)))
    other = Teacher()
    other.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"did not call its head 'unused'.* teacher_head="):
        validated(Net(), LogMetrics(CKA(), teacher=other, teacher_head="unused"))


@pytest.mark.parametrize("first", [True, False])
def test_another_callback_does_not_hear_of_the_teacher(first):
    """It listens while the teacher runs, whose criterion is none of the step's."""
    callbacks = [LogMetrics(CKA(), teacher=Teacher()), LogMetrics(prefix="own/")]
    found = validated(Net(), *(callbacks if first else callbacks[::-1]))
    assert {"val/CKA", "own/val/nll"} <= found.keys()
