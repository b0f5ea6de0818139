"""The means of the features of each class against numbers worked by hand and a slow loop."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives import survey_data
from lightning_objectives.surveys import ClassMeans, class_sums


def means_of(features, logits, target):
    survey = ClassMeans()
    return survey.result(survey(features, logits, target), rows=len(features))


def test_by_hand():
    """Class 0: (1 + 3) / 2 and (0 + 4) / 2; class 2: its only row."""
    features = torch.tensor([[1.0, 0.0], [5.0, 7.0], [3.0, 4.0]])
    found = means_of(features, torch.zeros(3, 3), torch.tensor([0, 2, 0]))
    assert found["counts"].tolist() == [2, 0, 1]
    assert found["means"][[0, 2]].tolist() == [[2, 2], [5, 7]]


def test_a_class_without_samples_has_no_mean():
    found = means_of(torch.randn(3, 2), torch.zeros(3, 4), torch.tensor([0, 2, 0]))
    assert found["means"].isnan().all(1).tolist() == [False, True, False, True]


def test_a_slow_loop_gives_the_same_over_two_batches():
    features, logits, target = torch.randn(20, 3), torch.randn(20, 4), torch.randint(4, (20,))
    expected = torch.full((4, 3), torch.nan, dtype=torch.float64)
    for c in range(4):
        rows = [features[n].double() for n in range(20) if target[n] == c]
        if rows:
            expected[c] = sum(rows) / len(rows)
    one, two = class_sums(features[:7], logits[:7], target[:7]), class_sums(features[7:], logits[7:], target[7:])
    found = ClassMeans().result({name: one[name] + two[name] for name in one}, rows=20)
    torch.testing.assert_close(found["means"], expected, equal_nan=True)


def test_probabilities_share_a_row_among_classes():
    """Class 0: (0.25 · 4 + 1 · 8) / 1.25; class 1: 0.75 · 4 / 0.75."""
    found = means_of(torch.tensor([[4.0], [8.0]]), torch.zeros(2, 2), torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    torch.testing.assert_close(found["means"], torch.tensor([[7.2], [4.0]], dtype=torch.float64))
    assert found["counts"].tolist() == [1.25, 0.75]


def test_one_hot_probabilities_are_classes():
    features, target = torch.randn(9, 3), torch.randint(4, (9,))
    hard = class_sums(features, torch.zeros(9, 4), target)
    soft = class_sums(features, torch.zeros(9, 4), nn.functional.one_hot(target, 4).float())
    torch.testing.assert_close(hard, soft)


@pytest.mark.parametrize(
    ("features", "classes", "message"),
    [((4, 2), 1, "class"), ((3, 2), 3, "N = 3, D = 2"), ((4,), 3, r"\(4,\)")],
    ids=["one class", "features of fewer rows", "features without a dimension"],
)
def test_what_does_not_fit_is_refused(features, classes, message):
    with pytest.raises(ValueError, match=message):
        class_sums(torch.ones(features), torch.zeros(4, classes), torch.zeros(4, dtype=torch.long))


def test_over_a_loader():
    network = nn.Sequential(nn.Identity(), nn.Linear(3, 2))
    inputs, target = torch.randn(10, 3), torch.arange(10) % 2
    found = survey_data(ClassMeans(), network, DataLoader(TensorDataset(inputs, target), batch_size=4))
    torch.testing.assert_close(
        found["means"], torch.stack([inputs[::2].double().mean(0), inputs[1::2].double().mean(0)])
    )
    assert found["counts"].tolist() == [5, 5]
