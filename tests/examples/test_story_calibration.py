"""The story of calibration at its smallest: every calibrator and every set predictor is in it, and in its page."""

import importlib.util
from pathlib import Path

import pytest
import torch

from lightning_objectives.discovery import methods

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("story_calibration", ROOT / "examples" / "stories" / "calibration.py")
module = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(module)


@pytest.fixture(scope="module")
def story():
    return module.story(seeds=1, epochs=2, splits=2)


def kinds(arms):
    return {type(make()).__name__ for make in arms.values()}


@pytest.mark.parametrize(("room", "arms"), [("calibration", module.CALIBRATORS), ("prediction_sets", module.SETS)])
def test_every_method_of_the_room_is_in_the_story(room, arms):
    assert kinds(arms) == {cls.__name__ for _, cls in methods(room)}


@pytest.mark.slow
def test_every_arm_is_in_the_tables(story):
    calibrated, sets, _ = story
    table, set_table = module.calibrator_table(calibrated), module.set_table(sets, 697)
    assert all(f"| {name} | " in table for name in ["network", *module.CALIBRATORS])
    assert all(f"| {name}{of} | " in set_table for name in module.SETS for of in ("", ", of scaled logits"))


def test_every_arm_is_on_the_page():
    page = (ROOT / "docs" / "stories" / "calibration.md").read_text()
    assert [name for name in [*module.CALIBRATORS, *module.SETS] if f"\n| {name} | " not in page] == []


@pytest.mark.slow
def test_what_is_measured(story):
    """Where a calibrator keeps the top class, the accuracy is that of the network."""
    calibrated, sets, _ = story
    accuracy = {name: values["accuracy"] for name, values in calibrated.items()}
    kept = [name for name, make in module.CALIBRATORS.items() if make().keeps_top_class]
    assert kept
    assert all(accuracy[name] == pytest.approx(accuracy["network"]) for name in kept)
    assert all(0 < size < 10 for values in sets.values() for size in values["size"])
    assert all(len(values["coverage"]) == 2 for values in sets.values())


@pytest.mark.slow
def test_again_gives_the_same_numbers(story):
    again = module.story(seeds=1, epochs=2, splits=2)
    assert again[:2] == story[:2]


def test_every_tenth_label_is_wrong_in_both_parts():
    (x, y), (x_out, y_out) = module.digits(0)
    right = {image.numpy().tobytes(): label for image, label in zip(*right_digits())}
    assert len(x) == 400
    assert len(x_out) == 1397
    for images, labels in ((x, y), (x_out, y_out)):
        wrong = [bool(right[image.numpy().tobytes()] != label) for image, label in zip(images, labels)]
        assert wrong == [row % 10 == 0 for row in range(len(labels))]


def right_digits():
    images, labels = module.load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)


def test_the_expected_interval():
    """The variance of a beta-binomial's share, by its formula; the interval is near 1.96 standard deviations."""
    a, b, rows = 451, 50, 697
    mean = a / (a + b)
    deviation = (mean * (1 - mean) * (a + b + rows) / (rows * (a + b + 1))) ** 0.5
    low, high = module.expected(rows)
    assert low == pytest.approx(mean - 1.96 * deviation, abs=0.003)
    assert high == pytest.approx(mean + 1.96 * deviation, abs=0.003)


@pytest.mark.slow
def test_the_picture_is_drawn(story, tmp_path):
    module.draw(story[2], tmp_path / "a.svg")
    module.draw(story[2], tmp_path / "b.svg")
    text = (tmp_path / "a.svg").read_text()
    assert all(name in text for name in module.DRAWN)
    assert text == (tmp_path / "b.svg").read_text()
