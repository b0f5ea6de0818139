"""Predictions and targets as rows, by hand."""

import pytest
import torch

from lightning_objectives.metrics import classification_rows


def test_positions_are_rows_in_their_order():
    """Two images of two positions and three classes; position (1, 0) is ignored."""
    preds = torch.arange(12.0).reshape(2, 3, 2)
    rows = classification_rows(preds, torch.tensor([[0, 1], [-100, 2]]))
    assert rows.preds.tolist() == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]
    assert rows.target[rows.kept].tolist() == [0, 1, 2]
    assert rows.kept.tolist() == [True, True, False, True]
    assert rows.invalid == 0


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_one_column_is_two_classes(shape):
    column = torch.tensor([0.25, 0.5], dtype=torch.half).reshape(shape)
    logits = classification_rows(column, torch.tensor([1, 0]))
    assert logits.preds.tolist() == [[0, 0.25], [0, 0.5]]
    assert logits.preds.dtype == torch.float32
    soft = classification_rows(column, torch.tensor([0.75, 0.0]), from_logits=False)
    assert soft.preds.tolist() == [[0.75, 0.25], [0.5, 0.5]]
    assert soft.target.tolist() == [[0.25, 0.75], [1, 0]]


def test_rows_that_break_a_rule_are_counted_where_they_count():
    preds = torch.tensor([[0.5, 0.5], [0.5, 0.6], [0.5, 0.6], [1.0, 0.0]])
    rows = classification_rows(preds, torch.tensor([0, 0, 7, 2]), from_logits=False, ignore_index=7)
    assert rows.invalid == 2  # the sum of the second, the class of the fourth
