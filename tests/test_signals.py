"""The one table of signals, and the draws of a batch."""

from types import SimpleNamespace

import pytest
import torch

from lightning_objectives import kinds
from lightning_objectives._trainer.random import batch_seed
from lightning_objectives.signals import BY_ROW, SIGNALS, signals_from, signals_of
from lightning_objectives.testing import example_signals


def test_the_table_agrees_with_itself_and_with_the_examples():
    assert kinds.SIGNALS is SIGNALS
    assert all(signal.name == name and signal.doc for name, signal in SIGNALS.items())
    assert {name for name, signal in SIGNALS.items() if signal.shape.startswith("(N")} == BY_ROW
    examples = example_signals(rows=7)
    assert examples.keys() == SIGNALS.keys() - {"generator"}
    assert {name for name, value in examples.items() if getattr(value, "shape", ())[:1] == (7,)} == BY_ROW


def test_signals_by_source():
    assert signals_from("head") == {"features", "head", "network"}
    assert signals_from("head", "teacher") == signals_from("head") | {
        "teacher_features",
        "teacher_hidden",
        "teacher_logits",
    }


def test_what_is_no_signal_is_refused():
    with pytest.raises(TypeError, match=r"'logit', which is no signal. Did you mean 'logits'\? Signals: again, epoch,"):
        signals_of(lambda logit: None)
    for function in (lambda *logits: None, lambda **logits: None):
        with pytest.raises(TypeError, match=r"forward takes \*+logits, which does not say what it needs"):
            signals_of(function)


def in_batch(number, rank=0):
    return SimpleNamespace(global_rank=rank, fit_loop=SimpleNamespace(total_batch_idx=number))


def test_each_seed_rank_and_batch_draws_its_own_numbers():
    """A generator of the CPU reads 32 bits of its seed: what only changes the others would change nothing."""
    cases = [(seed, rank, number) for seed in (-1, 0, 1, 2**40) for rank in (0, 1, 3) for number in (0, 1, 5)]
    draws = set()
    for seed, rank, number in cases:
        generator = torch.Generator().manual_seed(batch_seed(seed, in_batch(number, rank)))
        draws.add(torch.rand((), generator=generator).item())
    assert len(draws) == len(cases)


def test_the_seed_of_a_batch():
    """It stays what it was for the default seed in one process, so that trainings go on from earlier files."""
    assert batch_seed(0, in_batch(5)) == 5
    assert batch_seed(0, in_batch(5, rank=3), by_rank=False) == 5
    assert batch_seed(2, in_batch(5, rank=3), by_rank=False) == batch_seed(2, in_batch(5))
