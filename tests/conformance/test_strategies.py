from lightning.pytorch import strategies

from lightning_objectives._trainer.callback import STRATEGIES


def test_the_strategies_that_are_known_by_name_are_lightnings():
    assert STRATEGIES
    for name in STRATEGIES:
        assert getattr(strategies, name).__name__ == name
