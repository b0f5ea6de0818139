import pytest
import torch

from lightning_objectives.weighting import JTT


def test_by_hand():
    """Weights 1, 6, 1, 1, 6 with the mean 3; and of the released code's 1 + 5 copies the same."""
    weights = JTT(errors=[1, 4], upweight=6.0)(torch.arange(5))
    torch.testing.assert_close(weights, torch.tensor([1.0, 6.0, 1.0, 1.0, 6.0]) / 3)


def test_it_goes_by_the_position_in_the_data_set():
    method = JTT(errors=[70, 3], upweight=5.0)
    weights = method(torch.tensor([3, 69, 71, 70, 1000]))
    torch.testing.assert_close(weights, torch.tensor([5.0, 1.0, 1.0, 5.0, 1.0]) / 2.6)


def test_no_errors_errors_alone_and_no_upweight_are_the_plain_training():
    index = torch.tensor([0, 3, 7])
    for method in (JTT(errors=[], upweight=9.0), JTT(errors=[0, 3, 7], upweight=9.0), JTT(errors=[3], upweight=1.0)):
        torch.testing.assert_close(method(index), torch.ones(3))


def test_positions_of_any_whole_type():
    assert JTT(errors=[1], upweight=3.0)(torch.tensor([0, 1], dtype=torch.uint8)).tolist() == [0.5, 1.5]


def test_refusals():
    with pytest.raises(ValueError, match=r"errors holds -1, but positions in the training set begin at 0"):
        JTT(errors=[2, -1], upweight=5.0)
    with pytest.raises(ValueError, match=r"upweight=0\.5 must be >= 1"):
        JTT(errors=[2], upweight=0.5)
