"""The signal `again`: the network is called once more as the step has called it, and nothing of that stays."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, equal, fit, loader
from torch import nn
from torch.utils.data import DataLoader

from lightning_objectives.batches import Mixup
from lightning_objectives.callbacks import AddRegularizer, PerturbWeights, TransformBatch, WrapHead
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.perturbations import SAM


class Seen:
    """A term that keeps what it gets, and adds a multiple of the second pass."""

    def __init__(self, strength=0.0, shift=0.0):
        self.strength, self.shift, self.pairs = strength, shift, []

    def term(self, logits, inputs, again):
        other = again(inputs + self.shift if inputs.is_floating_point() else inputs)
        self.pairs.append((logits.detach(), other.detach()))
        return self.strength * (other - logits.detach()).square().sum(1)

    def placed(self, **settings):
        return AddRegularizer(self.term, strength=1.0, **settings)


class Normed(Net):
    def __init__(self, dropout=0.0):
        super().__init__(dropout)
        self.backbone.insert(1, nn.BatchNorm1d(6))


def test_with_the_same_inputs_it_is_the_same_pass():
    seen = Seen()
    trained, _ = fit(seen.placed(), net=Normed())
    for logits, other in seen.pairs:
        assert torch.equal(logits, other)
    torch.manual_seed(0)
    assert seen.pairs
    assert equal(trained, fit(net=Normed())[0])


def test_it_leaves_statistics_random_streams_and_logs_alone():
    class Logging(Normed):
        def forward(self, x):
            self.log("norm", x.norm())
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(x)

    seen = Seen(shift=5.0)
    ours, runner = fit(seen.placed(), net=lambda: Logging(dropout=0.5))
    plain, other = fit(net=lambda: Logging(dropout=0.5))
    assert ours.calls == 2 * plain.calls
    assert equal(ours, plain)
    assert torch.equal(runner.logged_metrics["norm"], other.logged_metrics["norm"])


def test_the_draws_are_its_own():
    seen, repeated = Seen(), []

    def term(inputs, again):
        repeated.append((again(inputs, seed=1).detach(), again(inputs, seed=1).detach(), again(inputs).detach()))
        return inputs.new_zeros(())

    fit(seen.placed(), AddRegularizer(term, strength=1.0), net=lambda: Net(dropout=0.5))
    assert all(not torch.equal(logits, other) for logits, other in seen.pairs)
    assert all(torch.equal(a, b) and not torch.equal(a, c) for a, b, c in repeated)
    assert len({float(a.sum()) for a, *_ in repeated}) == len(repeated)  # Each batch draws anew.


def test_the_gradient_is_that_of_two_passes_by_hand():
    class ByHand(Net):
        def training_step(self, batch, batch_idx):
            logits, other = self(batch[0]), self(batch[0] + 0.5)
            return F.cross_entropy(logits, batch[1]) + 0.3 * (other - logits.detach()).square().sum(1).mean()

    ours, _ = fit(Seen(0.3, 0.5).placed())
    torch.testing.assert_close(ours.state_dict(), fit(net=ByHand)[0].state_dict())


class Masked(Net):
    """Calls the network with a mask and a keyword, and divides the logits on the way to the criterion."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x, mask, *, scale=1.0):
            return {"logits": self.fc(self.body(x * mask).relu()) * scale}

    def __init__(self):
        super().__init__()
        del self.backbone, self.fc
        self.net = self.Inner()

    def training_step(self, batch, batch_idx):
        mask = torch.ones(4).index_fill(0, torch.tensor([1]), 0.0)
        logits = self.net(batch[0], mask, scale=3.0)["logits"] / 2.0
        return F.cross_entropy(logits, batch[1])


class Prepared(Net):
    """Casts, scales and moves the inputs before it calls the network."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0].float() / 2 + torch.randn(4)), batch[1])


class Dense(Net):
    def forward(self, x):
        return super().forward(x)[:, :, None].expand(-1, -1, 2)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1][:, None].expand(-1, 2))


@pytest.mark.parametrize("net", [Dense, Masked, Prepared], ids=lambda net: net.__name__)
def test_what_the_step_does_before_and_after_the_network_is_done_again(net):
    seen = Seen()
    fit(seen.placed(), net=net)
    assert seen.pairs
    assert all(torch.equal(logits, other) for logits, other in seen.pairs)


def test_whole_numbers_are_inputs_too():
    class Tokens(Net):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 4)

        def forward(self, x):
            return super().forward(self.table(x))

    seen = Seen()
    train = DataLoader([(y, y) for _, y in data()], batch_size=8)
    fit(seen.placed(), net=Tokens, train=train)
    assert all(torch.equal(logits, other) for logits, other in seen.pairs)


def test_mixed_inputs_are_those_of_the_step():
    seen = Seen()
    fit(seen.placed(), TransformBatch(Mixup()))
    assert all(torch.equal(logits, other) for logits, other in seen.pairs)


def test_a_wrapped_head_is_wrapped_again():
    seen = Seen()
    fit(seen.placed(), WrapHead(MultiSampleDropout(num_samples=3, p=0.0)))
    assert all(torch.allclose(logits, other) for logits, other in seen.pairs)


def test_a_second_pass_of_the_step_draws_the_same():
    seen = Seen()
    fit(seen.placed(), PerturbWeights(SAM(rho=1e-12)), net=lambda: Net(dropout=0.5))
    for first, second in zip(seen.pairs[::2], seen.pairs[1::2], strict=True):
        torch.testing.assert_close(first, second)


def test_checkpoints_in_the_network_compute_it_anew():
    class Checkpointed(Net):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    settings = {"net": lambda: Checkpointed(dropout=0.5)}
    ours, _ = fit(Seen(0.3).placed(), **settings)
    assert equal(ours, fit(Seen(0.3).placed(), net=lambda: Net(dropout=0.5))[0])


class Twice(Net):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]) + self(batch[0] * 2), batch[1])


class Summed(Net):
    """What it does to the inputs cannot be repeated."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0].cumsum(1)), batch[1])


class Lost(Net):
    """What it does to the logits cannot be repeated."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]).cumsum(1), batch[1])


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Twice, "training_step calls its network 2 times"),
        (Summed, "does not call its network with the inputs"),
        (Lost, "cumsum"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_cannot_be_called_again_is_refused(net, reason):
    with pytest.raises(ValueError, match=f"`again`.*{reason}"):
        fit(Seen().placed(), net=net)


def test_nothing_is_left():
    net, _ = fit(Seen(0.3, 0.1).placed(), net=Normed)
    assert "forward" not in vars(net)
    assert not any("forward" in vars(module) for module in net.modules())
    fit(net=net, train=loader())
