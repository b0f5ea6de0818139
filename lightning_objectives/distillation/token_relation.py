"""Distillation of the relations between tokens, the places of hidden layers (TRG)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives.distillation._layers import check_pairs, of_one_size
from lightning_objectives.distillation._pairs import of_length_one, products, wide
from lightning_objectives.kinds import Distillation

_NEVER = -1e4
"""What a token counts for itself: its share in a softmax is 0, with a gradient of 0."""


class TokenRelationDistillation(Distillation):
    r"""Trains a student so that parts of images lie near to the same parts of other images as its teacher's do.

    .. math::
        \ell = \alpha\, \overline{\left( \operatorname{softmax} \tfrac{F F^\top}{\sqrt D}
        - \operatorname{softmax} \tfrac{G G^\top}{\sqrt{D'}} \right)^2}
        + \beta\, \mathrm{KL}\left(\operatorname{softmax} A_i \,\|\, \operatorname{softmax} B_i\right)
        - \gamma \log \frac{e^{\langle z_i, g_i \rangle / \tau}}{\sum_j e^{\langle z_i, g_j \rangle / \tau}}

    A token is what a layer says of one place of an image: a row of F in the student, and of G in the teacher. The first
    term compares the tokens of an image with each other, and is a mean over all pairs. The others compare tokens that
    are drawn from all images of the batch, and are means over those of each image. A and B are the graphs of the
    nearest tokens of each network,

    .. math::
        A_{ij} = \begin{cases} e^{-\|f_i - f_j\|^2 / 2 \sigma} & j \text{ is one of the } k \text{ nearest to } i \\
        0 & \text{else} \end{cases}

    with f and g the tokens by their lengths, and z that of a trained linear map of the student's token. Of maps of
    different sizes the larger is pooled to the smaller. A layer without places has one token for each sample. Several
    layers add up.

    Args:
        tokens: how many tokens of each image are drawn; all, if there are not as many.
        neighbours: k.
        bandwidth: :math:`\sigma > 0`.
        temperature: :math:`\tau > 0`.
        inner_weight: :math:`\alpha \ge 0`.
        local_weight: :math:`\beta \ge 0`.
        global_weight: :math:`\gamma \ge 0`.

    Raises:
        ValueError: a setting outside its range; in the training, layers that do not belong together.

    When to use: with ``Distill(TokenRelationDistillation(), teacher=..., layers=..., teacher_layers=...)``, beside a
    distance of the logits. Take the last layer with places: the blocks of a vision transformer, or the last maps of a
    convolutional network.
    Cost: a matrix for each layer, trained with the network and gone afterwards; the products of all places of an image,
    and of all tokens that are drawn: 1 MB for each network at 64 images and 8 tokens.
    Interactions: only the images of one batch are compared; gradient accumulation does not join the batches.

    Example:
        >>> method = TokenRelationDistillation(global_weight=0.0)
        >>> method.build(hidden=(4,), teacher_hidden=(4,))
        >>> maps = torch.randn(2, 4, 3, 3)
        >>> method([maps], [maps], torch.Generator()).detach().abs() < 1e-6
        tensor([True, True])

    Paper: Zhang et al., Knowledge Distillation via Token-level Relationship Graph, 2023,
    https://arxiv.org/abs/2306.12442. Not checked at the source: all settings, how many tokens are drawn and how, the
    direction of the divergence, and whether tokens have the length one. The defaults are choices of this library.

    Differs from the paper: it lowers the temperature during the training. The distance of the logits is not part of the
    term.
    """

    coupled = "it compares the tokens of all samples of the batch"
    by_process = "each process compares the tokens of its own batch"
    unkept_laws: ClassVar = {
        "it_is_least_where_the_student_equals_the_teacher": "the third term compares the layers after a trained map"
    }

    def __init__(
        self,
        *,
        tokens: int = 8,
        neighbours: int = 8,
        bandwidth: float = 1.0,
        temperature: float = 0.1,
        inner_weight: float = 1.0,
        local_weight: float = 1.0,
        global_weight: float = 1.0,
    ) -> None:
        super().__init__()
        for name, count in (("tokens", tokens), ("neighbours", neighbours)):
            if count < 1:
                raise ValueError(f"{name}={count} must be >= 1.")
        for name, value in (("bandwidth", bandwidth), ("temperature", temperature)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}={value} must be > 0 and finite.")
        weights = ("inner_weight", inner_weight), ("local_weight", local_weight), ("global_weight", global_weight)
        for name, value in weights:
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value} must be >= 0 and finite.")
        self.tokens = tokens
        self.neighbours = neighbours
        self.bandwidth = bandwidth
        self.temperature = temperature
        self.inner_weight = inner_weight
        self.local_weight = local_weight
        self.global_weight = global_weight
        self.projections = nn.ModuleList()

    def build(self, *, hidden: Sequence[int], teacher_hidden: Sequence[int]) -> None:
        """New linear maps from the channels of each of the student's layers to those of the teacher's."""
        self.projections = nn.ModuleList(nn.Linear(own, other) for own, other in zip(hidden, teacher_hidden))

    def forward(self, hidden: Sequence[Tensor], teacher_hidden: Sequence[Tensor], generator: torch.Generator) -> Tensor:
        """Maps (N, channels, ...) of the student and of the teacher -> (N,) terms."""
        check_pairs(hidden, teacher_hidden)
        terms = []
        for projection, *maps in zip(self.projections, hidden, teacher_hidden):
            assert isinstance(projection, nn.Linear)
            # (N, places, channels); a layer without places has one.
            own, other = (wide(values)[..., None].flatten(2).mT for values in of_one_size(maps[0], maps[1].detach()))
            draws = torch.rand(own.shape[:2], generator=generator).argsort(1)[:, : self.tokens]
            places = draws.to(own.device, non_blocking=True)[..., None]
            student, teacher = (
                values.gather(1, places.expand(-1, -1, values.shape[2])).flatten(0, 1) for values in (own, other)
            )
            mapped = wide(projection(student.to(projection.weight.dtype)))
            near = _local(self._graph(student), self._graph(teacher))
            same = _global(of_length_one(mapped), of_length_one(teacher.to(mapped.dtype)), self.temperature)
            of_tokens = self.local_weight * near + self.global_weight * same
            terms.append(self.inner_weight * _inner(own, other) + of_tokens.reshape(places.shape[:2]).mean(1))
        return torch.stack(terms).sum(0)

    def _graph(self, tokens: Tensor) -> Tensor:
        """(M, M) how near the nearest of the other tokens lie to each; 0 for the others."""
        count = len(tokens)
        cosines = products(of_length_one(tokens))
        itself = torch.eye(count, dtype=torch.bool, device=tokens.device)
        nearest, places = cosines.masked_fill(itself, -math.inf).topk(min(self.neighbours, count - 1), dim=1)
        # The squared distance of two vectors of length one is 2 - 2 cos.
        graph = torch.zeros_like(cosines).scatter(1, places, ((nearest - 1) / self.bandwidth).exp())
        return graph.masked_fill(itself, _NEVER)


def _inner(own: Tensor, other: Tensor) -> Tensor:
    """(N,) mean squares of what the (N, places, channels) of two networks differ in how alike the places are."""
    with torch.autocast(own.device.type, enabled=False):
        ours, theirs = (((x / math.sqrt(x.shape[2])) @ x.mT).softmax(2) for x in (own, other))
    return (ours - theirs).square().mean((1, 2))


def _local(graph: Tensor, teacher_graph: Tensor) -> Tensor:
    """(M,) divergences of two (M, M) graphs."""
    logs, teacher_logs = graph.log_softmax(1), teacher_graph.log_softmax(1)
    return (logs.exp() * (logs - teacher_logs)).sum(1)


def _global(mapped: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(M,) cross entropies of finding each of the teacher's tokens among all by the student's."""
    with torch.autocast(mapped.device.type, enabled=False):
        scores = mapped @ teacher.T / temperature
    return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device), reduction="none")
