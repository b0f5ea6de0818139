import math

import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from lightning_objectives.metrics import MarginError, margin_error


def slow(scores, target, margin):
    """Whether the target's score is at most the margin above the best of the others."""
    others = [score for c, score in enumerate(scores) if c != target]
    return float(scores[target] <= margin + max(others))


@pytest.mark.parametrize("margin", [0.0, 1.0, 2.0])
def test_against_a_loop_with_ties(margin):
    """Whole numbers: many leads are equal to the margin, and all sums are exact."""
    generator = torch.Generator().manual_seed(int(margin))
    scores = torch.randint(5, (200, 4), generator=generator).float()
    target = torch.randint(4, (200,), generator=generator)
    soft = torch.rand(200, 4, generator=generator).softmax(1)
    hard_values, soft_values = margin_error(scores, target, margin=margin), margin_error(scores, soft, margin=margin)
    for row in range(200):
        each = [slow(scores[row].tolist(), c, margin) for c in range(4)]
        assert hard_values[row] == each[target[row]]
        expected = sum(q * e for q, e in zip(soft[row].tolist(), each, strict=True))
        assert float(soft_values[row]) == pytest.approx(expected, rel=1e-5)


def test_by_hand():
    """Leads of 2, 0.5, 0, -1 and, with the target in the last place, -3."""
    logits = torch.tensor([[3.0, 1.0, 0.0], [3.0, 2.5, 0.0], [1.0, 1.0, 0.0], [1.0, 2.0, 0.0], [3.0, 1.0, 0.0]])
    target = torch.tensor([0, 0, 0, 0, 2])
    for margin, share in [(0.0, 0.6), (0.25, 0.6), (0.5, 0.8), (1.75, 0.8), (2.0, 1.0)]:
        metric = MarginError(margin=margin)
        metric.update(logits, target)
        assert metric.compute().item() == pytest.approx(share)


def test_without_a_margin_it_is_the_error_rate():
    """Also over batches of unequal sizes; continuous logits have no ties."""
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(200, 10, generator=generator), torch.randint(10, (200,), generator=generator)
    ours, theirs = MarginError(), MulticlassAccuracy(10, average="micro")
    for batch in zip(logits.split(64), target.split(64), strict=True):
        ours.update(*batch)
        theirs.update(*batch)
    torch.testing.assert_close(ours.compute(), 1 - theirs.compute())


def test_two_margins_in_one_collection():
    """The first batch gives both the same sums; torchmetrics must not take them for one metric because of it."""
    both = MetricCollection({"none": MarginError(), "one": MarginError(margin=1.0)})
    both.update(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))
    both.update(torch.tensor([[1.5, 1.0]]), torch.tensor([0]))
    assert {name: float(value) for name, value in both.compute().items()} == {"none": 0.0, "one": 0.5}


def test_ranks_are_added():
    """Two ranks of unequal rows, as torchmetrics merges them: 3 of 4 rows, not the mean of 1/1 and 2/3."""
    first, second = MarginError(), MarginError()
    first.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    second.update(torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0, 0]))
    first.merge_state(second)
    assert first.compute() == 0.75


def test_a_constant_network_makes_only_errors():
    assert margin_error(torch.zeros(4, 4), torch.arange(4)).tolist() == [1, 1, 1, 1]


def test_one_column_is_the_lead_of_the_second_class():
    metric = MarginError(margin=1.0)
    metric.update(torch.tensor([0.5, 1.5, -1.5, -0.5]), torch.tensor([1, 1, 0, 0]))
    assert metric.compute() == 0.5
    metric = MarginError(margin=0.5, from_logits=False)
    metric.update(torch.tensor([0.7, 0.8]), torch.tensor([1, 1]))  # leads of 0.4 and 0.6
    assert metric.compute() == 0.5


def test_ignored_rows_do_not_count():
    metric = MarginError()
    metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0, -100]))
    assert metric.compute() == 0.5


def test_infinite_scores():
    """inf leads by inf; two of them tie; -inf beside a finite score is an ordinary class."""
    inf = math.inf
    logits = torch.tensor([[inf, 0.0], [0.0, inf], [inf, inf], [-inf, -inf], [0.0, -inf]])
    assert margin_error(logits, torch.zeros(5, dtype=torch.long), margin=3.0).tolist() == [0, 1, 1, 1, 0]


def test_a_nan_is_neither_right_nor_wrong():
    logits = torch.tensor([[math.nan, 1.0], [5.0, 1.0]])
    assert margin_error(logits, torch.tensor([0, 0])).isnan().tolist() == [True, False]
    assert margin_error(logits, torch.tensor([1, 1])).isnan().tolist() == [True, False]


def test_half_precision_is_compared_in_float32():
    """The lead is 2048 - 0.75, which float16 rounds to 2047."""
    logits = torch.tensor([[2048.0, 0.75]], dtype=torch.float16)
    assert margin_error(logits, torch.tensor([0]), margin=2047.1).tolist() == [0]


def test_more_rows_than_float16_counts():
    metric = MarginError().half()
    for _ in range(3):
        metric.update(torch.tensor([[1.0, 0.0]] * 1000 + [[0.0, 1.0]] * 1000), torch.zeros(2000, dtype=torch.long))
    assert metric.compute() == 0.5


@pytest.mark.parametrize("margin", [-0.1, math.nan, math.inf])
def test_a_margin_that_cannot_be(margin):
    with pytest.raises(ValueError, match=r"margin=.* must be >= 0 and finite"):
        MarginError(margin=margin)
    with pytest.raises(ValueError, match=r"margin=.* must be >= 0 and finite"):
        margin_error(torch.zeros(2, 3), torch.tensor([0, 1]), margin=margin)


def test_a_class_that_does_not_exist_is_refused():
    metric = MarginError()
    metric.update(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="MarginError: 1 of 2 rows break a rule"):
        metric.compute()
