import pytest
import torch

from lightning_objectives.regularizers import distance_covariance


def by_loops(points, others):
    """The definition, in plain numbers, of two lists of points."""
    n, result = len(points), 0.0
    tables = []
    for values in (points, others):
        d = [[sum((a - b) ** 2 for a, b in zip(x, y)) ** 0.5 for y in values] for x in values]
        rows, total = [sum(row) / n for row in d], sum(map(sum, d)) / n**2
        tables.append([[d[i][j] - rows[i] - rows[j] + total for j in range(n)] for i in range(n)])
    for i in range(n):
        for j in range(n):
            result += tables[0][i][j] * tables[1][i][j]
    return result / n**2


def test_by_hand():
    """p = (1/2, 1/2) and (0.9, 0.1): a distance of 0.4 √2; A = 0.2 √2 · [[-1, 1], [1, -1]], B the same with 1/2."""
    logits = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    torch.testing.assert_close(distance_covariance(logits, torch.tensor([0, 1])), torch.tensor(0.2 * 0.5 * 2))


@pytest.mark.parametrize("groups", [2, 3])
def test_equals_the_loops(groups):
    logits, group = 2 * torch.randn(9, 4, dtype=torch.float64), torch.arange(9) % groups
    expected = by_loops(logits.softmax(1).tolist(), torch.eye(groups)[group].tolist())
    assert distance_covariance(logits, group).item() == pytest.approx(expected)


def test_a_dependence_on_two_attributes_together_is_seen_by_their_combination_alone():
    """XOR of two coins: each of the four combinations once."""
    first, second = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    logits = 20 * torch.eye(2)[first ^ second]
    for alone in (first, second):
        assert distance_covariance(logits, alone).abs() < 1e-6
    assert distance_covariance(logits, 2 * first + second) > 0.1


def test_equal_predictions_and_one_group_give_zero_with_finite_gradients():
    logits = torch.zeros(6, 3, requires_grad=True)
    for group in (torch.arange(6) % 2, torch.zeros(6).long()):
        value = distance_covariance(logits, group)
        assert value.abs() < 1e-7
        assert torch.autograd.grad(value, logits)[0].isfinite().all()


def test_predictions_that_are_nearly_equal_keep_their_distances():
    """By products of rows, float32 would lose distances of 1e-4 in the rounding."""
    rows, group = 1e-4 * torch.randn(80, 3), torch.arange(80) % 2
    wide = distance_covariance(rows.double(), group)
    torch.testing.assert_close(distance_covariance(rows, group).double(), wide, rtol=1e-2, atol=0)


def test_its_descent_makes_the_predictions_of_the_groups_alike():
    torch.manual_seed(0)
    group = torch.arange(40) % 2
    logits = (torch.randn(40, 2) + 2 * group[:, None] * torch.tensor([1.0, -1.0])).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.05)

    def gap():
        p = logits.detach().softmax(1)[:, 0]
        return (p[group == 0].mean() - p[group == 1].mean()).abs()

    before = gap()
    for _ in range(200):
        optimizer.zero_grad()
        distance_covariance(logits, group).backward()
        optimizer.step()
    assert gap() < 0.1 * before
