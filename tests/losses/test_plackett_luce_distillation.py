import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import PlackettLuceDistillationLoss, plackett_luce_distillation_loss


def drawn(classes=5):
    generator = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(2, 6, classes, generator=generator, dtype=torch.float64)
    return logits, torch.arange(6) % classes, teacher


def by_a_loop(logits, target, teacher, temperature):
    losses = []
    for s, y, t in zip(logits.tolist(), target.tolist(), teacher.tolist()):
        total = sum(math.exp(v / temperature) for v in t)
        left = sorted(range(len(s)), key=lambda k: (k != y, -t[k]))
        loss = 0.0
        while left:
            share = math.exp(t[left[0]] / temperature) / total
            loss += share * (math.log(sum(math.exp(s[k]) for k in left)) - s[left[0]])
            left = left[1:]
        losses.append(loss)
    return torch.tensor(losses, dtype=torch.float64)


def test_by_hand():
    """Ranking 2, 0, 1 with the weights 0.2, 0.5, 0.3: 0.2 log(6/3) + 0.5 log(3/1) + 0.3 log(2/2) = 0.687935."""
    student, teacher = torch.tensor([[1.0, 2.0, 3.0]]).log(), torch.tensor([[0.5, 0.3, 0.2]]).log()
    loss = plackett_luce_distillation_loss(student, torch.tensor([2]), teacher)
    torch.testing.assert_close(loss, torch.tensor([0.687935]))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_equals_a_loop(temperature):
    logits, target, teacher = drawn()
    loss = plackett_luce_distillation_loss(logits, target, teacher, temperature=temperature)
    torch.testing.assert_close(loss, by_a_loop(logits, target, teacher, temperature))


def test_a_teacher_that_is_sure_of_the_target_gives_cross_entropy():
    logits, target, _ = drawn()
    sure = 1e3 * F.one_hot(target, 5).double()
    loss = plackett_luce_distillation_loss(logits, target, sure)
    torch.testing.assert_close(loss, F.cross_entropy(logits, target, reduction="none"))


def test_a_high_temperature_gives_the_likelihood_of_the_ranking():
    """ListMLE over C."""
    logits, target, teacher = drawn()
    loss = plackett_luce_distillation_loss(logits, target, teacher, temperature=1e9)
    order = torch.stack(
        [torch.tensor(sorted(range(5), key=lambda k: (k != y, -t[k]))) for y, t in zip(target, teacher)]
    )
    ranked = logits.gather(1, order)
    listed = sum(ranked[:, k:].logsumexp(1) - ranked[:, k] for k in range(5)) / 5
    torch.testing.assert_close(loss, listed)


def test_a_shift_of_the_logits_means_nothing():
    logits, target, teacher = drawn()
    shifted = plackett_luce_distillation_loss(logits + 7, target, teacher - 3)
    torch.testing.assert_close(shifted, plackett_luce_distillation_loss(logits, target, teacher))


def test_classes_that_both_rule_out_do_not_count():
    logits, target, teacher = drawn(3)
    out = torch.full((6, 1), -torch.inf, dtype=torch.float64)
    masked = torch.cat([logits, out], 1).requires_grad_()
    loss = plackett_luce_distillation_loss(masked, target, torch.cat([teacher, out], 1))
    loss.sum().backward()
    torch.testing.assert_close(loss, plackett_luce_distillation_loss(logits, target, teacher))
    logits.requires_grad_()
    (plain,) = torch.autograd.grad(plackett_luce_distillation_loss(logits, target, teacher).sum(), logits)
    torch.testing.assert_close(masked.grad[:, :3], plain)


def test_the_teacher_is_a_constant_and_the_likeliest_class_of_a_mixture_counts():
    logits, _, teacher = drawn()
    loss = plackett_luce_distillation_loss(logits[:1], torch.tensor([[0.1, 0.6, 0.1, 0.1, 0.1]]), teacher[:1])
    torch.testing.assert_close(loss, plackett_luce_distillation_loss(logits[:1], torch.tensor([1]), teacher[:1]))
    assert not plackett_luce_distillation_loss(logits, torch.arange(6) % 5, teacher.requires_grad_()).requires_grad


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be > 0"):
        PlackettLuceDistillationLoss(temperature=0.0)
