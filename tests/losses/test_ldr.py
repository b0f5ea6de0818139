import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import LDRLoss, ldr_loss, score_gaps

LOGITS, TARGET = torch.tensor([[1.0, 2.0, 0.0], [0.5, -1.0, 3.0]]), torch.tensor([0, 2])


def slow(logits, target, temperature, margin):
    """In plain Python, one class after the other."""
    losses = []
    for row, y in zip(logits.tolist(), target.tolist()):
        gaps = [z - row[y] + (margin if k != y else 0.0) for k, z in enumerate(row)]
        losses.append(temperature * math.log(sum(math.exp(d / temperature) for d in gaps) / len(row)))
    return torch.tensor(losses)


def test_by_hand():
    """Gaps 0, 1, -1 at temperature 2: 2 log((1 + 1.648721 + 0.606531) / 3) = 2 log 1.0850840 = 0.1633149."""
    loss = ldr_loss(LOGITS[:1], TARGET[:1], temperature=2.0)
    torch.testing.assert_close(loss, torch.tensor([0.1633149]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("temperature", "margin"), [(0.3, 0.0), (1.0, 0.1), (4.0, 0.5)])
def test_equals_a_plain_loop(temperature, margin):
    losses = ldr_loss(LOGITS, TARGET, temperature=temperature, margin=margin)
    torch.testing.assert_close(losses, slow(LOGITS, TARGET, temperature, margin))


def test_it_is_the_greatest_over_label_distributions():
    """The definition: sum p d - lambda KL(p || 1/C), over many p of the simplex; none is above, one comes near."""
    gaps = score_gaps(LOGITS[:1], TARGET[:1])[0].double()
    p = torch.distributions.Dirichlet(torch.ones(3, dtype=torch.float64)).sample((20000,))
    values = p @ gaps - 0.7 * ((p * p.log()).sum(1) + math.log(3))
    best = ldr_loss(LOGITS[:1], TARGET[:1], temperature=0.7).item()
    assert best - 1e-2 < values.max() <= best + 1e-6


def test_at_one_it_is_cross_entropy_less_log_c():
    expected = F.cross_entropy(LOGITS, TARGET, reduction="none") - math.log(3)
    torch.testing.assert_close(ldr_loss(LOGITS, TARGET), expected)


def test_the_ends_are_the_svm_and_the_mean():
    """With a margin of 0.1 the gaps are 0, 1.1, -0.9 and -2.4, -3.9, 0."""
    settings = {"margin": 0.1}
    svm, mean = (ldr_loss(LOGITS, TARGET, temperature=t, **settings) for t in (0.0, math.inf))
    torch.testing.assert_close(svm, torch.tensor([1.1, 0.0]))
    torch.testing.assert_close(mean, torch.tensor([0.2 / 3, -2.1]))
    torch.testing.assert_close(ldr_loss(LOGITS, TARGET, temperature=1e-3, **settings), svm, rtol=0, atol=2e-3)
    torch.testing.assert_close(ldr_loss(LOGITS, TARGET, temperature=1e5, **settings), mean, rtol=0, atol=1e-2)


def test_a_target_of_probabilities():
    hard = F.one_hot(TARGET, 3).float()
    torch.testing.assert_close(
        ldr_loss(LOGITS, hard, temperature=2.0, margin=0.2), ldr_loss(LOGITS, TARGET, temperature=2.0, margin=0.2)
    )
    soft = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    torch.testing.assert_close(ldr_loss(LOGITS, soft), F.cross_entropy(LOGITS, soft, reduction="none") - math.log(3))


def test_half_precision_is_computed_in_float32():
    assert ldr_loss(LOGITS.bfloat16(), TARGET).dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"temperature": -1.0}, r"temperature=-1\.0 must be >= 0"), ({"margin": -0.1}, r"margin=-0\.1 must be >= 0")],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LDRLoss(**settings)
    with pytest.raises(ValueError, match=message):
        ldr_loss(LOGITS, TARGET, **settings)
