"""Distillation of the norm and the direction of features."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_objectives._files.network import read_weights
from lightning_objectives.distillation._classes import class_of
from lightning_objectives.distillation._pairs import of_length_one, wide
from lightning_objectives.kinds import Distillation
from lightning_objectives.shapes import check_shapes


class NormDirectionDistillation(Distillation):
    r"""Trains a student's features to point to the mean of their class, and to be at least as long as the teacher's.

    .. math::
        \ell = 1 - \frac{\langle s, e_y \rangle}{\max(\|s\|, \|t\|)}, \qquad e_c = \frac{m_c}{\|m_c\|}

    with s the student's features, t the teacher's, y the target, and :math:`m_c` the mean of the teacher's features of
    class c over the training data. If the two networks have features of different sizes, s is a trained linear map of
    the student's. While s is shorter than t, the gradient makes it longer; otherwise it only turns it.

    Args:
        means: :math:`m_c`: the safetensors file that ``survey_data(ClassMeans(), teacher, loader,
            path="means.safetensors")`` writes, or C rows of numbers, where NaN stands for a class without samples. None
            takes the means of what the teacher has seen in the training so far, this batch included.

    Raises:
        ValueError: a file that cannot be read, rows of different lengths, a mean that is infinite or 0; in the
            training, means of other classes or of other features than the teacher's; no means before ``build``.

    When to use: beside a distance of the logits, with a ``Distill`` of its own: ``VanillaKD`` and this are the authors'
    KD++. Their weights are 0.5 to 2 on CIFAR-100 and 1 to 4 on ImageNet beside ``VanillaKD``.
    Cost: the teacher's forward pass, and one matrix if the sizes differ; one pass of the teacher over the data before
    the training for a file of means.
    Interactions: it needs the labels. Under Mixup and CutMix the class with the greater share counts. Rows whose target
    is ignored, or whose class has no mean or one of 0, have a distance of 0. Features behind a ReLU cannot point
    everywhere, but neither can the means of a teacher with one. ``cache=`` of the callback keeps logits alone, so it
    does not work with this method.

    Example:
        >>> method = NormDirectionDistillation(means=((2.0, 0.0), (0.0, 1.0)))
        >>> student, teacher = torch.tensor([[3.0, 4.0]]), torch.tensor([[10.0, 0.0]])
        >>> method(student, teacher, torch.tensor([0])), method(student, teacher / 5, torch.tensor([0]))
        (tensor([0.7000]), tensor([0.4000]))

    Paper: Wang et al., Improving Knowledge Distillation via Regularizing Feature Norm and Direction, 2023,
    https://arxiv.org/abs/2305.17007; the form is that of the authors' code,
    https://github.com/WangYZ1608/Knowledge-Distillation-via-ND.

    Differs from the paper: without ``means`` no pass over the data comes first, so that the means of the first batches
    are those of few samples, and of augmented ones. The authors' code has batch normalization and dropout before the
    linear map. It fails where both networks' features are 0; the distance is 1 there, without a gradient.
    """

    coupled = "the means of the classes so far are also those of the other rows"
    by_process = "each process takes the means of its own batches, if there are none beforehand"
    problems = ("classes",)
    unkept_laws: ClassVar = {
        "it_is_least_where_the_student_equals_the_teacher": "the student is compared with the mean of its class"
    }

    sums: Tensor
    """(C, D') the mean of each class, or the sum of its features, which points the same way; 0 for an empty class."""

    def __init__(self, *, means: str | Sequence[Sequence[float]] | None = None) -> None:
        super().__init__()
        self.means = means if means is None or isinstance(means, str) else tuple(map(tuple, means))
        self.register_buffer("sums", torch.zeros(0, 0) if self.means is None else _read(self.means))
        self.projection: nn.Module = nn.Identity()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's
        self.sums = self.sums.float()  # In the type of a network in half precision, small numbers would add nothing.
        return self

    def build(self, *, features: int, classes: int, teacher_features: int) -> None:
        """A new linear map to the teacher's features, if the student has another number of them.

        Raises:
            ValueError: the means are of other classes or other features.
        """
        shape = (classes, teacher_features)
        if self.means is None:
            self.sums = torch.zeros(shape)
        elif self.sums.shape != shape:
            raise ValueError(
                f"The means have the shape {tuple(self.sums.shape)}, but must have {shape}: a row for each class, with "
                "a number for each of the teacher's features. Survey this teacher, with the training data."
            )
        self.projection = nn.Identity() if features == teacher_features else nn.Linear(features, teacher_features)

    def forward(self, features: Tensor, teacher_features: Tensor, target: Tensor) -> Tensor:
        """(N, D) and (N, D') features and (N,) classes or (N, C) probabilities -> (N,) distances."""
        check_shapes(features=features, teacher_features=teacher_features, target=target)
        if not self.sums.numel():
            raise ValueError(f"{self} needs means=, or build(features=, classes=, teacher_features=) first.")
        if isinstance(self.projection, nn.Linear):
            features = self.projection(features.to(self.projection.weight.dtype))
        student, teacher = wide(features), wide(teacher_features.detach())
        found, known = class_of(target, len(self.sums))
        if self.means is None:
            seen = torch.where(known[:, None], teacher, 0.0).to(self.sums)
            self.sums = self.sums.index_add(0, found[:, 0], seen)
        directions = of_length_one(self.sums)[found[:, 0]].to(student)
        longest = torch.maximum(*(torch.linalg.vector_norm(rows, dim=1) for rows in (student, teacher)))
        distances = 1 - (student * directions).sum(1) / torch.where(longest > 0, longest, 1.0)
        return torch.where(known & directions.any(1), distances, 0.0)


def _read(means: str | Sequence[Sequence[float]]) -> Tensor:
    """(C, D) means, 0 for a class without samples.

    Raises:
        ValueError: with what is wrong.
    """
    if isinstance(means, str):
        contents = read_weights(means)
        if "means" not in contents:
            raise ValueError(
                f"means={means!r} must be a file of class means, but it holds {sorted(contents)[:5]}: write it with "
                "survey_data(ClassMeans(), teacher, loader, path=...)."
            )
        rows: Tensor = contents["means"].float()
    elif len({len(row) for row in means}) == 1:
        rows = torch.tensor(means, dtype=torch.float32)
    else:
        raise ValueError(
            f"means of the lengths {sorted({len(row) for row in means})} must be one row for each class, all of one "
            "length."
        )
    lengths = torch.linalg.vector_norm(rows, dim=-1)
    if rows.dim() != 2 or len(rows) < 2 or lengths.isinf().any() or (lengths == 0).any():
        raise ValueError(
            f"means of the shape {tuple(rows.shape)} with the lengths {lengths.flatten()[:5].tolist()} must be finite "
            "vectors other than 0, one for each of two classes or more: a vector of 0 has no direction. NaN stands for "
            "a class without samples."
        )
    return rows.nan_to_num(0.0)
