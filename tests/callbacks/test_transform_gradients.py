"""Where in the step the gradients are changed, in which order, and that nothing is lost on the way."""

import pytest
import torch
from helpers import Net, data, equal, fit, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_objectives.callbacks import TransformGradients
from lightning_objectives.gradients import ComponentwiseGradClip, OrthogonalGradient
from lightning_objectives.kinds import GradientTransform


class Scale(GradientTransform):
    def __init__(self, *, factor: float = 2.0, seen=None):
        self.factor = factor
        self.seen = seen

    def __repr__(self):
        return f"Scale(factor={self.factor})"

    def update(self, gradients, params, state):
        if self.seen is not None:
            self.seen.append([None if g is None else g.clone() for g in gradients])
        return [None if g is None else g * self.factor for g in gradients]


class Momentum(GradientTransform):
    """Has a memory."""

    def init(self, params):
        return {"velocity": [torch.zeros_like(p) for p in params], "steps": 0}

    def update(self, gradients, params, state):
        state["steps"] += 1
        for v, g in zip(state["velocity"], gradients):
            if g is not None:
                v.mul_(0.9).add_(g)
        return [None if g is None else v.clone() for v, g in zip(state["velocity"], gradients)]


class Sgd(Net):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_momentum_is_that_of_the_optimizer():
    """torch's SGD is the independent number."""
    ours, _ = fit(TransformGradients(Momentum()), net=Sgd)
    theirs, _ = fit(net=Net)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


@pytest.mark.parametrize("max_norm", [0.05, 10.0])
def test_clipping_in_a_training_is_torchs_in_the_users_hook(max_norm):
    class ByHand(Net):
        def on_before_optimizer_step(self, optimizer):
            for p in self.parameters():
                nn.utils.clip_grad_norm_([p], max_norm)

    ours, _ = fit(TransformGradients(ComponentwiseGradClip(max_norm=max_norm)))
    theirs, _ = fit(net=ByHand)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


def test_the_order_is_that_of_the_list():
    """Clipping to 1e-3 and then tripling is not tripling and then clipping."""
    clip, triple = ComponentwiseGradClip(max_norm=1e-3), Scale(factor=3.0)
    one = {"max_steps": 1, "net": Sgd}
    start, _ = fit(net=Sgd, max_steps=0)
    moved = {}
    for name, callbacks in {
        "clip, triple": [TransformGradients([clip, triple])],
        "triple, clip": [TransformGradients([triple, clip])],
        "two callbacks": [TransformGradients(clip), TransformGradients(triple)],
    }.items():
        net, _ = fit(*callbacks, **one)
        moved[name] = (net.fc.weight - start.fc.weight).norm().item()
    assert moved == pytest.approx({"clip, triple": 3e-4, "triple, clip": 1e-4, "two callbacks": 3e-4}, rel=0.02)


def test_lightning_clips_afterwards():
    start, _ = fit(net=Sgd, max_steps=0)
    net, _ = fit(TransformGradients(Scale(factor=1e6)), net=Sgd, max_steps=1, gradient_clip_val=0.5)
    moved = torch.cat([(p - q).flatten() for p, q in zip(net.parameters(), start.parameters())]).norm()
    assert moved.item() == pytest.approx(0.05, rel=1e-3)


def test_it_is_called_once_a_step_with_the_accumulated_gradient():
    seen = []
    fit(TransformGradients(Scale(seen=seen)), net=Sgd, max_epochs=1, accumulate_grad_batches=3)
    assert len(seen) == 1
    net, _ = fit(net=Sgd, max_steps=0)
    x, y = data().tensors
    nn.functional.cross_entropy(net(x), y).backward()
    torch.testing.assert_close(seen[0], [p.grad for p in net.parameters()])


def test_frozen_parameters_have_no_gradient_until_they_unfreeze():
    class Unfreezes(Sgd):
        def __init__(self):
            super().__init__()
            self.fc.bias.requires_grad_(False)

        def on_train_epoch_start(self):
            self.fc.bias.requires_grad_(self.current_epoch > 0)

    seen = []
    fit(TransformGradients([Momentum(), Scale(seen=seen)]), net=Unfreezes)
    assert [step[-1] is None for step in seen] == [True] * 3 + [False] * 3


def test_inactive_is_the_untouched_training_to_the_bit():
    plain, _ = fit(net=lambda: Net(dropout=0.5))
    callback = TransformGradients(ComponentwiseGradClip(max_norm=float("inf")))
    touched, _ = fit(callback, net=lambda: Net(dropout=0.5))
    assert equal(plain, touched)


class Late(Momentum):
    def active(self, *, step):
        return step >= 3


def test_a_method_that_is_not_active_is_not_called():
    callback = TransformGradients(Late())
    plain, _ = fit(max_steps=3)
    touched, _ = fit(callback, max_steps=3)
    assert equal(plain, touched)
    assert callback._states[0]["steps"] == 0
    fit(callback)
    assert callback._states[0]["steps"] == 3


def test_what_an_evaluation_loads_is_not_gone_on_from(tmp_path):
    first = ModelCheckpoint(tmp_path, save_last=True)
    fit(TransformGradients(Momentum()), first, enable_checkpointing=True)
    callback, net = TransformGradients(Momentum()), Net()
    trainer(callback).validate(net, loader(), ckpt_path=tmp_path / "last.ckpt", verbose=False, weights_only=True)
    again, _ = fit(callback)
    anew, _ = fit(TransformGradients(Momentum()))
    assert equal(again, anew)


def test_resume_is_the_uninterrupted_training_to_the_bit(tmp_path):
    def callbacks():
        return TransformGradients([Momentum(), OrthogonalGradient()])

    whole, _ = fit(callbacks(), max_epochs=4)
    first = trainer(callbacks(), ModelCheckpoint(tmp_path, save_last=True), max_epochs=2, enable_checkpointing=True)
    first.fit(fit(max_epochs=0)[0], loader())
    net = Net()
    again = callbacks()
    trainer(again, max_epochs=4).fit(net, loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert equal(whole, net)
    assert again._states[0]["steps"] == 12

    damaged = torch.load(tmp_path / "last.ckpt", weights_only=True)
    damaged["callbacks"][again.state_key]["states"][0]["velocity"][0] = torch.zeros(1)
    torch.save(damaged, tmp_path / "damaged.ckpt")
    with pytest.raises(ValueError, match="its states do not have the form of new ones"):
        trainer(callbacks(), max_epochs=4).fit(Net(), loader(), ckpt_path=tmp_path / "damaged.ckpt", weights_only=True)

    class Other(Net):
        def __init__(self):
            super().__init__()
            self.strict_loading = False
            self.backbone[0].extra = nn.Parameter(torch.zeros(1))

        def configure_optimizers(self):
            return torch.optim.SGD([p for n, p in self.named_parameters() if "extra" not in n], lr=0.1, momentum=0.9)

    with pytest.raises(
        ValueError, match=r"for 4 parameters, but the module has 5; they differ in \['backbone\.0\.extra'\]"
    ):
        trainer(callbacks(), max_epochs=4).fit(Other(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)


def test_fit_twice_begins_anew():
    callback = TransformGradients(Momentum())
    first, _ = fit(callback)
    second, _ = fit(callback)
    assert equal(first, second)


def scaled(scale):
    return MixedPrecision(
        "16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    )


def test_gradients_are_unscaled_and_skipped_steps_do_not_count():
    seen = {}
    for scale in (1.0, 2.0**10, 2.0**120):
        seen[scale] = []
        callback = TransformGradients([Scale(factor=1.0, seen=seen[scale]), Momentum()])
        _, runner = fit(callback, net=Sgd, plugins=[scaled(scale)])
        assert runner.global_step == 6
        assert callback._states[1]["steps"] == len(seen[scale])
    assert len(seen[1.0]) == len(seen[2.0**10]) == 6
    assert len(seen[2.0**120]) < 6
    torch.testing.assert_close(seen[1.0][0], seen[2.0**10][0], rtol=1e-2, atol=1e-3)


class Lbfgs(Net):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


class Fused(Net):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), fused=True)


class Two(Net):
    automatic_optimization = False

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.fc, self.backbone)]


@pytest.mark.parametrize(
    ("net", "settings", "message"),
    [
        (Lbfgs, {}, "cannot work with LBFGS"),
        (Two, {}, "one optimizer, not with 2"),
        (Fused, {"plugins": [scaled(1.0)]}, "this Adam unscales them itself"),
    ],
)
def test_what_cannot_work_is_refused(net, settings, message):
    with pytest.raises(ValueError, match=message):
        fit(TransformGradients(OrthogonalGradient()), net=net, **settings)


def test_what_is_no_transform_is_refused():
    with pytest.raises(ValueError, match=r"transform=\[\] must be a gradient transform"):
        TransformGradients([])


def test_sharded_gradients_are_refused():
    from lightning.pytorch.strategies import ModelParallelStrategy

    callback = TransformGradients(OrthogonalGradient())
    runner = type("Trainer", (), {"strategy": ModelParallelStrategy()})()
    with pytest.raises(ValueError, match="cannot work under ModelParallelStrategy"):
        callback.setup(runner, Net(), "fit")
    callback.setup(runner, Net(), "test")
