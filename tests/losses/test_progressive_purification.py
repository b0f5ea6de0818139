import math

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, fit, loader
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives.callbacks import ReplaceLoss
from lightning_objectives.data import with_index
from lightning_objectives.losses import ProgressivePurification, candidate_weights, purified_weights
from lightning_objectives.testing import assert_laws

CANDIDATES = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])


def empty(rows=2, classes=3):
    return {"weights": torch.zeros(rows, classes), "sums": torch.zeros(rows, classes), "period": torch.zeros(rows)}


def test_weights_by_hand():
    """p = (0.6, 0.3, 0.1): 0.6 / 0.9 and 0.3 / 0.9; 0.3 / 0.4 and 0.1 / 0.4."""
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log().expand(2, 3)
    expected = torch.tensor([[2 / 3, 1 / 3, 0.0], [0.0, 0.75, 0.25]])
    torch.testing.assert_close(candidate_weights(logits, CANDIDATES), expected)
    torch.testing.assert_close(candidate_weights(logits, CANDIDATES.bool()), expected)


def test_a_candidate_is_never_lost_to_rounding_and_no_row_is_nan():
    logits = torch.tensor([[500.0, -500.0, 900.0], [-torch.inf, -torch.inf, 0.0], [1.0, 2.0, 3.0]])
    weights = candidate_weights(logits, torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0]]))
    assert ((weights > 0) == torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0]])).all()
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.sum(1), torch.tensor([1.0, 1.0, 0.0]))


def test_purified_by_hand():
    """0.07 is below a tenth of 0.8 and 0.13 is not: 0.8 / 0.93 and 0.13 / 0.93."""
    averages = torch.tensor([[0.8, 0.13, 0.07], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.8 / 0.93, 0.13 / 0.93, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(purified_weights(averages, threshold=0.1), expected)
    torch.testing.assert_close(purified_weights(5 * averages, threshold=0.1), expected)


def test_a_threshold_of_0_drops_none_and_of_1_all_but_the_best():
    averages = torch.rand(5, 4)
    torch.testing.assert_close(purified_weights(averages, threshold=0.0), averages / averages.sum(1, keepdim=True))
    torch.testing.assert_close(purified_weights(averages, threshold=1.0), F.one_hot(averages.argmax(1), 4).float())


def test_one_candidate_is_cross_entropy():
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    plain = F.cross_entropy(logits, target, reduction="none")
    method, memory = ProgressivePurification(), empty(5)
    for epoch in (0, 25):
        for form in (target, F.one_hot(target, 3).float()):
            torch.testing.assert_close(method(logits, form, memory, epoch), plain)
        memory = method.learn(logits, target, memory, epoch)


def test_no_gradient_flows_through_the_weights():
    logits = torch.randn(2, 3, requires_grad=True)
    method, memory = ProgressivePurification(), empty()
    learned = method.learn(logits, CANDIDATES, memory, 0)
    assert not any(rows.requires_grad for rows in learned.values())
    (ours,) = torch.autograd.grad(method(logits, CANDIDATES, learned, 0).sum(), logits)
    torch.testing.assert_close(ours, logits.softmax(1) - learned["weights"])


def test_candidates_are_dropped_after_the_warm_up_and_stay_so():
    sure, unsure = torch.tensor([[8.0, 0.0, 9.0]] * 2), torch.zeros(2, 3)
    method = ProgressivePurification(threshold=0.1, warmup_epochs=2, period=2)
    memory, seen = empty(), []
    for epoch, logits in enumerate([sure, sure, unsure, unsure, unsure, unsure]):
        used = method(torch.zeros(2, 3, requires_grad=True), CANDIDATES, memory, epoch)
        memory = method.learn(logits, CANDIDATES, memory, epoch)
        seen.append((memory["weights"][0] > 0).tolist())
        assert used.tolist() == pytest.approx([math.log(3)] * 2)
    assert seen == [[True, True, False]] * 2 + [[True, False, False]] * 4
    assert memory["period"].tolist() == [3, 3]
    torch.testing.assert_close(memory["sums"][0], torch.tensor([2.0, 0.0, 0.0]))


def partial(rows=24):
    generator = torch.Generator().manual_seed(3)
    x, y = loader(rows).dataset.tensors
    candidates = (torch.rand(rows, 3, generator=generator) < 0.4) | F.one_hot(y, 3).bool()
    return TensorDataset(x, candidates.float())


def batches():
    return DataLoader(with_index(partial()), batch_size=8, shuffle=True)


class Partial(Net):
    def criterion(self, logits, candidates):
        return F.cross_entropy(logits, candidates / candidates.sum(1, keepdim=True))


class ByHand(Partial):
    """The algorithm as a plain loop over the samples."""

    def __init__(self, threshold, warmup, period):
        super().__init__()
        self.threshold, self.warmup, self.period = threshold, warmup, period
        self.table, self.history, self.dropped = {}, {}, 0

    def training_step(self, batch, batch_idx):
        (x, candidates), index = batch.item, batch.index
        logits, losses, epoch = self(x), [], self.current_epoch
        for n, i in enumerate(index.tolist()):
            if i not in self.table:
                self.table[i] = candidates[n] / candidates[n].sum()
            if epoch and epoch % self.period == 0 and epoch >= self.warmup:
                mean = torch.stack(self.history[i][-self.period :]).mean(0)
                keep = mean / mean.max() >= self.threshold
                self.dropped += int(((mean > 0) & ~keep).sum())
                self.table[i] = mean * keep / (mean * keep).sum()
            losses.append(-(self.table[i] * logits[n].log_softmax(0)).sum())
            p = logits[n].detach().softmax(0) * (self.table[i] > 0)
            self.table[i] = p / p.sum()
            self.history.setdefault(i, []).append(self.table[i])
        return torch.stack(losses).mean()


@pytest.mark.parametrize("warmup", [0, 4])
def test_a_training_is_the_loop_by_hand(warmup):
    ours = ReplaceLoss(ProgressivePurification(threshold=0.6, warmup_epochs=warmup, period=2))
    net, _ = fit(ours, net=Partial, train=batches(), max_epochs=6)
    hand, _ = fit(net=lambda: ByHand(0.6, warmup, 2), train=batches(), max_epochs=6)
    assert hand.dropped > 3
    torch.testing.assert_close(dict(net.named_parameters()), dict(hand.named_parameters()), rtol=0, atol=1e-5)
    table = torch.stack([hand.table[i] for i in range(24)])
    torch.testing.assert_close(ours.state_dict()["memory.weights"], table, rtol=0, atol=1e-5)


def test_a_period_longer_than_the_warm_up_keeps_the_laws():
    assert_laws(ProgressivePurification(threshold=0.5, warmup_epochs=0, period=1))


def test_refusals():
    for threshold in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
            ProgressivePurification(threshold=threshold)
        with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
            purified_weights(torch.rand(2, 3), threshold=threshold)
    with pytest.raises(ValueError, match="warmup_epochs=-1 must be >= 0"):
        ProgressivePurification(warmup_epochs=-1)
    for period in (0, 1.5):
        with pytest.raises(ValueError, match="must be a whole number of epochs"):
            ProgressivePurification(period=period)
    with pytest.raises(ValueError, match=r"candidates of the shape \(2, 4\)"):
        candidate_weights(torch.zeros(2, 3), torch.ones(2, 4))
    for averages in (torch.rand(3), torch.ones(2, 3, dtype=torch.long)):
        with pytest.raises(ValueError, match="averages of the shape"):
            purified_weights(averages)
