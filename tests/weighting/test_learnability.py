import pytest
import torch

from lightning_objectives.weighting import LearnabilitySelection


def test_by_hand():
    """Reductions of 1/2, 1/10, 3/4, 0, -1 of five samples; two of five are kept, with the weight 5 / 2."""
    method = LearnabilitySelection(
        losses_before=[2.0, 1.0, 4.0, 0.5, 1.0], losses_after=[1.0, 0.9, 1.0, 0.5, 2.0], keep=0.4
    )
    assert method.kept == (0, 2)
    assert method(torch.tensor([4, 2, 1, 0])).tolist() == [0.0, 2.5, 0.0, 2.5]


def test_it_is_the_relative_and_not_the_absolute_reduction():
    """0.9 of 1 is more than 2 of 10."""
    method = LearnabilitySelection(losses_before=[10.0, 1.0], losses_after=[8.0, 0.1], keep=0.5)
    assert method.kept == (1,)


def test_a_slow_sort_and_the_mean_over_the_training_set():
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.rand(100, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2))
    method = LearnabilitySelection(losses_before=before, losses_after=after, keep=0.29)
    order = sorted(range(100), key=lambda i: float((before[i] - after[i]) / before[i]), reverse=True)
    assert method.kept == tuple(sorted(order[:29]))  # 0.29 · 100 is 28.999999999999996
    assert method(torch.arange(100)).mean() == pytest.approx(1)


def test_all_samples_are_the_plain_training():
    method = LearnabilitySelection(losses_before=[1.0, 2.0, 0.0], losses_after=[3.0, 1.0, 0.0], keep=1.0)
    assert method(torch.tensor([2, 0, 1])).tolist() == [1.0, 1.0, 1.0]


def test_one_sample_is_kept_at_least_and_the_first_of_equal_ones():
    method = LearnabilitySelection(losses_before=[1.0] * 5, losses_after=[0.5] * 5, keep=0.01)
    assert method.kept == (0,)
    assert method(torch.arange(5)).tolist() == [5.0, 0.0, 0.0, 0.0, 0.0]


def test_a_sample_that_was_known_has_nothing_to_learn():
    """0 before: a score of 0, below a sample that was learned, above one that was unlearned."""
    losses = {"losses_before": [0.0, 1.0, 0.0], "losses_after": [0.0, 0.9, 0.3]}
    assert LearnabilitySelection(**losses, keep=0.34).kept == (1,)
    assert LearnabilitySelection(**losses, keep=0.67).kept == (0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"losses_before": [], "losses_after": []}, "losses_before has 0 numbers, and losses_after 0"),
        ({"losses_before": [1.0], "losses_after": [1.0, 2.0]}, "losses_before has 1 numbers, and losses_after 2"),
        ({"losses_before": [1.0, -0.5], "losses_after": [1.0, 2.0]}, r"losses_before\[1\]=-0\.5 must be >= 0"),
        ({"losses_before": [1.0], "losses_after": [float("nan")]}, r"losses_after\[0\]=nan must be >= 0 and finite"),
        ({"losses_before": [1.0], "losses_after": [1.0], "keep": 0.0}, r"keep=0\.0 must be in \(0, 1\]"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LearnabilitySelection(**settings)


def test_a_position_beyond_the_lists_is_an_error():
    method = LearnabilitySelection(losses_before=[1.0], losses_after=[0.5], keep=1.0)
    with pytest.raises(ValueError, match="index holds the position 3, but losses_before has 1 numbers"):
        method(torch.tensor([0, 3]))
