import math

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, fit, loader
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives.callbacks import Refer, ReplaceLoss
from lightning_objectives.losses import PreferenceOrientedSFTLoss, preference_oriented_sft_loss

TOKENS = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]])
COUNTS = torch.tensor([[True, True, True, False], [True, False, False, False]])


def two(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(2, 3, 4, generator=generator, dtype=dtype) for _ in range(2))


def slow(logits, target, reference, mask):
    """The paper's formula, token by token."""
    losses = []
    for n in range(len(logits)):
        gap, count = 0.0, 0
        for t in range(target.shape[1]):
            if mask[n, t]:
                own, other = (z[n, :, t].log_softmax(0)[target[n, t]].item() for z in (logits, reference))
                gap, count = gap + own - other, count + 1
        losses.append(-math.log(1 / (1 + math.exp(-gap / count))))
    return torch.tensor(losses, dtype=torch.float64)


def test_by_hand():
    """Mean log-probabilities of log(0.8 · 0.2) / 2 and log(0.5 · 0.5) / 2: log(1 + sqrt(0.25 / 0.16)) = log 2.25."""
    p = torch.tensor([[[0.8, 0.8], [0.2, 0.2]]])
    loss = preference_oriented_sft_loss(p.log(), torch.tensor([[0, 1]]), torch.zeros(1, 2, 2))
    assert loss.item() == pytest.approx(math.log(2.25), rel=1e-5)


def test_equals_a_slow_loop():
    logits, reference = two()
    every = torch.ones_like(COUNTS)
    for mask in (COUNTS, every):
        loss = preference_oriented_sft_loss(logits, TOKENS, reference, mask)
        torch.testing.assert_close(loss, slow(logits, TOKENS, reference, mask))
    torch.testing.assert_close(preference_oriented_sft_loss(logits, TOKENS, reference), loss)


def test_the_gradient_is_that_of_cross_entropy_times_the_references_lead():
    logits, reference = two()
    logits.requires_grad_()
    (ours,) = torch.autograd.grad(preference_oriented_sft_loss(logits, TOKENS, reference).sum(), logits)
    own, other = (F.cross_entropy(z, TOKENS, reduction="none").mean(1) for z in (logits, reference))
    (plain,) = torch.autograd.grad(own.sum(), logits)
    torch.testing.assert_close(ours, plain * (own - other).sigmoid().detach()[:, None, None])


def test_a_reference_that_says_the_same_of_all_ranks_the_sequences_by_cross_entropy():
    logits, _ = two()
    loss = preference_oriented_sft_loss(logits, TOKENS, torch.zeros(2, 3, 4))
    nll = F.cross_entropy(logits, TOKENS, reduction="none").mean(1)
    torch.testing.assert_close(loss, F.softplus(nll - math.log(3)))


def test_at_the_reference_it_is_log_2_and_a_shift_means_nothing():
    logits, _ = two()
    loss = preference_oriented_sft_loss(logits, TOKENS, logits + 5)
    torch.testing.assert_close(loss, torch.full((2,), math.log(2)).double())


def test_rows_are_sequences_of_one_target():
    logits, reference = two()
    rows, others = (z.movedim(1, -1).flatten(0, 1) for z in (logits, reference))
    one = preference_oriented_sft_loss(rows[:, :, None], TOKENS.flatten()[:, None], others[:, :, None])
    torch.testing.assert_close(preference_oriented_sft_loss(rows, TOKENS.flatten(), others), one)


def test_ignored_positions_do_not_count_whatever_they_hold():
    logits, reference = two()
    expected = preference_oriented_sft_loss(logits[:1, :, :3], TOKENS[:1, :3], reference[:1, :, :3])
    bad = torch.where(COUNTS[:, None], logits, torch.nan)
    loss = preference_oriented_sft_loss(bad, torch.where(COUNTS, TOKENS, -100), reference, COUNTS)
    torch.testing.assert_close(loss[:1], expected)
    nothing = preference_oriented_sft_loss(logits, TOKENS, reference, torch.zeros_like(COUNTS))
    assert nothing.tolist() == [0.0, 0.0]


def test_a_target_of_probabilities_gives_its_cross_entropy():
    logits, reference = two()
    hard = preference_oriented_sft_loss(logits, TOKENS, reference, COUNTS)
    soft = F.one_hot(TOKENS, 3).movedim(-1, 1).double()
    torch.testing.assert_close(preference_oriented_sft_loss(logits, soft, reference, COUNTS), hard)


def test_what_both_rule_out_is_no_preference():
    masked = torch.tensor([[0.0, -torch.inf]], requires_grad=True)
    loss = preference_oriented_sft_loss(masked, torch.tensor([1]), torch.tensor([[1.0, -torch.inf]]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert masked.grad.isfinite().all()


def test_the_reference_is_a_constant():
    reference = torch.zeros(2, 3, 4, requires_grad=True)
    assert not preference_oriented_sft_loss(torch.zeros(2, 3, 4), TOKENS, reference).requires_grad


def test_refusals():
    with pytest.raises(ValueError, match=r"reference_logits of the shape \(2, 3, 5\) do not fit"):
        preference_oriented_sft_loss(torch.zeros(2, 3, 4), TOKENS, torch.zeros(2, 3, 5))
    with pytest.raises(ValueError, match="have one class"):
        preference_oriented_sft_loss(torch.zeros(2, 1, 4), TOKENS * 0, torch.zeros(2, 1, 4))
    with pytest.raises(ValueError, match="must have the same positions"):
        preference_oriented_sft_loss(torch.zeros(2, 3, 5), TOKENS, torch.zeros(2, 3, 5))


class Language(Net):
    """Predicts four tokens for each sample; some of them are ignored."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 12)

    def forward(self, x):
        return super().forward(x).view(-1, 3, 4)

    def criterion(self, logits, y):
        return F.cross_entropy(logits, y)


class ByHand(Language):
    def __init__(self, reference):
        super().__init__()
        self.reference = [reference]

    def training_step(self, batch, batch_idx):
        x, y = batch
        with torch.no_grad():
            other = self.reference[0](x)
        logits, losses = self(x), []
        for n in range(len(x)):
            if (y[n] != -100).any():
                own, theirs = (F.cross_entropy(z[n : n + 1], y[n : n + 1]) for z in (logits, other))
                losses.append(F.softplus(own - theirs))
        return torch.stack(losses).mean()


def sequences():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(24, 4, generator=generator), torch.randint(3, (24, 4), generator=generator)
    y[torch.rand(24, 4, generator=generator) < 0.3] = -100
    y[3] = -100
    return DataLoader(TensorDataset(x, y), batch_size=8)


def test_a_training_is_the_loop_by_hand():
    torch.manual_seed(5)
    reference = Language().eval()
    net, _ = fit(ReplaceLoss(PreferenceOrientedSFTLoss()), Refer(reference), net=Language, train=sequences())
    hand, _ = fit(net=lambda: ByHand(reference), train=sequences())
    torch.testing.assert_close(dict(net.named_parameters()), dict(hand.named_parameters()), rtol=0, atol=1e-6)


def test_sequences_whose_tokens_are_rows_are_refused():
    class Flat(Language):
        def criterion(self, logits, y):
            return F.cross_entropy(logits.movedim(1, -1).reshape(-1, 3), y.flatten())

    with pytest.raises(ValueError, match=r"Let your step pass logits of the shape \(N, C, \.\.\.\)"):
        fit(ReplaceLoss(PreferenceOrientedSFTLoss()), Refer(Language()), net=Flat, train=sequences())


@pytest.mark.parametrize("column", [False, True])
def test_one_logit_of_two_classes_is_two_columns(column):
    class Binary(Net):
        def __init__(self):
            super().__init__(classes=1)

        def criterion(self, logits, y):
            z, t = (logits, (y > 0).float()[:, None]) if column else (logits[:, 0], (y > 0).float())
            return F.binary_cross_entropy_with_logits(z, t)

    torch.manual_seed(5)
    reference = Binary().eval()
    net, _ = fit(ReplaceLoss(PreferenceOrientedSFTLoss()), Refer(reference), net=Binary)
    torch.manual_seed(0)
    fresh, (x, y) = Binary(), next(iter(loader()))
    own, other = (
        F.binary_cross_entropy_with_logits(m(x)[:, 0], (y > 0).float(), reduction="none") for m in (fresh, reference)
    )
    assert net.losses[0] == pytest.approx(F.softplus(own - other).mean().item(), rel=1e-5)
