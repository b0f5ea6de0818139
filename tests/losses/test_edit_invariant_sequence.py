import math

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, fit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives.callbacks import ReplaceLoss
from lightning_objectives.losses import EditInvariantSequenceLoss, edit_invariant_sequence_loss
from lightning_objectives.testing import assert_laws


def batch(rows=3, classes=5, length=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, length, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (rows, length), generator=generator)


def slow(logits, target, n):
    """One sequence (C, T) by the formula, place by place, without noise."""
    log_p, length = logits.log_softmax(0), len(target)
    total = 0.0
    for j in range(length - n + 1):
        fits = []
        for i in range(length - n + 1):
            fits.append(sum(log_p[target[j + k], i + k].item() for k in range(n)) / n)
        weights = [math.exp(fit) for fit in fits]
        total += sum(w * fit for w, fit in zip(weights, fits)) / sum(weights)
    return -total / (length - n + 1)


def test_by_hand():
    """Two tokens, two places: token 0 has 0.8 and 0.3, token 1 has 0.2 and 0.7; q is proportional to p."""
    p = torch.tensor([[[0.8, 0.3], [0.2, 0.7]]])
    first = -(0.8 * math.log(0.8) + 0.3 * math.log(0.3)) / 1.1
    second = -(0.2 * math.log(0.2) + 0.7 * math.log(0.7)) / 0.9
    loss = edit_invariant_sequence_loss(p.log(), torch.tensor([[0, 1]]), ngrams=(1,), noise=False)
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-5)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_equals_a_slow_loop(n):
    logits, target = batch()
    expected = torch.tensor([slow(z, t, n) for z, t in zip(logits, target)], dtype=torch.float64)
    loss = edit_invariant_sequence_loss(logits, target, ngrams=(n,), noise=False)
    torch.testing.assert_close(loss, expected)
    both = edit_invariant_sequence_loss(logits, target, ngrams=(n, 4), noise=False)
    other = edit_invariant_sequence_loss(logits, target, ngrams=(4,), noise=False)
    torch.testing.assert_close(both, (loss + other) / 2)


def test_noise_and_gradient_are_those_of_the_authors_convolution():
    """S by a convolution with a diagonal filter, and torch's softmax of S and the same noise, over the output."""
    logits, target = batch()
    logits.requires_grad_()
    noise = torch.empty(3, 5, 5, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(3))
    fits = logits.log_softmax(1).transpose(1, 2).gather(2, target[:, None].expand(3, 6, 6))
    means = F.conv2d(fits[:, None], torch.eye(2).double()[None, None])[:, 0] / 2
    expected = -((means - noise.log()).softmax(1) * means).sum(1).mean(1)
    loss = edit_invariant_sequence_loss(logits, target, generator=torch.Generator().manual_seed(3), ngrams=(2,))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value.sum(), logits)[0] for value in (loss, expected)))


@pytest.mark.parametrize("noise", [False, True])
def test_a_size_of_the_whole_sequence_or_more_is_cross_entropy(noise):
    logits, target = batch()
    plain = F.cross_entropy(logits, target, reduction="none").mean(1)
    for ngrams in ((6,), (7, 100)):
        torch.testing.assert_close(edit_invariant_sequence_loss(logits, target, ngrams=ngrams, noise=noise), plain)
    torch.testing.assert_close(
        edit_invariant_sequence_loss(logits[:, :, 0], target[:, 0]),
        F.cross_entropy(logits[:, :, 0], target[:, 0], reduction="none"),
    )


def test_a_shifted_target_costs_little_by_small_sizes():
    sentence = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7]])
    logits = 12.0 * F.one_hot(sentence, 8).movedim(-1, 1)
    shifted = sentence.roll(1, 1)
    small = {n: edit_invariant_sequence_loss(logits, shifted, ngrams=(n,), noise=False).item() for n in (1, 2, 8)}
    assert small[8] == pytest.approx(12.0, abs=0.01)
    assert small[1] < 0.1
    assert small[2] < 12 / 7 + 0.2  # One of seven pairs, that of the seam, is nowhere.
    exact = edit_invariant_sequence_loss(logits, sentence, ngrams=(1,), noise=False).item()
    assert small[1] == pytest.approx(exact, abs=1e-5)


def test_padding_changes_nothing_whatever_it_holds():
    logits, target = batch()
    mask = torch.tensor([[True] * 4 + [False] * 2, [True] * 6, [True] * 2 + [False] * 4])
    bad = torch.where(mask[:, None], logits, 50.0)
    loss = edit_invariant_sequence_loss(bad, torch.where(mask, target, -100), mask, ngrams=(1, 3), noise=False)
    for row, length in enumerate((4, 6, 2)):
        alone = logits[row : row + 1, :, :length], target[row : row + 1, :length]
        torch.testing.assert_close(
            loss[row : row + 1], edit_invariant_sequence_loss(*alone, ngrams=(1, 3), noise=False)
        )
    nothing = edit_invariant_sequence_loss(logits, target, torch.zeros_like(mask), noise=False)
    assert nothing.tolist() == [0.0, 0.0, 0.0]


def test_ngrams_across_a_gap_do_not_count():
    logits, target = batch()
    mask = torch.tensor([[True, True, False, True, True, True]] * 3)
    loss = edit_invariant_sequence_loss(logits, target, mask, ngrams=(2,), noise=False)
    kept, log_p = [0, 3, 4], logits[0].log_softmax(0)
    total = 0.0
    for j in kept:
        fits = torch.stack([(log_p[target[0, j], i] + log_p[target[0, j + 1], i + 1]) / 2 for i in kept])
        total += (fits.softmax(0) * fits).sum() / 3
    torch.testing.assert_close(loss[0], -total)


def test_a_target_of_probabilities_gives_the_expected_fit():
    logits, target = batch()
    one_hot = F.one_hot(target, 5).movedim(-1, 1).double()
    hard = edit_invariant_sequence_loss(logits, target, noise=False)
    torch.testing.assert_close(edit_invariant_sequence_loss(logits, one_hot, noise=False), hard)


def test_an_improbable_token_counts_20_and_pulls_nothing():
    logits = torch.tensor([[[50.0], [0.0]]], requires_grad=True)
    loss = edit_invariant_sequence_loss(logits, torch.tensor([[1]]))
    loss.sum().backward()
    assert loss.item() == 20.0
    assert logits.grad.abs().sum() == 0


def test_the_generator_alone_decides():
    logits, target = batch()
    draws = [
        edit_invariant_sequence_loss(logits, target, None, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.allclose(draws[0], draws[2])


def test_without_noise_the_laws_hold():
    assert_laws(EditInvariantSequenceLoss(ngrams=(1,), noise=False))


class Language(Net):
    """Predicts six tokens for each sample."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 18)

    def forward(self, x):
        return super().forward(x).view(-1, 3, 6)

    def criterion(self, logits, y):
        return F.cross_entropy(logits, y)


class ByHand(Language):
    def criterion(self, logits, y):
        rows = []
        for z, t in zip(logits, y):
            kept = t != -100
            rows.append(edit_invariant_sequence_loss(z[None, :, kept], t[None, kept], ngrams=(2,), noise=False))
        return torch.cat(rows).mean()


def test_a_training_is_the_loop_by_hand():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 4, generator=generator), torch.randint(3, (24, 6), generator=generator)
    lengths = torch.randint(1, 7, (24, 1), generator=generator)
    train = DataLoader(TensorDataset(x, y.masked_fill(torch.arange(6) >= lengths, -100)), batch_size=8)
    net, _ = fit(ReplaceLoss(EditInvariantSequenceLoss(ngrams=(2,), noise=False)), net=Language, train=train)
    hand, _ = fit(net=ByHand, train=train)
    torch.testing.assert_close(dict(net.named_parameters()), dict(hand.named_parameters()), rtol=0, atol=1e-6)


def test_refusals():
    for ngrams in ((), (0,), (2, -1), (1.5,)):
        with pytest.raises(ValueError, match="must hold one size or more, each a whole number >= 1"):
            EditInvariantSequenceLoss(ngrams=ngrams)
    with pytest.raises(ValueError, match="have one class"):
        edit_invariant_sequence_loss(torch.zeros(2, 1, 4), torch.zeros(2, 4).long())
    with pytest.raises(ValueError, match="must have the same positions"):
        edit_invariant_sequence_loss(torch.zeros(2, 3, 4), torch.zeros(2, 5).long())
