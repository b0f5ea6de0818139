"""CKA, the similarity of the features of two networks."""

from typing import Any

import torch
from torch import Tensor

from lightning_objectives.metrics._sums import WITHOUT_FLOAT64, Sums
from lightning_objectives.shapes import check_shapes

_LEAST = 1e-10
"""The least share of a self-similarity in the sums that it is computed from: what is less is rounding."""


def linear_cka(features: Tensor, teacher_features: Tensor, *, debiased: bool = True) -> Tensor:
    r"""Compute how alike two networks arrange the same samples: 1 for features that differ by a rotation and a scale.

    With the centred features :math:`x_i` and :math:`y_i` of the two networks, the rows of :math:`X` and :math:`Y`,

    .. math::
        \begin{aligned}
        \operatorname{CKA} &= \frac{S(X, Y)}{\sqrt{S(X, X)\, S(Y, Y)}} \\
        S(X, Y) &= \lVert X^\top Y \rVert^2 - \frac{N}{N - 2} \sum_i \lVert x_i \rVert^2 \lVert y_i \rVert^2
        + \frac{\lVert X \rVert^2 \lVert Y \rVert^2}{(N - 1)(N - 2)}
        \end{aligned}

    where :math:`S / (N (N - 3))` is an unbiased estimate of HSIC. The biased form has
    :math:`S(X, Y) = \lVert X^\top Y \rVert^2` alone; it is too high if there are few rows for the number of features.

    Args:
        features: (N, D), in any float type; computed in float64.
        teacher_features: (N, D') of the same samples, in the same order.
        debiased: whether to remove the bias of few rows.

    Returns:
        () float32 in [-1, 1], or in [0, 1] if biased; independent features give 0 on average. NaN for fewer than 4 rows
        (2 if biased), for features that are equal in all rows or not finite, and where :math:`S(X, X)` is less than
        1e-10 of :math:`\lVert X^\top X \rVert^2`, so that it is rounding.

    Raises:
        ValueError: shapes that do not fit.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [1.0, 3.0], [0.0, 0.0]])
        >>> y = torch.tensor([[1.0], [0.0], [2.0], [1.0], [1.0]])
        >>> linear_cka(x, y), linear_cka(x, y, debiased=False), linear_cka(x, 3 * x.flip(1) + 5)
        (tensor(0.5222), tensor(0.2954), tensor(1.))

    Paper: Kornblith et al., Similarity of Neural Network Representations Revisited, ICML 2019,
    https://arxiv.org/abs/1905.00414; the unbiased estimate in place of the biased one is that of Nguyen, Raghu and
    Kornblith, Do Wide and Deep Networks Learn the Same Things?, ICLR 2021, equation 3,
    https://arxiv.org/abs/2010.15327. The formula is that of the first authors' code (google-research,
    ``representation_similarity/Demo.ipynb``). Not checked at the source: the number of the second paper's equation.

    Differs from the second paper: the estimate is one over all rows, in place of a mean over small batches, so that the
    value does not depend on their size.
    """
    check_shapes(features=features, teacher_features=teacher_features)
    if not len(features):
        return features.new_full((), torch.nan, dtype=torch.float32)
    return _similarity(_moments(features, teacher_features), debiased).to(features.device)


def _moments(x: Tensor, y: Tensor, origin: Tensor | None = None) -> Tensor:
    """The sums of some rows, (K + 1, K) with K = D + D' + 3: the row that they are about, and the sums of z zᵀ.

    z is (1, x, y, ‖x‖², ‖y‖²), with x and y less the row that they are about, so that a mean far from 0 costs no
    digits. z zᵀ then holds the count, the sums, the products, and those with the squared norms. Before x and y of the
    row itself stands D.
    """
    wide = torch.float32 if x.device.type in WITHOUT_FLOAT64 else torch.float64
    x, y = x.detach().to(wide), y.detach().to(wide)
    if origin is None:
        origin = torch.cat([x.new_full((1,), x.shape[1]), x[0], y[0], x.new_zeros(2)])
    x, y = x - origin[1 : 1 + x.shape[1]], y - origin[1 + x.shape[1] : -2]
    z = torch.cat([x.new_ones(len(x), 1), x, y, _squares(x), _squares(y)], 1)
    return torch.cat([origin[None], z.T @ z])


def _squares(x: Tensor) -> Tensor:
    return x.square().sum(1, keepdim=True)


def _about(products: Tensor, by: Tensor, width: int) -> Tensor:
    """The sums of z zᵀ about a row that lies at ``by``, (D + D',), from that which they are about."""
    for _ in range(2):  # T (T M)ᵀ = T M Tᵀ, where T z is the new z
        count, x, y, norms = products[:1], products[1 : 1 + width], products[1 + width : -2], products[-2:]
        steps = by[:width], by[width:]
        norms = norms + torch.cat([d.square().sum() * count - 2 * (d @ v) for d, v in zip(steps, (x, y))])
        moved = [part - d[:, None] * count for part, d in zip((x, y), steps)]
        products = torch.cat([count, *moved, norms]).T
    return products


def _merged(parts: Tensor) -> Tensor:
    """The sums (K + 1, K) of all rows, from those of several processes (R, K + 1, K), about the row of the first."""
    origin, width = parts[0, 0], int(parts[0, 0, 0])
    total = sum(_about(part[1:], (origin - part[0])[1:-2], width) for part in parts)
    assert isinstance(total, Tensor)  # there is one part or more
    return torch.cat([origin[None], total])


def _similarity(sums: Tensor, debiased: bool) -> Tensor:
    """The value, () float32 on the CPU."""
    sums = sums.cpu().double()
    width, raw, count = int(sums[0, 0]), sums[1:], sums[1, 0]
    if count < (4 if debiased else 2):
        return torch.full((), torch.nan)
    places = slice(1, 1 + width), slice(1 + width, -2)
    centred = _about(raw, raw[0, 1:-2] / count, width)

    def similarity(a: int, b: int) -> Tensor:
        value = centred[places[a], places[b]].square().sum()
        if not debiased:
            return value
        norms = centred[0, a - 2] * centred[0, b - 2] / ((count - 1) * (count - 2))
        return value - count / (count - 2) * centred[a - 2, b - 2] + norms

    selves = torch.stack([similarity(0, 0), similarity(1, 1)])
    least = _LEAST * torch.stack([raw[place, place].square().sum() for place in places])
    value = similarity(0, 1) / selves.prod().sqrt()
    return value.clamp(-1, 1).where((selves > least).all(), torch.nan).float()


class CKA(Sums):
    """Measures how alike the features of the network and of a teacher arrange the samples, whatever their sizes.

    The value is that of :func:`linear_cka` over all rows of all batches and ranks, in one pass. The metric keeps no
    row: it adds up the products of the features, and those with their squared norms, from which the value is exact.

    Args:
        debiased: whether to remove the bias of few rows.

    Raises:
        ValueError: in ``update``, shapes that do not fit, or other numbers of features than those before.

    Shapes of ``update``: features (N, D) and teacher_features (N, D'). ``LogMetrics(CKA(), teacher=...)`` passes the
    inputs of the heads of the two networks.

    When to use: to see whether a student comes to see the data as its teacher does, whether two seeds or depths learned
    the same, or how far fine-tuning moved a network from a copy of its start.
    Cost: a forward pass of the teacher, and the product of N x K x K numbers in float64 for each batch, with
    K = D + D' + 3. 8 K² bytes on each rank: 8 MB for two networks of 512 features, 134 MB for 2048.
    Interactions: a few features with a large variance decide the value: scale them first if they should not. A teacher
    that differs from the network by an invertible map that is no rotation does not give 1.

    Example:
        >>> metric = CKA()
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]]), torch.tensor([[1.0], [0.0], [2.0]]))
        >>> metric.update(torch.tensor([[1.0, 3.0], [0.0, 0.0]]), torch.tensor([[1.0], [1.0]]))
        >>> metric.compute()
        tensor(0.5222)

    Paper: see :func:`linear_cka`.
    """

    function = staticmethod(linear_cka)
    is_differentiable = False
    higher_is_better = True
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def __init__(self, *, debiased: bool = True) -> None:
        super().__init__(settings=str(debiased))
        self.debiased = debiased
        # A list of one tensor, because the sums of two ranks are about different rows and cannot be added as they are.
        self._name = "moments" + self._suffix
        self.add_state(self._name, [], dist_reduce_fx="cat")
        self._columns: tuple[int, int] | None = None
        """The numbers of features, so that no batch waits for the device to compare them."""

    def update(self, features: Tensor, teacher_features: Tensor) -> None:
        """Add a batch of features (N, D) and of the teacher's (N, D')."""
        check_shapes(features=features, teacher_features=teacher_features)
        if not len(features):
            return
        state: list[Tensor] = getattr(self, self._name)
        columns = features.shape[1], teacher_features.shape[1]
        if state and self._columns is None:  # the state is that of another metric, which this one was merged with
            width = int(state[-1][0, 0, 0])
            self._columns = width, state[-1].shape[2] - 3 - width
        if state and columns != self._columns:
            raise ValueError(
                f"features of the shape {tuple(features.shape)} and teacher_features of the shape "
                f"{tuple(teacher_features.shape)} do not fit those before, which had {self._columns} columns. Use one "
                "CKA for each."
            )
        self._columns = columns
        new = _moments(features, teacher_features, state[-1][0, 0] if state else None)[None]
        if state:
            new[:, 1:] += state.pop()[:, 1:]
        state.append(new)

    def _reduce_states(self, incoming_state: dict[str, Any]) -> None:
        super()._reduce_states(incoming_state)
        parts = self._joined("moments")
        setattr(self, self._name, [_merged(parts)[None]] if len(parts) else [])

    def compute(self) -> Tensor:
        """The similarity over all rows, () float32."""
        parts = self._joined("moments")
        value = _similarity(_merged(parts), self.debiased) if len(parts) else torch.full((), torch.nan)
        return value.to(self.device)
