import math

import pytest
import torch

from lightning_objectives.prediction_sets import APS, LAC, lac_scores
from lightning_objectives.testing import assert_laws

P = torch.tensor(
    [[.7, .2, .1], [.5, .3, .2], [.6, .3, .1], [.4, .35, .25], [.8, .15, .05], [.3, .45, .25], [.2, .2, .6],
     [.1, .8, .1], [.55, .25, .2]], dtype=torch.float64
)  # fmt: skip
Y = torch.tensor([0, 1, 0, 2, 0, 1, 2, 1, 2])


def drawn(rows, generator, classes=4):
    """Logits, and targets drawn from their probabilities."""
    logits = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits, torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)


def test_by_hand():
    """The targets have .7 .3 .6 .25 .8 .45 .6 .8 .2, so in order of scores .2 .2 .3 .4 .4 .55 .7 .75 .8."""
    method = LAC(alpha=0.3)
    method.fit(P.log(), Y)
    assert method.threshold.item() == pytest.approx(0.7)  # the 7th of 9, as 10 * 0.7 = 7
    sets = method((torch.tensor([[0.31, 0.4, 0.29], [0.29, 0.29, 0.42], [0.32, 0.33, 0.35]])).log())
    assert sets.tolist() == [[True, True, False], [False, False, True], [True, True, True]]


def test_as_a_slow_loop():
    draw = torch.Generator().manual_seed(0)
    logits, target = drawn(50, draw)
    new, _ = drawn(30, draw)
    method = LAC(alpha=0.2)
    method.fit(logits, target)

    def p(row, c):
        return math.exp(row[c]) / sum(math.exp(z) for z in row)

    scores = sorted(1 - p(row, y) for row, y in zip(logits.tolist(), target.tolist(), strict=True))
    threshold = scores[math.ceil(51 * 0.8) - 1]
    # The logits are continuous: no new score is within the rounding of the threshold.
    assert method(new).tolist() == [[1 - p(row, c) <= threshold for c in range(4)] for row in new.tolist()]


def test_the_class_at_the_threshold_is_in_the_set():
    """Scores that are exact in binary: the one fitted row decides, and its target's score is the threshold."""
    method = LAC(alpha=0.5)
    method.fit(torch.zeros(1, 2), torch.tensor([1]))
    assert method.threshold.item() == 0.5
    assert method(torch.zeros(1, 2)).tolist() == [[True, True]]


def test_coverage_over_splits_is_binomial():
    """With 19 rows and alpha = 0.1 a new target is in its set with a probability of 18/20, exactly.

    One new row a split, so that the 2000 rows are independent: four standard deviations are 0.027, and the next order
    statistics would give 0.85 and 0.95.
    """
    draw = torch.Generator().manual_seed(0)
    method, splits, inside = LAC(alpha=0.1), 2000, 0
    logits, target = drawn(20 * splits, draw)
    for rows, classes in zip(logits.split(20), target.split(20), strict=True):
        method.fit(rows[:19], classes[:19])
        inside += int(method(rows[19:])[0, classes[19]])
    assert abs(inside / splits - 0.9) < 4 * math.sqrt(0.9 * 0.1 / splits)


def test_with_true_probabilities_its_sets_are_the_smallest():
    draw = torch.Generator().manual_seed(0)
    logits, target = drawn(4000, draw)
    sizes = []
    for method in (LAC(alpha=0.1), APS(alpha=0.1)):
        method.fit(logits[:2000], target[:2000], draw)
        sizes.append(method(logits[2000:], draw).sum(1).double().mean())
    assert sizes[0] < sizes[1] - 0.1


def test_without_empty_sets_only_top_classes_are_added():
    logits = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    method = LAC(alpha=0.5)
    method.fit(logits, logits.argmax(1))
    fewer = method(logits)
    method.allow_empty = False
    sets = method(logits)
    assert (fewer.sum(1) == 0).any()
    assert torch.equal(sets, fewer | (logits == logits.amax(1, keepdim=True)))


def test_no_set_is_empty_from_a_threshold_of_one_less_a_share():
    method = LAC()
    method.threshold.fill_(0.75)
    assert method(torch.zeros(1, 4)).all()
    method.threshold.fill_(0.7499)
    assert not method(torch.zeros(1, 4)).any()


@pytest.mark.parametrize("rows", [0, 8])
def test_too_few_rows_give_all_classes(rows):
    method = LAC(alpha=0.1)
    method.fit(P[:rows].log(), Y[:rows])
    assert method.threshold.item() == math.inf
    assert method(P.log()).all()


def test_logits_that_are_not_finite():
    method = LAC(alpha=0.2)
    method.fit(P.log(), Y)
    sets = method(torch.tensor([[math.nan, 0.0, 0.0], [math.inf, 0.0, 0.0], [-math.inf, 0.0, 0.0]]))
    assert sets.tolist() == [[True] * 3, [True] * 3, [False, True, True]]


def test_scores_keep_their_type():
    assert lac_scores(torch.tensor([[0.25, 0.75]], dtype=torch.float16)).dtype == torch.float16


def test_laws_without_empty_sets():
    assert_laws(LAC(allow_empty=False))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_an_alpha_that_is_no_share_is_refused(alpha):
    with pytest.raises(ValueError, match=r"alpha=.* must be in \(0, 1\)"):
        LAC(alpha=alpha)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(2, 3), torch.full((2, 3), 1 / 3), "holds probabilities"),
        (torch.tensor([[math.inf, 0.0]]), torch.tensor([0]), "1 of 1 samples have logits that are not finite"),
        (torch.zeros(2, 1), torch.tensor([0, 0]), "shape"),
        (torch.zeros(2, 3), torch.tensor([0]), "shape"),
    ],
)
def test_what_a_fit_refuses(logits, target, message):
    with pytest.raises(ValueError, match=message):
        LAC().fit(logits, target)
