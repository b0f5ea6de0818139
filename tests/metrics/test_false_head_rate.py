import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.metrics import FalseHeadRate, false_head_rate


def authors(preds, target, classes, rate):
    """As in the authors' code, for classes that are sorted, the most frequent one first."""
    border = int(classes * rate + 0.5)
    tail = [(p, t) for p, t in zip(preds.argmax(1).tolist(), target.tolist()) if t >= border]
    return sum(p < border for p, _ in tail) / len(tail)


def draw(rows=300, classes=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator), torch.randint(classes, (rows,), generator=generator)


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
def test_against_the_authors_code(rate):
    preds, target = draw()
    counts = range(10, 0, -1)
    expected = authors(preds, target, 10, rate)
    assert false_head_rate(preds, target, counts=counts, head_share=rate).item() == pytest.approx(expected)
    metric = FalseHeadRate(counts=counts, head_share=rate)
    for batch in zip(preds.split(64), target.split(64)):
        metric.update(*batch)
    assert metric.compute().item() == pytest.approx(expected)


def test_by_hand():
    """Classes 2 and 0 are the head: of four tail samples one is taken for class 2, and one for class 0."""
    preds = F.one_hot(torch.tensor([2, 0, 1, 3, 2]), 4).float()
    rate = false_head_rate(preds, torch.tensor([1, 3, 1, 3, 0]), counts=(50, 2, 90, 1))
    assert rate.item() == 0.5


def test_equal_counts_are_taken_in_their_order():
    preds = F.one_hot(torch.tensor([0, 1]), 2).float()
    assert false_head_rate(preds, torch.tensor([1, 1]), counts=(5, 5)).item() == 0.5
    assert false_head_rate(preds, torch.tensor([0, 0]), counts=(5, 5)).isnan()


def test_soft_targets_count_by_their_mass_on_the_tail():
    preds = torch.tensor([[3.0, 1.0, 1.0], [1.0, 3.0, 1.0]])
    target = torch.tensor([[0.5, 0.25, 0.25], [0.0, 0.75, 0.25]])
    rate = false_head_rate(preds, target, counts=(9, 3, 1), head_share=0.3)
    assert rate.item() == pytest.approx(0.5 / 1.5)
    hard, classes = draw(classes=3)
    one_hot = F.one_hot(classes, 3).float()
    settings = {"counts": (9, 3, 1), "head_share": 0.3}
    assert false_head_rate(hard, one_hot, **settings) == false_head_rate(hard, classes, **settings)


def test_ignored_rows_and_head_samples_do_not_count():
    preds, target = draw(classes=4)
    for counts in ((9, 5, 3, 1), (1, 3, 5, 9)):
        metric = FalseHeadRate(counts=counts)
        metric.update(preds, torch.where(torch.arange(300) < 100, -100, target))
        torch.testing.assert_close(metric.compute(), false_head_rate(preds[100:], target[100:], counts=counts))
    bad = preds.masked_fill((target < 2)[:, None], torch.nan)
    assert false_head_rate(bad, target, counts=(9, 5, 3, 1)).isfinite()
    assert false_head_rate(preds * math.nan, target, counts=(9, 5, 3, 1)).isnan()


def test_refusals():
    for share in (0.0, 0.1, 0.9, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"head_share=.* of 3 classes must leave one class or more in the head"):
            FalseHeadRate(counts=(9, 3, 1), head_share=share)
    for counts in ((9, -1), (9, math.nan)):
        with pytest.raises(ValueError, match="must be >= 0: count the training samples"):
            FalseHeadRate(counts=counts)
    with pytest.raises(ValueError, match="counts of 2 classes do not fit preds"):
        FalseHeadRate(counts=(9, 1)).update(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"target of the shape \(3,\)"):
        false_head_rate(torch.zeros(2, 3), torch.tensor([0, 1, 2]), counts=(9, 3, 1))
