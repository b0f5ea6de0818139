"""What the network computes in a test is adapted, as by a loop by hand, and the module comes out as it went in."""

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import data, loader, trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lightning_objectives.adaptation import LAME, TENT, BatchNormAdaptation, lame_logits, mixed_statistics
from lightning_objectives.callbacks import AdaptAtTest, LogMetrics
from lightning_objectives.data import with_index
from lightning_objectives.kinds import Adapter
from lightning_objectives.testing.conformance.check import differing, shape_of


class Net(L.LightningModule):
    """A user's module with BatchNorm, dropout and a frozen layer, trained a little."""

    def __init__(self, classes=3, norm=nn.BatchNorm1d):
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential()
        self.model.backbone = nn.Sequential(nn.Linear(4, 6), norm(6), nn.ReLU(), nn.Dropout(0.5))
        self.model.fc = nn.Linear(6, classes)
        for part in self.model.modules():
            if isinstance(part, nn.BatchNorm1d) and part.track_running_stats:
                part.running_mean.normal_()
                part.running_var.uniform_(0.5, 2)
        self.model.backbone[0].bias.requires_grad_(False)
        self.seen = []

    def forward(self, x):
        return self.model(x)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        logits = self(batch[0])
        self.seen.append(logits)
        self.log("test_loss", self.criterion(logits, batch[1]))

    def criterion(self, logits, target):
        return F.cross_entropy(logits, target)

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self(batch[0])


def adapted(*callbacks, net=None, loaders=None, **settings):
    """The module and the logits of each batch; the module is as it was."""
    net = Net() if net is None else net
    before, shape = copy.deepcopy(net.state_dict()), shape_of(net)
    runner = trainer(*callbacks, **settings)
    runner.test(net, loader() if loaders is None else loaders, verbose=False)
    assert not differing(before, dict(net.state_dict()))
    assert shape_of(net) == shape
    assert all(p.grad is None for p in net.parameters())
    assert runner.test_loop.inference_mode
    return net, runner


def same(ours, theirs):
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs))


def batch_norm_by_batch(net):
    """A copy whose BatchNorm is set to train by hand."""
    net = copy.deepcopy(net).eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.train()
    return net


# -- each exemplar against a loop by hand ------------------------------------------------------------------------------


def tent_by_hand(net, batches, optimizer, reset=False):
    """As the authors' code does, but for dropout: set BatchNorm to train, forward, entropy, backward, step."""
    made, outputs = None, []
    for x, _ in batches:
        if made is None or reset:
            mine = batch_norm_by_batch(net)
            params = [p for part in mine.modules() if isinstance(part, nn.BatchNorm1d) for p in part.parameters()]
            made = optimizer(params)
        logits = mine(x)
        outputs.append(logits.detach())
        made.zero_grad()
        (-(logits.softmax(1) * logits.log_softmax(1)).sum(1)).mean().backward()
        made.step()
    return outputs


OPTIMIZERS = {
    "adam": (TENT(lr=0.05), lambda params: torch.optim.Adam(params, lr=0.05, betas=(0.9, 0.999))),
    "sgd": (TENT(lr=0.5, optimizer="sgd"), lambda params: torch.optim.SGD(params, lr=0.5, momentum=0.9)),
}


@pytest.mark.parametrize("episodic", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_tent_is_the_loop_by_hand(optimizer, episodic):
    method, by_hand = OPTIMIZERS[optimizer]
    net, _ = adapted(AdaptAtTest(method, episodic=episodic))
    torch.testing.assert_close(net.seen, tent_by_hand(Net(), loader(), by_hand, reset=episodic), rtol=1e-5, atol=1e-6)
    plain, _ = adapted()
    assert not same(net.seen, plain.seen)


def test_tent_at_a_rate_of_zero_is_the_batch_statistics_to_the_bit():
    net, _ = adapted(AdaptAtTest(TENT(lr=0.0)))
    by_batch = batch_norm_by_batch(Net())
    assert same(net.seen, [by_batch(x).detach() for x, _ in loader()])


def test_batch_norm_adaptation_is_the_loop_by_hand():
    net, _ = adapted(AdaptAtTest(BatchNormAdaptation(prior_strength=4.0)))
    plain = Net().eval()
    linear, norm, relu, _ = plain.model.backbone
    for (x, _), found in zip(loader(), net.seen):
        h = linear(x)
        mean = 4 / 12 * norm.running_mean + 8 / 12 * h.mean(0)
        var = 4 / 12 * norm.running_var + 8 / 12 * h.var(0)
        h = (h - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias
        torch.testing.assert_close(found, plain.model.fc(relu(h)).detach(), rtol=1e-5, atol=1e-6)


def test_lame_is_the_function_on_each_batch():
    net, _ = adapted(AdaptAtTest(LAME()))
    plain = Net().eval()
    for (x, _), found in zip(loader(), net.seen):
        features = plain.model.backbone(x)
        assert torch.equal(found, lame_logits(plain.model.fc(features), features).detach())


@pytest.mark.parametrize("method", [BatchNormAdaptation(prior_strength=float("inf")), LAME(strength=0.0)], ids=str)
def test_at_its_limit_a_method_is_the_plain_run_to_the_bit(method):
    (net, runner), (plain, theirs) = adapted(AdaptAtTest(method)), adapted()
    assert same(net.seen, plain.seen)
    assert runner.callback_metrics == theirs.callback_metrics


class Later(BatchNormAdaptation):
    """Begins with the second batch."""

    def active(self, *, step):
        return step >= 1


def test_a_method_that_is_not_active_touches_nothing():
    (net, _), (plain, _), (whole, _) = (
        adapted(AdaptAtTest(Later())),
        adapted(),
        adapted(AdaptAtTest(BatchNormAdaptation())),
    )
    assert same(net.seen, [plain.seen[0], *whole.seen[1:]])


# -- where and when it acts --------------------------------------------------------------------------------------------

METHODS = {"batch_norm": BatchNormAdaptation, "lame": LAME, "tent": lambda: TENT(lr=0.05)}


@pytest.mark.parametrize("method", METHODS)
def test_predictions_are_those_of_the_test(method):
    net, _ = adapted(AdaptAtTest(METHODS[method]()))
    runner = trainer(AdaptAtTest(METHODS[method](), problem="classes"))
    found = runner.predict(Net(), loader())
    assert same(found, net.seen)
    assert not any(logits.requires_grad for logits in found)
    assert runner.predict_loop.inference_mode


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("criterion", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_log_metrics_measures_the_adapted_network(method, criterion, order):
    """In any order of the callbacks, by the criterion and by the head."""

    class Bare(Net):
        def criterion(self, logits, target):
            return super().criterion(logits, target) if criterion else torch.zeros(())

    callbacks = [AdaptAtTest(METHODS[method]()), LogMetrics()][::order]
    net, runner = adapted(*callbacks, net=Bare())
    targets = torch.cat([y for _, y in loader()])
    expected = F.cross_entropy(torch.cat(net.seen), targets)
    torch.testing.assert_close(torch.tensor(runner.callback_metrics["test/nll"].item()), expected, rtol=1e-5, atol=1e-6)


def test_each_loader_and_each_test_begins_anew():
    callback = AdaptAtTest(TENT(lr=0.05))
    once, _ = adapted(callback)
    twice, runner = adapted(callback, loaders=[loader(), loader()])
    assert same(twice.seen, once.seen * 2)
    twice.seen = []
    runner.test(twice, loader(), verbose=False)
    assert same(twice.seen, once.seen)


def test_a_fit_and_a_validation_are_plain():
    class Trained(Net):
        def training_step(self, batch, batch_idx):
            return self.criterion(self(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.criterion(self(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    runs = []
    for callbacks in ([], [AdaptAtTest(TENT())]):
        L.seed_everything(0, verbose=False)
        net, runner = Trained(), trainer(*callbacks)
        runner.fit(net, loader(), loader())
        runs.append((dict(net.state_dict()), runner.callback_metrics))
    assert not differing(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]


def test_a_second_network_of_the_module_stays_as_it_is():
    """A teacher that the step calls is no part of the network, and not adapted with it."""

    class Taught(Net):
        def __init__(self):
            super().__init__()
            self.teacher = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
            self.taught = []

        def test_step(self, batch, batch_idx):
            self.taught.append(self.teacher(batch[0]))
            super().test_step(batch, batch_idx)

    for method in METHODS.values():
        net, _ = adapted(AdaptAtTest(method(), head="model.fc"), net=Taught())
        plain, _ = adapted(net=Taught())
        assert same(net.taught, plain.taught)
        assert not same(net.seen, plain.seen)
    with pytest.raises(ValueError, match=r"'teacher.1'.*Name the head of that network"):
        adapted(AdaptAtTest(BatchNormAdaptation()), net=Taught())


def test_what_runs_beside_the_network_stays_as_it_is():
    """Also if the network is the whole module, in which a teacher lies too."""

    class Whole(L.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.fc, self.teacher = nn.BatchNorm1d(4), nn.Linear(4, 3), nn.BatchNorm1d(4)
            self.seen, self.taught = [], []

        def forward(self, x):
            return self.fc(self.norm(x))

        def test_step(self, batch, batch_idx):
            self.taught.append(self.teacher(batch[0]))
            self.seen.append(self(batch[0]))
            F.cross_entropy(self.seen[-1], batch[1])

    plain, _ = adapted(net=Whole())
    for method in METHODS.values():
        net, _ = adapted(AdaptAtTest(method()), net=Whole())
        assert same(net.taught, plain.taught)
        assert not same(net.seen, plain.seen)


def test_only_what_is_adapted_gets_a_gradient():
    asking = []

    class Looks(TENT):
        def adapts(self, network):
            self.network = network
            return super().adapts(network)

        def update(self, logits, features, params, state, *, again):
            asking.append([name for name, p in self.network.named_parameters() if p.requires_grad])
            super().update(logits, features, params, state, again=again)

    adapted(AdaptAtTest(Looks()))
    assert asking == [["backbone.1.weight", "backbone.1.bias"]] * 3


def test_a_layer_that_does_more_than_normalize_does_it_still():
    """As those of timm, which apply an activation in their forward."""

    class NormAct(nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x).tanh()

    for method in (BatchNormAdaptation(), TENT(lr=0.0)):
        net, _ = adapted(AdaptAtTest(method), net=Net(norm=NormAct))
        plain = Net(norm=NormAct).eval()
        linear, norm, _, _ = plain.model.backbone
        h = linear(next(iter(loader()))[0])
        stats = method.statistics(h, norm.running_mean, norm.running_var) or (h.mean(0), h.var(0, correction=0))
        h = ((h - stats[0]) / (stats[1] + norm.eps).sqrt()).tanh().relu()
        torch.testing.assert_close(net.seen[0], plain.model.fc(h).detach(), rtol=1e-5, atol=1e-6)


def test_one_logit_of_two_classes_is_two_columns():
    class Binary(Net):
        def __init__(self):
            super().__init__(classes=1)

        def criterion(self, logits, target):
            return F.binary_cross_entropy_with_logits(logits[:, 0], (target > 0).float())

    net, _ = adapted(AdaptAtTest(LAME(), head="model.fc"), net=Binary())
    plain = Binary().eval()
    x = next(iter(loader()))[0]
    features = plain.model.backbone(x)
    z = plain.model.fc(features).detach()
    both = lame_logits(torch.cat([torch.zeros_like(z), z], 1), features)
    torch.testing.assert_close(net.seen[0].sigmoid()[:, 0], both.exp()[:, 1].detach())
    adapted(AdaptAtTest(TENT()), net=Binary())


def test_a_dictionary_of_outputs_and_an_index_in_the_batch():
    class Dictionary(Net):
        def forward(self, x):
            logits = self.model(x)
            return {"logits": logits, "rest": [logits * 2]}

        def test_step(self, batch, batch_idx):
            output = self(batch[0])
            output["rest"][0].numpy()
            self.seen.append(output["logits"])
            self.criterion(output["logits"], batch[1])

    data_loader = DataLoader(with_index(data()), batch_size=8)
    net, _ = adapted(AdaptAtTest(TENT(lr=0.05)), net=Dictionary(), loaders=data_loader)
    other, _ = adapted(AdaptAtTest(TENT(lr=0.05)))
    assert same(net.seen, other.seen)


class Twice(Adapter):
    """Steps twice on each batch, the second time from where the first has led."""

    problems = ("classes",)

    def __init__(self):
        self.seen = []

    def adapts(self, network):
        return {name: p for name, p in network.named_parameters() if name.startswith("fc")}

    def update(self, logits, features, params, state, *, again):
        for _ in range(2):
            loss = logits.square().mean()
            self.seen.append(loss.item())
            with torch.no_grad():
                for p, g in zip(params.values(), torch.autograd.grad(loss, list(params.values()))):
                    p.sub_(0.1 * g)
            logits, _ = again()


def test_a_method_may_run_the_network_again():
    method = Twice()
    adapted(AdaptAtTest(method))
    mine = Net().eval()
    optimizer, expected = torch.optim.SGD(mine.model.fc.parameters(), lr=0.1), []
    for x, _ in loader():
        for _ in range(2):
            loss = mine(x).square().mean()
            expected.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert method.seen == pytest.approx(expected)


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("method", METHODS)
def test_precisions(method, precision):
    net = Net()
    runner = trainer(AdaptAtTest(METHODS[method]()), precision=precision)
    runner.test(net, loader(), verbose=False)
    found = torch.cat(net.seen).double()
    exact, _ = adapted(AdaptAtTest(METHODS[method]()))
    torch.testing.assert_close(found, torch.cat(exact.seen).double(), rtol=0.1, atol=0.15)


# -- undone ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("moment", ["hook", "step", "update"])
def test_an_error_on_the_way_gives_everything_back(moment, error):
    class Breaking(TENT):
        def update(self, logits, features, params, state, *, again):
            super().update(logits, features, params, state, again=again)
            if moment == "update" and len(net.seen) == 2:
                raise error

    class Failing(Net):
        def test_step(self, batch, batch_idx):
            super().test_step(batch, batch_idx)
            if moment == "step" and batch_idx == 1:
                raise error

    class Late(Callback):
        def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            self.moved = differing(before, dict(pl_module.state_dict()))
            if moment == "hook" and batch_idx == 1:
                raise error

    net, late = Failing(), Late()
    before, shape = copy.deepcopy(net.state_dict()), shape_of(net)
    runner = trainer(AdaptAtTest(Breaking(lr=0.1)), late)
    with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
        runner.test(net, loader(), verbose=False)
    assert late.moved == ["model.backbone.1.weight", "model.backbone.1.bias"]
    assert not differing(before, dict(net.state_dict()))
    assert shape_of(net) == shape
    assert runner.test_loop.inference_mode


def test_an_error_before_the_first_batch_gives_the_loop_back():
    class Failing(Callback):
        def setup(self, trainer, pl_module, stage):
            raise RuntimeError("no data")

    net, runner = Net(), trainer(AdaptAtTest(TENT()), Failing())
    shape = shape_of(net)
    with pytest.raises(RuntimeError, match="no data"):
        runner.test(net, loader(), verbose=False)
    assert shape_of(net) == shape
    assert runner.test_loop.inference_mode


def test_a_checkpoint_saved_in_a_test_holds_the_weights_as_they_were(tmp_path):
    class Saving(Callback):
        def on_test_batch_end(self, trainer, pl_module, *_):
            trainer.save_checkpoint(tmp_path / "middle.ckpt", weights_only=True)

    adapted(AdaptAtTest(TENT(lr=0.1)), Saving())
    saved = torch.load(tmp_path / "middle.ckpt", weights_only=True)["state_dict"]
    assert not differing(dict(Net().state_dict()), saved)


def test_the_weights_of_a_checkpoint_are_adapted_and_left(tmp_path):
    """With ckpt_path, the source is what is loaded."""
    other = Net()
    with torch.no_grad():
        other.model.backbone[1].weight.fill_(2.0)
    runner = trainer()
    runner.strategy.connect(other)
    runner.save_checkpoint(tmp_path / "other.ckpt", weights_only=True)
    net = Net()
    runner = trainer(AdaptAtTest(TENT(lr=0.05)))
    runner.test(net, loader(), ckpt_path=tmp_path / "other.ckpt", verbose=False)
    assert not differing(dict(other.state_dict()), dict(net.state_dict()))
    direct, _ = adapted(AdaptAtTest(TENT(lr=0.05)), net=other)
    assert same(net.seen, direct.seen)


def test_a_copy_of_the_callback_patches_its_own_run():
    class Copies(Callback):
        def on_test_batch_start(self, trainer, pl_module, *_):
            self.copied = copy.deepcopy(trainer.callbacks[0])
            copy.deepcopy(pl_module.model)

    copies = Copies()
    net, _ = adapted(AdaptAtTest(TENT(lr=0.05)), copies)
    again, _ = adapted(copies.copied)
    assert same(net.seen, again.seen)


# -- refused -----------------------------------------------------------------------------------------------------------


def changed(**methods):
    return type("Changed", (Net,), methods)


def no_norm():
    return Net(norm=lambda _: nn.Identity())


def split():
    return changed(forward=lambda self, x: self.model.fc(self.model.backbone(x)))()


def compiled():
    net = Net()
    net.model.compile(backend="eager")
    return net


def twice():
    return changed(forward=lambda self, x: self.model(x) + self.model(-x))()


def probabilities():
    return changed(
        forward=lambda self, x: self.model(x).softmax(1),
        criterion=lambda self, p, target: F.nll_loss((p * 3).exp(), target),
    )()


def regression():
    return changed(criterion=lambda self, logits, target: F.mse_loss(logits, F.one_hot(target, 3).float()))()


def labels():
    criterion = F.binary_cross_entropy_with_logits
    return changed(criterion=lambda self, logits, target: criterion(logits, F.one_hot(target, 3).float()))()


def positions():
    return changed(forward=lambda self, x: self.model.fc(self.model.backbone(x)[:, None])[:, 0])()


def no_gradient():
    class Fixed(nn.Sequential):
        forward = torch.no_grad()(nn.Sequential.forward)

    net = Net()
    net.model = Fixed(net.model.backbone, net.model.fc)
    return net


REFUSED = {
    "a batch of one": (TENT(), Net, {"loaders": loader(batch_size=1)}, "drop_last=True"),
    "a batch of one, mixed": (BatchNormAdaptation(), Net, {"loaders": loader(batch_size=1)}, "drop_last=True"),
    "a compiled network": (TENT(), compiled, {}, "_orig_mod"),
    "a regression": (TENT(), regression, {}, "its targets are numbers"),
    "float16": (TENT(), Net, {"plugins": [MixedPrecision("16-mixed", "cpu")]}, "can vanish in float16"),
    "labels": (LAME(), labels, {}, "several labels"),
    "no BatchNorm": (BatchNormAdaptation(), no_norm, {}, "the network 'model' of Net has none"),
    "no gradient": (TENT(), no_gradient, {}, r"under torch.no_grad\(\)"),
    "no normalization": (TENT(), no_norm, {}, "Sequential has none"),
    "probabilities": (TENT(), probabilities, {}, "is not what the criterion compares"),
    "split": (TENT(), split, {}, "did not call it as a whole"),
    "split, mixed": (BatchNormAdaptation(), split, {}, "did not call it as a whole"),
    "twice": (TENT(), twice, {}, "calls the head 2 times"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_adapted_is_refused_with_the_way_out(case):
    method, net, settings, message = REFUSED[case]
    net = net()
    before, shape = copy.deepcopy(net.state_dict()), shape_of(net)
    loaders = settings.get("loaders")
    runner = trainer(AdaptAtTest(method), **{k: v for k, v in settings.items() if k != "loaders"})
    with pytest.raises(ValueError, match=message):
        runner.test(net, loader() if loaders is None else loaders, verbose=False)
    assert not differing(before, dict(net.state_dict()))
    assert shape_of(net) == shape
    assert runner.test_loop.inference_mode


def test_a_prediction_without_a_word_on_its_logits_is_refused():
    with pytest.raises(ValueError, match=r"Pass problem='classes'"):
        trainer(AdaptAtTest(LAME())).predict(Net(), loader())
    assert trainer(AdaptAtTest(BatchNormAdaptation())).predict(Net(), loader())


def test_two_of_them_are_refused():
    with pytest.raises(ValueError, match="2 AdaptAtTest callbacks"):
        adapted(AdaptAtTest(LAME()), AdaptAtTest(TENT()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapter": torch.relu}, "must be an adapter"),
        ({"adapter": LAME(), "problem": "regression"}, "'classes', 'bin"),
    ],
    ids=["function", "problem"],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptAtTest(**settings)


def test_a_mixture_without_running_statistics_is_refused():
    def norm(width):
        return nn.BatchNorm1d(width, track_running_stats=False)

    with pytest.raises(ValueError, match="Set prior_strength=0"):
        adapted(AdaptAtTest(BatchNormAdaptation()), net=Net(norm=norm))
    net, _ = adapted(AdaptAtTest(BatchNormAdaptation(prior_strength=0.0)), net=Net(norm=norm))
    assert mixed_statistics(torch.ones(2, 1), None, None, prior_strength=0.0)
    assert net.seen
