"""The rise of the loss by hand, over batches, with noise, and what is left behind."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_objectives import sharpness
from lightning_objectives.kinds import Perturbation
from lightning_objectives.perturbations import ASAM, SAM, WeightNoise


class Bowl(nn.Module):
    """L = 2 a² + b² / 2 over two rows."""

    def __init__(self, a=1.0, b=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([a, b], dtype=torch.float64))

    def forward(self, rows):
        return rows @ self.weight.square()


ROWS = torch.tensor([[4.0, 0.0], [0.0, 1.0]], dtype=torch.float64)


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).double()


def batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (sum(sizes),), generator=generator)
    return list(zip(x.split(sizes), y.split(sizes)))


def loss_of(network):
    return lambda batch: F.cross_entropy(network(batch[0]), batch[1], reduction="none")


def test_by_hand():
    """The gradient (4, 1) has the length √17: 2 (1 + .4/√17)² + (1 + .1/√17)² / 2 - 2.5 = .431428."""
    network = Bowl()
    assert sharpness(SAM(rho=0.1), network, [ROWS], network).item() == pytest.approx(0.431428, abs=1e-6)
    # Adaptive: T = |w| = 1 here, so the step is the same but for the small constant of the method.
    assert sharpness(ASAM(rho=0.1, eta=0.0), network, [ROWS], network).item() == pytest.approx(0.431428, abs=1e-6)


def test_the_gradient_is_that_of_the_mean():
    """(4, 1) over both rows, whatever the batches: from (1, 1) to (1.4, 1.1), L rises from 2.5 to 4.525."""

    class Up(Perturbation):
        def offsets(self, gradients, params, *, generator=None):
            return {name: 0.1 * gradient for name, gradient in gradients.items()}

    network = Bowl()
    for rows in ([ROWS], [ROWS[:1], ROWS[1:]]):
        assert sharpness(Up(), network, rows, network).item() == pytest.approx(2.025, abs=1e-12)


def test_a_slow_loop_over_the_weights_gives_the_same():
    network, data = net(), batches(5, 3)
    x, y = (torch.cat(part) for part in zip(*data))
    network.eval()
    before = F.cross_entropy(network(x), y)
    gradients = torch.autograd.grad(before, list(network.parameters()))
    length = sum(g.square().sum() for g in gradients).sqrt()
    other = net().eval()
    with torch.no_grad():
        for p, g in zip(other.parameters(), gradients):
            p += 0.3 * g / length
        expected = F.cross_entropy(other(x), y) - before
    found = sharpness(SAM(rho=0.3), network, data, loss_of(network))
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize("sizes", [(12,), (1, 11), (4, 4, 4)])
def test_the_split_into_batches_does_not_matter(sizes):
    network = net()
    expected = sharpness(SAM(rho=0.3), network, batches(12), loss_of(network))
    torch.testing.assert_close(sharpness(SAM(rho=0.3), network, batches(*sizes), loss_of(network)), expected)


def test_noise_measures_the_trace_of_the_hessian():
    """σ² / 2 times 4 + 1 for σ = .1: .025, at the minimum, where the draws differ little."""
    network, generator, stream = Bowl(0.0, 0.0), torch.Generator().manual_seed(0), torch.get_rng_state()
    found = sharpness(WeightNoise(rho=0.1), network, [ROWS], network, draws=4000, generator=generator)
    assert found.item() == pytest.approx(0.025, abs=0.002)
    assert torch.equal(torch.get_rng_state(), stream)


def test_only_the_adaptive_one_ignores_a_scale_of_the_weights():
    x, y = batches(12)[0]

    class Scaled(nn.Module):
        def __init__(self, scale):
            super().__init__()
            torch.manual_seed(1)
            self.scale, self.weight = scale, nn.Parameter(torch.randn(4, 3, dtype=torch.float64) / scale)

        def forward(self, x):
            return x @ (self.weight * self.scale)

    def value(method, scale):
        network = Scaled(scale)
        return sharpness(method, network, [(x, y)], loss_of(network))

    torch.testing.assert_close(value(ASAM(rho=0.1, eta=0.0), 10.0), value(ASAM(rho=0.1, eta=0.0), 1.0))
    assert value(SAM(rho=0.1), 10.0) > 2 * value(SAM(rho=0.1), 1.0)


def test_at_a_minimum_there_is_no_direction_and_no_nan():
    network = Bowl(0.0, 0.0)
    assert sharpness(SAM(rho=0.1), network, [ROWS], network) == 0


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before(fails):
    network = net().train()
    network[3].eval()
    network[0].weight.grad = torch.ones(8, 4, dtype=torch.float64)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    calls = []

    def losses(batch):
        calls.append(network.training)
        if fails and len(calls) == 2:
            raise RuntimeError("in the second pass")
        return loss_of(network)(batch)

    if fails:
        with pytest.raises(RuntimeError, match="second pass"):
            sharpness(SAM(rho=0.3), network, batches(6), losses)
    else:
        sharpness(SAM(rho=0.3), network, batches(6), losses)
    assert calls == [False, False]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert [part.training for part in network] == [True, True, True, False, True]
    assert network[0].weight.grad.eq(1).all()
    assert network[4].weight.grad is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: sharpness(SAM(), n, [], n), "batches gives no rows"),
        (lambda n: sharpness(SAM(), n, iter([ROWS]), n), "none a second time"),
        (lambda n: sharpness(SAM(), n, [ROWS], lambda rows: n(rows).mean()), r'use reduction="none"'),
        (lambda n: sharpness(SAM(), n, [ROWS], lambda rows: n(rows).detach()), "need no gradient"),
        (lambda n: sharpness(SAM(), n, [ROWS], n, draws=2), r"draws=2, but SAM\(rho=0\.05\) goes up the gradient"),
        (lambda n: sharpness(WeightNoise(rho=0.1), n, [ROWS], n, draws=0), "draws=0 must be >= 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(Bowl())


def test_other_rows_in_the_second_pass_are_refused():
    class Shrinks(list):
        def __iter__(self):
            yield self.pop()

    network = Bowl()
    with pytest.raises(ValueError, match="2 losses in the first pass, but 1 in the next"):
        sharpness(SAM(), network, Shrinks([ROWS[:1], ROWS]), network)
