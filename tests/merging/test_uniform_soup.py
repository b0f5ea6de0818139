import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_objectives.merging import WSM, TaskArithmetic, UniformSoup, merge_checkpoints, uniform_soup_coefficients


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_the_shares_are_equal_whatever_the_steps(count):
    steps = [step**2 for step in range(count)]
    assert uniform_soup_coefficients(steps).tolist() == [1 / count] * count


def write(folder, states):
    paths = [folder / f"{place}.safetensors" for place in range(len(states))]
    for path, state in zip(paths, states):
        save_file(state, path)
    return paths


def test_the_merge_is_the_mean_of_the_files(tmp_path):
    """By a slow loop."""
    generator = torch.Generator().manual_seed(0)
    states = [
        {"w": torch.randn(30, generator=generator), "h": torch.randn(9, generator=generator).half()} for _ in range(7)
    ]
    paths = write(tmp_path, states)
    found = load_file(merge_checkpoints(paths, UniformSoup(), tmp_path / "out.safetensors"))
    for j in range(30):
        mean = math.fsum(state["w"][j].item() for state in states) / 7
        assert found["w"][j].item() == pytest.approx(mean, abs=1e-6)
    for j in range(9):
        mean = math.fsum(state["h"][j].item() for state in states) / 7
        assert found["h"][j].item() == pytest.approx(mean, abs=1e-3), "added up in float32, not in half precision"


def test_it_is_task_arithmetic_with_a_share_of_each(tmp_path):
    base, *states = [{"w": torch.randn(30)} for _ in range(4)]
    paths = write(tmp_path, [base, *states])
    arithmetic = merge_checkpoints(paths[1:], TaskArithmetic(scale=1 / 3), tmp_path / "a.safetensors", base=paths[0])
    soup = merge_checkpoints(paths[1:], UniformSoup(), tmp_path / "s.safetensors")
    torch.testing.assert_close(load_file(soup)["w"], load_file(arithmetic)["w"], rtol=0, atol=1e-6)


def test_copies_of_one_network_are_that_network_to_the_bit(tmp_path):
    state = {"w": torch.tensor([0.1, -0.0, 1e-40])}
    paths = write(tmp_path, [state] * 3)
    found = load_file(merge_checkpoints(paths, UniformSoup(), tmp_path / "out.safetensors"))["w"]
    assert torch.equal(found.view(torch.int32), state["w"].view(torch.int32))


def test_trainings_that_end_at_the_same_step_are_merged(tmp_path):
    paths = [tmp_path / f"{place}.ckpt" for place in range(2)]
    for place, path in enumerate(paths):
        state = {"w": torch.tensor([float(place)])}
        torch.save({"pytorch-lightning_version": "2.6.0", "global_step": 5, "state_dict": state}, path)
    found = torch.load(merge_checkpoints(paths, UniformSoup(), tmp_path / "out.ckpt"))
    assert found["state_dict"]["w"].tolist() == [0.5]
    with pytest.raises(ValueError, match="step"):
        merge_checkpoints(paths, WSM(), tmp_path / "other.ckpt")


def test_no_files_are_refused():
    with pytest.raises(ValueError, match=r"steps=\[\] must increase"):
        UniformSoup().coefficients([])
