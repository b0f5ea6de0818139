import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, fit
from torch.utils.data import DataLoader

from lightning_objectives.callbacks import ReweightSamples
from lightning_objectives.data import with_index
from lightning_objectives.weighting import FeasibleLearning, ascended_multipliers


class ByHand(Net):
    def __init__(self, tolerance, step_size, slack):
        super().__init__()
        self.settings, self.multipliers = (tolerance, step_size, slack), [0.0] * 24

    def training_step(self, batch, batch_idx):
        (x, y), index = batch
        tolerance, step_size, slack = self.settings
        losses = F.cross_entropy(self(x), y, reduction="none")
        weights = []
        for loss, i in zip(losses.tolist(), index.tolist()):
            pull = self.multipliers[i] / slack if slack else 0.0
            self.multipliers[i] = max(0.0, self.multipliers[i] + step_size * (loss - tolerance - pull))
            weights.append(self.multipliers[i])
        return (torch.tensor(weights) * losses).mean()


@pytest.mark.parametrize("slack", [0.0, 2.0])
def test_it_is_the_loop_by_hand(slack):
    settings = {"tolerance": 0.8, "step_size": 0.5, "slack": slack}
    loaders = [DataLoader(with_index(data()), batch_size=8, shuffle=True) for _ in range(2)]
    callback = ReweightSamples(FeasibleLearning(**settings))
    ours, _ = fit(callback, train=loaders[0], max_epochs=4)
    by_hand, _ = fit(net=lambda: ByHand(**settings), train=loaders[1], max_epochs=4)
    torch.testing.assert_close(ours.state_dict(), by_hand.state_dict(), rtol=1e-5, atol=1e-6)
    rows = callback.state_dict()["memory.multipliers"]
    torch.testing.assert_close(rows, torch.tensor(by_hand.multipliers), rtol=1e-5, atol=1e-5)


def test_by_hand():
    """1 + 0.5 (2 - 0.5 - 1 / 4) = 1.625; 0.2 + 0.5 (0.1 - 0.5 - 0.05) < 0."""
    found = ascended_multipliers(
        torch.tensor([2.0, 0.1]), torch.tensor([1.0, 0.2]), tolerance=0.5, step_size=0.5, slack=4.0
    )
    torch.testing.assert_close(found, torch.tensor([1.625, 0.0]))


def test_multipliers_of_satisfied_samples_fall_to_zero_and_slack_stops_the_others():
    multipliers, losses = torch.tensor([3.0, 3.0]), torch.tensor([0.1, 2.5])
    for _ in range(400):
        multipliers = ascended_multipliers(losses, multipliers, tolerance=0.5, step_size=0.1, slack=2.0)
    torch.testing.assert_close(multipliers, torch.tensor([0.0, 4.0]))  # 2 (2.5 - 0.5)


def test_a_loss_that_is_not_finite_leaves_its_multiplier():
    losses = torch.tensor([torch.nan, torch.inf, 1.0])
    assert ascended_multipliers(losses, torch.ones(3), tolerance=0.5).tolist() == [1.0, 1.0, 1.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"step_size": 0.0}, r"step_size=0\.0 must be > 0"), ({"slack": -1.0}, r"slack=-1\.0 must be >= 0")],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        FeasibleLearning(tolerance=0.5, **settings)
    with pytest.raises(ValueError, match=message):
        ascended_multipliers(torch.ones(1), torch.ones(1), tolerance=0.5, **settings)
