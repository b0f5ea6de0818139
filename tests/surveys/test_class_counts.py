import pytest
import torch

from lightning_objectives.losses import BalancedSoftmaxLoss
from lightning_objectives.surveys import ClassCounts, class_counts


def counted(target, classes=3):
    return class_counts(torch.zeros(len(target), classes), target)["counts"].tolist()


def test_by_hand():
    assert counted(torch.tensor([2, 0, 2, 2])) == [1, 0, 3]
    assert counted(torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]], dtype=torch.float64)) == [0.75, 0.5, 0.75]


def test_an_empty_batch_has_no_class():
    assert counted(torch.zeros(0, dtype=torch.long)) == [0, 0, 0]


def test_a_class_beyond_the_logits_is_an_error():
    with pytest.raises(IndexError):
        counted(torch.tensor([3]))


def test_the_least_count_is_for_classes_without_samples():
    survey = ClassCounts(min_count=0.5)
    result = survey.result({"counts": torch.tensor([3.0, 0.0])}, 3)
    assert BalancedSoftmaxLoss(counts=result["counts"]).counts == (3.0, 0.5)


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_a_least_count_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match=r"min_count=.* must be finite and >= 0"):
        ClassCounts(min_count=value)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="one class"):
        class_counts(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))
