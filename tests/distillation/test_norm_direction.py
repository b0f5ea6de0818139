import math

import pytest
import torch
from helpers import Net, data, equal, fit, loader
from torch import nn

import lightning_objectives as lo
from lightning_objectives.callbacks import Distill
from lightning_objectives.distillation import NormDirectionDistillation

MEANS = ((2.0, 0.0, 0.0), (0.0, 3.0, 4.0), (-1.0, 1.0, 0.0))


def test_by_hand():
    """Class 1 has the direction (0, 0.6, 0.8): a student of length 5 along it under teachers of length 10 and 2."""
    method, student = NormDirectionDistillation(means=MEANS), torch.tensor([[0.0, 3.0, 4.0]] * 2)
    teacher = torch.tensor([[0.0, 0.0, 10.0], [2.0, 0.0, 0.0]])
    torch.testing.assert_close(method(student, teacher, torch.tensor([1, 1])), torch.tensor([0.5, 0.0]))
    # (3, 4, 0) · (-1, 1, 0) / √2 = 1 / √2, by the length 5.
    values = method(torch.tensor([[3.0, 4.0, 0.0]]), teacher[1:], torch.tensor([2]))
    torch.testing.assert_close(values, torch.tensor([1 - 1 / (5 * math.sqrt(2))]))


def test_equals_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 20, 3, generator=generator, dtype=torch.float64)
    target = torch.arange(20) % 3
    expected = []
    for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist()):
        length = math.hypot(*MEANS[y])
        longest = max(math.hypot(*s), math.hypot(*t))
        expected.append(1 - sum(a * b / length for a, b in zip(s, MEANS[y])) / longest)
    values = NormDirectionDistillation(means=MEANS)(student, teacher, target)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


def test_a_short_student_grows_and_a_long_one_only_turns():
    method = NormDirectionDistillation(means=MEANS)
    student = torch.tensor([[1.0, 1.0, 0.0]], requires_grad=True)
    for length, radial in ((3.0, -1 / (3.0 * math.sqrt(2))), (1.0, 0.0)):
        teacher = torch.tensor([[length, 0.0, 0.0]], requires_grad=True)
        value = method(student, teacher, torch.tensor([0]))
        (slope,) = torch.autograd.grad(value, student)
        assert (slope * student).sum().item() / math.sqrt(2) == pytest.approx(radial, abs=1e-6)
        assert slope[0, 0] < 0  # Nearer to (1, 0, 0).
        assert not value.requires_grad or torch.autograd.grad(
            method(student, teacher, torch.tensor([0])), teacher, allow_unused=True
        ) == (None,)


def test_features_of_zeros_are_finite():
    method = NormDirectionDistillation(means=MEANS)
    student = torch.zeros(2, 3, requires_grad=True)
    values = method(student, torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]), torch.tensor([1, 1]))
    assert values.tolist() == [1.0, 1.0]
    values.sum().backward()
    torch.testing.assert_close(student.grad[1], torch.tensor([0.0, -0.3, -0.4]))
    assert student.grad.isfinite().all()


def test_rows_without_a_class_or_a_mean_count_nothing():
    method = NormDirectionDistillation(means=(*MEANS, (math.nan,) * 3))
    student = torch.ones(4, 3, requires_grad=True)
    values = method(student, torch.ones(4, 3), torch.tensor([3, -100, 9, 0]))
    assert values[:3].tolist() == [0.0, 0.0, 0.0]
    assert values[3] > 0
    values.sum().backward()
    assert student.grad[:3].abs().sum() == 0
    probabilities = torch.tensor([[0.3, 0.7, 0.0, 0.0]])
    torch.testing.assert_close(
        method(student[:1], torch.ones(1, 3), probabilities), method(student[:1], torch.ones(1, 3), torch.tensor([1]))
    )


def teacher():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))


class OneStep(Net):
    """Its backbone is as wide as the teacher's."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 9), nn.ReLU())
        self.fc = nn.Linear(9, 3)


class ByHand(OneStep):
    """Computes the term in its own step."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        student = self.backbone(x)
        told = teacher()[:2](x).detach()
        every = teacher()[:2](data().tensors[0]).detach()
        means = torch.stack([every[data().tensors[1] == c].mean(0) for c in range(3)])
        along = (student * nn.functional.normalize(means)[y]).sum(1)
        term = (1 - along / torch.maximum(student.norm(dim=1), told.norm(dim=1))).mean()
        return self.criterion(self.fc(student), y) + 0.5 * term


def test_a_training_with_the_means_of_a_survey(tmp_path):
    path = tmp_path / "means.safetensors"
    lo.survey_data(lo.ClassMeans(), teacher(), loader(), path=path)
    method = NormDirectionDistillation(means=str(path))
    net, _ = fit(Distill(method, teacher=teacher(), weight=0.5), net=OneStep)
    expected, _ = fit(net=ByHand)
    torch.testing.assert_close(dict(net.state_dict()), dict(expected.state_dict()))
    assert not equal(net, fit(net=OneStep)[0])
    assert isinstance(method.projection, nn.Identity)
    assert torch.equal(eval(repr(method)).sums, method.sums)


class Seen(ByHand):
    """The same, with the means of what has come so far."""

    def on_train_start(self):
        self.seen = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        student, told = self.backbone(x), teacher()[:2](x).detach()
        self.seen += zip(y.tolist(), told)
        means = torch.stack([torch.stack([t for k, t in self.seen if k == c]).mean(0) for c in range(3)])
        along = (student * nn.functional.normalize(means)[y]).sum(1)
        term = (1 - along / torch.maximum(student.norm(dim=1), told.norm(dim=1))).mean()
        return self.criterion(self.fc(student), y) + 0.5 * term


def test_without_means_they_are_those_of_what_has_come():
    method = NormDirectionDistillation()
    net, _ = fit(Distill(method, teacher=teacher(), weight=0.5), net=OneStep)
    torch.testing.assert_close(dict(net.state_dict()), dict(fit(net=Seen)[0].state_dict()))
    sums = method.sums.clone()
    fit(Distill(method, teacher=teacher(), weight=0.5), net=OneStep)
    assert torch.equal(method.sums, sums)  # A second training begins anew.


def test_ignored_rows_add_nothing_to_the_means():
    method = NormDirectionDistillation()
    method.build(features=2, classes=2, teacher_features=2)
    told = torch.tensor([[1.0, 0.0], [0.0, 5.0], [3.0, 0.0]])
    method(torch.ones(3, 2), told, torch.tensor([1, -100, 1]))
    assert method.sums.tolist() == [[0.0, 0.0], [4.0, 0.0]]


def test_in_half_precision_the_sums_stay_wide():
    method = NormDirectionDistillation()
    method.build(features=2, classes=2, teacher_features=2)
    method.to(torch.bfloat16)
    for _ in range(600):
        method(torch.ones(1, 2).bfloat16(), torch.ones(1, 2).bfloat16(), torch.tensor([0]))
    assert method.sums.tolist() == [[600.0, 600.0], [0.0, 0.0]]


def test_features_of_another_size_are_mapped():
    callback = Distill(NormDirectionDistillation(means=torch.randn(3, 9).tolist()), teacher=teacher())
    fit(callback)
    layer = callback.method.projection
    assert layer.weight.shape == (9, 6)
    torch.manual_seed(0)
    student, told, target = torch.randn(5, 6), torch.randn(5, 9), torch.arange(5) % 3
    plain = NormDirectionDistillation(means=callback.method.means)
    torch.testing.assert_close(callback.method(student, told, target), plain(layer(student), told, target))


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match=r"\(means=None\) needs means=, or build\("):
        NormDirectionDistillation()(torch.ones(2, 3), torch.ones(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"means of the lengths \[1, 2\] must be one row for each class"):
        NormDirectionDistillation(means=((1.0,), (1.0, 2.0)))
    for means in (((0.0, 0.0), (1.0, 2.0)), ((math.inf, 0.0), (1.0, 2.0)), ((1.0, 2.0),)):
        with pytest.raises(ValueError, match=r"must be finite vectors other than 0, one for each of two classes"):
            NormDirectionDistillation(means=means)
    with pytest.raises(ValueError, match="does not exist"):
        NormDirectionDistillation(means=str(tmp_path / "none.safetensors"))
    lo.survey_data(lo.ClassCounts(), teacher(), loader(), path=tmp_path / "counts.safetensors")
    with pytest.raises(ValueError, match=r"must be a file of class means, but it holds \['counts'\]"):
        NormDirectionDistillation(means=str(tmp_path / "counts.safetensors"))
    with pytest.raises(ValueError, match=r"the shape \(3, 3\), but must have \(3, 9\): a row for each class"):
        fit(Distill(NormDirectionDistillation(means=MEANS), teacher=teacher()))
    with pytest.raises(ValueError, match=r"the shape \(2, 9\), but must have \(3, 9\)"):
        fit(Distill(NormDirectionDistillation(means=torch.ones(2, 9).tolist()), teacher=teacher()))
