import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from lightning_objectives.metrics import TopKAccuracy, top_k_accuracy


def slow(scores, q, k):
    """The mass of q on the k best classes, one by one; the first of equal ones first."""
    scores, mass = list(scores), 0.0
    for _ in range(k):
        best = scores.index(max(scores))
        scores[best] = -float("inf")
        mass += q[best]
    return mass


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_against_a_loop_with_ties(k):
    generator = torch.Generator().manual_seed(k)
    scores = torch.randint(3, (50, 5), generator=generator).float()  # many ties
    target = torch.randint(5, (50,), generator=generator)
    soft = torch.rand(50, 5, generator=generator).softmax(1)
    one_hot = torch.nn.functional.one_hot(target, 5).tolist()
    for row in range(50):
        assert top_k_accuracy(scores, target, k=k)[row] == slow(scores[row].tolist(), one_hot[row], k)
        expected = slow(scores[row].tolist(), soft[row].tolist(), k)
        assert float(top_k_accuracy(scores, soft, k=k)[row]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_against_torchmetrics(k):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 10, generator=generator)
    target = torch.randint(10, (200,), generator=generator)
    ours, theirs = TopKAccuracy(k=k), MulticlassAccuracy(10, top_k=k, average="micro")
    for batch in zip(logits.split(64), target.split(64)):
        ours.update(*batch)
        theirs.update(*batch)
    torch.testing.assert_close(ours.compute(), theirs.compute())


def test_a_constant_network_is_only_right_on_class_zero():
    target = torch.arange(4)
    assert top_k_accuracy(torch.zeros(4, 4), target).tolist() == [1, 0, 0, 0]
    assert top_k_accuracy(torch.zeros(4, 4), target, k=3).tolist() == [1, 1, 1, 0]
    assert top_k_accuracy(torch.zeros(4, 4), target, k=4).tolist() == [1, 1, 1, 1]


def test_a_nan_is_never_right():
    scores = torch.tensor([[torch.nan, 1.0], [0.0, 1.0]])
    assert top_k_accuracy(scores, torch.tensor([0, 1])).isnan().tolist() == [True, False]


def test_a_k_that_cannot_be():
    with pytest.raises(ValueError, match="k=0"):
        TopKAccuracy(k=0)
    metric = TopKAccuracy(k=4)
    with pytest.raises(ValueError, match=r"k=4 must be in \[1, 3\]"):
        metric.update(torch.zeros(2, 3), torch.tensor([0, 1]))
    metric.update(torch.eye(4), torch.tensor([0, 1, 2, 3]))
    assert metric.compute() == 1, "the batch that was refused does not count"
