"""The gradient is taken at moved weights, and nothing else of the training changes: a loop by hand is the number."""

import copy

import lightning as L
import pytest
import torch
from helpers import Net, equal, fit, loader, trainer, weights
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torchmetrics import SumMetric
from torchmetrics.classification import MulticlassAccuracy

from lightning_objectives.averaging import EMA
from lightning_objectives.batches import Mixup
from lightning_objectives.callbacks import (
    AverageWeights,
    Distill,
    PerturbWeights,
    ReweightSamples,
    TransformBatch,
    TransformGradients,
    WrapHead,
)
from lightning_objectives.distillation import VanillaKD
from lightning_objectives.gradients import ComponentwiseGradClip
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.kinds import Perturbation
from lightning_objectives.perturbations import ASAM, SAM, WeightNoise
from lightning_objectives.weighting import LossBasedReweighting


class Deep(Net):
    """With all that a second pass could spoil: dropout, BatchNorm, a metric, a log, and two groups of parameters."""

    def __init__(self, dropout=0.3, scale=1.0):
        super().__init__(dropout)
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(dropout))
        self.accuracy = MulticlassAccuracy(3)
        self.scale = scale

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.accuracy(logits, y)
        loss = self.scale * self.criterion(logits, y)
        self.log("loss", loss, on_step=False, on_epoch=True)
        self.log("accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        groups = [{"params": self.backbone.parameters()}, {"params": self.fc.parameters(), "lr": 0.05}]
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def by_hand(offsets, net=Deep, *, accumulate=1, clip=None, dtype=None, every=1):
    """Train a net by a loop of our own, with two passes; returns it and the losses of the first passes."""
    L.seed_everything(0, verbose=False)
    module = net()
    optimizer = module.configure_optimizers()
    params = dict(module.named_parameters())
    losses, steps = [], 0

    def passed(batch):
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None, cache_enabled=False):
            return module.criterion(module(batch[0]), batch[1])

    batches = loader()
    for _ in range(2):
        for number, batch in enumerate(batches):  # each epoch draws a seed for the workers, as in the Trainer
            draws, buffers = torch.get_rng_state(), {n: b.clone() for n, b in module.named_buffers()}
            loss = passed(batch)
            losses.append(loss.item())
            moves = (steps + 1) % every == 0
            if moves:
                gradients = dict(zip(params, torch.autograd.grad(loss, list(params.values()))))
                saved = {n: p.detach().clone() for n, p in params.items()}
                after = {n: b.clone() for n, b in module.named_buffers()}
                with torch.no_grad():
                    for n, offset in offsets(gradients, saved).items():
                        params[n].add_(offset)
                    for n, b in module.named_buffers():
                        b.copy_(buffers[n])
                torch.set_rng_state(draws)
                loss = passed(batch)
            (loss / accumulate).backward()
            with torch.no_grad():
                for n in params if moves else ():
                    params[n].copy_(saved[n])
                for n, b in module.named_buffers() if moves else ():
                    b.copy_(after[n])
            if (number + 1) % accumulate == 0 or number + 1 == len(batches):
                if clip is not None:
                    nn.utils.clip_grad_norm_(module.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
    return module, losses


def sam(gradients, params, rho=0.1):
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    return {name: g * (rho / (norm + 1e-12)) for name, g in gradients.items()}


def asam(gradients, params, rho=0.5, eta=0.01):
    t = {n: p.abs() + eta if n.endswith("weight") else torch.ones_like(p) for n, p in params.items()}
    norm = torch.stack([(t[n] * g).norm() for n, g in gradients.items()]).norm()
    return {n: g * t[n] * (rho / (norm + 1e-16)) * t[n] for n, g in gradients.items()}


def same_weights(ours, theirs):
    return all(torch.equal(p, dict(theirs.named_parameters())[n]) for n, p in ours.named_parameters()) and all(
        torch.equal(b, dict(theirs.named_buffers())[n]) for n, b in ours.named_buffers()
    )


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"clip": 0.2}, {"dtype": torch.bfloat16}, {"every": 2}])
@pytest.mark.parametrize("method", ["asam", "sam"])
def test_a_loop_by_hand_gives_the_same_bits(method, settings):
    offsets, perturbation = {"sam": (sam, SAM(rho=0.1)), "asam": (asam, ASAM())}[method]
    theirs, losses = by_hand(offsets, **settings)
    ours, runner = fit(
        PerturbWeights(perturbation, every_n_steps=settings.get("every", 1)),
        net=Deep,
        accumulate_grad_batches=settings.get("accumulate", 1),
        gradient_clip_val=settings.get("clip"),
        precision="bf16-mixed" if "dtype" in settings else "32-true",
    )
    assert same_weights(ours, theirs)
    assert runner.callback_metrics["loss"].item() == pytest.approx(sum(losses[3:]) / 3, rel=1e-6)
    plain, _ = fit(net=Deep)
    assert not equal(ours, plain)


def test_a_rho_of_zero_is_the_plain_training():
    plain, theirs = fit(net=Deep)
    idle, ours = fit(PerturbWeights(SAM(rho=0.0)), net=Deep)
    assert equal(idle, plain)
    assert ours.callback_metrics == theirs.callback_metrics


class Tied(Deep):
    """Keeps a view of a weight, and computes with the view."""

    def __init__(self):
        super().__init__(dropout=0.0)
        self.views = (self.fc.weight.detach().T,)

    def forward(self, x):
        hidden = self.backbone(x)
        return self.fc(hidden) + hidden @ self.views[0]


def test_views_of_a_weight_move_with_it():
    """The weights that the second pass computes with are the moved ones, also by way of a view."""
    seen = []

    class Watching(Tied):
        def training_step(self, batch, batch_idx):
            seen.append(torch.equal(self.views[0], self.fc.weight.T))
            return super().training_step(batch, batch_idx)

    fit(PerturbWeights(SAM(rho=0.5)), net=Watching, max_epochs=1)
    assert seen == 6 * [True]


def test_the_memory_of_the_weights_is_their_own_again():
    class Places(Callback):
        moved = ()

        def on_before_backward(self, trainer, pl_module, loss):
            self.moved = [parameter.data_ptr() for parameter in pl_module.parameters()]

        def on_train_start(self, trainer, pl_module):
            self.before = [parameter.data_ptr() for parameter in pl_module.parameters()]

        def on_train_end(self, trainer, pl_module):
            assert self.before == [parameter.data_ptr() for parameter in pl_module.parameters()]
            assert not {*self.before} & {*self.moved}

    fit(PerturbWeights(SAM(rho=0.5)), Places(), net=Deep)


class Still(Perturbation):
    """Moves nothing, but takes both passes."""

    def offsets(self, gradients, params, *, generator=None):
        return {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}


@pytest.mark.parametrize("precision", ["16-mixed", "32-true", "bf16-mixed", "bf16-true"])
def test_two_passes_without_a_move_are_the_plain_training(precision):
    """Streams, buffers, metrics, logs and gradients are those of one pass, to the bit."""
    runs = [fit(*callbacks, net=Deep, **amp(precision)) for callbacks in ((), (PerturbWeights(Still()),))]
    (plain, theirs), (ours, runner) = runs
    assert equal(ours, plain)
    assert runner.callback_metrics == theirs.callback_metrics


def amp(precision, scale=2.0**8):
    if precision != "16-mixed":
        return {"precision": precision}
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale))]}


def test_weights_that_autocast_has_cached_move_too():
    """Lightning's own contexts cache none, but a plugin of the user's may."""

    class Caching(MixedPrecision):
        def __init__(self):
            super().__init__("bf16-mixed", "cpu")

        def forward_context(self):
            return torch.autocast("cpu", dtype=torch.bfloat16)

    ours, _ = fit(PerturbWeights(SAM(rho=0.1)), net=Deep, plugins=[Caching()])
    theirs, _ = by_hand(sam, dtype=torch.bfloat16)
    assert same_weights(ours, theirs)


def test_both_passes_find_the_same_buffers_and_metrics_count_once():
    class Remembering(Deep):
        """Its loss depends on a buffer that each step changes."""

        def __init__(self):
            super().__init__()
            self.register_buffer("level", torch.ones(()))
            self.seen = SumMetric()

        def training_step(self, batch, batch_idx):
            self.level.mul_(0.5).add_(batch[0].mean())
            self.seen.update(1.0)
            return self.level * super().training_step(batch, batch_idx)

    ours, _ = fit(PerturbWeights(Still()), net=Remembering)
    plain, _ = fit(net=Remembering)
    assert equal(ours, plain)
    assert ours.seen.compute() == 6
    assert ours.seen.update_count == 6


def test_two_passes_without_a_move_beside_everything_else():
    def others():
        teacher = Net().eval()
        return [
            TransformBatch(Mixup()),
            WrapHead(MultiSampleDropout(p=0.5)),
            ReweightSamples(LossBasedReweighting()),
            Distill(VanillaKD(), teacher=teacher),
            TransformGradients(ComponentwiseGradClip(max_norm=0.1)),
            AverageWeights(EMA(decay=0.5)),
        ]

    L.seed_everything(3)
    first, second = others(), others()
    second[3].teacher.load_state_dict(first[3].teacher.state_dict())
    plain, _ = fit(*first, net=Deep, log_every_n_steps=1)
    ours, _ = fit(*second, PerturbWeights(Still()), net=Deep, log_every_n_steps=1)
    assert equal(ours, plain)


def test_the_teacher_runs_once_a_batch():
    class Counting(Net):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            return super().forward(x)

    fit(Distill(VanillaKD(), teacher=Counting().eval()), PerturbWeights(SAM()), max_epochs=1)
    assert Counting.calls == 3


def test_a_step_that_the_scaler_skips_is_skipped():
    """The first scale overflows, in both passes; weights come back and nothing is NaN."""
    net, runner = fit(PerturbWeights(SAM()), net=Deep, max_epochs=1, **amp("16-mixed", scale=2.0**127))
    assert runner.precision_plugin.scaler.get_scale() == 2.0**124  # halved in each of the three steps
    L.seed_everything(0, verbose=False)
    assert same_weights(nn.ModuleList([net.fc, net.backbone[0]]), nn.ModuleList([(new := Deep()).fc, new.backbone[0]]))


def test_a_scale_changes_nothing():
    """The offset is that of the unscaled gradient, also for a method that does not normalise it."""

    class Straight(Perturbation):
        def offsets(self, gradients, params, *, generator=None):
            return {name: 0.01 * gradient for name, gradient in gradients.items()}

    class Wide(MixedPrecision):
        """A scaler without the casts, so that only what the scale does is seen."""

        def __init__(self):
            super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))

        def forward_context(self):
            return torch.autocast("cpu", enabled=False)

    ours, _ = fit(PerturbWeights(Straight()), net=Deep, plugins=[Wide()])
    plain, _ = fit(PerturbWeights(Straight()), net=Deep)
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-6, atol=1e-7)


class Watch(Callback):
    """Notes the weights at the moments when they are to be the optimizer's."""

    def __init__(self):
        self.moments = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.moments.append(weights(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.moments.append(weights(pl_module))


def test_the_optimizer_starts_from_the_weights_as_they_were():
    watch = Watch()
    fit(PerturbWeights(SAM(rho=1.0)), watch, net=Deep)
    for after, before in zip(watch.moments[1::2], watch.moments[2::2]):
        params = [name for name in before if "running" not in name and "num_batches" not in name]
        assert all(torch.equal(before[name], after[name]) for name in params)


@pytest.mark.parametrize("moment", ["backward", "second_pass"])
def test_an_error_on_the_way_puts_the_weights_back(moment):
    class Failing(Deep):
        passes = 0

        def training_step(self, batch, batch_idx):
            self.passes += 1
            if moment == "second_pass" and self.passes == 4:
                raise RuntimeError("out of memory")
            return super().training_step(batch, batch_idx)

        def backward(self, loss, *args, **kwargs):
            if moment == "backward" and self.passes == 4:
                raise RuntimeError("out of memory")
            super().backward(loss, *args, **kwargs)

    class AfterFirstStep(Callback):
        """Comes first, also when the error is told: a search for a batch size goes on after one."""

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.weights = {n: p.clone() for n, p in pl_module.named_parameters()}

        def on_exception(self, trainer, pl_module, exception):
            self.same = all(torch.equal(p, self.weights[n]) for n, p in pl_module.named_parameters())

    noted, net = AfterFirstStep(), Failing()
    L.seed_everything(0)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer(noted, PerturbWeights(SAM(rho=1.0))).fit(net, loader())
    assert noted.same
    assert "log" not in vars(net)


def test_a_file_saved_in_the_middle_of_a_step_holds_the_weights_as_they_were(tmp_path):
    class Saving(Deep):
        """As a signal handler does that the machine's scheduler calls."""

        def backward(self, loss, *args, **kwargs):
            self.trainer.save_checkpoint(tmp_path / "middle.ckpt")
            super().backward(loss, *args, **kwargs)

        def on_train_batch_start(self, *_):
            self.before = {n: p.clone() for n, p in self.named_parameters()}

    net, _ = fit(PerturbWeights(SAM(rho=1.0)), net=Saving, max_epochs=1, limit_train_batches=2)
    saved = torch.load(tmp_path / "middle.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], before) for name, before in net.before.items())
    assert saved["backbone.1.num_batches_tracked"] == 2


def test_it_resumes_to_the_bit(tmp_path):
    whole, _ = fit(PerturbWeights(SAM(rho=0.1), every_n_steps=2), net=lambda: Deep(dropout=0.0), max_epochs=4)
    saver = ModelCheckpoint(tmp_path, save_last=True)
    callbacks = [PerturbWeights(SAM(rho=0.1), every_n_steps=2), saver]
    fit(*callbacks, net=lambda: Deep(dropout=0.0), max_epochs=2, enable_checkpointing=True)
    runner = trainer(PerturbWeights(SAM(rho=0.1), every_n_steps=2), max_epochs=4)
    resumed = Deep(dropout=0.0)
    runner.fit(resumed, loader(), ckpt_path=tmp_path / "last.ckpt")
    assert equal(resumed, whole)


def test_noise_takes_one_pass_and_leaves_the_streams_alone():
    class Counting(Deep):
        passes = 0

        def training_step(self, batch, batch_idx):
            self.passes += 1
            self.drawn = torch.get_rng_state()
            return super().training_step(batch, batch_idx)

    noisy, _ = fit(PerturbWeights(WeightNoise(rho=0.1)), net=Counting)
    plain, _ = fit(net=Counting)
    assert noisy.passes == plain.passes == 6
    assert torch.equal(noisy.drawn, plain.drawn)
    assert not equal(noisy, plain)
    again, _ = fit(PerturbWeights(WeightNoise(rho=0.1)), net=Counting)
    assert equal(again, noisy)


def test_the_gradient_of_a_quadratic_is_that_of_the_formula():
    """With the Hessian H the gradient at w + rho g / |g| is g + rho H g / |g|."""
    hessian = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)

    class Quadratic(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))

        def training_step(self, batch, batch_idx):
            return self.weight @ hessian @ self.weight / 2

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1.0)

    net, _ = fit(PerturbWeights(SAM(rho=0.5)), net=Quadratic, max_epochs=1, limit_train_batches=1)
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    gradient = hessian @ start
    expected = start - (gradient + 0.5 * hessian @ gradient / gradient.norm())
    torch.testing.assert_close(net.weight.detach(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", [ASAM(), SAM()], ids=["asam", "sam"])
def test_parameters_may_share_one_gradient(method):
    """Autograd gives both summands the same tensor, which is a number that is expanded."""

    class Sum(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = (nn.Parameter(torch.tensor([v, -v, v])) for v in (1.0, 2.0))

        def training_step(self, batch, batch_idx):
            return (self.weight + self.bias).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.5)

    net, _ = fit(PerturbWeights(method), net=Sum, max_epochs=1, limit_train_batches=1)
    assert net.weight.tolist() == [0.5, -1.5, 0.5]  # The gradient of a sum is 1 wherever it is taken.
    assert net.bias.tolist() == [1.5, -2.5, 1.5]


# -- what cannot be right is refused -----------------------------------------------------------------------------------


def test_a_batch_that_is_changed_in_place_is_refused():
    class Normalising(Deep):
        def training_step(self, batch, batch_idx):
            batch[0].sub_(batch[0].mean())
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match=r"training_step changes its batch in place.* Let it change a copy"):
        fit(PerturbWeights(SAM()), net=Normalising)


def test_parameters_that_are_changed_in_place_are_refused():
    class Momentum(Deep):
        def __init__(self):
            super().__init__()
            self.slow = copy.deepcopy(self.fc).requires_grad_(False)

        def training_step(self, batch, batch_idx):
            with torch.no_grad():
                self.slow.weight.lerp_(self.fc.weight, 0.1)
            return super().training_step(batch, batch_idx)

    with pytest.raises(ValueError, match=r"changes parameters in place.* on_train_batch_end"):
        fit(PerturbWeights(SAM()), net=Momentum)


def test_a_reentrant_checkpoint_is_refused():
    class Checkpointed(Deep):
        def forward(self, x):
            x = x.clone().requires_grad_()
            return self.fc(torch.utils.checkpoint.checkpoint(self.backbone, x, use_reentrant=True))

    with pytest.raises(ValueError, match=r"use_reentrant=False"):
        fit(PerturbWeights(SAM()), net=Checkpointed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"perturbation": SAM(), "every_n_steps": 0}, "every_n_steps=0 must be >= 1"),
        ({"perturbation": torch.relu}, "must be a perturbation"),
    ],
    ids=["every_n_steps", "function"],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PerturbWeights(**settings)


@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_a_step_without_a_loss_is_skipped():
    class Skipping(Deep):
        def training_step(self, batch, batch_idx):
            return None if batch_idx == 1 else super().training_step(batch, batch_idx)

    ours, _ = fit(PerturbWeights(Still()), net=Skipping)
    plain, _ = fit(net=Skipping)
    assert equal(ours, plain)


def test_a_loss_in_a_dictionary_keeps_what_stands_beside_it():
    seen = []

    class Listening(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, *_):
            seen.append(outputs)

    class Dictionary(Deep):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return {"loss": loss, "value": loss.detach().clone()}

    fit(PerturbWeights(SAM(rho=1.0)), Listening(), net=Dictionary, max_epochs=1)
    assert all(out["loss"] == out["value"] for out in seen)
    assert len(seen) == 3


def test_frozen_and_unused_parameters_stay():
    class Partly(Deep):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(2, 2)
            self.backbone[0].bias.requires_grad_(False)

    net, _ = fit(PerturbWeights(SAM()), net=Partly)
    L.seed_everything(0, verbose=False)
    new = Partly()
    assert torch.equal(net.unused.weight, new.unused.weight)
    assert torch.equal(net.backbone[0].bias, new.backbone[0].bias)


def test_the_second_pass_lies_higher():
    net, _ = fit(PerturbWeights(SAM(rho=0.5)), max_epochs=1)
    assert len(net.losses) == 6
    assert all(second > first for first, second in zip(net.losses[::2], net.losses[1::2]))
