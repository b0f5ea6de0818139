"""Distillation from a frozen teacher, on modules that know nothing of it."""

import copy
import pickle

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, equal, fit, loader, trainer, weights
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lightning_objectives._trainer.patch import Patch
from lightning_objectives.averaging import EMA
from lightning_objectives.callbacks import (
    AddRegularizer,
    AverageWeights,
    CombineTerms,
    Distill,
    MultiSampleDropoutCallback,
    RestoreRandomState,
    TransformBatch,
)
from lightning_objectives.combination import GradientAlignment
from lightning_objectives.data import with_index
from lightning_objectives.distillation import CRD, BinaryKL, DualHead, VanillaKD, binary_kl, dual_head_loss
from lightning_objectives.kinds import BatchTransform, Distillation


def teacher(classes=3, dtype=torch.float32):
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(7)
        net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, classes)).to(dtype)
        for _ in range(3):
            net(torch.randn(16, 4, dtype=dtype) * 3 + 1)  # statistics of its own
    return net


def told(x):
    with torch.no_grad():
        return teacher().eval()(x)


def flat(value, parameters):
    gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return torch.cat([(p * 0 if g is None else g).detach().flatten() for p, g in zip(parameters, gradients)])


def by_hand(objective, *, epochs=2, extra=None, align=False):
    """The same training as a plain loop: what `fit` does with `Net`, and the term `objective(logits, features, t)`."""
    L.seed_everything(0, verbose=False)
    net = Net()
    parameters = [*net.parameters(), *(extra.parameters() if extra else ())]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for x, y in loader():
            features = net.backbone(x)
            logits = net.fc(features)
            label, term = F.cross_entropy(logits, y), objective(logits, features, told(x))
            optimizer.zero_grad()
            if align:
                first, second = (flat(value, parameters) for value in (label, term))
                if first @ second < 0:
                    second = second - (first @ second) / (first @ first) * first
                for parameter, gradient in zip(parameters, (first + second).split([p.numel() for p in parameters])):
                    parameter.grad = gradient.view_as(parameter).clone()
            else:
                (label + term).backward()
            optimizer.step()
    return net


def close(a, b, tolerance=1e-6):
    a, b = (x.state_dict() if isinstance(x, nn.Module) else x for x in (a, b))
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", [BinaryKL(), BinaryKL(normalize=True), VanillaKD()], ids=repr)
def test_on_one_head_it_is_the_plain_loop(method):
    net, runner = fit(Distill(method, teacher=teacher(), weight=0.3))
    close(net, by_hand(lambda logits, features, t: 0.3 * method(logits, t).mean()))
    assert f"train/{type(method).__name__.lower()}" in runner.callback_metrics


@pytest.mark.parametrize("align", [False, True])
def test_the_dual_head_is_the_plain_loop(align):
    """alpha is large, so that the two gradients come to oppose each other."""
    callback = Distill(DualHead(alpha=5.0, align=align), teacher=teacher())
    shares = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            shares.append(trainer.callback_metrics.get("train/own_loss_weight", torch.tensor(1.0)).item())

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        auxiliary = nn.Linear(6, 3)
    net, _ = fit(callback, Look(), log_every_n_steps=1)
    close(
        net,
        by_hand(
            lambda logits, features, t: dual_head_loss(auxiliary(features), t, alpha=5.0).mean(),
            extra=auxiliary,
            align=align,
        ),
    )
    close(callback.method.auxiliary_head, auxiliary)
    assert (max(shares) > 1) is align


def test_combined_terms_are_the_aligned_gradients():
    combined, runner = fit(Distill(VanillaKD(), teacher=teacher(), weight=5.0), CombineTerms(GradientAlignment()))
    close(combined, by_hand(lambda logits, features, t: 5 * VanillaKD()(logits, t).mean(), align=True))
    assert runner.callback_metrics["train/weight_1"] == 1


def halved(step):
    """A combination that asks for no gradients."""
    return torch.tensor([1.0, 0.5])


def test_a_combination_without_gradients_is_the_weighted_sum():
    combined, _ = fit(Distill(BinaryKL(), teacher=teacher()), CombineTerms(halved))
    close(combined, fit(Distill(BinaryKL(), teacher=teacher(), weight=0.5))[0], 1e-7)


@pytest.mark.parametrize(
    ("callbacks", "passes"),
    [
        (lambda: [Distill(VanillaKD(), teacher=teacher(), weight=5.0), CombineTerms(GradientAlignment())], 2),
        (lambda: [Distill(DualHead(alpha=5.0, align=True), teacher=teacher())], 2),
        (
            lambda: [
                Distill(VanillaKD(), teacher=teacher()),
                AddRegularizer(lambda logits: logits.square().mean(1)),
                CombineTerms(GradientAlignment()),
            ],
            3,
        ),
        (lambda: [Distill(VanillaKD(), teacher=teacher())], 1),
        (lambda: [Distill(VanillaKD(), teacher=teacher()), CombineTerms(halved)], 1),
    ],
)
def test_the_backbone_is_gone_through_once_a_term(callbacks, passes):
    class Counts(Net):
        def __init__(self):
            super().__init__()
            self.passes = 0

        def training_step(self, batch, batch_idx):
            taken = self.backbone.register_forward_hook(self.watch)
            try:
                return super().training_step(batch, batch_idx)
            finally:
                taken.remove()

        def watch(self, module, inputs, output):
            output.register_hook(self.count)

        def count(self, gradient):
            self.passes += 1

    net, runner = fit(*callbacks(), net=Counts)
    assert net.passes == passes * runner.global_step


def combined():
    return Distill(VanillaKD(), teacher=teacher(), weight=5.0), CombineTerms(GradientAlignment())


def test_hooks_of_parameters_act_once_on_the_combined_gradient():
    """Doubled by hooks, and halved by the learning rate."""

    class Hooked(Net):
        def on_fit_start(self):
            for parameter in self.parameters():
                parameter.register_hook(lambda gradient: 2 * gradient)

        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            for group in optimizer.param_groups:
                group["lr"] /= 2
            return optimizer

    close(fit(*combined(), net=Hooked)[0], fit(*combined())[0])


@pytest.mark.parametrize("scaled", [False, True])
def test_what_is_reached_beside_parameters_gets_the_combined_gradient_and_what_is_not_gets_none(scaled):
    class Adversarial(Net):
        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.ones(1))
            self.found = []

        def training_step(self, batch, batch_idx):
            self.x = batch[0].clone().requires_grad_()
            return super().training_step((self.x, batch[1]), batch_idx)

        def on_after_backward(self):
            assert self.unused.grad is None
            self.found.append(self.x.grad)

    class Hooked(Adversarial):
        """A pass of its own, as hooks have it: what autograd itself makes of the weighted sum."""

        def on_fit_start(self):
            self.fc.bias.register_hook(lambda gradient: gradient)

    def run(net):
        return fit(*combined(), net=net, plugins=[Scaled()] if scaled else [])[0]

    handed, passed = run(Adversarial), run(Hooked)
    assert handed.found
    for mine, other in zip(handed.found, passed.found, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=float(other.abs().max()) * 1e-6)
    close(handed, passed)


def test_weights_of_one_are_the_sum():
    def ones(gradients):
        return torch.ones(len(gradients))

    distill = {"teacher": teacher(), "weight": 0.5}
    combined, _ = fit(Distill(BinaryKL(), **distill), CombineTerms(ones))
    close(combined, fit(Distill(BinaryKL(), **distill))[0], 1e-7)


def test_a_combination_with_other_weights_is_refused():
    with pytest.raises(ValueError, match=r"weights of shape \(3,\) for 2 terms"):
        fit(Distill(BinaryKL(), teacher=teacher()), CombineTerms(lambda gradients: torch.ones(3)))
    with pytest.raises(ValueError, match="combines its term with the model's own loss itself"):
        fit(Distill(DualHead(align=True), teacher=teacher()), CombineTerms(GradientAlignment()))


def test_a_combination_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"CombineTerms\(GradientAlignment\(.*has nothing to combine.*AddRegularizer"):
        fit(CombineTerms(GradientAlignment()))
    idle, _ = fit(CombineTerms(GradientAlignment()), Distill(BinaryKL(), teacher=teacher(), weight=0.0))
    assert equal(idle, fit()[0])  # A term of weight 0 is a term, which changes nothing.


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback with a model that overrides")
def test_lightnings_own_average_beside_a_head_is_refused(first):
    callbacks = [Distill(DualHead(), teacher=teacher()), WeightAveraging()]
    with pytest.raises(ValueError, match="would add parameters, but Lightning's WeightAveraging copies the module"):
        fit(*(callbacks if first else callbacks[::-1]))


class Scaled(MixedPrecision):
    """A gradient scaler without the casts, so that only what the scale does is seen."""

    def __init__(self):
        super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))

    def autocast_context_manager(self):
        return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_under_a_scaler_and_accumulation_are_the_true_ones(accumulate):
    def by_norm(gradients):
        return 1 + gradients.norm(dim=1)

    def run(**kwargs):
        callbacks = Distill(BinaryKL(), teacher=teacher()), CombineTerms(by_norm)
        return fit(*callbacks, accumulate_grad_batches=accumulate, **kwargs)[0]

    close(run(plugins=[Scaled()]), run())
    aligned = [Distill(DualHead(alpha=5.0, align=True), teacher=teacher()) for _ in range(2)]
    close(fit(aligned[0], plugins=[Scaled()])[0], fit(aligned[1])[0])


def test_a_step_that_the_scaler_skips_is_skipped():
    class Overflow(Scaled):
        def __init__(self):
            super().__init__()
            self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=0.999)

    net, _ = fit(Distill(DualHead(align=True), teacher=teacher()), plugins=[Overflow()], net=Wide)
    L.seed_everything(0, verbose=False)
    assert equal(net, Wide())


class Wide(Net):
    """Its loss is large enough for the scaled gradients to overflow."""

    def criterion(self, logits, y):
        return 100 * super().criterion(logits, y)


@pytest.mark.parametrize(
    "callback",
    [
        lambda: Distill(DualHead(alpha=0.0, auxiliary="mlp", align=True), teacher="never asked for"),
        lambda: Distill(DualHead(stop_epoch=0), teacher="never asked for"),
        lambda: Distill(VanillaKD(), teacher="never asked for", weight=0.0),
    ],
)
def test_zero_strength_is_the_untouched_run_bit_for_bit(callback):
    def net():
        return Net(dropout=0.5)

    assert equal(fit(callback(), net=net)[0], fit(net=net)[0])


@pytest.mark.parametrize("settings", [{"cache": "cache"}, {}], ids=["cache", "memory"])
def test_zero_strength_on_data_with_an_index_is_the_untouched_run(settings, tmp_path, monkeypatch):
    """The user's step gets the batch that it knows, without the index."""
    monkeypatch.chdir(tmp_path)
    method = VanillaKD() if settings else CRD()
    callback = Distill(method, teacher="never asked for", weight=0.0, **settings)
    indexed = DataLoader(with_index(data()), batch_size=8)
    assert equal(fit(callback, train=indexed)[0], fit()[0])
    assert not list(tmp_path.iterdir())


def test_the_users_draws_are_not_moved_by_the_auxiliary_heads():
    class Draws(Net):
        def on_fit_start(self):
            self.drawn = [torch.rand(()).item()]

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.drawn.append(torch.rand(()).item())
            return loss

    touched, _ = fit(Distill(DualHead(auxiliary="mlp"), teacher=teacher()), net=Draws)
    assert touched.drawn == fit(net=Draws)[0].drawn


def test_the_initial_weights_and_the_dropout_are_those_of_the_seed():
    runs = [fit(Distill(DualHead(auxiliary="mlp"), teacher=teacher(), seed=seed))[0] for seed in (0, 0, 1)]
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


class Watch(L.Callback):
    """The teacher of a callback, seen during the fit."""

    def __init__(self, distill):
        self.distill = distill

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.network = self.distill._teacher.frozen.network
        assert not any(m.training for m in self.network.modules())
        self.network.train()  # what a user's code might do
        own = {id(p) for p in pl_module.parameters()}
        optimized = {id(p) for o in trainer.optimizers for g in o.param_groups for p in g["params"]}
        theirs = {id(p) for p in self.network.parameters()}
        assert not theirs & (own | optimized)
        assert not any("teacher" in name for name, _ in pl_module.named_modules())
        pickle.dumps(copy.deepcopy(pl_module))


def test_the_teacher_is_frozen_and_the_users_module_is_untouched():
    given = teacher().train()
    before = weights(given)
    distill = Distill(DualHead(), teacher=given)
    watch = Watch(distill)
    fit(distill, watch)
    assert equal(weights(watch.network), before)
    assert equal(weights(given), before)
    assert given.training
    assert all(p.requires_grad for p in given.parameters())
    assert distill._teacher is None


@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_the_teacher_is_cast_with_the_module(precision):
    given = teacher()
    net, _ = fit(Distill(DualHead(align=True), teacher=given), precision=precision, max_epochs=1)
    assert all(value.isfinite().all() for value in net.state_dict().values())
    assert given[0].weight.dtype is torch.float32


def test_it_sees_the_mixed_inputs():
    class Half(BatchTransform):
        def forward(self, inputs):
            rows = torch.arange(len(inputs))[:, None]
            return inputs / 2, rows, torch.ones(len(inputs), 1)

    seen = []

    class Look(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return torch.zeros(len(x), 3)

        def __deepcopy__(self, memo):
            return self

    fit(Distill(VanillaKD(), teacher=Look()), TransformBatch(Half()), max_epochs=1)
    assert torch.equal(torch.cat(seen), data().tensors[0] / 2)


def test_the_signals_of_the_teacher_are_for_all():
    seen = {}

    def look(teacher_logits, teacher_features, logits):
        seen.update(locals())
        return logits.sum() * 0

    fit(AddRegularizer(look), Distill(VanillaKD(), teacher=teacher()), train=loader(24), max_epochs=1)
    x = data().tensors[0]
    torch.testing.assert_close(seen["teacher_logits"], told(x))
    torch.testing.assert_close(seen["teacher_features"], teacher().eval()[:3](x).detach())
    assert not seen["teacher_logits"].requires_grad


def test_features_of_the_teacher_as_a_method_asks():
    class Relation(Distillation):
        def forward(self, features, teacher_features):
            student, teacher = (F.normalize(x) @ F.normalize(x).T for x in (features, teacher_features))
            return (student - teacher).square().mean(1)

    assert not equal(fit(Distill(Relation(), teacher=teacher()))[0], fit()[0])


class Pair(nn.Module):
    """Two networks in one module: the last head is that of one of them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = teacher(), teacher()
        nn.init.ones_(self.first[3].weight)

    def forward(self, x):
        return (self.first(x) + self.second(x)) / 2


def test_the_features_of_one_network_of_two_must_be_named():
    class Nearness(Distillation):
        def forward(self, logits, features, teacher_features):
            return (features.norm(dim=1) - teacher_features.norm(dim=1)).square()

    with pytest.raises(ValueError, match=r"'second\.3' looks like the head, but its output is not what Pair returns"):
        fit(Distill(Nearness(), teacher=Pair()))
    fit(Distill(Nearness(), teacher=Pair(), teacher_head="second.3"))


def test_two_teachers():
    other = teacher()
    nn.init.ones_(other[3].weight)
    pair = [Distill(VanillaKD(temperature=t), teacher=net) for t, net in ((1.0, teacher()), (2.0, other))]

    def both(logits, features, t):
        with torch.no_grad():
            x = both.batch
            answers = [copy.deepcopy(net).eval()(x) for net in (teacher(), other)]
        return sum(VanillaKD(temperature=n)(logits, a).mean() for n, a in zip((1.0, 2.0), answers))

    both.batch = data().tensors[0]
    L.seed_everything(0, verbose=False)
    hand = Net()
    x, y = data().tensors
    logits = hand(x)
    (F.cross_entropy(logits, y) + both(logits, None, None)).backward()
    with torch.no_grad():
        for parameter in hand.parameters():
            parameter -= 0.1 * parameter.grad
    close(fit(*pair, train=loader(24), max_epochs=1)[0], hand)


class Save(L.Callback):
    def __init__(self, path):
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.save_checkpoint(self.path / f"{trainer.current_epoch}.ckpt")


@pytest.mark.parametrize("auxiliary", ["linear", "mlp"])
def test_resume_is_the_uninterrupted_run(auxiliary, tmp_path):
    def callbacks():
        method = DualHead(auxiliary=auxiliary, align=True, stop_epoch=3)
        return [Distill(method, teacher=teacher()), RestoreRandomState()]

    def net():
        return Net(dropout=0.3)

    first, again = callbacks(), callbacks()
    whole, _ = fit(*first, Save(tmp_path), net=net, max_epochs=4)
    resumed = net()
    trainer(*again, max_epochs=4).fit(resumed, loader(), ckpt_path=tmp_path / "1.ckpt")
    assert equal(whole, resumed)
    assert equal(first[0].method.auxiliary_head, again[0].method.auxiliary_head)


def test_a_checkpoint_is_that_of_the_plain_module(tmp_path):
    net, runner = fit(Distill(DualHead(auxiliary="mlp"), teacher=teacher()), Save(tmp_path))
    assert list(net.state_dict()) == list(Net().state_dict())
    assert [name for name, _ in net.named_children()] == ["backbone", "fc"]
    runner.save_checkpoint(tmp_path / "after.ckpt")
    for file in ("1.ckpt", "after.ckpt"):
        saved = torch.load(tmp_path / file, weights_only=True)
        assert saved["state_dict"].keys() == Net().state_dict().keys()
        plain = Net.load_from_checkpoint(tmp_path / file)
        assert equal(plain, net)
        trainer(max_epochs=3).fit(Net(), loader(), ckpt_path=tmp_path / file)  # without the plug-in
        trainer(Distill(DualHead(auxiliary="mlp"), teacher=teacher()), max_epochs=3).fit(
            Net(), loader(), ckpt_path=tmp_path / file
        )
        trainer(Distill(DualHead(auxiliary="mlp"), teacher=teacher())).validate(
            Net(), loader(), ckpt_path=tmp_path / file, verbose=False
        )


def test_from_the_stop_epoch_on_the_teacher_is_not_asked():
    calls = []

    class Counted(nn.Module):
        def forward(self, x):
            calls.append(len(x))
            return torch.zeros(len(x), 3)

        def __deepcopy__(self, memo):
            return self

    net, _ = fit(Distill(DualHead(stop_epoch=1), teacher=Counted()), max_epochs=3)
    assert len(calls) == 3
    assert all(value.isfinite().all() for value in net.state_dict().values())


def test_fit_twice_is_fit_twice_with_fresh_objects():
    def twice(*callbacks):
        L.seed_everything(0, verbose=False)
        net = Net()
        for callback in callbacks:
            trainer(callback).fit(net, loader())
        return net

    one = Distill(DualHead(), teacher=teacher())
    assert equal(twice(one, one), twice(*(Distill(DualHead(), teacher=teacher()) for _ in range(2))))


def test_copies_and_pickles_of_the_callback_train_the_same():
    callback = Distill(DualHead(), teacher=teacher())
    expected = fit(callback)[0]
    for copied in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert equal(fit(copied)[0], expected)


def test_it_lives_with_the_others():
    average = AverageWeights(EMA(decay=0.5))
    others = [MultiSampleDropoutCallback(num_samples=2), average, AddRegularizer(lambda logits: logits.square())]
    net, runner = fit(*others, Distill(DualHead(align=True), teacher=teacher()))
    assert {"train/dualhead", "train/own_loss_weight"} <= set(runner.callback_metrics)
    assert list(net.state_dict()) == list(Net().state_dict())
    assert average.averaged_state_dict().keys() == net.state_dict().keys()


def test_hyperparameters_hold_no_teacher(tmp_path):
    class Kept(Net):
        def __init__(self, dropout=0.0):
            super().__init__(dropout)
            self.save_hyperparameters()

    net, runner = fit(Distill(DualHead(), teacher=teacher()), net=Kept)
    assert dict(net.hparams) == {"dropout": 0.0}
    runner.save_checkpoint(tmp_path / "a.ckpt")
    assert "Sequential" not in str(torch.load(tmp_path / "a.ckpt", weights_only=True))


class Segmenter(Net):
    """Logits (N, C, T), as torch's cross entropy has them."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x.unsqueeze(1).expand(-1, 5, -1)).movedim(-1, 1)
        return F.cross_entropy(logits, y[:, None].expand(-1, 5))


@pytest.mark.parametrize("method", [VanillaKD(), DualHead()], ids=lambda m: type(m).__name__)
def test_many_rows_a_sample_with_the_classes_first_or_last(method):
    class Many(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.last = last

        def forward(self, x):
            logits = x[:, None, :3].repeat(1, 5, 1) * torch.arange(5.0)[:, None]
            return logits if self.last else logits.movedim(-1, 1)

    last, first = (fit(Distill(method, teacher=Many(last)), net=Segmenter)[0] for last in (True, False))
    assert equal(last, first)
    assert not equal(last, fit(net=Segmenter)[0])


def test_a_single_head_with_labels_and_binary_kl_learns_from_both():
    """The paper's collapsing objective can be built: its gradient is the sum of both."""
    net, _ = fit(Distill(BinaryKL(), teacher=teacher()), train=loader(24), max_epochs=1)
    L.seed_everything(0, verbose=False)
    hand = Net()
    x, y = data().tensors
    logits = hand(x)
    (F.cross_entropy(logits, y) + binary_kl(logits, told(x)).mean()).backward()
    for parameter, trained in zip(hand.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(trained, parameter - 0.1 * parameter.grad)


REFUSED = {
    "classes": (lambda: Distill(VanillaKD(), teacher=teacher(10)), "24 rows of 3 classes"),
    "dual classes": (lambda: Distill(DualHead(), teacher=teacher(10)), "same classes, in the same order"),
    "no logits": (lambda: Distill(VanillaKD(), teacher=Says({"hidden": 1})), r"a dict with the keys \['hidden'\]"),
    "no head": (lambda: Distill(DualHead(), teacher=teacher(), head="backbone.1"), "holds no layer with a matrix"),
    "statistics": (
        lambda: Distill(VanillaKD(), teacher=teacher(), data_normalization=([0.0], [1.0])),
        "give teacher_normalization",
    ),
    "channels": (
        lambda: Distill(
            VanillaKD(), teacher=teacher(), data_normalization=([0.0], [1.0]), teacher_normalization=([0.0], [1.0])
        ),
        "has 1 channels, the inputs are",
    ),
}


class Says(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what = what

    def forward(self, x):
        return self.what


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_in_a_sentence(name):
    callback, sentence = REFUSED[name]
    net = Net()
    with pytest.raises(ValueError, match=sentence):
        fit(callback(), net=net, train=loader(24))
    assert not any(isinstance(value, Patch) for module in net.modules() for value in vars(module).values())
    assert [name for name, _ in net.named_children()] == ["backbone", "fc"]


def test_a_teacher_that_is_none_is_refused():
    for bad in (Net, None, 3):
        with pytest.raises(ValueError, match=r"must be a trained module, a timm name, the path of a class, or a func"):
            Distill(VanillaKD(), teacher=bad)
    with pytest.raises(ValueError, match="needs data_normalization"):
        Distill(VanillaKD(), teacher=teacher(), teacher_normalization=([0.0], [1.0]))
    with pytest.raises(TypeError, match="teacher"):
        Distill(VanillaKD())


def test_manual_optimization_is_refused():
    class Manual(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

    with pytest.raises(ValueError, match="cannot work with Manual because it sets `automatic_optimization = False`"):
        fit(Distill(VanillaKD(), teacher=teacher()), net=Manual)


def test_the_data_may_be_shuffled_and_uneven():
    batches = DataLoader(data(n=21), batch_size=8, shuffle=True)
    net, _ = fit(Distill(DualHead(auxiliary="mlp", align=True), teacher=teacher()), train=batches)
    assert all(value.isfinite().all() for value in net.state_dict().values())
