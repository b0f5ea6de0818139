import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, equal, fit, loader, weights
from torch import nn

from lightning_objectives.callbacks import TransformGradients
from lightning_objectives.gradients import GradientParameterSelection, selected_weights


def test_by_hand():
    """Of each row the greatest magnitudes: -3; 0.5 and -0.4 with two of them."""
    scores = torch.tensor([[0.1, -3.0, 2.0], [0.5, 0.3, -0.4]])
    assert selected_weights(scores).tolist() == [[False, True, False], [True, False, False]]
    assert selected_weights(scores, keep=2).tolist() == [[False, True, True], [True, False, True]]


def test_a_slow_loop_over_the_neurons_of_a_convolution():
    scores = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    mask = selected_weights(scores, keep=4)
    for neuron in range(5):
        connections = scores[neuron].reshape(-1).tolist()
        best = sorted(range(12), key=lambda i: -abs(connections[i]))[:4]
        assert mask[neuron].reshape(-1).nonzero()[:, 0].tolist() == sorted(best)


def test_as_many_as_there_are_is_the_plain_training():
    callback = TransformGradients(GradientParameterSelection(keep=6))
    assert equal(fit(callback)[0], fit()[0])


def test_what_is_not_chosen_never_moves_and_the_rest_is_trained():
    L.seed_everything(0, verbose=False)
    before = weights(Net())
    net, _ = fit(TransformGradients(GradientParameterSelection(keep=2)), max_epochs=3)
    moved = {name: value != before[name] for name, value in net.state_dict().items()}
    assert moved["backbone.0.weight"].sum(1).tolist() == [2] * 6
    assert moved["backbone.0.bias"].all()
    assert moved["fc.weight"].all()
    assert moved["fc.bias"].all()


def test_the_steps_of_an_epoch_choose_by_the_whole_training_set_as_the_authors_do():
    """The last step of the choice is the first that trains."""
    callback = TransformGradients(GradientParameterSelection(keep=2, selection_steps=3))
    ours, _ = fit(callback, max_epochs=1)
    L.seed_everything(0, verbose=False)
    before = Net()
    for x, y in loader():
        F.cross_entropy(before(x), y).backward()
    chosen = selected_weights(before.backbone[0].weight.grad, keep=2)
    moved = ours.backbone[0].weight != before.backbone[0].weight
    assert torch.equal(moved, chosen)
    last = list(loader())[-1]
    before.zero_grad()
    F.cross_entropy(before(last[0]), last[1]).backward()
    expected = before.fc.weight - 0.1 * before.fc.weight.grad
    torch.testing.assert_close(ours.fc.weight, expected)  # one step of SGD, at the weights of the start


def test_vectors_and_the_last_tensors_are_trained_whole():
    params = [torch.zeros(2, 3), torch.zeros(2), torch.zeros(3, 2), torch.zeros(3)]
    gradients = [torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) for p in params]
    for exempt, whole in ((2, {1, 2, 3}), (1, {1, 3}), (0, {1, 3})):
        method = GradientParameterSelection(exempt_last=exempt)
        new = method.update(gradients, params, method.init(params))
        assert {place for place in range(4) if torch.equal(new[place], gradients[place])} == whole


def test_a_gradient_that_is_not_finite_does_not_choose_and_what_is_frozen_stays_finite():
    method, params = GradientParameterSelection(exempt_last=0, selection_steps=2), [torch.zeros(1, 3)]
    state = method.init(params)
    method.update([torch.tensor([[torch.nan, torch.inf, 0.1]])], params, state)
    (new,) = method.update([torch.tensor([[1.0, 2.0, 3.0]])], params, state)
    assert new.tolist() == [[0.0, 0.0, 3.0]]
    (new,) = method.update([torch.tensor([[torch.nan, torch.inf, 4.0]])], params, state)
    assert new.tolist() == [[0.0, 0.0, 4.0]]


def test_the_sums_are_dropped_after_the_choice():
    method, params = GradientParameterSelection(exempt_last=0), [torch.zeros(2, 3, dtype=torch.bfloat16)]
    state = method.init(params)
    (new,) = method.update([torch.ones(2, 3, dtype=torch.bfloat16)], params, state)
    assert new.dtype == torch.bfloat16
    assert state["sums"] == []
    assert state["masks"][0].sum(1).tolist() == [1, 1]


class Decayed(Net):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def test_weight_decay_is_refused():
    with pytest.raises(ValueError, match=r"keeps weights .* AdamW has weight_decay=0\.01, .* weight_decay=0"):
        fit(TransformGradients(GradientParameterSelection()), net=Decayed)


def test_resume_goes_on_with_the_choice(tmp_path):
    whole, _ = fit(TransformGradients(GradientParameterSelection(selection_steps=2)), max_epochs=2)
    callback = TransformGradients(GradientParameterSelection(selection_steps=2))
    _, half = fit(callback, max_epochs=1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    L.seed_everything(0, verbose=False)
    net = Net()
    runner = L.Trainer(
        callbacks=[TransformGradients(GradientParameterSelection(selection_steps=2))],
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    runner.fit(net, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    assert equal(net, whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 0}, "keep=0 must be >= 1"),
        ({"selection_steps": 0}, "selection_steps=0 must be >= 1"),
        ({"exempt_last": -1}, "exempt_last=-1 must be >= 0"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        GradientParameterSelection(**settings)


def test_scores_of_one_dimension_are_refused():
    with pytest.raises(ValueError, match=r"scores of the shape \(3,\) must have two dimensions"):
        selected_weights(torch.zeros(3))
    with pytest.raises(ValueError, match="keep=0"):
        selected_weights(nn.Parameter(torch.zeros(3, 2)), keep=0)
