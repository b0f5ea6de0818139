"""Layers that change for a training: a module that does the same by hand is the number."""

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, equal, fit, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_objectives.averaging import EMA
from lightning_objectives.callbacks import (
    AddRegularizer,
    AverageWeights,
    ChangeLayers,
    PerturbWeights,
    RestoreRandomState,
)
from lightning_objectives.kinds import LayerPlace
from lightning_objectives.perturbations import SAM
from lightning_objectives.regularizers import RDrop
from lightning_objectives.surgery import (
    DropoutSchedule,
    FixedSimplexClassifier,
    GhostBatchNorm,
    LayerFreezing,
    StochasticDepth,
)


class Residual(Net):
    """A stem, two residual branches and BatchNorm, with weight decay, which moves weights without a gradient of 0."""

    def __init__(self, dropout=0.2, **kwargs):
        super().__init__(dropout, **kwargs)
        dtype = kwargs.get("dtype", torch.float32)
        self.stem = nn.Sequential(nn.Linear(4, 4, dtype=dtype), nn.BatchNorm1d(4, dtype=dtype))
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(4, 4, dtype=dtype), nn.Tanh()) for _ in range(2))

    def branch(self, number, x):
        return self.branches[number](x)

    def forward(self, x):
        x = self.stem(x)
        for number in range(2):
            x = x + self.branch(number, x)
        return self.fc(self.backbone(x))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


class Dropping(Residual):
    """Stochastic depth of 0.25 and 0.5, written into the module."""

    def branch(self, number, x):
        output = super().branch(number, x)
        keep = 1 - 0.25 * (number + 1)
        return output * (output.new_empty(len(x), 1).bernoulli_(keep) / keep) if self.training else output


class Checkpointed(Residual):
    """Its branches are computed again in the backward pass."""

    def branch(self, number, x):
        return checkpoint(super().branch, number, x, use_reentrant=False)


def depth(**settings):
    return ChangeLayers(StochasticDepth(rate=0.5, **settings), layers="branches.?")


def others(name):
    return {"SAM": [PerturbWeights(SAM(rho=0.5))], "RDrop": [AddRegularizer(RDrop())]}.get(name, [])


@pytest.mark.parametrize("kwargs", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
@pytest.mark.parametrize("beside", ["", "SAM", "RDrop"])
def test_stochastic_depth_is_the_module_by_hand(kwargs, beside):
    hand, _ = fit(*others(beside), net=Dropping, **kwargs)
    ours, _ = fit(depth(), *others(beside), net=Residual, **kwargs)
    assert equal(ours, hand)
    assert ours.losses == hand.losses
    plain, _ = fit(*others(beside), net=Residual, **kwargs)
    assert not equal(ours, plain)


def test_checkpointing_repeats_the_draws():
    """The backward pass runs after the step, and a second draw in it would give the gradient of another network."""
    again, _ = fit(depth(), net=Checkpointed)
    once, _ = fit(depth(), net=Residual)
    assert equal(again, once)


def test_validation_is_that_of_the_plain_network():
    ours, runner = fit(depth(), net=Residual, val=loader(seed=1))
    ours.eval()
    losses = [F.cross_entropy(ours(x), y) for x, y in loader(seed=1)]
    torch.testing.assert_close(runner.callback_metrics["val_loss"], torch.stack(losses).mean())


def test_everything_is_given_back():
    net = Residual()
    before = {path: dict(vars(part)) for path, part in net.named_modules()}
    fit(depth(), ChangeLayers(LayerFreezing(start=0.0), layers=["stem", "branches.0"]), net=net)
    for path, part in net.named_modules():
        assert vars(part).keys() - before[path].keys() <= {"_hparams"}
        assert part.training == before[path]["training"]
    assert all(parameter.requires_grad for parameter in net.parameters())
    copy.deepcopy(net)


def test_everything_is_given_back_after_an_error():
    class Failing(Residual):
        def on_train_batch_end(self, *_):
            if self.global_step == 4:
                raise KeyError("the user's")

    net = Failing()
    with pytest.raises(KeyError):
        fit(depth(), ChangeLayers(LayerFreezing(start=0.0), layers=["stem", "branches.0"]), net=net)
    assert all("forward" not in vars(part) and part.training for part in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_at_rate_0_nothing_is_touched():
    plain, _ = fit(net=Residual)

    class Watching(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            assert all("forward" not in vars(part) for part in pl_module.modules())

    idle, _ = fit(ChangeLayers(StochasticDepth(rate=0.0), layers="nothing"), Watching(), net=Residual)
    assert equal(idle, plain)


class Late(StochasticDepth):
    """Begins with the third step."""

    def active(self, *, step):
        return step >= 2


def test_a_method_may_begin_late():
    seen = []

    class Watching(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            seen.append("forward" in vars(pl_module.branches[0]))

    ours, _ = fit(ChangeLayers(Late(rate=0.5), layers="branches.?"), Watching(), net=Residual)
    assert seen == 2 * [False] + 4 * [True]
    assert not equal(ours, fit(net=Residual)[0])


class Odd(LayerFreezing):
    """Freezes in every second step."""

    def frozen(self, place):
        return round(6 * place.part_done()) % 2 == 1


def test_layers_thaw_again():
    seen = []

    class Watching(L.Callback):
        def on_after_backward(self, trainer, pl_module):
            seen.append((pl_module.stem[0].weight.requires_grad, pl_module.stem[1].training))

    fit(ChangeLayers(Odd(), layers="stem"), Watching(), net=Residual)
    assert seen == 3 * [(True, True), (False, False)]


class Freezing(Residual):
    """Its stem is frozen from the 4th of 6 steps on, and its first branch at the 5th, by hand."""

    def on_before_optimizer_step(self, optimizer):
        for part in self.frozen():
            for parameter in part.parameters():
                parameter.grad = None

    def frozen(self):
        return {4: [self.stem], 5: [self.stem, self.branches[0]]}.get(self.global_step, [])

    def training_step(self, batch, batch_idx):
        if self.frozen():
            self.stem[1].training = False
        return super().training_step(batch, batch_idx)


def freezing():
    """Of three layers, with 6 steps: floor((4/6 - 1/2) / (1/2) * 3) = 1, and 2 at 5/6."""
    return ChangeLayers(LayerFreezing(start=0.5), layers=["stem", "branches.0", "branches.1"])


@pytest.mark.parametrize("kwargs", [{}, {"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}])
def test_freezing_is_the_module_by_hand(kwargs):
    hand, _ = fit(net=Freezing, **kwargs)
    ours, _ = fit(freezing(), net=Residual, **kwargs)
    assert equal(ours, hand)
    assert not equal(ours, fit(net=Residual, **kwargs)[0])


def test_a_frozen_layer_costs_no_gradient():
    seen = []

    class Watching(L.Callback):
        def on_after_backward(self, trainer, pl_module):
            stem, branch = pl_module.stem[0].weight, pl_module.branches[1][0].weight
            seen.append((stem.requires_grad, stem.grad is None, branch.grad is None))

    fit(freezing(), Watching(), net=Residual)
    assert seen == 4 * [(True, False, False)] + 2 * [(False, True, False)]


def test_a_resumed_training_goes_on_to_the_bit(tmp_path):
    def made():
        return [depth(), freezing(), RestoreRandomState()]

    whole, _ = fit(*made(), net=lambda: Residual(dropout=0.0), max_epochs=4)
    saver = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    fit(*made(), saver, net=lambda: Residual(dropout=0.0), max_epochs=4, enable_checkpointing=True)
    state = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert not [key for key in state["callbacks"] if "ChangeLayers" in key]
    net = Residual(dropout=0.0)
    trainer(*made(), max_epochs=4).fit(net, loader(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert equal(net, whole)


def test_ghost_batch_norm_updates_the_statistics_for_each_part():
    ours, _ = fit(ChangeLayers(GhostBatchNorm(size=3)), net=lambda: Residual(dropout=0.0))

    class Parts(Residual):
        def forward(self, x):
            if self.training:
                parts = [self.stem[1](part) for part in self.stem[0](x).tensor_split(3)]
                x = torch.cat(parts)
            else:
                x = self.stem(x)
            for number in range(2):
                x = x + self.branch(number, x)
            return self.fc(self.backbone(x))

    hand, _ = fit(net=lambda: Parts(dropout=0.0))
    assert equal(ours, hand)
    assert ours.stem[1].num_batches_tracked == 3 * 6


def test_a_dropout_schedule_is_the_module_by_hand():
    class Curriculum(Residual):
        def training_step(self, batch, batch_idx):
            self.backbone[2].p = 0.4 * (
                1 - torch.tensor(-10.0 * self.global_step / 6, dtype=torch.float64).exp().item()
            )
            return super().training_step(batch, batch_idx)

    hand, _ = fit(net=lambda: Curriculum(dropout=0.4))
    ours, _ = fit(ChangeLayers(DropoutSchedule(schedule="curriculum")), net=lambda: Residual(dropout=0.4))
    assert equal(ours, hand)
    assert ours.backbone[2].p == 0.4


def test_a_fixed_simplex_stays_and_the_average_begins_with_it():
    average = AverageWeights(EMA(decay=0.9))
    ours, _ = fit(average, ChangeLayers(FixedSimplexClassifier()), net=Residual)
    gram = ours.fc.weight @ ours.fc.weight.T
    torch.testing.assert_close(gram, 1.5 * torch.eye(3) - 0.5, rtol=0, atol=1e-6)
    assert not ours.fc.bias.any()
    torch.testing.assert_close(average.weights("ema")["fc.weight"], ours.fc.weight.detach(), rtol=0, atol=1e-6)


class Attending(Net):
    """An attention whose output projection is never called: its weights are used directly."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        hidden = x[:, None].expand(-1, 5, -1)
        return super().forward(self.attention(hidden, hidden, hidden)[0].mean(1))


def test_a_layer_that_is_never_called_is_refused():
    surgery = StochasticDepth(growing=False)
    with pytest.raises(ValueError, match=r"does not call the layer 'attention.out_proj'.*name the layer around it"):
        fit(ChangeLayers(surgery, layers="attention.out_proj"), net=Attending)
    fit(ChangeLayers(surgery, layers="attention"), net=Attending)  # It returns a tuple.


class Turned(Net):
    """Its hidden layer has the sequence first."""

    def forward(self, x):
        return self.fc(self.backbone(x[None].expand(5, -1, -1)).mean(0))


def test_rows_that_are_no_samples_are_refused():
    layers = {"layers": "backbone.0"}
    with pytest.raises(ValueError, match=r"8 samples, but dimension 0 of the output \(5, 8, 6\).*sample_dim="):
        fit(ChangeLayers(StochasticDepth(), **layers), net=Turned)
    fit(ChangeLayers(StochasticDepth(sample_dim=1), **layers), net=Turned)
    fit(ChangeLayers(StochasticDepth(mode="batch"), **layers), net=Turned)
    fit(ChangeLayers(StochasticDepth(), batch_size=5, **layers), net=Turned)


class Tied(Residual):
    def __init__(self):
        super().__init__()
        self.branches[0][0].weight = self.stem[0].weight


@pytest.mark.parametrize(
    ("callback", "net", "message"),
    [
        (lambda: ChangeLayers(StochasticDepth()), Residual, "does not know which layers to change: name them"),
        (lambda: ChangeLayers(StochasticDepth(), layers="stages.*"), Residual, r"has no layer 'stages\.\*'"),
        (
            lambda: ChangeLayers(GhostBatchNorm()),
            Net,
            r"has no layer that GhostBatchNorm\(.*\) is made for \(BatchNorm\)",
        ),
        (lambda: ChangeLayers(GhostBatchNorm(), layers="fc"), Residual, "cannot change 'fc': Linear is no BatchNorm"),
        (lambda: ChangeLayers(DropoutSchedule()), Net, "has no dropout rate above 0"),
        (lambda: ChangeLayers(StochasticDepth(part="block"), layers="fc"), Net, "'fc' changes the shape of its input"),
        (
            lambda: ChangeLayers(LayerFreezing(start=0.0), layers="stem"),
            Tied,
            "shares a weight with 'branches.0.0.weight'",
        ),
        (
            lambda: ChangeLayers(FixedSimplexClassifier(), layers=["fc", "backbone"]),
            Net,
            "'backbone': Sequential is no",
        ),
        (
            lambda: ChangeLayers(FixedSimplexClassifier()),
            lambda: Net(classes=9),
            "9 corners of a simplex need 8 features",
        ),
        (lambda: ChangeLayers(Everything(), layers=["backbone", "fc"]), Net, "has nothing to train. Leave a layer out"),
    ],
)
def test_what_it_cannot_change_is_refused(callback, net, message):
    made = net()
    with pytest.raises(ValueError, match=message):
        fit(callback(), net=made)
    assert all("forward" not in vars(part) for part in made.modules())
    assert all(parameter.requires_grad for parameter in made.parameters())


class Everything(LayerFreezing):
    def frozen(self, place: LayerPlace) -> bool:
        return True


def test_no_surgery_is_refused():
    with pytest.raises(ValueError, match="must be a surgery"):
        ChangeLayers(nn.ReLU(), layers="fc")


def test_blocks_are_left_out_whole():
    """With the rate 1 only the stem is left: x + (f(x) - x) * 0."""
    kept, _ = fit(ChangeLayers(StochasticDepth(rate=1.0, growing=False), layers="branches.*"), net=Residual)
    blocks, _ = fit(ChangeLayers(StochasticDepth(rate=1.0, growing=False, part="block"), layers="block.*"), net=Blocks)
    assert torch.equal(kept.stem[0].weight, blocks.stem[0].weight)


class Block(nn.Module):
    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


class Blocks(Residual):
    """The same network, whose blocks add the branches themselves."""

    def __init__(self):
        super().__init__()
        self.block = nn.ModuleList(Block(branch) for branch in self.branches)

    def branch(self, number, x):
        return self.block[number](x) - x
