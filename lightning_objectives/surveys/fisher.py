"""The diagonal of the Fisher information of a network."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from lightning_objectives.kinds import Survey
from lightning_objectives.shapes import check_shapes
from lightning_objectives.surveys._networks import check_rows_apart

Pull = Callable[[Tensor], tuple[dict[str, Tensor]]]
"""The gradients of the log-probabilities, each times a factor, by the names of the parameters."""


def fisher_sums(
    network: nn.Module, inputs: Tensor, target: Tensor, *, empirical: bool = False, chunk_size: int = 8
) -> dict[str, Tensor]:
    r"""Compute the sum over rows of each row's squared gradients of the log-likelihood.

    .. math::
        F_j = \sum_n \sum_c p_\theta(c | x_n) \left( \frac{\partial \log p_\theta(c | x_n)}{\partial \theta_j} \right)^2

    or, if ``empirical``, :math:`\sum_n (\partial_j \log p_\theta(y_n | x_n))^2` with the target :math:`y_n` of the row.
    Each row is squared by itself: the square of a batch's gradient is another quantity.

    Args:
        network: in evaluation mode; it maps (N, ...) inputs to (N, C) logits, or to (N, 1) logits of two classes.
        inputs: (N, ...).
        target: (N,) int classes or (N, C) float class probabilities :math:`t`, for which the empirical gradient is that
            of :math:`\sum_c t_c \log p_c`. If not ``empirical``, it only says how many rows there are.
        empirical: use the targets of the data in place of the labels that the network expects.
        chunk_size: the number of rows whose gradients are held at once, computed by ``torch.func.vmap``. With 1 there
            is no ``vmap``, so that any network works.

    Returns:
        the sum of each parameter, frozen ones too, in its shape, under its name (tied ones under each of their names),
        in float32 or wider.

    Raises:
        ValueError: shapes that do not fit; a network in training mode, whose rows depend on each other, that returns no
            logits, or that ``vmap`` cannot run; ``chunk_size`` below 1.

    Example:
        >>> network = nn.Linear(1, 2, bias=False).eval()
        >>> _ = nn.init.zeros_(network.weight)  # p = 1/2, and the gradient of log p_c is x (one_hot(c) - p)
        >>> fisher_sums(network, torch.tensor([[2.0], [4.0]]), torch.tensor([0, 1]))["weight"].T
        tensor([[5., 5.]])

    Paper: Matena and Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022, equation 3,
    https://arxiv.org/abs/2111.09832.

    Differs from the paper: it takes the expectation over all labels, as the paper's code does, and not over one that is
    drawn.
    """
    _check(chunk_size)
    check_shapes(inputs=inputs, target=target)
    check_rows_apart(network)
    names = {name: p for name, p in network.named_parameters(remove_duplicate=False) if p.is_floating_point()}
    params = {name: p.detach() for name, p in network.named_parameters() if p.is_floating_point()}
    sums = {name: torch.zeros_like(p, dtype=_wide(p.dtype)) for name, p in params.items()}
    for x, t in zip(torch.split(inputs.detach(), chunk_size), torch.split(target.detach(), chunk_size)):
        for name, squares in _squares(network, params, x, t, empirical, one_by_one=chunk_size == 1).items():
            sums[name] += squares
    first = {id(p): name for name, p in reversed(names.items()) if name in params}
    return {name: sums[first[id(p)]] for name, p in names.items()}


def _check(chunk_size: int) -> None:
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be >= 1; 1 takes the rows one by one, without vmap.")


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _squares(
    network: nn.Module, params: Mapping[str, Tensor], x: Tensor, target: Tensor, empirical: bool, *, one_by_one: bool
) -> dict[str, Tensor]:
    """The sums of the squared gradients of a few rows."""
    if one_by_one:
        with torch.enable_grad():
            leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
            log_p = _log_p(functional_call(network, leaves, (x,)))

            def pull(factors: Tensor) -> tuple[dict[str, Tensor]]:
                used = torch.autograd.grad(
                    log_p, list(leaves.values()), factors, retain_graph=True, materialize_grads=True
                )
                return (dict(zip(leaves, used)),)

            return _expected(log_p, pull, target[0], empirical) if len(x) else {}

    def of_row(row: Tensor, t: Tensor) -> dict[str, Tensor]:
        log_p, pull = vjp(lambda own: _log_p(functional_call(network, own, (row[None],))), dict(params))  # type: ignore[misc]  # no third value
        return _expected(log_p, pull, t, empirical)

    try:
        return {name: squares.sum(0) for name, squares in vmap(of_row)(x, target).items()}
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(
            f"torch.func.vmap cannot run {type(network).__name__} on each row by itself ({error}). Use chunk_size=1, "
            "which takes the rows one by one without it."
        ) from error


def _log_p(logits: Tensor) -> Tensor:
    """(C,) log-probabilities from the logits of one row."""
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        what = f"a tensor of the shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"The network must return (N, C) logits, but for one row it returns {what}.")
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], 1)
    return logits.to(_wide(logits.dtype)).log_softmax(1)[0]


def _expected(log_p: Tensor, pull: Pull, target: Tensor, empirical: bool) -> dict[str, Tensor]:
    """The squared gradients, in the mean over the labels, or for the target."""
    if empirical:
        is_class = not target.is_floating_point()
        factors = torch.zeros_like(log_p).scatter(0, target.long()[None], 1) if is_class else target
        return {name: g.to(_wide(g.dtype)).square() for name, g in pull(factors.to(log_p.dtype))[0].items()}
    labels = torch.eye(len(log_p), dtype=log_p.dtype, device=log_p.device)
    squares: dict[str, Tensor] = {}
    for label, log in zip(labels, log_p.detach()):
        for name, g in pull(label)[0].items():
            part = log.exp() * g.to(_wide(g.dtype)).square()
            squares[name] = squares[name] + part if name in squares else part
    return squares


class Fisher(Survey):
    """Measures how much each weight matters to a network, for merges and penalties that weigh weights by importance.

    The importance is the mean over the rows of :func:`fisher_sums`: the diagonal of the Fisher information.

    Args:
        empirical: use the targets of the data in place of the labels that the network expects. It is cheaper by the
            number of classes, but it is no Fisher information: it vanishes where the network fits its data.
        chunk_size: the number of rows whose gradients are held at once.

    Raises:
        ValueError: ``chunk_size`` below 1.

    When to use: after a training, with ``path="importance.safetensors"``, for ``FisherMerging``, which takes the file
    as its ``importance``. Some hundred rows are enough: see ``max_batches``.
    Cost: for each row one forward pass and C backward passes, or one if ``empirical``; memory of ``2 * chunk_size``
    networks.
    Interactions: the network must map one tensor to logits and treat each row by itself. It is in evaluation mode, so
    BatchNorm uses its running statistics. Buffers have no importance.

    Example:
        >>> survey, network = Fisher(empirical=True), nn.Linear(1, 2, bias=False).eval()
        >>> _ = nn.init.zeros_(network.weight)
        >>> inputs, target = torch.tensor([[2.0], [4.0]]), torch.tensor([0, 1])
        >>> survey.result(survey(network, inputs, target), rows=2)["weight"].T  # (2² + 4²) / 4 / 2
        tensor([[2.5000, 2.5000]])

    Paper: see :func:`fisher_sums`.
    """

    function = staticmethod(fisher_sums)
    problems = ("classes",)
    by_parameter = True

    def __init__(self, *, empirical: bool = False, chunk_size: int = 8) -> None:
        super().__init__()
        _check(chunk_size)
        self.empirical = empirical
        self.chunk_size = chunk_size

    def forward(self, network: nn.Module, inputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        """A network, its (N, ...) inputs and (N,) classes or (N, C) probabilities -> sums by parameter name."""
        return fisher_sums(network, inputs, target, empirical=self.empirical, chunk_size=self.chunk_size)

    def result(self, sums: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
        """The means over the rows, in float32."""
        return {name: (total / rows).float() for name, total in sums.items()}
