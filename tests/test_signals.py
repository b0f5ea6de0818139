"""The one table of signals, and the draws of a batch."""

from types import SimpleNamespace

import pytest

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
    assert signals_from("head", "teacher") == signals_from("head") | {"teacher_features", "teacher_logits"}


def test_what_is_no_signal_is_refused():
    with pytest.raises(TypeError, match=r"'logit', which is no signal. Did you mean 'logits'\? Signals: epoch,"):
        signals_of(lambda logit: None)
    for function in (lambda *logits: None, lambda **logits: None):
        with pytest.raises(TypeError, match=r"forward takes \*+logits, which does not say what it needs"):
            signals_of(function)


def test_the_seed_of_a_batch():
    """2 · 2^40 + 3 · 2^32 + 5, and never more than a generator takes."""
    trainer = SimpleNamespace(global_rank=3, fit_loop=SimpleNamespace(total_batch_idx=5))
    assert batch_seed(2, trainer) == 2199023255552 + 12884901888 + 5
    assert batch_seed(2**23 + 2, trainer) == batch_seed(2, trainer)
