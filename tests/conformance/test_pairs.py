"""Every two callbacks together: they work in either order of the list, or are refused in a sentence that names both."""

from itertools import combinations

import pytest

from lightning_objectives.testing.conformance import Case, Trial, exemplars
from lightning_objectives.testing.conformance.check import REFUSALS
from lightning_objectives.testing.conformance.plug_ins import PlugIn, place, switched_off, verbs

SHORT = {"max_epochs": 1, "limit_val_batches": 1}
PAIRS = list(combinations(verbs().items(), 2))


def named(a, b):
    return pytest.param(a[1], b[1], id=f"{a[0]}-{b[0]}")


@pytest.mark.parametrize(("first", "second"), [named(a, b) for a, b in PAIRS])
def test_pair(first, second, record_property, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    a, b = first.__name__, second.__name__
    record_property("cell", f"pairs|{a}|{b}|{outcome_of(first, second)}")


def outcome_of(first, second):
    trial = Trial(PlugIn(f"{first.__name__} and {second.__name__}", lambda case: both(first, second, case)))
    try:
        run = trial.fit(**SHORT)
    except REFUSALS as error:
        assert trial.case.trainers[-1].global_step == 0, f"{trial.plug_in}: refused after a step: {error}"
        assert first.__name__ in str(error), error
        assert second.__name__ in str(error), error
        return f"refuses: {error}"
    other_way = trial.fit(trial.make()[::-1], **SHORT)
    trial.require_same(run, other_way, "the order in the list must not matter.")
    for off, on in ((0, 1), (1, 0)):
        one = (first, second)[on]
        without = trial.fit(place(one, trial.case), **SHORT)
        callbacks = both(first, second, trial.case)
        switched_off(callbacks[off])
        trial.require_same(without, trial.fit(callbacks, **SHORT), "zero strength of one must be the other alone.")
    return "pass"


def both(first, second, case):
    """One of each, and what either needs beside it, once."""
    made = [place(first, case)[0], place(second, case)[0]]
    beside = [name for cls in (first, second) for name in cls.beside if verbs()[name] not in (first, second)]
    return made + [place(verbs()[name], case)[0] for name in dict.fromkeys(beside)]


def test_two_of_one_place_are_refused_by_both_names():
    case = Case()
    callbacks = [place(verbs()["ReplaceLoss"], case)[0] for _ in range(2)]
    callbacks[1].which = 0
    with pytest.raises(ValueError, match=r"ReplaceLoss.*ReplaceLoss"):
        case.fit(callbacks, **SHORT)


def test_every_callback_is_in_a_pair():
    rows = {row.name for row in exemplars()[:-2]}
    assert {cls.__name__ for pair in PAIRS for _, cls in pair} == rows
