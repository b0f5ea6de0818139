"""Methods get the head as the module that it is, and may call it and the network wherever they stand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_objectives.callbacks import AddRegularizer, ReplaceLoss, ReweightSamples, WrapHead
from lightning_objectives.heads import MultiSampleDropout
from tests.helpers import Net, equal, fit


class Noted:
    """Keeps the heads that a method gets, and computes the losses anew from features and head."""

    def __init__(self):
        self.heads = []

    def loss(self, logits, target, features, head):
        self.heads.append(head)
        return F.cross_entropy(head(features), target, reduction="none")

    def weights(self, losses, features, head):
        self.heads.append(head)
        return torch.ones_like(losses) + 0 * head(features).detach().sum()

    def term(self, features, head):
        self.heads.append(head)
        return 0 * head(features).sum()

    def stacks(self, features, head):
        self.heads.append(head)
        return head(features)[None]


PLACED = {
    "loss": lambda noted: ReplaceLoss(noted.loss),
    "term": lambda noted: AddRegularizer(noted.term),
    "weighting": lambda noted: ReweightSamples(noted.weights),
    "wrapper": lambda noted: WrapHead(noted.stacks),
}


@pytest.mark.parametrize("place", sorted(PLACED))
def test_the_head_is_a_module_everywhere(place):
    torch.manual_seed(0)
    noted, net, calls = Noted(), Net(), []
    net.fc.register_forward_hook(lambda *_: calls.append(1))
    trained, _ = fit(PLACED[place](noted), net=net)
    assert equal(trained, fit(net=Net)[0])
    assert noted.heads
    for head in noted.heads:
        assert isinstance(head, nn.Linear)
        assert head.weight is net.fc.weight
        assert head.in_features == net.fc.in_features
    assert len(calls) == len(noted.heads)  # The user's own call alone: a method's calls run no hooks of the user's.
    assert "forward" not in vars(net.fc)


def test_a_head_with_spectral_norm_steps_its_norm_once():
    """The old form of spectral norm computes its weight in a hook before the call."""

    def make():
        torch.manual_seed(3)
        net = Net()
        torch.nn.utils.spectral_norm(net.fc)
        return net

    (plain, _), (ours, _) = fit(net=make()), fit(WrapHead(MultiSampleDropout(p=0.0)), net=make())
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-6)


def test_a_term_may_call_the_network():
    def term(inputs, network):
        return 0 * network(inputs).sum()

    assert equal(fit(AddRegularizer(term))[0], fit()[0])


def test_the_head_of_recomputed_parts_is_a_module_too():
    heads = []

    class Checkpointed(Net):
        def forward(self, x):
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    def wrapper(features, head):
        heads.append(head)
        return MultiSampleDropout(p=0.0)(features, head)

    fit(WrapHead(wrapper), net=Checkpointed())
    assert len(heads) > 1
    assert all(isinstance(head, nn.Linear) for head in heads)
