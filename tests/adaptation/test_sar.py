"""Two steps by a slow loop, the three degenerate settings, recovery, and what is refused."""

import math

import lightning as L
import pytest
import torch
from helpers import loader, trainer
from torch import nn

from lightning_objectives.adaptation import SAR, TENT, reliable_rows
from lightning_objectives.callbacks import AdaptAtTest

X = torch.tensor([[0.3, -1.2], [0.9, 0.4], [-2.0, 1.1], [0.05, 0.1], [1.5, -0.7]], dtype=torch.float64)
HEAD = torch.tensor([[1.5, -0.5, -1.0], [-1.0, 2.0, 0.5]], dtype=torch.float64)


class Network(nn.Module):
    """A scale and a shift of each of two features, and three logits."""

    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(2, 2, dtype=torch.float64)

    def forward(self, x):
        return (x * self.norm.weight + self.norm.bias) @ HEAD


def adapted(method, batches, network=None):
    """The scale and the shift after each of some updates."""
    network = network or Network()
    params = method.adapts(network)
    state, seen = method.init(params), []
    for x in batches:
        logits = network(x)
        method.update(logits, x, params, state, again=lambda x=x: (network(x), x))
        seen.append(torch.cat([p.detach().clone() for p in params.values()]))
    return seen, state


def entropy_and_gradient(weights, x, rows=None, limit=math.inf):
    """Row by row, with dH/dz = -p (log p + H) worked out; of the given rows below the limit."""
    kept, total, gradient = [], 0.0, torch.zeros(4, dtype=torch.float64)
    for n in range(len(x)):
        z = (x[n] * weights[:2] + weights[2:]) @ HEAD
        p = (z - z.max()).exp() / (z - z.max()).exp().sum()
        entropy = -(p * p.log()).sum().item()
        if entropy < limit and (rows is None or n in rows):
            slope = HEAD @ (-p * (p.log() + entropy))
            gradient += torch.cat([slope * x[n], slope])
            total += entropy
            kept.append(n)
    return total / max(len(kept), 1), gradient / max(len(kept), 1), kept


def by_hand(batches, lr, momentum, rho, margin):
    weights, speed = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    counts = []
    for x in batches:
        limit = margin * math.log(3)
        _, ascent, first = entropy_and_gradient(weights, x, None, limit)
        worst = weights + rho * ascent / ascent.norm()
        _, descent, second = entropy_and_gradient(worst, x, first, limit)
        counts.append((first, second))
        speed = momentum * speed + descent
        weights = weights - lr * speed
    return weights, counts


def test_two_steps_by_a_slow_loop():
    """Of rows 0, 1, 2 and 4 the worst weights make 0 unreliable; row 3 becomes reliable there, too late to count."""
    batches = [X, X.flip(1)]
    expected, counts = by_hand(batches, lr=0.1, momentum=0.5, rho=0.8, margin=0.9)
    assert counts[0] == ([0, 1, 2, 4], [1, 2, 4])
    seen, _ = adapted(SAR(lr=0.1, momentum=0.5, rho=0.8, margin=0.9, recovery=0.0), batches)
    torch.testing.assert_close(seen[-1], expected, rtol=1e-6, atol=0)


def test_the_rows_by_hand():
    """p = 0.9, 0.1: 0.325; p = 0.95, 0.05: 0.199 nats, against 0.4 log 2 = 0.277."""
    logits = torch.tensor([[0.9, 0.1], [0.95, 0.05], [float("nan"), 0.0]]).log()
    assert reliable_rows(logits).tolist() == [False, True, False]
    assert reliable_rows(logits, margin=0.47).tolist() == [True, True, False]


def test_the_limit_grows_with_the_classes():
    """p = 0.9 and the rest on one class: 0.325 nats is more than 0.4 log 2, and less than 0.4 log 3 = 0.439."""
    assert reliable_rows(torch.tensor([[0.9, 0.1]]).log()).tolist() == [False]
    assert reliable_rows(torch.tensor([[0.9, 0.1, 0.0]]).clamp(min=1e-30).log()).tolist() == [True]


def test_without_rho_and_a_limit_it_is_tent():
    mine, _ = adapted(SAR(lr=0.1, rho=0.0, margin=2.0, recovery=0.0), [X, X.flip(1), X])
    tent, _ = adapted(TENT(lr=0.1, optimizer="sgd"), [X, X.flip(1), X])
    torch.testing.assert_close(mine[-1], tent[-1], rtol=1e-6, atol=0)


def test_at_a_rate_of_zero_the_weights_are_put_back_to_the_bit():
    seen, _ = adapted(SAR(lr=0.0, rho=0.3), [X])
    assert seen[0].tolist() == [1, 1, 0, 0]


def test_of_no_reliable_row_nothing_moves_and_the_average_stays():
    nothing = torch.zeros_like(X)
    seen, state = adapted(SAR(lr=0.1), [nothing])
    assert seen[0].tolist() == [1, 1, 0, 0]
    assert state["entropy"].isnan()
    _, before = adapted(SAR(lr=0.1, margin=0.9, recovery=0.0), [X])
    _, after = adapted(SAR(lr=0.1, margin=0.9, recovery=0.0), [X, nothing])
    assert after["entropy"] == before["entropy"] > 0.2


def test_recovery_follows_the_average_of_the_second_entropies():
    """At a rate of zero the second entropies are those of the worst weights of each batch."""
    sure, unsure = 4 * X, X
    entropies = []
    for x in (unsure, sure, sure):
        start = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
        _, ascent, _ = entropy_and_gradient(start, x)
        entropies.append(entropy_and_gradient(start + 0.05 * ascent / ascent.norm(), x)[0])
    average = 0.9 * (0.9 * entropies[0] + 0.1 * entropies[1]) + 0.1 * entropies[2]
    _, state = adapted(SAR(lr=0.0, margin=2.0), [unsure, sure, sure])
    assert state["entropy"].item() == pytest.approx(average, rel=1e-5)


def test_below_the_limit_weights_and_momentum_go_back_and_the_average_begins_anew():
    """The mean entropy of X is 0.62, and of 20 X it is 0.04: the second batch goes back, and the third begins anew."""
    seen, state = adapted(SAR(lr=0.1, margin=2.0, recovery=0.3, decay=0.0), [X, 20 * X, X])
    assert seen[0].tolist() != [1, 1, 0, 0]
    assert seen[1].tolist() == [1, 1, 0, 0]
    assert seen[2].tolist() == seen[0].tolist()
    assert state["entropy"] > 0.3
    _, state = adapted(SAR(lr=0.1, margin=2.0, recovery=0.3, decay=0.0), [X, 20 * X])
    assert state["entropy"].isnan()
    assert all((m == 0).all() for m in state["momentum"])


def test_a_gradient_that_is_not_finite_counts_as_zero():
    x = X.clone()
    x[0, 0] = float("nan")
    seen, _ = adapted(SAR(lr=0.1, margin=2.0, recovery=0.0), [x])
    assert seen[0].tolist() == [1, 1, 0, 0]


def test_skipped_modules_stay_with_all_that_is_in_them():
    norms = {"one": nn.LayerNorm(2), "one_more": nn.LayerNorm(2), "two": nn.Sequential(nn.LayerNorm(2))}
    network = nn.ModuleDict(norms)
    assert list(SAR(skip=["one", "two"]).adapts(network)) == ["one_more.weight", "one_more.bias"]
    with pytest.raises(ValueError, match=r"skip names 'three', which is no module.*one_more"):
        SAR(skip=["three"]).adapts(network)
    with pytest.raises(ValueError, match="skips all scales and shifts"):
        SAR(skip=["one", "one_more", "two"]).adapts(network)


def test_logits_that_depend_on_nothing_adapted_are_refused():
    method, norm, linear = SAR(), nn.LayerNorm(2), nn.Linear(2, 2)
    params = method.adapts(norm)
    with pytest.raises(ValueError, match="the logits depend on none of them"):
        method.update(linear(torch.ones(2, 2)), torch.ones(2, 2), params, method.init(params), again=None)


@pytest.mark.parametrize(
    "settings",
    [{"lr": -1.0}, {"momentum": 1.0}, {"rho": -0.1}, {"margin": 0.0}, {"recovery": -1.0}, {"decay": 1.0}],
    ids=lambda settings: next(iter(settings)),
)
def test_bad_settings_are_refused(settings):
    name, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name}={value} must be"):
        SAR(**settings)


def test_a_name_in_place_of_a_list_is_refused():
    with pytest.raises(ValueError, match=r"skip=\['layer4'\]"):
        SAR(skip="layer4")


class Trained(L.LightningModule):
    """A user's module with LayerNorm."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh())
        self.fc = nn.Linear(6, 3)
        self.seen = []

    def forward(self, x):
        return self.fc(self.backbone(x))

    def test_step(self, batch, batch_idx):
        self.seen.append(self(batch[0]))


def test_a_test_is_that_of_a_loop_by_hand():
    """With SGD of torch, and the rows by a boolean index; the logits of a batch are those from before its step."""
    net, by_loop = Trained(), Trained()
    callback = AdaptAtTest(SAR(lr=0.5, rho=0.5, margin=0.95, recovery=0.0))
    trainer(callback).test(net, loader(), verbose=False)
    params = list(by_loop.backbone[1].parameters())
    optimizer, expected = torch.optim.SGD(params, lr=0.5, momentum=0.9), []
    entropies = lambda logits: torch.distributions.Categorical(logits=logits).entropy()  # noqa: E731
    for x, *_ in loader():
        logits = by_loop(x)
        expected.append(logits.detach())
        first = entropies(logits)
        rows = first < 0.95 * math.log(3)
        gradients = torch.autograd.grad(first[rows].mean(), params)
        length = math.sqrt(sum(g.square().sum().item() for g in gradients))
        with torch.no_grad():
            for p, g in zip(params, gradients):
                p += 0.5 * g / length
        second = entropies(by_loop(x))[rows]
        optimizer.zero_grad()
        second[second < 0.95 * math.log(3)].mean().backward()
        with torch.no_grad():
            for p, g in zip(params, gradients):
                p -= 0.5 * g / length
        optimizer.step()
    assert len(expected) > 2
    for mine, theirs in zip(net.seen, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    assert not torch.allclose(net.seen[-1], Trained()([*loader()][-1][0]), atol=1e-3)
