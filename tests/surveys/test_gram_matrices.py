import pytest
import torch
from torch import nn

from lightning_objectives.surveys import GramMatrices, gram_sums


def test_a_loop_over_rows_and_positions():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).eval()
    inputs = torch.randn(5, 6, 3)
    found = gram_sums(net, inputs)
    expected = {"0.weight": torch.zeros(4, 4), "2.weight": torch.zeros(5, 5)}
    for row in inputs:
        for position in row:
            hidden = net[1](net[0](position))
            for name, x in (("0.weight", position), ("2.weight", hidden)):
                x = torch.cat([x.detach(), torch.ones(1)])
                expected[name] += torch.outer(x, x)
    torch.testing.assert_close(found, expected)
    result = GramMatrices().result(found, rows=5)
    torch.testing.assert_close(result["0.weight"], torch.einsum("npi,npj->ij", inputs, inputs) / 30)


class Odd(nn.Module):
    """A layer that is called twice, two that share their weight, one by keyword, and one that is not called."""

    def __init__(self):
        super().__init__()
        self.twice, self.one, self.other, self.unused = (nn.Linear(2, 2) for _ in range(4))
        self.other.weight = self.one.weight

    def forward(self, x):
        return self.other(input=self.one(self.twice(self.twice(x))))


def test_layers_that_are_called_twice_and_weights_that_are_tied_count_together():
    net, x = Odd().eval(), torch.randn(7, 2)
    first = net.twice(x)
    second = net.twice(first)
    third = net.one(second)
    with pytest.warns(UserWarning, match=r"does not call \['unused.weight'\] as modules"):
        found = GramMatrices().result(gram_sums(net, x), rows=7)
    assert found.keys() == {"twice.weight", "one.weight", "other.weight"}
    torch.testing.assert_close(found["twice.weight"], (x.T @ x + first.T @ first).detach() / 14)
    torch.testing.assert_close(found["one.weight"], (second.T @ second + third.T @ third).detach() / 14)
    torch.testing.assert_close(found["other.weight"], found["one.weight"])


def test_no_hook_stays_also_after_an_error():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            self.layer(x)
            raise RuntimeError("no")

    net = Fails().eval()
    with pytest.raises(RuntimeError, match="no"):
        gram_sums(net, torch.ones(1, 2))
    gram_sums(good := nn.Sequential(nn.Linear(2, 2)).eval(), torch.ones(1, 2))
    assert not net.layer._forward_pre_hooks
    assert not good[0]._forward_pre_hooks


def test_halves_and_autocast_are_added_up_in_float32():
    net, x = nn.Linear(2, 1).eval(), 300 * torch.ones(4, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gram_sums(net, x + torch.tensor([0.0, 1.0]))["weight"]
    assert found[0, 1] == 4 * 300 * 301
    assert gram_sums(net.half(), x.half())["weight"][0, 1] == 4 * 300 * 300  # more than float16 holds


def test_dropout_and_batch_statistics_are_refused():
    with pytest.raises(ValueError, match=r"is in training mode \(itself\)"):
        gram_sums(nn.Linear(2, 1), torch.ones(1, 2))
    net = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.Linear(2, 1)).eval()
    with pytest.raises(ValueError, match="mixes the rows also in evaluation mode"):
        gram_sums(net, torch.ones(2, 2))


def test_a_network_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match=r"No row went through a torch.nn.Linear of the network \(it has none\)"):
        GramMatrices().result(gram_sums(nn.Conv1d(1, 1, 1).eval(), torch.ones(1, 1, 1)), rows=1)
    attention = nn.MultiheadAttention(2, 1).train(False)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = attention

        def forward(self, x):
            return self.attention(x, x, x)

    with pytest.raises(ValueError, match=r"\['attention.out_proj.weight'\]"):
        GramMatrices().result(gram_sums(Net().eval(), torch.ones(1, 3, 2)), rows=1)
