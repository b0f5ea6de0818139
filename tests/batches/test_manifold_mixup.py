from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, equal, fit, loader, weights
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_objectives.batches import ManifoldMixup, mixup
from lightning_objectives.callbacks import (
    AddRegularizer,
    Distill,
    PerturbWeights,
    Refer,
    ReweightSamples,
    TransformBatch,
)
from lightning_objectives.distillation import VanillaKD
from lightning_objectives.perturbations import SAM
from lightning_objectives.regularizers import RDrop
from lightning_objectives.weighting import DRRho

DRAWN = []


class Noted(ManifoldMixup):
    """Keeps what it draws: the place, and the partner and the share of each row."""

    def draw_layer(self, layers, generator):
        DRAWN.append([super().draw_layer(layers, generator)])
        return DRAWN[-1][0]

    def forward(self, inputs, generator):
        mixed, index, weight = super().forward(inputs, generator)
        DRAWN[-1] += [index, weight]
        return mixed, index, weight


@pytest.fixture(autouse=True)
def nothing_drawn():
    DRAWN.clear()


def test_a_known_number():
    """Two layers by hand: h = (0, 2.5) and (3, 1.5); 0.3 of the first and 0.7 of the second give (5.7, -1.2)."""
    x, swap = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([1, 0])
    first, second = torch.tensor([[1.0, -1.0], [0.5, 1.0]]), torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    hidden = mixup((x @ first.T).relu(), swap, 0.3) @ second.T
    inputs = (mixup(x, swap, 0.3) @ first.T).relu() @ second.T
    torch.testing.assert_close(hidden[0], torch.tensor([5.7, -1.2]))
    torch.testing.assert_close(inputs[0], torch.tensor([5.4, -0.9]))


class Deep(Net):
    """A network of two blocks and a head."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = nn.Sequential(nn.Linear(4, 6), nn.Tanh()), nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        del self.backbone

    def forward(self, x):
        return self.fc(self.second(self.first(x)))


class ByHand(Deep):
    """The authors' loop with the draws of the callback: mixed at one place, with the cross entropy of mixed labels."""

    def __init__(self, drawn):
        super().__init__()
        self.drawn = iter(drawn)

    def training_step(self, batch, batch_idx):
        x, y = batch
        number, index, weight = next(self.drawn)
        for place, layer in enumerate((nn.Identity(), self.first, self.second)):
            x = layer(x)
            if place == number:
                x = weight[:, :1] * x + weight[:, 1:] * x[index[:, 1]]
        target = F.one_hot(y, 3).float()
        mixed = weight[:, :1] * target + weight[:, 1:] * target[index[:, 1]]
        return F.cross_entropy(self.fc(x), mixed)


def manifold(*others, layers=("first", "second"), net=Deep, **settings):
    callback = TransformBatch(Noted(**settings), layers=list(layers))
    return fit(callback, *others, net=net, max_epochs=4)[0]


def test_a_training_is_the_authors_loop():
    ours, drawn = manifold(), list(DRAWN)
    assert {number for number, *_ in drawn} == {0, 1, 2}
    assert len({float(weight[0, 0]) for *_, weight in drawn}) == 12  # each batch has a share of its own
    by_hand, _ = fit(net=lambda: ByHand(drawn), max_epochs=4)
    torch.testing.assert_close(weights(ours), weights(by_hand))


def test_without_the_inputs_only_layers_are_mixed():
    manifold(mix_inputs=False)
    assert {number for number, *_ in DRAWN} == {1, 2}


def test_each_place_is_as_probable():
    generator = torch.Generator().manual_seed(0)
    counts = Counter(ManifoldMixup().draw_layer(2, generator) for _ in range(3000))
    assert sorted(counts) == [0, 1, 2]
    assert min(counts.values()) > 900
    assert {ManifoldMixup(mix_inputs=False).draw_layer(1, generator) for _ in range(20)} == {1}


def test_no_mixing_is_the_plain_training_to_the_bit():
    assert equal(manifold(prob=0.0), fit(net=Deep, max_epochs=4)[0])


def test_nothing_is_left_and_evaluation_is_plain():
    net = manifold()
    assert all("forward" not in vars(layer) for layer in net.modules())
    x = torch.randn(5, 4)
    torch.testing.assert_close(net.eval()(x), net.fc(torch.tanh(net.second[0](torch.tanh(net.first[0](x))))))


class Validated(Deep):
    """Compares its validation with what it computes itself."""

    def validation_step(self, batch, batch_idx):
        x, _ = batch
        torch.testing.assert_close(self(x), self.fc(torch.tanh(self.second[0](torch.tanh(self.first[0](x))))))


def test_the_validation_between_epochs_is_not_mixed():
    callback = TransformBatch(ManifoldMixup(mix_inputs=False), layers=["first", "second"])
    fit(callback, net=Validated, val=loader(), max_epochs=3)


def test_a_further_pass_is_mixed_alike():
    """Without dropout, two passes agree: RDrop adds nothing. If the second were unmixed, they would differ."""
    alone = manifold(mix_inputs=False)
    beside = manifold(AddRegularizer(RDrop(), strength=100.0), mix_inputs=False)
    torch.testing.assert_close(weights(beside), weights(alone))


def test_a_second_pass_at_moved_weights_draws_the_same():
    manifold(PerturbWeights(SAM()))
    assert len(DRAWN) == 24  # 12 steps, two passes
    for first, second in zip(DRAWN[::2], DRAWN[1::2]):
        assert first[0] == second[0]
        torch.testing.assert_close(first[1:], second[1:])


class Checkpointed(Deep):
    def forward(self, x):
        return self.fc(checkpoint(self.second, checkpoint(self.first, x, use_reentrant=False), use_reentrant=False))


class Inside(Deep):
    def forward(self, x):
        return self.fc(checkpoint(lambda z: self.second(self.first(z)), x, use_reentrant=False))


@pytest.mark.parametrize("net", [Checkpointed, Inside])
def test_a_checkpointed_layer_is_mixed_alike_in_the_backward_pass(net):
    torch.testing.assert_close(weights(manifold(net=net)), weights(manifold()))


def test_tokens_are_mixed_in_the_layers_alone():
    class Tokens(Net):
        def __init__(self):
            super().__init__()
            self.embed = nn.Sequential(nn.Embedding(10, 6), nn.Flatten())
            self.fc = nn.Linear(24, 3)
            del self.backbone

        def forward(self, x):
            return self.fc(self.embed((x.abs() * 3).long().clamp(max=9)))

    ours = manifold(net=Tokens, layers=["embed"], mix_inputs=False)
    assert not equal(ours, fit(net=Tokens, max_epochs=4)[0])


class Twice(Deep):
    def forward(self, x):
        return self.fc(self.second(self.second(self.first(x))))


class Turned(Deep):
    def forward(self, x):
        return self.fc(self.second(self.first(x.repeat(2, 1)))[: len(x)])


class Never(Deep):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("net", "layers", "message"),
    [
        (Deep, None, r"asks for hidden layers of the network: name them"),
        (Twice, ["second"], r"the layer 'second' of Twice returns, but the step calls it 2 times"),
        (Never, ["unused"], r"the layer 'unused' of Never returns, but the step calls it 0 times"),
        (Turned, ["first"], r"The layer 'first' of Turned returns a Tensor of the shape \(16, 6\), .* the 8 samples"),
        (Deep, ["no_such"], r"has no layer 'no_such'"),
    ],
)
def test_layers_that_do_not_fit_are_refused(net, layers, message):
    with pytest.raises(ValueError, match=message):
        fit(TransformBatch(ManifoldMixup(mix_inputs=False), layers=layers), net=net)


@pytest.mark.parametrize(
    "beside",
    [
        lambda: [Distill(VanillaKD(), teacher=nn.Linear(4, 3))],
        lambda: [ReweightSamples(DRRho()), Refer(network="start")],
    ],
)
def test_what_would_not_see_the_mixture_is_refused(beside):
    with pytest.raises(ValueError, match=r"mixes hidden layers, and .* sees the inputs without the mixture"):
        fit(TransformBatch(ManifoldMixup(), layers="first"), *beside(), net=Deep)


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"alpha=0\.0 must be > 0"):
        ManifoldMixup(alpha=0.0)
