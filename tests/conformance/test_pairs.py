"""Every two callbacks together: they work in either order of the list, or are refused in a sentence that names both."""

from itertools import combinations

import pytest

from lightning_objectives._step.member import CHAINED
from lightning_objectives.testing.conformance import Case, Memory, Trial, exemplars
from lightning_objectives.testing.conformance.check import REFUSALS
from lightning_objectives.testing.conformance.plug_ins import PlugIn, methods_of, place, switched_off, verbs

# Switched off, some never begin, and say so.
pytestmark = pytest.mark.filterwarnings(
    "ignore:AverageWeights of .* never began", "ignore:MergeCheckpoints has no snapshot to merge"
)
SHORT = {"max_epochs": 1, "limit_val_batches": 1}
MEMORY = Memory()
PAIRS = list(combinations(verbs().items(), 2))


def named(a, b):
    return pytest.param(a[1], b[1], id=f"{a[0]}-{b[0]}")


@pytest.mark.parametrize(("first", "second"), [named(a, b) for a, b in PAIRS])
def test_pair(first, second, record_property, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    a, b = first.__name__, second.__name__
    record_property("cell", f"pairs|{a}|{b}|{outcome_of(first, second)}")


def outcome_of(first, second):
    trial = Trial(
        PlugIn(f"{first.__name__} and {second.__name__}", lambda case: both(first, second, case)), Case(), MEMORY
    )
    refusal = None
    try:
        run = trial.fit(**SHORT)
    except REFUSALS as error:
        refusal = str(error)
    if refusal is not None:
        assert trial.case.trainers[-1].global_step == 0, f"{trial.plug_in}: refused after a step: {refusal}"
        assert first.__name__ in refusal
        assert second.__name__ in refusal
        return f"refuses: {refusal}"
    other_way = trial.fit(trial.make()[::-1], **SHORT)
    trial.require_same(run, other_way, "the order in the list must not matter.")
    for off in (0, 1):
        callbacks = both(first, second, trial.case)
        others = callbacks[:off] + callbacks[off + 1 :]
        if (first, second)[off].__name__ in (first, second)[1 - off].beside:
            continue  # The other one cannot be alone.
        without = trial.once(lambda others=others: trial.fit(others, **SHORT).outcome, *map(type, others))
        callbacks = both(first, second, trial.case)
        switched_off(callbacks[off])
        trial.require_same(without, trial.fit(callbacks, **SHORT), "zero strength of one must be the other alone.")
    return "pass"


def both(first, second, case):
    """One of each, and what either needs beside it, once."""
    made = [place(first, case)[0], place(second, case)[0]]
    beside = [name for cls in (first, second) for name in cls.beside if verbs()[name] not in (first, second)]
    return made + [place(verbs()[name], case)[0] for name in dict.fromkeys(beside)]


@pytest.mark.parametrize("cls", [c for c in verbs().values() if getattr(c, "place", "term") not in CHAINED and c.kind])
def test_two_of_one_place_are_refused_by_both_names(cls):
    """Two of a kind whose methods differ, where the kind has two."""
    case = Case()
    one, other = [*methods_of(cls), *methods_of(cls)][:2]
    second = place(cls, case, other)[0]
    second.state_key = "another"  # or Lightning refuses two of the same settings, before us
    callbacks = [*place(cls, case, one), second]
    with pytest.raises(ValueError, match="both take the place") as caught:
        case.fit(callbacks, **SHORT)
    assert str(caught.value).count(cls.__name__) == 2


def test_every_callback_is_in_a_pair():
    rows = {row.name for row in exemplars()[:-2]}
    assert {cls.__name__ for pair in PAIRS for _, cls in pair} == rows
