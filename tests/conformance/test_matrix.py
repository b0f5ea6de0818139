"""Every condition for an exemplar of each callback: one cell of the table a test."""

import pytest

from lightning_objectives.testing.conformance import Case, Memory, Trial, conditions, exemplars, outcome

MEMORY = Memory()


def test_a_condition_is_known_by_its_name():
    names = [condition.name for condition in conditions()]
    assert len(names) == len(set(names)), "what a plug-in refuses is declared by name"


@pytest.mark.parametrize("plug_in", exemplars(), ids=str)
@pytest.mark.parametrize("condition", conditions(), ids=str)
def test_cell(condition, plug_in, record_property, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    trial = Trial(plug_in, Case(), MEMORY)
    record_property("cell", f"{condition.family}|{plug_in}|{condition}|{outcome(condition, trial)}")
