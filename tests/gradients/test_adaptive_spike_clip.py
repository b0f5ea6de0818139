import pytest
import torch

from lightning_objectives.gradients import AdaptiveSpikeClip, clip_spikes


def by_loop(gradients, decay):
    """The authors' loop for one tensor, in plain numbers."""
    total, clipped = 0.0, []
    for step, gradient in enumerate(gradients, 1):
        greatest = max(abs(g) for g in gradient)
        total = decay * total + (1 - decay) * greatest
        threshold = total / (1 - decay**step)
        clipped.append([g / greatest * threshold if abs(g) > threshold else g for g in gradient])
    return clipped


def test_by_hand():
    """T = 0.5 · 0.5 · 1 + 0.5 · 4 = 2.25, corrected by 1 - 0.25: 3. Only -4 is greater."""
    method, weights = AdaptiveSpikeClip(decay=0.5), [torch.zeros(3)]
    state = method.init(weights)
    method.update([torch.tensor([1.0, 0.0, 0.5])], weights, state)
    (new,) = method.update([torch.tensor([2.5, -4.0, 0.5])], weights, state)
    torch.testing.assert_close(new, torch.tensor([2.5, -3.0, 0.5]))


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_equals_the_loop(decay):
    gradients = torch.randn(30, 7)
    gradients[20:22] *= 50
    method, weights = AdaptiveSpikeClip(decay=decay), [torch.zeros(7)]
    state = method.init(weights)
    ours = torch.stack([method.update([g], weights, state)[0] for g in gradients])
    torch.testing.assert_close(ours, torch.tensor(by_loop(gradients.tolist(), decay)), rtol=1e-4, atol=1e-6)
    assert not torch.equal(ours[20], gradients[20])


def test_entries_above_keep_their_proportions():
    new = clip_spikes(torch.tensor([8.0, -4.0, 0.9]), torch.tensor(1.0))
    torch.testing.assert_close(new, torch.tensor([1.0, -0.5, 0.9]))


def test_the_first_gradient_is_kept_to_the_bit_and_zero_stays_zero():
    method, gradients = AdaptiveSpikeClip(), [torch.randn(50), torch.zeros(3), torch.zeros(0), torch.tensor(0.3).half()]
    new = method.update(gradients, gradients, method.init(gradients))
    assert all(torch.equal(a, b) for a, b in zip(new, gradients))


def test_a_step_without_a_gradient_counts_for_no_correction():
    """The thresholds of the second parameter are those of its own second step."""
    method, weights = AdaptiveSpikeClip(decay=0.5), [torch.zeros(1), torch.zeros(1)]
    state = method.init(weights)
    ones, four = torch.ones(1), torch.tensor([4.0])
    method.update([ones, ones], weights, state)
    method.update([ones, None], weights, state)
    new = method.update([four, four], weights, state)
    expected = [by_loop([[1.0], [1.0], [4.0]], 0.5)[-1], by_loop([[1.0], [4.0]], 0.5)[-1]]
    torch.testing.assert_close(torch.stack(new), torch.tensor(expected))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_gradient_stays_visible_and_spoils_no_later_step(bad):
    method, weights = AdaptiveSpikeClip(decay=0.5), [torch.zeros(2)]
    state = method.init(weights)
    gradients = [torch.tensor([1.0, 0.5]), torch.tensor([bad, 0.5]), torch.tensor([4.0, 0.5])]
    new = [method.update([g], weights, state)[0] for g in gradients]
    assert not new[1].isfinite().all()
    torch.testing.assert_close(new[2], torch.tensor([3.0, 0.5]))


def test_without_a_decay_it_is_inactive():
    assert not AdaptiveSpikeClip(decay=0.0).active(step=0)
    assert AdaptiveSpikeClip().active(step=0)


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_what_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay={decay} must be in"):
        AdaptiveSpikeClip(decay=decay)
