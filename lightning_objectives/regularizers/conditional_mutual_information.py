"""Conditional mutual information: how much the predictions of a class differ from sample to sample."""

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_objectives.kinds import Regularizer
from lightning_objectives.shapes import check_classes, check_shapes, forms

_FORMS = {"centroids": forms("(C, C) float")}


def divergence_from_centroids(logits: Tensor, target: Tensor, centroids: Tensor) -> Tensor:
    r"""Compute how far the prediction for each sample is from the mean prediction for its class.

    .. math::
        \operatorname{KL}(p_i \,\|\, Q_{y_i}) = \sum_k p_{ik} \log \frac{p_{ik}}{Q_{y_i k}}

    with p the softmax. Its mean over the samples is the conditional mutual information between input and prediction,
    given the class, if the rows of Q are the mean predictions. For class probabilities it is the expectation over the
    classes.

    Args:
        logits: (N, C), in any float type; computed in float32 or better.
        target: (N,) int classes, or (N, C) class probabilities. A target that is no class gives 0.
        centroids: (C, C), in row y the mean prediction for class y, without gradient.

    Returns:
        (N,) divergences >= 0.

    Raises:
        ValueError: shapes that do not fit, or a single class.

    Example:
        >>> centroids = torch.tensor([[0.5, 0.5], [0.25, 0.75]])
        >>> divergence_from_centroids(torch.tensor([[0.8, 0.2]]).log(), torch.tensor([0]), centroids)
        tensor([0.1927])
    """
    check_shapes(_FORMS, logits=logits, target=target, centroids=centroids)
    check_classes(logits)
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
    labels, log_q = _labels(target, log_p), centroids.detach().to(log_p.dtype)
    log_q = log_q.clamp_min(torch.finfo(log_p.dtype).tiny).log()
    p = log_p.exp()
    log_p = torch.where(p > 0, log_p, 0.0)  # 0 log 0 is 0, also for a class that is -inf.
    return (p * (labels.sum(1, keepdim=True) * log_p - labels @ log_q)).sum(1)


def _labels(target: Tensor, like: Tensor) -> Tensor:
    """(N, C) class probabilities; a row of zeros for a target to ignore, such as -100 or 255."""
    if target.is_floating_point():
        return target.to(like.dtype)
    known = (target >= 0) & (target < like.shape[1])
    classes = torch.where(known, target, 0).long()[:, None]
    return torch.zeros_like(like).scatter(1, classes, known[:, None].to(like.dtype))


class ConditionalMutualInformation(Regularizer):
    r"""Trains a better teacher: its predictions for a class tell the samples of that class apart (MCMI).

    The terms are those of :func:`divergence_from_centroids`, with the opposite sign. So the conditional mutual
    information grows while the model's own loss falls. The centroid of a class is a running mean of the predictions for
    its samples, which this step's predictions enter first:

    .. math::
        S_y \leftarrow \mu S_y + \sum_{i: y_i = y} p_i, \quad n_y \leftarrow \mu n_y + |\{i: y_i = y\}|, \quad
        Q_y = \frac{S_y}{n_y}

    The callback multiplies the terms by 0.25 if you give no ``strength``.

    Args:
        classes: C.
        momentum: :math:`\mu \in [0, 1)`, how slowly the centroids forget. The default is that of the authors' code.
        maximize: False gives the terms their own sign, so that the predictions for a class become alike.

    Raises:
        ValueError: fewer than two classes, or a momentum outside its range; in the training, logits of another number
            of classes, or shapes that do not fit.

    When to use: to fine-tune a trained teacher before a distillation. The authors' code trains 20 more epochs, at half
    of the learning rate with a cosine decay, and strengths from 0.1 to 0.25.
    Cost: C times (C + 1) numbers in float32; one product of C x C and N x C matrices in each step.
    Interactions: look at the teacher's own accuracy, which the term does not serve. The logged term is negative.
    Several processes share the centroids: they add up their predictions in each step.

    Example:
        >>> method = ConditionalMutualInformation(classes=2)
        >>> method(torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log(), torch.tensor([0, 0]))  # Q = (0.6, 0.4)
        tensor([-0.0915, -0.0811])

    Paper: Ye et al., Bayes Conditional Distribution Estimation for Knowledge Distillation Based on Conditional Mutual
    Information, ICLR 2024, https://arxiv.org/abs/2401.08732. The term is that of the authors' code.

    Differs from the authors' code: the predictions of the batch, by their number, move the centroids. There, 8 further
    samples of each class move them in each step, after a pass over the training set has set them.
    """

    family = "distillation"
    problems = ("classes",)
    default_strength = 0.25
    coupled = "the centroids hold the other rows too"
    example: ClassVar[dict[str, Any]] = {"classes": 3}
    unkept_laws: ClassVar[dict[str, str]] = {
        "the_gradient_is_that_of_finite_differences": "the centroids hold this prediction as a constant"
    }
    sums: Tensor
    counts: Tensor

    def __init__(self, *, classes: int, momentum: float = 0.9999, maximize: bool = True) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes={classes} must be >= 2: the predictions for one class are all the same.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum} must be in [0, 1): with 1 the centroids would never forget.")
        self.classes = classes
        self.momentum = momentum
        self.maximize = maximize
        self.register_buffer("sums", torch.zeros(classes, classes))
        self.register_buffer("counts", torch.zeros(classes))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """(N, C) logits and (N,) classes or (N, C) probabilities -> (N,) terms; moves the centroids."""
        check_shapes(logits=logits, target=target)
        if logits.shape[1] != self.classes:
            raise ValueError(
                f"logits of the shape {tuple(logits.shape)} must have {self.classes} columns: set "
                f"classes={logits.shape[1]}."
            )
        p = logits.detach().to(self.sums.dtype).softmax(1)
        labels = _labels(target, p)
        seen = torch.cat([labels.T @ p, labels.sum(0)[:, None]], 1)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(seen)  # The centroids are those of all processes, so that each has the same.
        self.sums = self.momentum * self.sums + seen[:, :-1]
        self.counts = self.momentum * self.counts + seen[:, -1]
        # A class without a sample has no centroid yet, and nothing asks for it.
        centroids = self.sums / torch.where(self.counts > 0, self.counts, 1.0)[:, None]
        terms = divergence_from_centroids(logits, target, centroids)
        return -terms if self.maximize else terms
