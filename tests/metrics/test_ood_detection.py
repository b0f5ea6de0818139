import math

import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torchmetrics import MetricCollection

from lightning_objectives.metrics import OODDetection, fpr_at_95_tpr, ood_scores

OUT = torch.tensor([0.9, 0.7, 0.7, 0.5, 0.8, 0.35])
IN = torch.tensor([0.1, 0.2, 0.5, 0.7, 0.3, 0.4, 0.6, 0.05])


def measured(inside, outside, **settings):
    metric = OODDetection(**settings)
    for number, logits in enumerate((inside, outside)):
        metric.update(logits, torch.full((len(logits),), number))
    return {name: value.item() for name, value in metric.compute().items()}


def with_scores(scores):
    """Logits of two classes whose `max_logit` score is as given."""
    return torch.stack([-scores, torch.full_like(scores, -100.0)], 1)


def test_by_hand():
    """Of the 48 pairs 39 are in order and 3 are ties; all 8 usual samples lie at 0.7 and below, as 4 of 6 others do."""
    pairs = [(out > usual) + 0.5 * (out == usual) for out in OUT for usual in IN]
    assert float(sum(pairs)) / 48 == 0.84375
    found = measured(with_scores(IN), with_scores(OUT), score="max_logit")
    assert found == {"ood_auroc": 0.84375, "ood_fpr95": pytest.approx(4 / 6)}
    turned = measured(with_scores(IN), with_scores(OUT), score="max_logit", positive="out")
    assert turned == {"ood_auroc": 0.84375, "ood_fpr95": 0.5}


def test_the_scores():
    z = torch.tensor([[2.0, 1.0, -1.0], [60.0, 0.0, 0.0]])
    assert -ood_scores(z)[0].expm1().item() == pytest.approx(0.705385, abs=1e-6)
    assert ood_scores(z)[1].item() == pytest.approx(math.log(2) - 60)  # float32's 1 - p is 0
    assert ood_scores(z, score="energy")[0].item() == pytest.approx(-2.349012, abs=1e-6)
    assert ood_scores(z, score="max_logit").tolist() == [-2.0, -60.0]


@pytest.mark.parametrize("score", ["energy", "max_logit", "max_probability"])
@pytest.mark.parametrize("positive", ["in", "out"])
def test_equals_scikit_learn(score, positive):
    """With ties, and with scores that a sigmoid in float32 would make equal."""
    inside, outside = ((torch.randn(n, 3).round(decimals=1) * scale - 60) for n, scale in ((70, 8), (45, 4)))
    found = measured(inside, outside, score=score, positive=positive)
    scores = ood_scores(torch.cat([inside, outside]), score=score).double()
    label = torch.arange(115) >= 70
    assert found["ood_auroc"] == pytest.approx(roc_auc_score(label, scores), abs=1e-6)
    sign = 1 if positive == "out" else -1
    fpr, tpr, _ = roc_curve(label if positive == "out" else ~label, sign * scores, drop_intermediate=False)
    assert found["ood_fpr95"] == pytest.approx(fpr[tpr >= 0.95 - 1e-12].min(), abs=1e-6)


@pytest.mark.parametrize(("count", "rejected"), [(1, 0), (19, 0), (20, 1), (39, 1), (40, 2), (100, 5)])
def test_at_least_95_percent_are_accepted(count, rejected):
    positive = torch.arange(count).float()
    negative = torch.tensor([rejected - 0.5, rejected, rejected + 0.5])
    assert fpr_at_95_tpr(positive, negative).item() == pytest.approx(2 / 3)


def test_rows_of_other_loaders_do_not_count_and_two_metrics_stay_apart():
    near, far = {"id_loader": 1, "ood_loader": 0}, {"id_loader": 1, "ood_loader": 2}
    metrics = MetricCollection({"near": OODDetection(**near), "far": OODDetection(**far)})
    logits = {1: torch.tensor([[4.0, 0.0]]), 0: torch.tensor([[9.0, 0.0]]), 2: torch.tensor([[1.0, 0.0]])}
    for number, rows in logits.items():
        metrics.update(logits=rows, loader=torch.tensor([number]))
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values["near_ood_auroc"] == 0
    assert values["far_ood_auroc"] == 1


def test_two_scores_that_are_equal_in_the_first_batch_stay_apart():
    """A collection takes metrics for one that have equal states after a batch."""
    metrics = MetricCollection({name: OODDetection(score=name) for name in ("max_logit", "energy")})
    for number, logits in ((0, [[0.0, -200.0]]), (0, [[5.0, 5.0]]), (1, [[5.2, -200.0]])):
        metrics.update(logits=torch.tensor(logits), loader=torch.tensor([number]))
    values = metrics.compute()
    assert values["max_logit_ood_auroc"] == 0
    assert values["energy_ood_auroc"] == 0.5


def test_scores_that_are_all_equal_tell_nothing():
    assert measured(torch.zeros(3, 2), torch.zeros(2, 2)) == {"ood_auroc": 0.5, "ood_fpr95": 1.0}


@pytest.mark.parametrize(
    ("inside", "outside", "settings", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(0, 2), {}, "3 rows of loader 0 and 0 of loader 1"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"ood_loader": 4}, "3 rows of loader 0 and 0 of loader 4"),
        (torch.zeros(1, 2), torch.full((1, 2), math.nan), {}, "1 of 2 rows have logits that are NaN"),
        (torch.randn(3, 4).log_softmax(1), torch.randn(2, 4).log_softmax(1), {"score": "energy"}, "log-probabilities"),
        (torch.zeros(3, 1), torch.zeros(3, 1), {}, "two or more"),
        (torch.zeros(3, 2, 4), torch.zeros(3, 2, 4), {}, r"logits of the shape \(3, 2, 4\)"),
    ],
)
def test_what_cannot_be_measured_is_refused(inside, outside, settings, message):
    with pytest.raises(ValueError, match=message):
        measured(inside, outside, **settings)


def test_without_an_update_it_is_refused():
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(ValueError, match="0 rows of loader 0"),
    ):
        OODDetection().compute()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "entropy"}, "score='entropy' must be"),
        ({"positive": "ood"}, "positive='ood' must be"),
        ({"id_loader": 1}, "both 1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        OODDetection(**settings)


def test_a_loader_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"loader of the shape \(2,\)"):
        OODDetection().update(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match="1 positive and 0 negative"):
        fpr_at_95_tpr(torch.zeros(1), torch.zeros(0))
