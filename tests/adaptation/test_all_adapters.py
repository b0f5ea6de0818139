"""Every adapter under all that tests and predictions do, found by walking the room."""

import pytest

from lightning_objectives.callbacks import AdaptAtTest
from lightning_objectives.discovery import methods
from lightning_objectives.testing import build
from lightning_objectives.testing.conformance import Case, assert_conforms, conditions

NAMES = [condition.name for condition in conditions() if condition.family == "tests"] + ["tests_on_a_gpu"]
ADAPTERS = [cls for _, cls in methods("adaptation")]


@pytest.mark.parametrize("cls", ADAPTERS, ids=lambda cls: cls.__name__)
def test_it_conforms(cls):
    beside = {"reference": Case().settings["teacher"]()} if "reference_logits" in cls.predicts_from() else {}
    found = assert_conforms(lambda: AdaptAtTest(build(cls), problem="classes", **beside), only=NAMES)
    assert found == dict.fromkeys(found, "pass")
