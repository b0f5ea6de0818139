"""Contrastive representation distillation."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives.distillation._classes import class_of
from lightning_objectives.distillation._pairs import of_length_one, wide
from lightning_objectives.kinds import Distillation, Row
from lightning_objectives.shapes import check_shapes

_SIZE = 128
"""The length of the vectors that are compared."""
_SPREAD = math.sqrt(3 / _SIZE)
"""A vector of uniform numbers within this distance of 0 has the length 1 on average."""


class CRD(Distillation):
    r"""Trains a student to tell each sample from those of other classes as its teacher does, by their features.

    .. math::
        \ell_i = \sum_{z, m} \left[ -\log h(\langle z_i, m_i \rangle)
        - \sum_{k=1}^K \log\left(1 - h(\langle z_i, m_{j_k} \rangle)\right) \right], \qquad
        h(s) = \frac{e^{s / \tau}}{e^{s / \tau} + K c}

    with :math:`z` the student's and :math:`m` the teacher's vectors, and the other way around. A vector is a trained
    linear map of the features to 128 numbers, divided by its length. Those of :math:`m` come from a memory bank, which
    holds a running mean for each sample of the data set, and :math:`j_k` are samples of other classes, drawn anew in
    each step. :math:`c = e^{1 / (256 \tau^2)}` is the mean of :math:`e^{s / \tau}` over the bank as it begins.

    Args:
        negatives: :math:`K \ge 1`, how many samples of other classes each sample is compared with.
        temperature: :math:`\tau > 0`.
        momentum: how slowly the running means move, in [0, 1).

    Raises:
        ValueError: a setting outside its range; in the training, features that are no (N, D).

    When to use: if teacher and student have features of different sizes, and the classes are many. The authors use
    ``Distill(CRD(), teacher=..., weight=0.8)`` on CIFAR-100, alone or beside :class:`VanillaKD`.
    Cost: 256 numbers for each sample of the data set, on the device and in each checkpoint: 51 MB for 50,000 samples,
    1.3 GB for ImageNet. In each step, the products of the batch with both banks, and N · K draws on the CPU: 8 MB to
    the GPU at N = 64.
    Interactions: wrap the data set with ``with_index``. It needs the labels. Not with mixed samples. Rows whose target
    is ignored have a value of 0. Until a sample has come once, it counts as one of another class. If all samples have
    one class, there are no negatives. ``cache=`` of the callback keeps logits alone, so it does not work with this
    method.

    Example:
        >>> method = CRD(negatives=4)
        >>> method.build(features=6, teacher_features=8)
        >>> method.maps
        ModuleDict(
          (student): Linear(in_features=6, out_features=128, bias=True)
          (teacher): Linear(in_features=8, out_features=128, bias=True)
        )

    Paper: Tian et al., Contrastive Representation Distillation, ICLR 2020, https://arxiv.org/abs/1910.10699. The form
    is that of the authors' code, https://github.com/HobbitLong/RepDistiller, with the sample itself as the positive.
    Not checked at the source: the defaults of their training script.

    Differs from the paper: the authors' code estimates c from its first batch and keeps it. Its bank is random then, so
    the value here is what it estimates, and no batch decides for the whole training. Negatives are drawn with
    replacement; the authors' code draws them without if there are enough, and adds :math:`10^{-7}` to a denominator
    that is never 0.
    """

    by_process = "each process draws the negatives of its own samples"
    problems = ("classes",)
    remembers: ClassVar = {
        "student": Row((_SIZE,), spread=_SPREAD),
        "teacher": Row((_SIZE,), spread=_SPREAD),
        "label": Row((), -1.0),
    }
    unkept_laws: ClassVar = {
        "it_is_least_where_the_student_equals_the_teacher": "the features are compared after trained maps",
        "the_order_of_the_rows_means_nothing": "the negatives are drawn by the places in the batch",
    }

    def __init__(self, *, negatives: int = 16384, temperature: float = 0.07, momentum: float = 0.5) -> None:
        super().__init__()
        if negatives < 1:
            raise ValueError(f"negatives={negatives} must be >= 1: without any there is nothing to tell apart.")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature={temperature} must be > 0 and finite.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be in [0, 1); at 1 the banks would stay random.")
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum
        self.maps = nn.ModuleDict()

    def build(self, *, features: int, teacher_features: int) -> None:
        """New linear maps from the features of both networks to the vectors that are compared."""
        self.maps = nn.ModuleDict(
            {"student": nn.Linear(features, _SIZE), "teacher": nn.Linear(teacher_features, _SIZE)}
        )

    def forward(
        self,
        features: Tensor,
        teacher_features: Tensor,
        logits: Tensor,
        target: Tensor,
        index: Tensor,
        memory: Mapping[str, Tensor],
        memory_bank: Mapping[str, Tensor],
        generator: torch.Generator,
    ) -> Tensor:
        """(N, D) and (N, D') features, (N, C) logits, the targets and what is remembered -> (N,) terms."""
        check_shapes(features=features, teacher_features=teacher_features, logits=logits, target=target, index=index)
        found, known = class_of(target, logits.shape[1])
        own_classes = torch.where(known, found[:, 0], -1).to(memory_bank["label"])
        # With the classes of this batch no sample is drawn as its own negative, also when it comes for the first time.
        classes = memory_bank["label"].index_copy(0, index, own_classes)
        draws = torch.randint(2**62, (len(index), self.negatives), generator=generator)
        places, some = _of_other_classes(classes, own_classes, draws.to(index.device, non_blocking=True))
        scale = math.exp(1 / (2 * _SIZE * self.temperature**2))
        values = []
        for vectors, other in zip(self._vectors(features, teacher_features).values(), ("teacher", "student")):
            with torch.autocast(vectors.device.type, enabled=False):
                # The products with the whole bank take far less memory than the N · K vectors of the negatives.
                negatives = (vectors @ memory_bank[other].to(vectors).T).gather(1, places)
            positives = (vectors * memory[other].to(vectors)).sum(1)
            values.append(_terms(positives, negatives, some, temperature=self.temperature, scale=scale))
        return torch.where(known, values[0] + values[1], 0.0)

    def learn(
        self, features: Tensor, teacher_features: Tensor, logits: Tensor, target: Tensor, memory: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        """The new running means, and the classes."""
        found, known = class_of(target, logits.shape[1])
        means = {
            name: of_length_one(self.momentum * memory[name] + (1 - self.momentum) * vectors)
            for name, vectors in self._vectors(features, teacher_features).items()
        }
        return {**means, "label": torch.where(known, found[:, 0].to(memory["label"]), memory["label"])}

    def _vectors(self, features: Tensor, teacher_features: Tensor) -> dict[str, Tensor]:
        """The (N, 128) vectors of both networks."""
        vectors = {}
        for name, values in (("student", features), ("teacher", teacher_features.detach())):
            layer: Any = self.maps[name]
            vectors[name] = of_length_one(wide(layer(values.to(layer.weight.dtype))))
        return vectors


def _of_other_classes(classes: Tensor, own: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Turn (N, K) great numbers into places in the bank whose class is not the row's own.

    Args:
        classes: (samples,) the class of each sample of the data set; -1 if it is unknown.
        own: (N,) the class of each row.
        draws: (N, K) numbers, far greater than the number of samples.

    Returns:
        (N, K) places, and (N, 1) whether there is any; without one the places mean nothing.
    """
    ordered, order = classes.sort(stable=True)
    start, end = (torch.searchsorted(ordered, own, side=side)[:, None] for side in ("left", "right"))
    others = len(classes) - (end - start)
    # The samples of a class are neighbours in the order of the classes: leave out their stretch.
    places = draws % others.clamp_min(1)
    places = places + torch.where(places >= start, end - start, 0)
    return order[places.clamp_max(len(classes) - 1)], others > 0


def _terms(positives: Tensor, negatives: Tensor, some: Tensor, *, temperature: float, scale: float) -> Tensor:
    """(N,) terms of the (N,) products with the own sample, and the (N, K) with others, if there are some (N, 1)."""
    shift = math.log(negatives.shape[1] * scale)
    others = torch.where(some, F.softplus(negatives / temperature - shift), 0.0)
    return F.softplus(shift - positives / temperature) + others.sum(1)
