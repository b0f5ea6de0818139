import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_objectives.merging import FisherMerging
from lightning_objectives.surveys import Fisher, fisher_sums


def network(*, classes=3, norm=True):
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        middle = [nn.BatchNorm1d(5), nn.Dropout(0.5)] if norm else []
        net = nn.Sequential(nn.Linear(4, 5), *middle, nn.Tanh(), nn.Linear(5, classes)).double()
        net.train()(torch.randn(20, 4, dtype=torch.float64))
    return net.eval()


def rows(n=7, classes=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, generator=generator, dtype=torch.float64), torch.arange(n) % classes


def by_loops(net, inputs, factors):
    """One backward pass for each row and class: ``factors(n, p)`` are those of the squared gradients."""
    sums = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for n in range(len(inputs)):
        log_p = net(inputs[n : n + 1]).log_softmax(1)[0]
        for c, factor in enumerate(factors(n, log_p.detach().exp())):
            net.zero_grad()
            log_p[c].backward(retain_graph=True)
            for name, p in net.named_parameters():
                sums[name] += factor * p.grad**2
    return sums


@pytest.mark.parametrize("chunk_size", [1, 2, 8])
def test_a_loop_over_rows_and_classes(chunk_size):
    net, (inputs, target) = network(), rows()
    ours = fisher_sums(net, inputs, target, chunk_size=chunk_size)
    torch.testing.assert_close(ours, by_loops(net, inputs, lambda n, p: p), rtol=1e-9, atol=1e-12)
    ours = fisher_sums(net, inputs, target, empirical=True, chunk_size=chunk_size)
    expected = by_loops(net, inputs, lambda n, p: F.one_hot(target[n], 3))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_by_hand():
    """Logits (a x, 0) with a = 0: p = 1/2, and d log p_c / da = ±x / 2, so F = x² / 4."""
    net = nn.Linear(1, 2, bias=False).eval()
    nn.init.zeros_(net.weight)
    sums = fisher_sums(net, torch.tensor([[2.0], [4.0]]), torch.tensor([0, 0]))
    assert sums["weight"].flatten().tolist() == [5.0, 5.0]


def test_it_is_not_the_square_of_the_gradient_of_a_batch():
    net, (inputs, target) = network(), rows()
    F.cross_entropy(net(inputs), target, reduction="sum").backward()
    ours = fisher_sums(net, inputs, target, empirical=True)
    assert not torch.allclose(ours["0.weight"], net[0].weight.grad ** 2, rtol=0.1)


def test_probabilities_that_are_one_hot_are_classes():
    net, (inputs, target) = network(), rows()
    soft = fisher_sums(net, inputs, F.one_hot(target, 3).double(), empirical=True)
    torch.testing.assert_close(soft, fisher_sums(net, inputs, target, empirical=True))


def test_one_logit_stands_for_two_classes():
    net, (inputs, target) = network(classes=1), rows(classes=2)
    two = nn.Sequential(*net[:-1], nn.Linear(5, 2).double()).eval()
    with torch.no_grad():
        two[-1].weight.copy_(torch.cat([torch.zeros(1, 5), net[-1].weight]))
        two[-1].bias.copy_(torch.cat([torch.zeros(1), net[-1].bias]))
    one, both = fisher_sums(net, inputs, target), fisher_sums(two, inputs, target)
    torch.testing.assert_close(one["0.weight"], both["0.weight"])
    torch.testing.assert_close(one["4.bias"], both["4.bias"][1:])


def test_tied_and_frozen_weights_have_their_importance():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).double().eval()
    net[1].weight = net[0].weight
    net[1].bias.requires_grad_(False)
    inputs, target = rows(classes=4)
    sums = fisher_sums(net, inputs, target)
    assert list(sums) == list(net.state_dict())
    assert torch.equal(sums["0.weight"], sums["1.weight"])
    assert sums["1.bias"].any()
    assert not net[1].bias.requires_grad
    torch.testing.assert_close(sums["0.weight"], by_loops_of_tied(net, inputs))


def by_loops_of_tied(net, inputs):
    total = torch.zeros_like(net[0].weight)
    for row in inputs:
        log_p = net(row[None]).log_softmax(1)[0]
        for log in log_p:
            (g,) = torch.autograd.grad(log, net[0].weight, retain_graph=True)
            total += log.exp().detach() * g**2
    return total


def test_half_precision_is_summed_in_single():
    net, (inputs, target) = network(norm=False).bfloat16(), rows()
    assert {v.dtype for v in fisher_sums(net, inputs.bfloat16(), target).values()} == {torch.float32}


def test_gradients_and_modes_stay():
    net, (inputs, target) = network(), rows()
    with torch.no_grad():
        fisher_sums(net, inputs, target)
        fisher_sums(net, inputs, target, chunk_size=1)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_a_network_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"training mode .* Call network\.eval\(\)"):
        fisher_sums(network().train(), *rows())


def test_a_norm_of_the_batch_is_refused():
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double().eval()
    with pytest.raises(ValueError, match="BatchNorm without running statistics"):
        fisher_sums(net, *rows())


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3).double()

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else 2 * self.fc(x)


def test_what_vmap_cannot_run_is_refused_with_the_way_out():
    net, (inputs, target) = Branches().eval(), rows()
    with pytest.raises(ValueError, match="Use chunk_size=1"):
        fisher_sums(net, inputs, target)
    expected = by_loops(net, inputs, lambda n, p: p)
    torch.testing.assert_close(fisher_sums(net, inputs, target, chunk_size=1), expected, rtol=1e-9, atol=1e-12)


def test_what_returns_no_logits_is_refused():
    with pytest.raises(ValueError, match=r"must return \(N, C\) logits"):
        fisher_sums(nn.Flatten(0).eval(), *rows(), chunk_size=1)


@pytest.mark.parametrize("value", [0, -1])
def test_a_chunk_without_rows_is_refused(value):
    with pytest.raises(ValueError, match=r"chunk_size=.* must be >= 1"):
        Fisher(chunk_size=value)


def test_the_merge_takes_the_importance():
    """Where one network does not depend on a weight, the other's counts."""
    a, b = network(), network()
    with torch.no_grad():
        b[0].weight += 1
        b[-1].weight[:, 0] = 0  # The first hidden unit of b reaches no logit.
    inputs, target = rows()
    importance = [Fisher().result(fisher_sums(net, inputs, target), len(inputs)) for net in (a, b)]
    assert not importance[1]["0.weight"][0].any()
    merge = FisherMerging(floor=1e-12, normalize=False)
    weights = [a[0].weight.detach(), b[0].weight.detach()]
    merged = merge.tensor(weights, importance=[i["0.weight"] for i in importance])
    torch.testing.assert_close(merged[0], a[0].weight[0].detach(), rtol=1e-4, atol=1e-4)
