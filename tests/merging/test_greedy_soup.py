import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_objectives.merging import GreedySoup, greedy_soup_coefficients, merge_checkpoints

VALUES = [2.1, 1.9, 2.4, 3.0]


def near_two(value):
    return round(1 - abs(value - 2) / 10, 1)


@pytest.mark.parametrize(("strict", "expected"), [(True, [1, 0, 0, 0]), (False, [0.25] * 4)])
def test_the_rule_of_the_paper_and_that_of_its_code(strict, expected):
    """Scores 1, 1, 1, .9 alone; every mean of them scores 1: the code adds none, the paper adds all."""
    values = torch.tensor(VALUES, dtype=torch.float64)
    found = greedy_soup_coefficients(lambda shares: near_two(float(shares @ values)), range(4), strict=strict)
    assert found.tolist() == expected


def test_the_files_are_tried_from_the_best_to_the_worst():
    """-|mean - 10| over 3, 9, 12, 30: 9 first, 10.5 joins with 12, 8 with 3 does not, 17 with 30 does not."""
    values, tried = torch.tensor([30.0, 3.0, 9.0, 12.0], dtype=torch.float64), []

    def evaluate(shares):
        tried.append(float(shares @ values))
        return -abs(tried[-1] - 10)

    assert greedy_soup_coefficients(evaluate, range(4)).tolist() == [0, 0, 0.5, 0.5]
    assert tried == [30, 3, 9, 12, 10.5, 8, 17]


def test_it_is_never_worse_than_the_best_alone():
    generator = torch.Generator().manual_seed(0)
    for strict in (False, True):
        weights, goal = torch.randn(6, 3, generator=generator).double(), torch.zeros(3).double()
        score = lambda shares: -float((shares @ weights - goal).norm())  # noqa: E731, B023
        best = max(score(single) for single in torch.eye(6).double())
        assert score(greedy_soup_coefficients(score, range(6), strict=strict)) >= best


def test_one_file_is_itself_without_a_score():
    assert greedy_soup_coefficients(None, [7]).tolist() == [1.0]


def test_a_score_that_is_nan_is_refused():
    with pytest.raises(ValueError, match=r"evaluate returned nan for the files \[1\]"):
        greedy_soup_coefficients(lambda shares: math.nan if shares[1] == 1 else 0.0, range(3))


def write(folder, values):
    paths = [folder / f"{place}.ckpt" for place in range(len(values))]
    for place, (path, value) in enumerate(zip(paths, values)):
        state = {"w": torch.tensor([value]), "n": torch.tensor(place)}
        torch.save({"pytorch-lightning_version": "2.6.0", "global_step": 5, "state_dict": state}, path)
    return paths


def test_files(tmp_path):
    """The state dicts that are evaluated are single files to the bit, and then their means."""
    seen = []

    def evaluate(state):
        seen.append((state["w"].item(), state["n"].item()))
        return -abs(state["w"].item() - 10)

    files = write(tmp_path, [30.0, 3.0, 9.0, 12.1])
    out = merge_checkpoints(files, GreedySoup(), tmp_path / "o.ckpt", evaluate=evaluate)
    assert seen[:4] == [(torch.tensor(v).item(), n) for n, v in enumerate([30.0, 3.0, 9.0, 12.1])]
    assert [n for _, n in seen[4:]] == [3, 3, 3], "whole numbers are those of the newest in the soup"
    merged = torch.load(out)["state_dict"]
    assert merged["w"].item() == pytest.approx(10.55)
    assert merged["n"] == 3


def test_a_file_that_is_not_in_the_soup_leaves_no_trace(tmp_path):
    """The last file is a training that has failed; the whole numbers and the rest are of the newest that is used."""
    files = write(tmp_path, [1.0, 1.2, math.nan])
    score = lambda state: -100.0 if state["w"].isnan() else -abs(state["w"].item() - 1.1)  # noqa: E731
    with pytest.raises(ValueError, match=r"w is NaN or infinite in .*2\.ckpt"):
        merge_checkpoints(files, GreedySoup(), tmp_path / "o.ckpt", evaluate=score)
    files = write(tmp_path, [1.0, 1.2, 50.0])
    merged = torch.load(merge_checkpoints(files, GreedySoup(), tmp_path / "o.ckpt", evaluate=score))["state_dict"]
    assert merged["w"].item() == pytest.approx(1.1)
    assert merged["n"] == 1


def test_the_header_tells_the_shares(tmp_path):
    paths = [tmp_path / f"{place}.safetensors" for place in range(3)]
    for path, value in zip(paths, (1.0, 9.0, 1.2)):
        save_file({"w": torch.tensor([value])}, path)
    out = merge_checkpoints(paths, GreedySoup(), tmp_path / "o.safetensors", evaluate=lambda state: -state["w"].item())
    assert load_file(out)["w"].item() == 1.0
    from safetensors import safe_open

    with safe_open(out, "pt") as file:
        assert file.metadata()["coefficients"] == "[1.0, 0.0, 0.0]"


def test_without_a_score_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"GreedySoup\(strict=False\) cannot merge without evaluate: give evaluate="):
        merge_checkpoints(write(tmp_path, [1.0, 2.0]), GreedySoup(), tmp_path / "o.ckpt")
