"""Hidden layers of the network and of its teacher, and parts that are trained with the network."""

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, equal, fit, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_objectives._step.taps import find_taps
from lightning_objectives.callbacks import AddRegularizer, Distill, PerturbWeights, ReplaceLoss
from lightning_objectives.distillation import AttentionTransfer, FitNets, VanillaKD
from lightning_objectives.kinds import Regularizer
from lightning_objectives.losses import ArcFaceLoss
from lightning_objectives.perturbations import SAM


def teacher():
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))


def hints(**kwargs):
    settings = {"teacher": teacher(), "layers": "backbone.0", "teacher_layers": "0", "weight": 3.0}
    return Distill(FitNets(), **{**settings, **kwargs})


class ByHand(Net):
    """Hints, written into the module."""

    def __init__(self):
        super().__init__()
        self.projection = copy.deepcopy(PROJECTION)
        self.teacher = teacher().requires_grad_(False)

    def training_step(self, batch, batch_idx):
        x, y = batch
        hidden = self.backbone[0](x)
        loss = F.cross_entropy(self.fc(self.backbone[2](self.backbone[1](hidden))), y)
        return loss + 3 * F.mse_loss(self.projection(hidden), self.teacher[0](x))


PROJECTION = nn.Linear(6, 9)


class Built(FitNets):
    """Begins with the projection of the module that does it by hand."""

    def build(self, *, hidden, teacher_hidden):
        super().build(hidden=hidden, teacher_hidden=teacher_hidden)
        self.projections[0].load_state_dict(PROJECTION.state_dict())


@pytest.mark.parametrize("kwargs", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}])
def test_hints_are_the_step_by_hand(kwargs):
    by_hand, _ = fit(net=ByHand, **kwargs)
    callback = hints()
    callback.distillation = Built()
    net, _ = fit(callback, net=Net, **kwargs)
    expected = by_hand.state_dict()
    torch.testing.assert_close(dict(net.state_dict()), {name: expected[name] for name in net.state_dict()})
    torch.testing.assert_close(callback.distillation.projections[0].state_dict(), by_hand.projection.state_dict())
    assert not torch.equal(by_hand.projection.weight, PROJECTION.weight)


def test_nothing_is_left_behind(tmp_path):
    net, runner = fit(hints(), net=Net)
    assert net.state_dict().keys() == Net().state_dict().keys()
    assert not hasattr(net, "objective_modules")
    assert "forward" not in vars(net.backbone[0])
    assert sum(len(group["params"]) for group in runner.optimizers[0].param_groups) == len(list(net.parameters()))


def test_without_weight_it_is_the_plain_run():
    plain, _ = fit(net=Net)
    net, _ = fit(hints(weight=0.0), net=Net)
    assert equal(net, plain)


def test_a_resumed_training_goes_on_with_the_projections(tmp_path):
    def run(ckpt_path=None, seed=0):
        L.seed_everything(seed, verbose=False)
        net, saving, callback = Net(), ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1), hints()
        runner = trainer(callback, saving, enable_checkpointing=True)
        runner.fit(net, loader(), ckpt_path=ckpt_path)
        return net, callback.distillation.state_dict()

    (whole, projections), (resumed, others) = run(), run(tmp_path / "step=3.ckpt", seed=1)
    assert equal(whole, resumed)
    torch.testing.assert_close(projections, others, rtol=0, atol=0)


class Maps(nn.Module):
    """A network on maps; its last dimension but one may hold the channels."""

    def __init__(self, channels, last=False):
        super().__init__()
        self.last = last
        self.stem = nn.Linear(4, channels) if last else nn.Conv2d(4, channels, 1)
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        maps = x[:, :, None, None].expand(-1, -1, 3, 4) * torch.arange(1.0, 13).view(3, 4)
        maps = self.stem(maps.movedim(1, -1) if self.last else maps)
        return self.head(maps.mean((1, 2) if self.last else (2, 3)))


class OnMaps(L.LightningModule):
    def __init__(self, channels=4):
        super().__init__()
        self.net = Maps(channels)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("channels", [3, 4, 6])
def test_a_teacher_with_its_channels_last(channels):
    """Whatever layout the teacher has, its channels come first, also where a side of the map is as long."""
    seen = {}

    def keep(hidden, teacher_hidden, logits):
        seen["shapes"] = tuple(hidden[0].shape), tuple(teacher_hidden[0].shape)
        return logits[:, 0] * 0

    callback = Distill(keep, teacher=Maps(channels, last=True), layers="net.stem", teacher_layers="stem")
    fit(callback, net=OnMaps)
    assert seen["shapes"] == ((8, 4, 3, 4), (8, channels, 3, 4))
    attend = Distill(AttentionTransfer(), teacher=Maps(channels, last=True), layers="net.stem", teacher_layers="stem")
    assert not equal(fit(attend, net=OnMaps)[0], fit(net=OnMaps)[0])


def test_patterns_and_their_order():
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    assert [tap.path for tap in find_taps(net, ["2.*", "0"], option="layers")] == ["2.0", "2.1", "0"]
    with pytest.raises(ValueError, match=r"layers='3': Sequential has no layer '3'. Its first layers are: 0, 1, 2"):
        find_taps(net, "3", option="layers")
    with pytest.raises(ValueError, match="names the layer '0' twice"):
        find_taps(net, ["0", "[0-1]"], option="layers")


def test_layers_that_cannot_be_read_are_refused():
    class Twice(Net):
        def training_step(self, batch, batch_idx):
            self.backbone(batch[0])
            return super().training_step(batch, batch_idx)

    class Never(Net):
        def forward(self, x):
            return self.fc(self.backbone[0](x))

    with pytest.raises(ValueError, match=r"calls the layer 'backbone.0' of Twice 2 times"):
        fit(hints(), net=Twice)
    with pytest.raises(ValueError, match=r"calls the layer 'backbone.1' of Never 0 times"):
        fit(AddRegularizer(lambda hidden: hidden[0].square().mean(), layers="backbone.1"), net=Never)
    with pytest.raises(ValueError, match=r"FitNets\(\) asks for hidden layers of the network: name them"):
        fit(hints(layers=None))
    with pytest.raises(ValueError, match=r"the layer 'backbone.1', ReLU, does not show how many channels"):
        fit(hints(layers="backbone.1"))

    class Compiled(Net):
        def __init__(self):
            super().__init__()
            self.backbone = torch.compile(self.backbone, backend="eager")

    with pytest.raises(ValueError, match=r"the layer 'backbone._orig_mod.0' lies in a compiled module"):
        fit(hints(layers="backbone._orig_mod.0"), net=Compiled)


def test_a_cache_keeps_no_hidden_layers(tmp_path):
    with pytest.raises(ValueError, match="keeps logits only, but a method asks for teacher_hidden"):
        fit(hints(cache=str(tmp_path)))


class Centres(Regularizer):
    """A regularizer with a part of its own."""

    coupled = "it is a test"

    def build(self, *, features, classes):
        self.centres = nn.Linear(features, classes, bias=False)

    def forward(self, features, target):
        return (features - self.centres.weight[target]).square().sum(1)


def test_a_part_of_a_regularizer_is_trained_too():
    centres = Centres()
    fit(AddRegularizer(centres, strength=0.1), net=Net)
    assert centres.centres.weight.shape == (3, 6)
    again = Centres()
    fit(AddRegularizer(again, strength=0.1, seed=1), net=Net)
    assert not torch.equal(centres.centres.weight, again.centres.weight)


def test_beside_another_distance_and_a_second_pass():
    callbacks = hints(), Distill(VanillaKD(), teacher=teacher()), PerturbWeights(SAM())
    net, _ = fit(*callbacks, net=Net)
    assert not equal(net, fit(*callbacks[1:], net=Net)[0])


def test_arc_face_is_the_step_by_hand():
    class Angles(Net):
        def training_step(self, batch, batch_idx):
            features = self.backbone(batch[0])
            cosines = F.normalize(features) @ F.normalize(self.fc.weight).T
            moved = (cosines.clamp(-0.999, 0.999).acos() + 0.2).cos()
            own = F.one_hot(batch[1], 3).bool()
            return F.cross_entropy(8 * torch.where(own, moved, cosines), batch[1])

    net, _ = fit(ReplaceLoss(ArcFaceLoss(margin=0.2, scale=8.0)), net=Net)
    by_hand, _ = fit(net=Angles)
    torch.testing.assert_close(net.state_dict(), by_hand.state_dict())
