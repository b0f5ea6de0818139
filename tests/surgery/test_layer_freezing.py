import pytest

from lightning_objectives.kinds import LayerPlace
from lightning_objectives.surgery import LayerFreezing


def frozen(method, done, count=10):
    return [method.frozen(LayerPlace(number, count, part_done=lambda: done)) for number in range(count)]


@pytest.mark.parametrize(
    ("done", "expected"), [(0.0, 0), (0.5, 0), (0.55, 0), (0.5625, 1), (0.75, 4), (0.8125, 5), (0.99, 7), (1.0, 8)]
)
def test_how_many_layers_are_frozen(done, expected):
    """Composer freezes floor(0.8 (t - 0.5) / 0.5 (L - 1)) of L = 11 layers, and never the last."""
    answers = frozen(LayerFreezing(start=0.5, level=0.8), done)
    assert answers == [True] * expected + [False] * (10 - expected)


def test_rounding_loses_no_layer():
    """29 of 100 layers, as a float, are 28.999999999999996 layers."""
    for count in range(1, 200):
        for layers in range(count + 1):
            assert sum(frozen(LayerFreezing(start=0.0), layers / count, count)) == layers


def test_at_level_0_it_is_idle():
    assert not LayerFreezing(level=0.0).active(step=0)


@pytest.mark.parametrize(
    ("settings", "message"), [({"start": 1.0}, r"start=1\.0 must be in"), ({"level": 1.1}, r"level=1\.1 must be in")]
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        LayerFreezing(**settings)
