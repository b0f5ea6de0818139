import copy

import pytest
import torch
from averaging_nets import fit
from torch import nn

from lightning_objectives.averaging import LAWA, SWA
from lightning_objectives.callbacks import AverageWeights


def averages(rule, path):
    """What is read after each of the weights."""
    state, found = rule.init([path[0]]), []
    for step, weights in enumerate(path[1:], start=1):
        rule.update(state, [weights], step=step)
        found.append(rule.read(state, [weights], step=step)[0].clone())
    return found


def test_worked_by_hand():
    """The squares of 3, 6 and 9, two of them: 9, (9 + 36) / 2, (36 + 81) / 2."""
    found = averages(LAWA(last=2), [torch.tensor([step**2.0]) for step in (0, 3, 6, 9)])
    assert [f.item() for f in found] == [9, 22.5, 58.5]


@pytest.mark.parametrize("last", [1, 2, 3, 7, 20])
def test_it_is_the_mean_of_the_newest(last):
    path = torch.randn(18, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for number, found in enumerate(averages(LAWA(last=last), [*path]), start=1):
        newest = path[1 : number + 1][-last:]
        torch.testing.assert_close(found, newest.mean(0), rtol=0, atol=1e-12)


def test_one_is_the_last_that_was_taken_and_many_are_swa():
    path = [*torch.randn(10, 3, generator=torch.Generator().manual_seed(0))]
    assert torch.equal(averages(LAWA(last=1), path)[-1], path[-1])
    torch.testing.assert_close(averages(LAWA(last=9), path)[-1], averages(SWA(), path)[-1])


def test_weights_that_are_forgotten_leave_no_rounding_error():
    """A huge weight of the beginning would spoil a running sum for ever."""
    path = [torch.tensor([value]) for value in (0.0, 1e8, 0.1, 0.2, 0.3)]
    assert averages(LAWA(last=2), path)[-1].item() == pytest.approx(0.25, rel=1e-6)


def test_the_live_weights_are_copied():
    net = nn.Linear(2, 1)
    rule, before = LAWA(last=2), copy.deepcopy(net)
    state = rule.init(list(net.parameters()))
    rule.update(state, [p.detach() for p in net.parameters()], step=1)
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(7.0)
    for mine, theirs in zip(rule.read(state, list(net.parameters()), step=1), before.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_in_a_training_the_interval_is_that_of_the_callback():
    """Eight steps; of the weights after the steps 2, 4, 6 and 8 the newest three."""
    callback = AverageWeights(LAWA(last=3), every_n_steps=2)
    net, _ = fit(callback)
    found, raw = (torch.cat([v.flatten() for v in callback.weights(name).values()]) for name in ("lawa", "raw"))
    path = [*net.path[1:], raw]
    torch.testing.assert_close(found, torch.stack([path[step - 1] for step in (4, 6, 8)]).mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("last", [0, -1, 1.5, float("inf")])
def test_a_count_out_of_range_is_refused(last):
    with pytest.raises(ValueError, match=r"last=.* must be a whole number >= 1"):
        LAWA(last=last)
