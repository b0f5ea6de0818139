"""``inspect`` shows what the engine finds, in the callbacks' own words, and leaves no trace."""

import copy
import os
import random
import signal
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_objectives as lo
from lightning_objectives.inspection import Inspection, callbacks_of, plan, trials_of
from lightning_objectives.inspection.facts import facts_of
from lightning_objectives.inspection.verdicts import Judge


class Net(LightningModule):
    """A module with everything that a trial could change: weights, buffers, attributes, gradients, an optimizer."""

    writes = 0.0
    """What the step adds to its batch in place."""

    def __init__(self, classes=3):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5))
        self.fc = nn.Linear(6, classes)
        self.seen = []

    def forward(self, x):
        return self.fc(self.net(x))

    def compute(self, logits, target):
        return F.cross_entropy(logits, target)

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.seen.append(batch_idx)
        if self.writes:
            x.add_(self.writes)
        return self.compute(self(x), y)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.compute(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        groups = [{"params": self.net.parameters()}, {"params": self.fc.parameters(), "lr": 0.2}]
        self.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        return self.optimizer


def batch(rows=8):
    return [torch.randn(rows, 4), torch.arange(rows) % 3]


def quiet(*callbacks, **settings):
    settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, **settings}
    return Trainer(callbacks=list(callbacks), **settings)


def facts(module, data):
    trials = trials_of(module, data)
    return facts_of(trials, trials.plain())


def verdict_of(module, data, *callbacks, trainer=None):
    """The verdict on some callbacks alone, without those of the package."""
    trials = trials_of(module, data, trainer)
    plain = trials.plain()
    judge = Judge(trials, plain, facts_of(trials, plain), getattr(trainer, "strategy", None))
    return judge.judge(callbacks, yours=True)


def everything(module):
    """All that one can see of a module and of the random streams."""
    states = {name: value.clone() for name, value in module.state_dict().items()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    others = {n: (dict(vars(m)), m.training) for n, m in module.named_modules()}
    attributes = {n: ({k: repr(v) for k, v in own.items() if k[0] != "_"}, mode) for n, (own, mode) in others.items()}
    hooks = {n: [k for k, v in own.items() if "hooks" in k and v] for n, (own, _) in others.items()}
    streams = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    return states, grads, attributes, hooks, streams


def assert_same(before, after):
    for then, now in zip(before[:2], after[:2]):
        assert then.keys() == now.keys()
        assert all(a is b is None or torch.equal(a, b) for a, b in zip(then.values(), now.values()))
    assert before[2:4] == after[2:4]
    assert torch.equal(before[4][0], after[4][0])
    assert before[4][1:] == after[4][1:]


def test_nothing_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, data = Net(), batch()
    module.writes = 1.0
    module.configure_optimizers()
    module.training_step(copy.deepcopy(data), 0).backward()
    module.optimizer.step()
    before, given = everything(module), copy.deepcopy(data)
    state = copy.deepcopy(module.optimizer.state_dict())
    mine = [lo.MergeCheckpoints(lo.WSM(), every_n_steps=1, directory="merged"), lo.AverageWeights(lo.EMA())]
    settings = [repr(callback) for callback in mine]

    found = lo.inspect(module, data, quiet(*mine))

    assert_same(before, everything(module))
    assert all(torch.equal(a, b) for a, b in zip(data, given))
    for a, b in zip(state["state"].values(), module.optimizer.state_dict()["state"].values()):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    assert module.optimizer.param_groups[0]["params"][0] is module.net[0].weight
    assert settings == [repr(callback) for callback in mine]
    assert list(tmp_path.iterdir()) == [], "no file is left"
    assert torch.is_grad_enabled()
    assert found.together.applies
    assert [v.callback for v in found.verdicts if v.yours] == ["MergeCheckpoints(WSM)", "AverageWeights(EMA)"]
    others = {v.callback.partition("(")[0]: v for v in found.verdicts if not v.yours}
    assert {"ReplaceLoss", "WrapHead", "Distill", "LogMetrics", "Refer", "SurveyData"} < others.keys()
    assert "AverageWeights" not in others, "it is among those of the training"
    assert not others["AdaptAtTest"].applies
    assert others["AdaptAtTest"].refusal == "it acts in test_step, which the module does not define"
    assert others["PerturbWeights"].refusal.startswith("Not with PerturbWeights(ASAM): Net.training_step changes its ")
    assert [name for name, verdict in others.items() if not verdict.applies] == ["AdaptAtTest"]
    assert max(map(len, str(found).splitlines())) <= 80
    assert repr(found) == str(found)


def test_nothing_changes_on_an_error():
    class Broken(Net):
        def training_step(self, batch, batch_idx):
            torch.rand(1)
            super().training_step(batch, batch_idx)
            raise ZeroDivisionError("of the user's")

    module, data = Broken(), batch()
    before = everything(module)
    with pytest.raises(ZeroDivisionError, match="of the user's"):
        lo.inspect(module, data)
    assert_same(before, everything(module))


def test_the_facts_of_a_classifier():
    found = facts(Net(), batch())
    criterion, head = found.criterion, found.head
    assert (criterion.name, criterion.input, criterion.target) == ("cross_entropy", (8, 3), "(8,) int64")
    assert (criterion.reduction, criterion.problem, criterion.form) == ("mean", "classes", "rows")
    assert criterion.samples == "8 samples, along dimension 0"
    assert (head.path, head.layer, head.features, head.logits) == ("fc", "Linear", (8, 6), (8, 3))
    assert found.optimizers == (
        "SGD, group 0: 42 weights, lr=0.1, momentum=0.9, weight_decay=0",
        "SGD, group 1: 21 weights, lr=0.2, momentum=0.9, weight_decay=0",
    )
    assert (found.batch_norms, found.compiled, found.settings) == (("net.1",), (), {})


class Regression(Net):
    def compute(self, logits, target):
        return F.mse_loss(logits, F.one_hot(target, 3).float())


class Binary(Net):
    def __init__(self):
        super().__init__(1)

    def compute(self, logits, target):
        return F.binary_cross_entropy_with_logits(logits.squeeze(1), (target > 0).float())


class Labels(Net):
    def compute(self, logits, target):
        return F.binary_cross_entropy_with_logits(logits, F.one_hot(target, 3).float())


class Dense(LightningModule):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.conv(batch[0]), batch[1], ignore_index=5)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Sequence(LightningModule):
    """Tokens in one long row, as language models compare them."""

    def __init__(self):
        super().__init__()
        self.embed, self.lm_head = nn.Embedding(7, 5), nn.Linear(5, 7)

    def training_step(self, batch, batch_idx):
        logits = self.lm_head(self.embed(batch["ids"]))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["ids"][:, 1:].flatten())

    configure_optimizers = Dense.configure_optimizers


@pytest.mark.parametrize(
    ("module", "data", "about", "samples"),
    [
        (Regression, batch(), "numbers (a regression)", "8 samples, along dimension 0"),
        (Binary, batch(), "one of two classes with one logit", "8 samples, along dimension 0"),
        (Labels, batch(), "several labels that may hold together", "8 samples, along dimension 0"),
        (
            Dense,
            [torch.randn(2, 1, 5, 3), torch.zeros(2, 5, 3, dtype=torch.long)],
            "one class of several, at each point of a grid (dense)",
            "2 samples, along dimension 0",
        ),
        (
            Sequence,
            {"ids": torch.randint(7, (3, 6))},
            "one class of several, at several positions of each sample (a sequence)",
            "3 samples, each with 5 of the 15 losses",
        ),
    ],
)
def test_the_problem(module, data, about, samples):
    criterion = facts(module(), data).criterion
    assert (criterion.about, criterion.samples) == (about, samples)


class OwnLoss(Net):
    """A loss of the user's own, that the engine cannot know."""

    def compute(self, logits, target):
        return self.my_loss(logits, target)

    def my_loss(self, logits, target):
        return -logits.log_softmax(1)[torch.arange(len(target)), target].mean()


def test_a_criterion_that_must_be_named():
    module, data = OwnLoss(), batch()
    found = facts(module, data)
    assert found.settings == {"criterion": "my_loss"}
    assert (found.criterion.name, found.criterion.input) == ("my_loss", (8, 3))
    verdict = verdict_of(module, data, lo.ReweightSamples(lo.LossBasedReweighting()))
    assert verdict.applies
    assert verdict.settings == {"criterion": "my_loss"}
    assert verdict.refusal.startswith("No criterion was seen in OwnLoss.training_step")
    assert "criterion" in verdict.asked
    assert not Inspection(found, (verdict,)).applies, "not as it is"
    wrong = verdict_of(module, data, lo.ReweightSamples(lo.LossBasedReweighting(), criterion="compute.it"))
    assert not wrong.applies, "what you say is not replaced"
    told = verdict_of(module, data, lo.ReweightSamples(lo.LossBasedReweighting(), criterion="my_loss"))
    assert (told.applies, told.refusal, told.settings) == (True, "", {})
    assert Inspection(found, (told,)).applies


def test_one_of_several_criteria():
    class Two(Net):
        def compute(self, logits, target):
            return F.cross_entropy(logits, target) + F.mse_loss(logits, torch.zeros_like(logits))

    found = lo.inspect(Two(), batch())
    assert found.facts.settings == {"which": 0}
    assert found.facts.criterion.others == ("mse_loss of (8, 3)",)
    text = str(found)
    assert "  needs       which=0, said to each callback of the step\n" in text
    assert (
        "  yes, if     ReweightSamples(CVaR)\n"
        "              you say which=0. Without that: Two.training_step calls several\n" in text
    )
    both = next(verdict for verdict in found.verdicts if verdict.callback.startswith("WrapHead"))
    assert both.applies


def test_what_is_refused_with_the_setting_too():
    class Regresses(Net):
        def compute(self, logits, target):
            return F.mse_loss(logits, torch.zeros_like(logits)) + F.cross_entropy(logits, target)

    verdict = verdict_of(Regresses(), batch(), lo.AddRegularizer(lo.ConfidencePenalty()))
    assert not verdict.applies
    assert "say which=0, 1, ... With which=0: AddRegularizer: ConfidencePenalty" in verdict.refusal


def test_a_refusal_is_the_callbacks_own():
    class ByHand(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            self.manual_backward(super().training_step(batch, batch_idx))

    module, data = ByHand(), batch()
    callback = lo.ReweightSamples(lo.LossBasedReweighting())
    verdict = verdict_of(module, data, callback)
    with pytest.raises(ValueError, match="ReweightSamples cannot work with ByHand") as error:
        quiet(callback, max_steps=1, enable_progress_bar=False).fit(module, DataLoader([0]))
    assert not verdict.applies
    assert verdict.refusal == str(error.value)


def test_the_others_are_tried_with_a_method_that_fits():
    trials = trials_of(Regression(), batch())
    plain = trials.plain()
    judge = Judge(trials, plain, facts_of(trials, plain))
    others = {verdict.callback.partition("(")[0]: verdict for verdict in judge.others([])}
    assert others["AddRegularizer"].applies
    assert "ConfidencePenalty" not in others["AddRegularizer"].callback, "it is for classes"
    assert others["TransformBatch"].callback == "TransformBatch(Mixup)", "CutMix, the first, needs images"
    assert others["CombineTerms"].applies
    assert not others["ReplaceLoss"].applies, "all losses are for classes or labels"
    assert "numbers (a regression)" in others["ReplaceLoss"].refusal


def test_callbacks_that_clash():
    mine = [lo.WrapHead(lo.MultiSampleDropout()), lo.WrapHead(lo.NestedDropout())]
    alone = [verdict_of(Net(), batch(), callback) for callback in mine]
    together = verdict_of(Net(), batch(), *mine)
    assert all(verdict.applies for verdict in alone)
    assert not together.applies
    assert "where only one can act" in together.refusal


def test_a_validation_that_is_missing():
    verdict = verdict_of(Dense(), [torch.randn(2, 1, 5, 3), torch.zeros(2, 5, 3, dtype=torch.long)], lo.LogMetrics())
    assert (verdict.applies, verdict.refusal) == (False, "it acts in a validation, and there is none")


def test_a_strategy_that_is_refused():
    trials = trials_of(Net(), batch())
    plain = trials.plain()
    judge = Judge(trials, plain, facts_of(trials, plain), object.__new__(FSDPStrategy))
    verdict = judge.judge([lo.AverageWeights(lo.EMA())], yours=True)
    assert not verdict.applies
    assert verdict.refusal.startswith("AverageWeights cannot work under FSDPStrategy: it hides the parameters")


def test_warnings_are_told():
    verdict = verdict_of(Net(), [torch.randn(3, 4), torch.arange(3)], lo.ReweightSamples(lo.LossBasedReweighting()))
    assert verdict.applies
    square = verdict_of(Square(), [torch.randn(3, 3, 4), torch.zeros(3, 3)], lo.ReweightSamples(lo.CVaR()))
    assert any("is taken to count the samples" in text for text in square.warnings)


class Square(Net):
    def forward(self, x):
        return self.fc(nn.functional.pad(x, (0, 2))).mean(-1)

    def compute(self, logits, target):
        return F.mse_loss(logits, target)


class Data(LightningDataModule):
    stages: ClassVar = []  # of all copies

    def __init__(self):
        super().__init__()
        self.setups = 0

    def setup(self, stage):
        self.setups += 1
        self.stages.append(stage)
        self.train = TensorDataset(torch.randn(20, 4), torch.arange(20) % 3)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=5, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.train, batch_size=7)


def test_loaders_and_data_modules():
    data = Data()
    data.stages.clear()
    data.setup("fit")
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    loader = DataLoader(data.train, batch_size=6, shuffle=True, generator=generator)
    assert facts(Net(), loader).criterion.input == (6, 3)
    assert torch.equal(generator.get_state(), state), "the order of the training is the same"

    class Own(Net):
        def train_dataloader(self):
            return data.val_dataloader()

    assert facts(Own(), None).criterion.input == (7, 3)

    class Downloads(Own):
        def prepare_data(self):
            raise AssertionError("a download")

    assert facts(Downloads(), batch()).head.path == "fc"
    with pytest.raises(AssertionError, match="a download"):
        facts(Downloads(), None)

    class Knows(Net):
        def setup(self, stage):
            assert len(self.trainer.datamodule.train) == 20

    assert facts(Knows(), data).criterion.input == (5, 3)
    assert data.setups == 1, "a copy was set up"
    assert data.stages == ["fit", "fit"], "once for all trials"


def test_a_module_that_cannot_be_copied():
    class Fixed(Net):
        def __deepcopy__(self, memo):
            raise TypeError("cannot copy a lock")

    with pytest.raises(ValueError, match=r"Fixed cannot be copied \(TypeError: cannot copy a lock\).*inspect\(lambda"):
        lo.inspect(Fixed(), batch())
    assert facts(lambda: Net(), batch()).head.path == "fc"


def test_ctrl_c_is_ctrl_c(request):
    # A process that a shell starts in the background ignores the signal.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)

    class Interrupted(Net):
        def training_step(self, batch, batch_idx):
            os.kill(os.getpid(), signal.SIGINT)
            return super().training_step(batch, batch_idx)

    module, data, handler = Interrupted(), batch(), signal.getsignal(signal.SIGINT)
    before = everything(module)
    with pytest.raises(KeyboardInterrupt):
        lo.inspect(module, data)
    assert signal.getsignal(signal.SIGINT) is handler, "Lightning lets the next Ctrl-C be ignored"
    assert_same(before, everything(module))


def test_compiled_parts_are_named():
    class Compiled(Net):
        def __init__(self):
            super().__init__()
            self.net.compile()

    found = facts(Compiled(), batch())
    assert found.compiled == ("net",)
    assert found.head.path == "fc"


def test_the_callbacks_of_a_training():
    class Brings(Net):
        def configure_callbacks(self):
            return self.mine

    module, ema = Brings(), lo.AverageWeights(lo.EMA())
    module.mine = ema
    assert callbacks_of(module, quiet(ema, lo.LogMetrics()))[0] is ema
    assert len(callbacks_of(module, quiet(ema, lo.LogMetrics()))) == 2


def test_the_plan():
    class Never(Net):
        def training_step(self, batch, batch_idx):
            raise AssertionError("a step was taken")

    module = Never()
    trainer = quiet(lo.WrapHead(lo.MultiSampleDropout(num_samples=4)), lo.AverageWeights(lo.EMA()))
    before = everything(module)
    assert plan(module, Data(), trainer).splitlines() == [
        "Training step of Never: WrapHead(MultiSampleDropout(num_samples=4, p=0.3)); head: fc",
        "AverageWeights(EMA): Averages the weights over time, by one rule or by several, and leaves the training "
        "unchanged.",
    ]
    assert_same(before, everything(module))
    assert plan(module, Data()) == "There is no callback of lightning_objectives: the training is the plain one."


def test_the_plan_of_what_is_refused():
    trainer = quiet(lo.WrapHead(lo.MultiSampleDropout(), head="nothing"))
    with pytest.raises(ValueError, match="head='nothing' does not exist in Net"):
        plan(Net(), Data(), trainer)
