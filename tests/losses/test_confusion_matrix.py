import math

import pytest
import torch
from torchmetrics.functional.classification import (
    binary_accuracy,
    binary_fbeta_score,
    binary_recall,
    binary_specificity,
)

from lightning_objectives.losses import ConfusionMatrixLoss, confusion_matrix_loss


def test_by_hand():
    """p = 0.5 + log(3) / L gives 0.75, and 0.5 - log(3) / L gives 0.25: TP 1, FN 1, FP 0.25, TN 0.75."""
    step = math.log(3) / 10
    p = torch.tensor([[0.5 + step], [0.5 - step], [0.5 - step]])
    y = torch.tensor([[1.0], [1.0], [0.0]])
    expected = {
        "accuracy": 1.75 / 3,
        "f_beta": 2 / (2 + 1 + 0.25),
        "g_mean": (0.5 * 0.75) ** 0.5,
        "balanced_accuracy": 0.625,
    }
    for metric, value in expected.items():
        losses = confusion_matrix_loss(p.logit(), y, metric=metric, slope=10.0)
        torch.testing.assert_close(losses, torch.full((3,), 1 - value))


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_a_steep_slope_gives_the_metric_of_torchmetrics(beta):
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(200, 1, generator=generator, dtype=torch.float64)
    y = (torch.rand(200, 1, generator=generator) < 0.2).double()
    args = p.flatten(), y.flatten().long()
    sides = binary_recall(*args).item(), binary_specificity(*args).item()
    expected = {
        "accuracy": binary_accuracy(*args),
        "f_beta": binary_fbeta_score(*args, beta=beta),
        "g_mean": (sides[0] * sides[1]) ** 0.5,
        "balanced_accuracy": sum(sides) / 2,
    }
    for metric, value in expected.items():
        loss = confusion_matrix_loss(p.logit(), y, metric=metric, beta=beta, slope=1e6)[0]
        assert 1 - loss.item() == pytest.approx(float(value), abs=1e-6)


def test_several_labels_are_the_mean_of_their_columns():
    generator = torch.Generator().manual_seed(0)
    logits, y = torch.randn(9, 3, generator=generator), (torch.rand(9, 3, generator=generator) < 0.5).float()
    columns = [confusion_matrix_loss(logits[:, [k]], y[:, [k]])[0] for k in range(3)]
    torch.testing.assert_close(confusion_matrix_loss(logits, y)[0], torch.stack(columns).mean())


@pytest.mark.parametrize("metric", ["accuracy", "f_beta", "g_mean", "balanced_accuracy"])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_batch_of_one_class_is_finite(metric, label):
    logits = torch.tensor([[-50.0], [50.0]], requires_grad=True)
    losses = confusion_matrix_loss(logits, torch.full((2, 1), label), metric=metric)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert logits.grad.isfinite().all()


def test_a_better_prediction_costs_less():
    y = torch.tensor([[1.0], [0.0], [0.0]])
    for metric in ("accuracy", "f_beta", "g_mean", "balanced_accuracy"):
        worse = confusion_matrix_loss(torch.tensor([[0.0], [0.0], [0.0]]), y, metric=metric)[0]
        better = confusion_matrix_loss(torch.tensor([[0.1], [-0.1], [0.0]]), y, metric=metric)[0]
        assert better < worse


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "auc"}, "metric='auc' must be one of"),
        ({"beta": 0.0}, r"beta=0\.0 must be > 0"),
        ({"slope": -1.0}, r"slope=-1\.0 must be > 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrixLoss(**settings)


def test_classes_are_labels_of_one_class():
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    hot = torch.nn.functional.one_hot(target, 3).float()
    assert torch.equal(confusion_matrix_loss(logits, target), confusion_matrix_loss(logits, hot))


def test_labels_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"target of the shape \(3, 2\)"):
        confusion_matrix_loss(torch.zeros(3, 1), torch.zeros(3, 2))
