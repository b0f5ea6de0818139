import math

import pytest
import torch

from lightning_objectives.gradients import AdaptiveSpikeClip, GradNormStabilizer


def norms_by_loop(norms, decay, square_decay):
    """The authors' loop: the new norm of each step, in plain numbers."""
    mean, square, new = 0.0, 0.0, []
    for step, norm in enumerate(norms, 1):
        mean = decay * mean + (1 - decay) * norm
        square = square_decay * square + (1 - square_decay) * norm**2
        new.append(mean / (1 - decay**step) / (math.sqrt(square / (1 - square_decay**step)) + 1e-8))
    return new


def test_by_hand():
    """Norms 5 and 10, decays 0.5: (0.25 · 5 + 0.5 · 10) / 0.75 = 25/3 and (6.25 + 50) / 0.75 = 75, so 0.9622504."""
    method, weights = GradNormStabilizer(decay=0.5, square_decay=0.5), [torch.zeros(2)]
    state = method.init(weights)
    method.update([torch.tensor([3.0, 4.0])], weights, state)
    (new,) = method.update([torch.tensor([6.0, -8.0])], weights, state)
    torch.testing.assert_close(new, 0.9622504 * torch.tensor([0.6, -0.8]))


@pytest.mark.parametrize("settings", [{}, {"decay": 0.0, "square_decay": 0.999}, {"decay": 0.95, "square_decay": 0.5}])
def test_equals_the_loop(settings):
    gradients = torch.randn(30, 7, dtype=torch.float64) * torch.rand(30, 1, dtype=torch.float64) * 10
    method, weights = GradNormStabilizer(**settings), [torch.zeros(7)]
    state = method.init(weights)
    ours = torch.stack([method.update([g], weights, state)[0] for g in gradients])
    norms = norms_by_loop(gradients.norm(dim=1).tolist(), method.decay, method.square_decay)
    torch.testing.assert_close(ours.norm(dim=1), torch.tensor(norms, dtype=torch.float64), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.cosine_similarity(ours, gradients), torch.ones(30, dtype=torch.float64))


def test_the_scale_of_the_gradients_means_nothing():
    new = []
    for scale in (1.0, 1e6):
        method, weights = GradNormStabilizer(), [torch.zeros(3)]
        state = method.init(weights)
        torch.manual_seed(0)
        new.append(torch.stack([method.update([scale * torch.randn(3)], weights, state)[0] for _ in range(5)]))
    torch.testing.assert_close(new[0], new[1])


def test_zero_stays_zero_and_enters_the_mean():
    method, weights = GradNormStabilizer(), [torch.zeros(2), torch.zeros(0)]
    state = method.init(weights)
    steps = [torch.zeros(2), torch.tensor([3.0, 4.0])]
    new = [method.update([g, torch.zeros(0)], weights, state)[0] for g in steps]
    assert new[0].tolist() == [0, 0]
    assert new[1].norm().item() == pytest.approx(norms_by_loop([0, 5], 0.7, 0.9)[-1], rel=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, None])
def test_a_bad_or_missing_gradient_spoils_no_later_step(bad):
    method, weights = GradNormStabilizer(), [torch.zeros(2)]
    state = method.init(weights)
    bad = None if bad is None else torch.tensor([bad, 0.5])
    new = [method.update([g], weights, state)[0] for g in (torch.ones(2), bad, torch.tensor([3.0, 4.0]))]
    assert new[1] is None or not new[1].isfinite().all()
    expected = norms_by_loop([2**0.5, 5], 0.7, 0.9)[-1]
    assert new[2].norm().item() == pytest.approx(expected, rel=1e-5)


def test_half_precision_is_measured_in_float32():
    """The square of 300 is beyond float16, and so is a factor of 1 / 1e6."""
    method, gradient = GradNormStabilizer(), torch.full((10_000,), 1e4).half()
    (new,) = method.update([gradient], [gradient], method.init([gradient]))
    torch.testing.assert_close(new, torch.full((10_000,), 0.01).half())


def test_it_comes_after_the_clip_of_spikes():
    """Both keep states of their own: of the spike 4 the clip leaves 3, so the norms are 1 and 3."""
    clip, stabilizer, weights = AdaptiveSpikeClip(decay=0.5), GradNormStabilizer(), [torch.zeros(1)]
    states = clip.init(weights), stabilizer.init(weights)
    for gradient in (torch.tensor([1.0]), torch.tensor([4.0])):
        (new,) = stabilizer.update(clip.update([gradient], weights, states[0]), weights, states[1])
    assert new.item() == pytest.approx(norms_by_loop([1, 3], 0.7, 0.9)[-1], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, r"decay=1\.0 must be in \[0, 1\)"),
        ({"square_decay": -0.1}, r"square_decay=-0\.1 must be in \[0, 1\)"),
        ({"eps": 0.0}, r"eps=0\.0 must be > 0"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GradNormStabilizer(**settings)
