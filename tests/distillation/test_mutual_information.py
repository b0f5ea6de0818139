import math

import pytest
import torch

from lightning_objectives.distillation import MutualInformationDistillation
from lightning_objectives.distillation.mutual_information import _terms, _without_each


def slow(scores, baseline, alpha):
    """Plain Python, over all pairs."""
    count, terms = len(scores), []

    def mean(i, j):
        others = sum(math.exp(scores[i][k]) for k in range(count) if k != j) / (count - 1)
        return alpha * others + (1 - alpha) * math.exp(baseline[i])

    for i in range(count):
        rest = [j for j in range(count) if j != i]
        joint = sum(math.log(math.exp(scores[i][i]) / mean(i, j)) for j in rest) / (count - 1)
        marginal = sum(math.exp(scores[i][j]) / mean(i, i) for j in rest) / (count - 1)
        terms.append(-1 - joint + marginal)
    return torch.tensor(terms, dtype=torch.float64)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_equals_a_slow_loop(alpha):
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(5, 5, generator=generator, dtype=torch.float64)
    baseline = torch.randn(5, 1, generator=generator, dtype=torch.float64)
    expected = slow(scores.tolist(), baseline[:, 0].tolist(), alpha)
    torch.testing.assert_close(_terms(scores, baseline, alpha), expected)


def test_by_hand():
    """At alpha 0 with a baseline of 0: -1 - S_ii + e^S_ij. At alpha 1 the two ones cancel: InfoNCE."""
    scores = torch.tensor([[2.0, 0.0], [-1.0, 1.0]])
    expected = torch.tensor([-1 - 2 + 1, -1 - 1 + math.exp(-1)])
    torch.testing.assert_close(_terms(scores, torch.zeros(2, 1), 0.0), expected)
    scores = torch.tensor([[2.0, 0.0, 1.0]]).expand(3, 3)
    means = math.log((math.e**2 + math.e) / 2), math.log((math.e**2 + 1) / 2)
    torch.testing.assert_close(_terms(scores, torch.zeros(3, 1), 1.0)[0], torch.tensor(-2 + sum(means) / 2))


def test_info_nce_is_at_most_the_logarithm_of_the_others():
    """A critic that is sure of all pairs; and a wrong one is finite."""
    scores = 50 * torch.eye(9)
    torch.testing.assert_close(_terms(scores, torch.zeros(9, 1), 1.0), torch.full((9,), -math.log(8)))
    # The share of one sample in a mean of 8 is at most 8, whatever the critic says.
    wrong = _terms(scores.roll(1, 0), torch.zeros(9, 1), 0.5)
    assert (wrong <= 50 + 8 / 0.5).all()


def test_it_bounds_the_mutual_information_from_below():
    """Of two normal variables with the correlation r it is -log(1 - r²) / 2, which the best critic reaches."""
    r, count = 0.8, 2000
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, generator=generator, dtype=torch.float64)
    y = r * x + math.sqrt(1 - r * r) * torch.randn(count, generator=generator, dtype=torch.float64)
    # The logarithm of the density of y given x, by rows of y; the baseline is that of y alone.
    scores = -((y[:, None] - r * x) ** 2) / (2 * (1 - r * r)) - math.log(1 - r * r) / 2
    baseline = (-(y**2) / 2)[:, None]
    truth = -math.log(1 - r * r) / 2
    for alpha in (0.0, 0.5, 1.0):
        assert -_terms(scores, baseline, alpha).mean().item() == pytest.approx(truth, abs=0.05)
    assert -_terms(scores + 0.3, baseline, 0.0).mean().item() < truth - 0.03


def test_sums_without_an_element_do_not_cancel():
    scores = torch.tensor([[1e4, 0.0, -3.0], [5.0, 5.0, 5.0]], requires_grad=True)
    sums = _without_each(scores)
    log2 = math.log(2)
    expected = torch.tensor([[math.log(1 + math.exp(-3)), 1e4, 1e4], [5 + log2, 5 + log2, 5 + log2]])
    torch.testing.assert_close(sums, expected)
    sums.sum().backward()
    # Column k is in the sums of the two other columns, by its share in each.
    torch.testing.assert_close(scores.grad[1], torch.ones(3))
    assert scores.grad.isfinite().all()


def built(alpha=0.5, hidden=(4,), teacher_hidden=(6,)):
    torch.manual_seed(0)
    method = MutualInformationDistillation(alpha=alpha)
    method.build(hidden=hidden, teacher_hidden=teacher_hidden)
    return method


def test_the_teachers_samples_are_the_rows():
    """The terms of the parts' own scores; maps are averaged, and layers add up."""
    method, own, teacher = built(0.3), torch.randn(5, 4), torch.randn(5, 6)
    scores = method.teachers[0](teacher) @ method.students[0](own).T
    expected = _terms(scores, method.baselines[0](teacher), 0.3)
    torch.testing.assert_close(method([own], [teacher]), expected)
    maps = own[:, :, None] + torch.tensor([1.0, -1.0])
    torch.testing.assert_close(method([maps], [teacher[:, :, None]]), expected)
    two = built(0.3, (4, 4), (6, 6))
    for parts, kept in zip(two.children(), method.children()):
        if len(list(parts.children())):
            parts[0].load_state_dict(kept[0].state_dict())
            parts[1].load_state_dict(kept[0].state_dict())
    torch.testing.assert_close(two([own, own], [teacher, teacher]), 2 * expected)


def test_a_training_of_the_parts_finds_what_the_layers_share():
    """Independent layers share nothing, and the same layer much."""
    found = {}
    for name in ("independent", "same"):
        method, generator = built(0.9), torch.Generator().manual_seed(1)
        optimizer = torch.optim.Adam(method.parameters(), lr=1e-3)
        for _ in range(150):
            own = torch.randn(32, 4, generator=generator)
            teacher = torch.randn(32, 6, generator=generator)
            teacher = teacher if name == "independent" else own.repeat(1, 2)[:, :6]
            loss = method([own], [teacher]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found[name] = -loss.item()
    assert abs(found["independent"]) < 0.5
    assert found["same"] > 1.5


def test_one_sample_teaches_nothing():
    method, own = built(), torch.randn(1, 4, requires_grad=True)
    term = method([own], [torch.randn(1, 6)])
    term.sum().backward()
    assert term.tolist() == [0.0]
    assert own.grad.abs().max() == 0
    assert all(parameter.grad is not None for parameter in method.parameters())


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_every_part_that_is_used_has_a_finite_gradient(alpha):
    method, teacher = built(alpha), torch.randn(8, 6, requires_grad=True)
    method([torch.randn(8, 4)], [teacher]).sum().backward()
    assert teacher.grad is None
    for name, parameter in method.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
        assert (parameter.grad is not None) or (alpha == 1 and name.startswith("baselines"))


def test_refusals():
    for alpha in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=rf"alpha={alpha} must be in \[0, 1\]"):
            MutualInformationDistillation(alpha=alpha)
    with pytest.raises(ValueError, match="1 layers of the student cannot be compared with 2 of the teacher"):
        built()([torch.ones(2, 4)], [torch.ones(2, 6), torch.ones(2, 6)])
