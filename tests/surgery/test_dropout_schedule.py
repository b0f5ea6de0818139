import pytest
import torch
from torch import nn

from lightning_objectives.kinds import LayerPlace
from lightning_objectives.surgery import DropoutSchedule, dropout_factor


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("early", 0.0, 1.0),
        ("early", 0.24, 1.0),
        ("early", 0.25, 0.0),
        ("early_linear", 0.0, 1.0),
        ("early_linear", 0.075, 0.7),
        ("early_linear", 0.5, 0.0),
        ("late", 0.24, 0.0),
        ("late", 0.25, 1.0),
        ("curriculum", 0.0, 0.0),
        ("curriculum", 0.1, 0.632121),
        ("curriculum", 1.0, 0.999955),
    ],
)
def test_the_factors(schedule, progress, expected):
    """0.5 · (1 - e^-1) = 0.316060 is the rate of the curriculum at a tenth of the training."""
    assert dropout_factor(progress, schedule=schedule, turn=0.25) == pytest.approx(expected, abs=1e-6)


def test_the_layers_own_rate_is_the_largest_and_comes_back():
    layer, rates = nn.Dropout(0.4), []
    for done in (0.0, 0.1, 1.0):
        method = DropoutSchedule(schedule="curriculum")
        place = LayerPlace(part_done=lambda done=done: done)
        method.call(layer, place, lambda x: rates.append(layer.p), torch.ones(2))
        assert layer.p == 0.4
    assert rates == pytest.approx([0.0, 0.252848, 0.399982], abs=1e-6)


def test_a_rate_comes_back_after_an_error():
    layer = nn.Dropout(0.4)

    def failing(x):
        raise KeyError

    with pytest.raises(KeyError):
        DropoutSchedule().call(layer, LayerPlace(), failing, torch.ones(2))
    assert layer.p == 0.4


def test_drop_path_has_a_rate_too():
    class DropPath(nn.Module):
        drop_prob = 0.2

        def forward(self, x):
            return self.drop_prob

    layer = DropPath()
    method = DropoutSchedule(schedule="early_linear", turn=0.5)
    method.check(layer, 1)
    assert method.call(layer, LayerPlace(part_done=lambda: 0.25), layer.forward, torch.ones(2)) == pytest.approx(0.1)


@pytest.mark.parametrize("layer", [nn.Dropout(0.0), nn.Linear(2, 2)])
def test_a_layer_without_a_rate_is_refused(layer):
    with pytest.raises(ValueError, match="has no dropout rate above 0"):
        DropoutSchedule().check(layer, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"schedule": "never"}, "schedule='never' must be one of"), ({"turn": 0.0}, "turn=0.0 must")],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DropoutSchedule(**settings)
    with pytest.raises(ValueError, match=message):
        dropout_factor(0.5, **settings)
