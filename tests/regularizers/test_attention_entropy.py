import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import equal, fit
from torch import nn

from lightning_objectives.callbacks import AddRegularizer
from lightning_objectives.regularizers import AttentionEntropy, attention_concentration


def slow(logits):
    """One bag in plain Python: (heads, instances)."""
    total = 0.0
    for head in logits.tolist():
        shares = [math.exp(a) / sum(map(math.exp, head)) for a in head]
        total += sum(p * math.log(p) for p in shares)
    return total / len(logits)


def test_by_hand():
    """Weights 1/2, 1/4, 1/4: minus 1/2 log 2 + 1/2 log 4; the other head is even, minus log 3."""
    logits = torch.tensor([[[2.0, 1.0, 1.0], [1.0, 1.0, 1.0]]]).log()
    expected = -(1.5 * math.log(2) + math.log(3)) / 2
    torch.testing.assert_close(attention_concentration([logits]), torch.tensor([expected]))


def test_equals_a_slow_loop():
    logits = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention_concentration([logits]), torch.tensor([slow(bag) for bag in logits]))


def test_even_attention_is_least_and_one_instance_is_most():
    even = attention_concentration([torch.full((1, 2, 8), 3.0)])
    torch.testing.assert_close(even, torch.tensor([-math.log(8)]))
    one = attention_concentration([torch.tensor([[[1e4, -1e4, 0.0]]])])
    torch.testing.assert_close(one, torch.tensor([0.0]))


def test_padding_counts_for_nothing():
    logits = torch.tensor([[[0.3, -0.2, -torch.inf]]], requires_grad=True)
    padded = attention_concentration([logits])
    torch.testing.assert_close(padded, attention_concentration([logits[..., :2].detach()]))
    padded.sum().backward()
    short = logits[..., :2].detach().requires_grad_()
    attention_concentration([short]).sum().backward()
    torch.testing.assert_close(logits.grad, F.pad(short.grad, (0, 1)))


def test_layers_add_up():
    a, b = torch.randn(2, 4, 1, 6, generator=torch.Generator().manual_seed(1))
    both = attention_concentration([a, b])
    torch.testing.assert_close(both, attention_concentration([a]) + attention_concentration([b]))


def test_the_gradient():
    logits = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: attention_concentration([x]), logits)


class Bags(L.LightningModule):
    """Bags of four instances, pooled by attention with two heads; the term by hand with a ``strength``."""

    def __init__(self, strength=0.0):
        super().__init__()
        self.strength = strength
        self.attention = nn.Linear(4, 2)
        self.fc = nn.Linear(8, 3)

    def training_step(self, batch, batch_idx):
        bags = batch[0][:, None] * torch.arange(1.0, 5)[:, None]
        logits = self.attention(bags).transpose(1, 2)
        p = logits.softmax(2)
        loss = F.cross_entropy(self.fc((p @ bags).flatten(1)), batch[1])
        return loss if self.strength == 0 else loss + self.strength * (p * p.log()).sum(2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_it_is_the_step_by_hand():
    """The heads of a linear layer are its columns, not its instances."""
    net, _ = fit(AddRegularizer(AttentionEntropy(), strength=0.5, layers="attention"), net=Bags)
    by_hand, _ = fit(net=lambda: Bags(0.5))
    torch.testing.assert_close(net.state_dict(), by_hand.state_dict())
    assert not equal(net, fit(net=Bags)[0])


def test_refusals():
    with pytest.raises(ValueError, match=r"The layer 0 has the shape \(6, 1\)"):
        AttentionEntropy()([torch.ones(6, 1)])
    with pytest.raises(ValueError, match="one or more must return attention logits"):
        attention_concentration([])
