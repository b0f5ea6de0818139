"""Spherical linear interpolation against numbers worked by hand and a slow loop."""

import math

import pytest
import torch

from lightning_objectives.callbacks import MergeCheckpoints
from lightning_objectives.merging import SLERP, merge_checkpoints, slerp_merge


def test_by_hand():
    """At 60°, a third of the way: sin 40° / sin 60° = 0.742227 of the first, sin 20° / sin 60° = 0.394931."""
    first, second = torch.tensor([[3.0], [0.0]]), torch.tensor([[1.0], [math.sqrt(3)]])
    merged = slerp_merge([first, second], share=1 / 3)
    torch.testing.assert_close(merged, torch.tensor([[3 * 0.742227 + 0.394931], [0.394931 * math.sqrt(3)]]))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_slow_loop_walks_the_arc_between_directions(share):
    """Turns the first direction by the part of the angle, in the plane of both, with the first's length."""
    first, second = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    second *= first.norm() / second.norm()
    a, b = first.flatten().tolist(), second.flatten().tolist()
    length = math.sqrt(sum(x * x for x in a))
    along = [x / length for x in a]
    part = sum(x * y for x, y in zip(along, b))
    across = [y - part * x for x, y in zip(along, b)]
    size = math.sqrt(sum(x * x for x in across))
    turn = share * math.atan2(size, part)
    expected = [length * (math.cos(turn) * x + math.sin(turn) * y / size) for x, y in zip(along, across)]
    merged = slerp_merge([first, second], share=share)
    torch.testing.assert_close(merged.flatten(), torch.tensor(expected, dtype=torch.float64))


def test_an_end_of_the_arc_is_the_network_to_the_bit():
    first, second = torch.tensor([-0.0, 0.1, 2.0]), torch.tensor([1.0, math.inf, -0.0])
    for share, expected in ((0.0, first), (1.0, second)):
        merged = slerp_merge([first, second], share=share)
        assert torch.equal(merged.view(torch.int32), expected.view(torch.int32))
        assert merged.data_ptr() != expected.data_ptr()


def test_equal_networks_stay_to_the_bit():
    weights = torch.cat([torch.tensor([-0.0, -math.inf]), torch.randn(1000)])
    merged = slerp_merge([weights, weights.clone()], share=0.3)
    assert torch.equal(merged.view(torch.int32), weights.view(torch.int32))


@pytest.mark.parametrize(
    "second", [[0.0, 0.0], [2.0, 0.03], [-4.0, 0.0]], ids=["a norm of 0", "nearly parallel", "opposite"]
)
def test_where_no_arc_is_the_interpolation_is_linear(second):
    first, second = torch.tensor([2.0, 0.0]), torch.tensor(second)
    torch.testing.assert_close(slerp_merge([first, second], share=0.25), 0.75 * first + 0.25 * second)


def test_just_below_the_threshold_it_is_an_arc():
    """The norm of a mean of two unit vectors at 2° is cos 1°; on the arc it stays 1."""
    angle = math.radians(2)
    second = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    merged = slerp_merge([torch.tensor([1.0, 0.0], dtype=torch.float64), second])
    torch.testing.assert_close(merged.norm().item(), 1.0, rtol=1e-9, atol=0)


def test_complex_numbers_are_pairs():
    first, second = torch.randn(5, dtype=torch.complex64), torch.randn(5, dtype=torch.complex64)
    merged = slerp_merge([first, second], share=0.4)
    real = slerp_merge([torch.view_as_real(first), torch.view_as_real(second)], share=0.4)
    torch.testing.assert_close(torch.view_as_real(merged), real)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_networks_is_refused(count):
    with pytest.raises(ValueError, match=f"hold {count} networks, but an arc lies between two: give two"):
        slerp_merge([torch.ones(2)] * count)


@pytest.mark.parametrize("share", [-0.1, 1.5, math.nan])
def test_a_share_that_is_none_is_refused(share):
    for method in (lambda: SLERP(share=share), lambda: slerp_merge([torch.ones(2)] * 2, share=share)):
        with pytest.raises(ValueError, match=rf"share={share} must be in \[0, 1\]"):
            method()


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\)"):
        slerp_merge([torch.ones(2), torch.ones(3)])


def test_two_files_merge_and_three_leave_no_file(tmp_path):
    files = [tmp_path / f"step={step}.pt" for step in (1, 2, 3)]
    for file, angle in zip(files, (0.0, math.pi / 2, math.pi / 3)):
        torch.save({"weight": torch.tensor([math.cos(angle), math.sin(angle)])}, file)
    out = merge_checkpoints(files[:2], SLERP(share=1 / 3), tmp_path / "out.pt")  # sin and cos of 30°
    torch.testing.assert_close(torch.load(out)["weight"], torch.tensor([math.sqrt(3) / 2, 0.5]))
    with pytest.raises(ValueError, match="hold 3 networks, but an arc lies between two"):
        merge_checkpoints(files, SLERP(), tmp_path / "none.pt")
    assert not (tmp_path / "none.pt").exists()


def test_a_training_refuses_it_at_once():
    with pytest.raises(ValueError, match=r"merges 2 files, but .* Run it after the training"):
        MergeCheckpoints(SLERP(), last=2)
