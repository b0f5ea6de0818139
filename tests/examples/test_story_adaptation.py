"""The story of adaptation at its smallest: every adapter is in it, and in its page."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from lightning_objectives.discovery import methods

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("story_adaptation", ROOT / "examples" / "stories" / "adaptation.py")
module = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(module)


@pytest.fixture(scope="module")
def results():
    return module.story(seeds=1, epochs=1, rows=80)


def test_every_adapter_is_in_the_story():
    robust = torch.nn.Linear(2, 2)
    callbacks = [make(robust) for make in module.ADAPTERS.values()]
    assert {type(callback.adapter).__name__ for callback in callbacks if callback} == {
        cls.__name__ for _, cls in methods("adaptation")
    }


@pytest.mark.slow
def test_every_arm_is_in_the_tables(results):
    tables = [module.table(results, value) for value in ("accuracy", "NLL", "squared")]
    tables += [module.strength_table(results), module.sorted_table(results)]
    assert all(f"| {name} | " in table for name in module.ADAPTERS for table in tables)


def test_every_arm_is_on_the_page():
    page = (ROOT / "docs" / "stories" / "adaptation.md").read_text()
    assert [name for name in module.ADAPTERS if f"\n| {name} | " not in page] == []


@pytest.mark.slow
def test_every_adapter_acts_and_leaves_the_network_alone(results):
    """Tests after it have the numbers of the network: it runs again on the same loaders, last of all."""
    nll = {name: [run["NLL"] for runs in found.values() for run in runs] for name, found in results.items()}
    assert all(math.isfinite(value) for values in nll.values() for value in values)
    assert [name for name in module.ADAPTERS if name != "network" and nll[name] == nll["network"]] == []
    assert len(nll["network"]) == 2 + 5 * 4


@pytest.mark.slow
def test_again_gives_the_same_numbers(results):
    assert module.story(seeds=1, epochs=1, rows=80) == results


def test_the_mean_over_the_strengths_is_without_the_sorted_test():
    levels = {"1": 0.2, "2": 0.3, "3": 0.7, "sorted": 9.0}
    found = {("noise", level): [{"accuracy": value}] for level, value in levels.items()}
    assert module.over_strengths(found, "noise", "accuracy") == pytest.approx([0.4])


@pytest.mark.parametrize("name", module.CORRUPTIONS)
def test_a_corruption_grows_with_its_strength(name):
    corrupt, strengths = module.CORRUPTIONS[name]
    x = torch.rand(20, 1, 8, 8)
    changes = [
        (corrupt(x, strength, torch.Generator().manual_seed(0)) - x).abs().mean().item() for strength in strengths
    ]
    assert 0 < changes[0] < changes[1] < changes[2]
    twice = [corrupt(x, strengths[0], torch.Generator().manual_seed(0)) for _ in range(2)]
    assert twice[0].shape == x.shape
    assert torch.equal(*twice)


def test_rotation_by_a_right_angle():
    x = torch.rand(2, 1, 8, 8)
    turned = module.rotation(x, 90.0, torch.Generator())
    both_ways = [torch.rot90(x, k, (2, 3)) for k in (1, -1)]
    assert any(torch.allclose(turned, right, atol=1e-5) for right in both_ways)


def test_blur_keeps_a_constant_inside_and_spreads_a_point():
    point = torch.zeros(1, 1, 9, 9)
    point[0, 0, 4, 4] = 1.0
    blurred = module.blur(point, 1.0, torch.Generator())
    assert blurred.sum().item() == pytest.approx(1.0, abs=1e-6)
    ratio = (blurred[0, 0, 4, 5] / blurred[0, 0, 4, 4]).item()
    assert ratio == pytest.approx(math.exp(-0.5), abs=1e-6)
