"""Which steps, parameters and objects an average follows, and what it says if it cannot."""

import copy
import pickle
import warnings

import pytest
import torch
from averaging_nets import Net, NormNet, ema, equal, fit
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_objectives._weights.averages import Averages
from lightning_objectives.averaging import EMA
from lightning_objectives.callbacks.average_weights import AverageWeights

pytestmark = pytest.mark.filterwarnings("ignore:The `srun`", "ignore:.*litlogger.*", "ignore:.*num_workers.*")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_an_object_whose_copy_was_trained_says_where_the_copy_is(copied):
    mine = AverageWeights(EMA(decay=0.5))
    _, runner = fit(copied(mine), epochs=1)
    with pytest.raises(RuntimeError, match=r"has perhaps trained a copy of the callback: ask the one in"):
        mine.weights("ema")
    assert next(c for c in runner.callbacks if isinstance(c, AverageWeights)).weights("ema")


class Unseen(Net):
    """Steps an optimizer of its own, which Lightning does not know."""

    automatic_optimization = False
    by_hand = False

    def on_fit_start(self):
        self.mine = torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch, batch_idx):
        self.path.append(batch_idx)
        self.mine.zero_grad()
        self(batch[0]).sum().backward()
        if self.by_hand:
            for p in self.parameters():
                p.data -= 0.1 * p.grad
        else:
            self.mine.step()

    def configure_optimizers(self):
        return None


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.filterwarnings("ignore:.*configure_optimizers.* returned .None")
def test_steps_that_are_not_seen_are_said_at_once(by_hand):
    net = Unseen()
    net.by_hand = by_hand
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        looks = []
        net.on_train_batch_start = lambda *_: looks.append([str(w.message) for w in caught])
        fit(AverageWeights(EMA(decay=0.5)), net=net, epochs=1)
    said = "The weights of Unseen changed, but no optimizer that is watched took a step"
    assert [any(said in text for text in look) for look in looks] == [False, False, True, True]
    assert sum(said in str(w.message) for w in caught) == 1
    assert any("never began: 0 optimizer steps" in str(w.message) for w in caught)


def test_waiting_for_a_step_is_no_reason_to_warn():
    fit(AverageWeights(EMA(decay=0.5)), epochs=1, accumulate_grad_batches=4, val=True, val_check_interval=1)
    fit(AverageWeights(EMA(decay=0.5), buffers="average"), net=NormNet(), epochs=1, accumulate_grad_batches=4)
    net = torch.nn.Linear(2, 1)
    averages = Averages(net, {"ema": EMA(decay=0.5)})
    for _ in range(3):
        averages.update(0)
    averages.update(1)
    torch.nn.init.ones_(net.weight)
    averages.update(0)


def test_only_the_chosen_parameters_are_averaged(tmp_path):
    plain, _ = fit()
    whole = AverageWeights(EMA(decay=0.5))
    fit(whole)
    for pattern in ("layers.0.*", ["layers.0.weight", "*.0.bias"]):
        averages = AverageWeights(EMA(decay=0.5), parameters=pattern)
        net, runner = fit(averages)
        assert averages._averages.names == ["layers.0.weight", "layers.0.bias"]
        for name, p in net.named_parameters():
            expected = whole.weights("ema")[name] if name.startswith("layers.0") else plain.get_parameter(name)
            assert torch.equal(p, expected)
        runner.save_checkpoint(tmp_path / "x.ckpt")
        assert equal(dict(torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]), dict(net.state_dict()))
        resumed, _ = fit(AverageWeights(EMA(decay=0.5), parameters=pattern), epochs=4, ckpt_path=tmp_path / "x.ckpt")
        longer, _ = fit(AverageWeights(EMA(decay=0.5), parameters=pattern), epochs=4)
        assert equal(resumed, longer)


def test_the_key_of_the_state_names_the_parameters_only_if_they_are_chosen():
    assert "parameters" not in AverageWeights(EMA()).state_key
    assert AverageWeights(EMA(), parameters="a.*").state_key.endswith("'primary': True, 'parameters': 'a.*'}")


def test_patterns_that_choose_nothing_are_refused():
    with pytest.raises(ValueError, match=r"parameters='head\.\*' matches no parameter of Net, .*'layers\.0\.weight'"):
        fit(AverageWeights(EMA(), parameters=["layers.*", "head.*"]))
    for nothing in ("", []):
        with pytest.raises(ValueError, match="averages nothing"):
            AverageWeights(EMA(), parameters=nothing)


class Adversaries(Net):
    """Steps the generator in each batch, and the discriminator in each third one."""

    automatic_optimization = False

    def __init__(self, alone=None):
        super().__init__()
        self.alone = alone
        self.after = {"layers.0": [], "layers.2": []}

    def training_step(self, batch, batch_idx):
        for at, optimizer in zip((0, 2), self.optimizers()):
            if (at == 0 or self.global_batch % 3 == 2) and self.alone in (None, at):
                for number, p in enumerate(self.layers[at].parameters()):
                    p.grad = torch.full_like(p, float(self.global_batch + number))
                optimizer.step()
                self.after[f"layers.{at}"].append(self.layers[at].weight.detach().clone())

    def on_train_batch_start(self, batch, batch_idx):
        self.global_batch = self.current_epoch * 4 + batch_idx

    def configure_optimizers(self):
        return [torch.optim.SGD(self.layers[at].parameters(), 0.1) for at in (0, 2)]


@pytest.mark.parametrize("cut", [None, "epoch=0"])
def test_the_average_of_a_half_that_rests_is_not_decayed(tmp_path, cut):
    averages, net = AverageWeights(EMA(decay=0.5)), Adversaries()
    if cut:
        saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        fit(AverageWeights(EMA(decay=0.5)), saver, net=net, epochs=1)
        net, path = Adversaries(), net.after
        fit(averages, net=net, epochs=3, ckpt_path=tmp_path / f"{cut}.ckpt")
        net.after = {key: path[key] + net.after[key] for key in path}
    else:
        fit(averages, net=net, epochs=3)
    assert [len(path) for path in net.after.values()] == [12, 4]
    for key, path in net.after.items():
        torch.testing.assert_close(
            net.get_parameter(f"{key}.weight").detach(), ema(path, 0.5).float(), rtol=0, atol=1e-6
        )
