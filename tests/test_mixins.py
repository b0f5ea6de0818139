"""The mixins: the same training as with the callbacks, whatever stands beside them."""

import lightning as L
import pytest
import torch
from helpers import Net, digits, equal, fit, loader, trainer

from lightning_objectives._trainer.carried import callbacks_of
from lightning_objectives.averaging import BEMA, EMA
from lightning_objectives.callbacks import (
    AddRegularizer,
    AverageWeights,
    DualHeadKDCallback,
    LogMetrics,
    LossReweightingCallback,
    MergeCheckpoints,
    MultiSampleDropoutCallback,
    ReweightSamples,
    WSMCallback,
)
from lightning_objectives.data import DigitsDataModule
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.merging import WSM
from lightning_objectives.mixins import (
    BEMAMixin,
    DualHeadKDMixin,
    LossReweightingMixin,
    MultiSampleDropoutMixin,
    ObjectivesMixin,
    WSMMixin,
)


def teacher():
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(7)
        return torch.nn.Linear(4, 3)


class All(DualHeadKDMixin, BEMAMixin, LossReweightingMixin, MultiSampleDropoutMixin, Net):
    def configure_teacher(self):
        return teacher()

    def configure_bema(self):
        return BEMA(lag=5)

    def configure_multi_sample_dropout(self):
        return MultiSampleDropout(num_samples=3)


def test_the_mixins_train_as_the_callbacks_do():
    mixed, runner = fit(net=All)
    called, _ = fit(
        AverageWeights(BEMA(lag=5)),
        LossReweightingCallback(),
        MultiSampleDropoutCallback(num_samples=3),
        DualHeadKDCallback(teacher=teacher()),
        net=Net,
    )
    assert equal(mixed, called)
    assert runner.callback_metrics["train/max_weight"] >= 1


def test_the_teacher_is_asked_for_at_the_start_of_a_fit_alone():
    class Untaught(DualHeadKDMixin, Net):
        pass

    trainer().validate(Untaught(), loader(), verbose=False)
    with pytest.raises(NotImplementedError, match="Untaught has no teacher: define configure_teacher"):
        fit(net=Untaught)


def test_fit_twice_brings_them_once():
    net, runner = fit(net=All)
    before = len(runner.callbacks)
    runner.fit_loop.max_epochs = 4
    runner.fit(net, loader())
    assert len(runner.callbacks) == before
    assert len(callbacks_of(runner, AverageWeights)) == 1


def test_an_average_from_each_way_lives():
    class Averaged(BEMAMixin, Net):
        pass

    mine = AverageWeights(EMA(decay=0.5), primary=False)
    net, runner = fit(mine, LogMetrics(weights=["average"]), net=Averaged, val=loader())
    assert {a.names for a in callbacks_of(runner, AverageWeights)} == {("ema",), ("bema",)}
    assert {"val/ema/nll", "val/bema/nll"} <= set(runner.callback_metrics)
    assert not equal(mine.averaged_state_dict(), dict(net.state_dict()))


def test_resume_with_an_average_from_each_way(tmp_path):
    class Averaged(BEMAMixin, Net):
        pass

    class Save(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    mine, again = (AverageWeights(EMA(decay=0.5), primary=False) for _ in range(2))
    whole, _ = fit(mine, Save(), net=Averaged)
    net = Averaged()
    trainer(again).fit(net, loader(), ckpt_path=tmp_path / "0.ckpt")
    assert equal(whole, net)
    assert equal(mine.averaged_state_dict(), again.averaged_state_dict())


def test_the_users_own_callbacks_stay():
    class Mine(L.Callback):
        pass

    class Base(Net):
        def configure_callbacks(self):
            return Mine()

    class Own(LossReweightingMixin, Base):
        def configure_objectives(self):
            return [*super().configure_objectives(), AddRegularizer(lambda logits: logits.square(), strength=0.1)]

    found = Own().configure_callbacks()
    assert isinstance(found[0], Mine)
    assert [type(c.carried) for c in found[1:]] == [ReweightSamples, AddRegularizer]
    fit(net=Own)


def test_lost_mixins_are_refused_when_the_class_is_made():
    with pytest.raises(TypeError, match="has a mixin behind the LightningModule"):

        class Late(Net, BEMAMixin):
            pass

    with pytest.raises(TypeError, match=r"does not call super\(\)"):

        class Forgets(BEMAMixin, Net):
            def configure_callbacks(self):
                return []


MISSPELT = {
    "configure_multisample_dropout": "configure_multi_sample_dropout",
    "configure_teachers": "configure_teacher",
    "configure_beam": "configure_bema",
    "configure_objective": "configure_objectives",
    "objective_groups": "objective_group",
    "objective_input": "objective_inputs",
}


@pytest.mark.parametrize("name", MISSPELT)
def test_a_misspelt_hook_is_refused_when_the_class_is_made(name):
    words = rf"{name} is no hook of a mixin.* Did you mean '{MISSPELT[name]}'\?"
    with pytest.raises(TypeError, match=words):
        type("Own", (BEMAMixin, MultiSampleDropoutMixin, DualHeadKDMixin, Net), {name: lambda self: None})


def test_a_misspelt_hook_of_a_base_without_a_mixin_is_refused():
    class Base(Net):
        def configure_multisample_dropout(self):
            return MultiSampleDropout(num_samples=3)

    with pytest.raises(TypeError, match=r"Base\.configure_multisample_dropout is no hook"):

        class Own(MultiSampleDropoutMixin, Base):
            pass


def test_a_misspelt_hook_of_a_users_mixin_is_refused():
    class Penalty(ObjectivesMixin):
        def configure_penalty(self):
            return AddRegularizer(lambda logits: logits.square())

    with pytest.raises(TypeError, match="Did you mean 'configure_penalty'"):

        class Own(Penalty, Net):
            def configure_penalti(self):
                return None


def test_names_of_the_users_own_are_not_refused():
    class Mine(ObjectivesMixin):
        def configure_ema(self):
            return EMA()

    class Base(Mine, BEMAMixin, Net):  # the name is no misspelt configure_bema: another mixin has it
        objective_weights = (1.0, 2.0)

        def configure_head(self):
            return self.fc

        def configure_bema(self):
            return BEMA(lag=5)

    class Own(Base):
        def configure_ema(self):
            return EMA(decay=0.5)

        def configure_heads(self):
            return [self.fc]

    assert Own().configure_head() is not None


def test_the_modules_answers_are_asked_first():
    seen = {}

    class Own(ObjectivesMixin, Net):
        objective_head = "backbone.0"

        def training_step(self, batch, batch_idx):
            x, y = batch["pixels"]["all"], batch["label"]
            return self.objective_loss(self.backbone[0](x)[:, :3], y)

        def objective_inputs(self, batch):
            return batch["pixels"]["all"]

        def objective_index(self, batch):
            return batch["id"]

        def objective_group(self, batch):
            return batch["label"] % 2

        def configure_objectives(self):
            def look(inputs, index, group, features):
                seen.update(locals())
                return inputs.sum() * 0

            return [AddRegularizer(look)]

    items = [{"pixels": {"all": torch.randn(4)}, "label": i % 3, "id": 7 + i} for i in range(8)]
    fit(net=Own, train=torch.utils.data.DataLoader(items, batch_size=8))
    assert seen["inputs"].shape == (8, 4)
    assert seen["index"].tolist() == list(range(7, 15))
    assert seen["group"].tolist() == [0, 1, 0, 0, 1, 0, 0, 1]
    assert torch.equal(seen["features"], seen["inputs"])


def test_a_loss_called_by_name():
    class Own(LossReweightingMixin, Net):
        def criterion(self, logits, y):
            return self.objective_loss(logits, y)

    assert equal(fit(net=Own)[0], fit(LossReweightingCallback())[0])


def test_a_merge_from_the_mixin_is_that_of_the_callback():
    class Merged(WSMMixin, All):
        def configure_wsm(self):
            return WSM(shape="square")

        def configure_wsm_snapshots(self):
            return {"last": 2, "every_n_steps": 2}

    mixed, runner = fit(net=Merged)
    (brought,) = callbacks_of(runner, MergeCheckpoints)
    mine = MergeCheckpoints(WSM(shape="square"), last=2, every_n_steps=2)
    called, _ = fit(mine, net=All)
    assert equal(mixed, called)
    first, second = (torch.load(callback.path, weights_only=True)["state_dict"] for callback in (brought, mine))
    assert equal(dict(first), dict(second))


@pytest.mark.filterwarnings("ignore:The learning rate varied")  # one cycle of it, in two snapshots
def test_all_five_on_an_existing_class_train_as_the_callbacks_do():
    Digits = digits()  # a class

    def wide():
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(7)
            return Digits(width=4)

    class Five(WSMMixin, DualHeadKDMixin, BEMAMixin, LossReweightingMixin, MultiSampleDropoutMixin, Digits):
        def configure_teacher(self):
            return wide()

        def configure_bema(self):
            return BEMA(lag=5)

        def configure_multi_sample_dropout(self):
            return MultiSampleDropout(num_samples=3)

        def configure_wsm_snapshots(self):
            return {"last": 2, "every_n_steps": 2}

    def run(cls, *callbacks):
        L.seed_everything(0, verbose=False)
        net, runner = cls(width=2), trainer(*callbacks)
        runner.fit(net, datamodule=DigitsDataModule(batch_size=400))
        (merge,) = callbacks_of(runner, MergeCheckpoints)
        return net, dict(torch.load(merge.path, weights_only=True)["state_dict"]), runner

    mixed, merged, runner = run(Five)
    called, expected, _ = run(
        Digits,
        MultiSampleDropoutCallback(num_samples=3),
        LossReweightingCallback(),
        AverageWeights(BEMA(lag=5)),
        DualHeadKDCallback(teacher=wide()),
        WSMCallback(last=2, every_n_steps=2),
    )
    assert equal(mixed, called)
    assert equal(merged, expected)
    assert not equal(merged, dict(mixed.state_dict()))
    assert {"train/dualhead", "train/max_weight"} <= set(runner.callback_metrics)
