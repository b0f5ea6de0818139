import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_objectives.merging import (
    SLERP,
    UniformSoup,
    WeightedAverage,
    merge_checkpoints,
    weighted_average_coefficients,
)


def merged(folder, states, method):
    paths = [folder / f"{place}.safetensors" for place in range(len(states))]
    for path, state in zip(paths, states):
        save_file({"w": state}, path)
    return load_file(merge_checkpoints(paths, method, folder / "out.safetensors"))["w"]


def test_by_hand(tmp_path):
    """(1 · 2 + 2 · 5 + 5 · -1) / 8 = 0.875 and (1 · 0 + 2 · 4 + 5 · 8) / 8 = 6."""
    states = [torch.tensor([2.0, 0.0]), torch.tensor([5.0, 4.0]), torch.tensor([-1.0, 8.0])]
    assert merged(tmp_path, states, WeightedAverage(shares=[1, 2, 5])).tolist() == [0.875, 6.0]


def test_only_the_ratios_count():
    assert weighted_average_coefficients([0, 1], shares=[10, 30]).tolist() == [0.25, 0.75]


def test_degenerate_cases(tmp_path):
    """Equal shares are the uniform soup; all of the share of one is that network; a negative share goes beyond."""
    steps = [0, 3, 9]
    assert torch.equal(WeightedAverage().coefficients(steps), UniformSoup().coefficients(steps))
    states = [torch.randn(40), torch.randn(40)]
    assert torch.equal(merged(tmp_path, states, WeightedAverage(shares=[0, 1])), states[1])
    beyond = merged(tmp_path, states, WeightedAverage(shares=[-1, 2]))
    torch.testing.assert_close(beyond, states[1] + (states[1] - states[0]))


def test_two_parallel_networks_are_slerp(tmp_path):
    states = [torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])]
    torch.testing.assert_close(
        merged(tmp_path, states, WeightedAverage(shares=[0.7, 0.3])), merged(tmp_path, states, SLERP(share=0.3))
    )


@pytest.mark.parametrize("shares", [[1.0, -1.0], [0.0], [], [math.nan, 1.0], [math.inf, 1.0], [-2.0, 1.0]])
def test_shares_without_a_sum_are_refused(shares):
    with pytest.raises(ValueError, match=r"must be finite numbers whose sum is above 0"):
        WeightedAverage(shares=shares)
    with pytest.raises(ValueError, match=r"must be finite numbers whose sum is above 0"):
        weighted_average_coefficients(range(len(shares)) or [0], shares=shares)


def test_another_number_of_files_is_refused():
    with pytest.raises(ValueError, match=r"shares=\[1, 2\] are 2, but there are 3 files: give one for each"):
        WeightedAverage(shares=[1, 2]).coefficients([0, 1, 2])
