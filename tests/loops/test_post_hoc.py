"""Power-function averages of any width in a loop of one's own: an average that was kept all the time is the number."""

import copy

import pytest
import torch
from torch import nn

from lightning_objectives.averaging import EMA, PowerEMA
from lightning_objectives.loops import Average

RULES = [PowerEMA(sigma_rel=0.05), PowerEMA(sigma_rel=0.1)]


def train(rules=RULES, steps=60, *, every=5, dtype=torch.float32, **settings):
    """A short training; its average, the states that were kept, and an average of the width 0.07 beside it."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4, dtype=dtype), nn.Tanh(), nn.Linear(4, 1, dtype=dtype))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    average, kept = (
        Average(network, rules, optimizer, **settings),
        Average(network, PowerEMA(sigma_rel=0.07), optimizer),
    )
    states = []
    for step in range(1, steps + 1):
        x = torch.randn(8, 3, dtype=dtype)
        (network(x)[:, 0] - x.sum(1)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        kept.update()
        if step % every == 0:
            states.append(copy.deepcopy(average.state_dict()))
    return average, states, kept


def test_it_is_the_average_that_was_kept():
    average, states, kept = train()
    weights, expected = average.post_hoc_weights(states, sigma_rel=0.07), kept.weights()
    assert weights.keys() == expected.keys()
    raw = dict(average.network.named_parameters())
    for name, weight in weights.items():
        assert (weight - expected[name]).abs().max() < 0.02 * (raw[name] - expected[name]).abs().max()
    assert not torch.equal(weights["0.weight"], average.weights("powerema")["0.weight"])


def test_a_width_that_was_kept_is_its_own_snapshot():
    average, states, _ = train()
    for name, width in (("powerema", 0.05), ("powerema_2", 0.1)):
        weights = average.post_hoc_weights(states, sigma_rel=width)
        torch.testing.assert_close(weights, average.weights(name), rtol=0, atol=1e-6)


def test_files_of_states_give_the_same_in_any_order(tmp_path):
    average, states, _ = train()
    paths = [tmp_path / f"{place}.pt" for place in range(len(states))]
    for path, state in zip(paths, states):
        torch.save(state, path)
    expected = average.post_hoc_weights(states, sigma_rel=0.08)
    torch.testing.assert_close(average.post_hoc_weights(paths[::-1], sigma_rel=0.08), expected, rtol=0, atol=1e-6)


def test_weights_have_the_types_of_the_parameters():
    average, states, _ = train(dtype=torch.float64)
    weights = average.post_hoc_weights(states, sigma_rel=0.07)
    assert {weight.dtype for weight in weights.values()} == {torch.float64}
    average.network.load_state_dict(weights)


def test_what_is_refused():
    average, states, _ = train()
    with pytest.raises(ValueError, match=r"snapshots give the profile of the width 0\.28 only to within"):
        average.post_hoc_weights(states[-1:], sigma_rel=0.28)
    with pytest.raises(ValueError, match="hold 0 power-function averages with an update"):
        average.post_hoc_weights([], sigma_rel=0.07)
    other, of_other, _ = train(EMA())
    with pytest.raises(ValueError, match="hold 0 power-function averages with an update"):
        other.post_hoc_weights(of_other, sigma_rel=0.07)
    _, later, _ = train(start_step=10)
    with pytest.raises(ValueError, match=r"began at the steps \[0, 10\]"):
        average.post_hoc_weights([*states, *later], sigma_rel=0.07)


def test_states_that_went_on_are_refused():
    """The state dict holds the average itself, so two of them are the same."""
    average, states, _ = train()
    for shared in ([average.state_dict(), average.state_dict()], [*states, average.state_dict()]):
        with pytest.raises(ValueError, match="The states share the memory of the average"):
            average.post_hoc_weights(shared, sigma_rel=0.07)
