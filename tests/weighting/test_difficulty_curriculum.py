import pytest
import torch

from lightning_objectives.weighting import DifficultyCurriculum

EASINESS = [1.0, 0.5, 0.0, 0.25]


def test_by_hand():
    """A quarter of the way: 1, 0.5 + 0.25 · 0.5, 0.25, 0.25 + 0.25 · 0.75, in the order of the positions."""
    weights = DifficultyCurriculum(easiness=EASINESS, epochs=8)(torch.tensor([3, 0, 2, 1]), torch.tensor(2))
    assert weights.tolist() == [0.4375, 1.0, 0.25, 0.625]


def test_a_slow_loop_over_the_epochs():
    method, index = DifficultyCurriculum(easiness=EASINESS, epochs=3), torch.arange(4)
    for epoch in range(6):
        slow = [d + epoch / 3 * (1 - d) if epoch < 3 else 1.0 for d in EASINESS]
        torch.testing.assert_close(method(index, epoch), torch.tensor(slow))


def test_the_first_epoch_weighs_by_easiness_and_the_end_is_the_plain_training():
    method, index = DifficultyCurriculum(easiness=EASINESS), torch.arange(4)
    assert method(index, 0).tolist() == EASINESS
    assert method(index, 20).tolist() == method(index, 10**6).tolist() == [1.0] * 4
    assert (method(index, 19) < 1).tolist() == [False, True, True, True]


def test_weights_never_fall_and_easy_samples_are_never_touched():
    method, index = DifficultyCurriculum(easiness=EASINESS, epochs=5), torch.arange(4)
    over_time = torch.stack([method(index, epoch) for epoch in range(8)])
    assert (over_time.diff(dim=0) >= 0).all()
    assert (over_time[:, 0] == 1).all()


@pytest.mark.parametrize("position", [4, -1])
def test_a_position_beyond_the_list_is_an_error(position):
    with pytest.raises(ValueError, match=f"index holds the position {position}, but easiness has 4 numbers"):
        DifficultyCurriculum(easiness=EASINESS)(torch.tensor([0, position]), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"easiness": []}, "easiness is empty"),
        ({"easiness": [0.5, 1.5]}, r"easiness\[1\]=1\.5 must be in \[0, 1\]: rescale"),
        ({"easiness": [float("nan")]}, r"easiness\[0\]=nan must be in \[0, 1\]"),
        ({"easiness": EASINESS, "epochs": 0}, "epochs=0 must be >= 1"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DifficultyCurriculum(**settings)
