import pytest
import torch

from lightning_objectives.distillation import FitNets


def mapped(weight, bias):
    method = FitNets()
    method.build(hidden=(len(weight[0]),), teacher_hidden=(len(weight),))
    method.projections[0].weight.data = torch.tensor(weight)
    method.projections[0].bias.data = torch.tensor(bias)
    return method


METHOD = ([[1.0, 0.5], [-1.0, 2.0]], [0.1, -0.2])
OWN, TEACHER = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[0.0, 2.0], [1.0, 1.0]])


def test_by_hand():
    """Mapped (2.1, 2.8) and (-0.4, -2.2): squares 4.41, 0.64, 1.96, 10.24, whose mean is 4.3125."""
    distances = mapped(*METHOD)([OWN], [TEACHER])
    torch.testing.assert_close(distances, torch.tensor([(4.41 + 0.64) / 2, (1.96 + 10.24) / 2]))
    torch.testing.assert_close(distances.mean(), torch.tensor(4.3125))


def test_a_map_is_projected_at_each_point():
    """The same values at both points of a map give the same distance."""
    method = mapped(*METHOD)
    maps = [values[:, :, None, None].expand(-1, -1, 1, 2) for values in (OWN, TEACHER)]
    torch.testing.assert_close(method([maps[0]], [maps[1]]), method([OWN], [TEACHER]))


def test_the_larger_map_is_pooled():
    method = mapped(*METHOD)
    large = torch.stack([OWN - 1, OWN + 1], 2)
    torch.testing.assert_close(method([large], [TEACHER[:, :, None]]), method([OWN], [TEACHER]))


def test_layers_add_up_and_the_teacher_gets_no_gradient():
    method = FitNets()
    method.build(hidden=(2, 2), teacher_hidden=(2, 2))
    for projection in method.projections:
        projection.load_state_dict({"weight": torch.tensor(METHOD[0]), "bias": torch.tensor(METHOD[1])})
    teacher = TEACHER.clone().requires_grad_()
    distances = method([OWN, OWN], [teacher, teacher])
    torch.testing.assert_close(distances.mean(), torch.tensor(2 * 4.3125))
    distances.sum().backward()
    assert teacher.grad is None
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.parameters())


def test_refusals():
    method = mapped(*METHOD)
    with pytest.raises(ValueError, match="1 layers of the student cannot be compared with 2 of the teacher"):
        method([OWN], [TEACHER, TEACHER])
    with pytest.raises(ValueError, match=r"The layers 0 have the shapes \(2, 2\) and \(2, 2, 1\)"):
        method([OWN], [TEACHER[:, :, None]])
    with pytest.raises(ValueError, match="cannot be pooled to one size"):
        method([torch.ones(2, 2, 1, 1, 1, 2)], [torch.ones(2, 2, 1, 1, 1, 1)])
