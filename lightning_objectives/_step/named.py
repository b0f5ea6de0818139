"""Takes apart the calls of a criterion that the user names by its path."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_objectives._step.arguments import loss_in, places_of, problem_of
from lightning_objectives._step.calls import Call
from lightning_objectives._trainer.patch import ClassPatch, Patch
from lightning_objectives._trainer.random import private_stream
from lightning_objectives.kinds import Problem

SHOWN = "a named criterion shows only by its gradients what it makes of its rows, in each batch anew"
"""Why a step with a named criterion waits for the device."""


class Named:
    """A criterion that the user names by its path: any function or module that returns a loss.

    Args:
        module: the LightningModule.
        path: the path of the criterion from there.

    Raises:
        ValueError: there is nothing callable under that path.
    """

    def __init__(self, module: Any, path: str) -> None:
        self.module = module
        self.path = path
        *parents, self._name = path.split(".")
        owner: Any = module
        for part in parents:
            owner = getattr(owner, part, None)
        self._owner = owner
        self.criterion = getattr(owner, self._name, None)
        if not callable(self.criterion):
            children = ", ".join(name for name, _ in module.named_children())
            raise ValueError(
                f"criterion={path!r} names nothing callable on {type(module).__name__}, so there is no call to catch. "
                f"Its children are: {children}."
            )
        self.proved: set[Any] = set()
        """The shapes of arguments for which a batch has proved that the criterion acts row by row."""
        self.problem: Problem | None = None
        """What the targets of a batch have shown."""
        self.by_vmap = True
        """Whether the losses of single rows come from one vectorized call; else from one call for each row."""

    def patch(self, around: Callable[..., Any]) -> Patch | ClassPatch:
        """Call ``around(inner, *args, **kwargs)`` in place of the criterion."""
        if not isinstance(self.criterion, nn.Module):
            return Patch(self._owner, self._name, around)
        if type(self.criterion).__call__ is not nn.Module.__call__:
            return ClassPatch(self.criterion, around)
        return Patch(self.criterion, "forward", around)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor) -> Call:
        """Read the arguments of a call that returned ``value``.

        Raises:
            ValueError: no tensor is among the arguments.
        """
        return NamedCall(self, function, args, kwargs, value)

    @contextmanager
    def quiet(self, device: torch.device) -> Iterator[None]:
        """Let the criterion run once more without a trace: no logging, no draws, no changed buffers."""
        names = ("log", "log_dict")
        silent = [Patch(self.module, name, lambda *_, **__: None) for name in names if hasattr(self.module, name)]
        buffers = list(self.criterion.buffers()) if isinstance(self.criterion, nn.Module) else []
        before = [buffer.clone() for buffer in buffers]
        try:
            with private_stream(0, device), torch._C.DisableTorchFunction():
                yield
        finally:
            for buffer, value in zip(buffers, before):
                buffer.data.copy_(value)
            for patch in silent:
                patch.remove()


class NamedCall(Call):
    r"""One call of a criterion that the user names.

    If the criterion returns one loss for each row, these are its elements. If it returns one number V, the element
    :math:`\ell_i` of row i is what the criterion returns for that row alone. Row i then has the share
    :math:`d_i` in V that solves :math:`\partial V / \partial z_i = d_i \, \partial \ell_i / \partial z_i`, and weights
    turn V into :math:`V + \sum_i d_i (w_i - 1) \ell_i`. So the divisor need not be known: it may be the number of rows,
    the sum of class weights, or the number of rows that a mask keeps. If no such share exists, the criterion does not
    act row by row.
    """

    def __init__(
        self, named: Named, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], value: Tensor
    ) -> None:
        self.named, self.function, self._value = named, function, value
        self.name = named.path
        self.leaves, self._spec = tree_flatten((args, kwargs))
        self._obstacle = ""
        """Why the losses of single rows do not come from one vectorized call."""
        self._places = places_of(function, args, kwargs, self.leaves, self._spec)
        if not self._places:
            raise ValueError(
                f"Your code calls criterion={named.path!r} without a tensor of predictions, so there is nothing to "
                "read. Name the function that compares predictions with targets."
            )
        self.input: Tensor = self.leaves[self._places[0]]
        self._target: Tensor | None = self.leaves[self._places[1]] if len(self._places) > 1 else None
        self.class_dim = self._class_dim()
        self.by_class = self.class_dim is not None

    def _class_dim(self) -> int | None:
        target, shape = self._target, self.input.shape
        if target is None or target.is_floating_point() or target.dim() != len(shape) - 1:
            return None
        return 1 if target.shape == shape[:1] + shape[2:] else -1 if target.shape == shape[:-1] else None

    @property
    def target(self) -> Tensor:  # type: ignore[override]  # an attribute that is computed
        """The tensor that the criterion compares its input with.

        Raises:
            ValueError: there is none.
        """
        if self._target is None:
            raise ValueError(
                f"Your code calls criterion={self.name!r} with one tensor, so there is no target. Use a method that "
                "does not ask for it, or name the function that compares predictions with targets."
            )
        return self._target

    @property
    def compared_with(self) -> Tensor | None:
        """The target; None if there is none."""
        return self._target

    def table(self, tensor: Tensor) -> Tensor:
        """The input, or a target of its shape, as (rows, C)."""
        return tensor.flatten(0, -2) if self.class_dim == -1 else super().table(tensor)

    @property
    def problem(self) -> Problem | None:
        """Classes if the target holds the indices of classes, else what its numbers show in the first batch."""
        if self.by_class:
            return "classes"
        if self.named.problem is None and self._target is not None and self._target.shape == self.input.shape:
            self.named.problem = problem_of(self._target)
        return self.named.problem

    def value(self) -> Tensor:
        """What the criterion returned to the user's code."""
        return self._value

    @property
    def acts_by_element(self) -> bool:
        """Whether the criterion returns its losses unreduced."""
        return self._value.dim() > 0 and len(self._value) == len(self.input)

    @cached_property
    def reduction(self) -> str:  # type: ignore[override]
        """How the criterion reduces the losses of its rows.

        Raises:
            ValueError: it is neither their mean nor their sum.
        """
        if self.acts_by_element:
            return "none"
        _, shares, known = self._split
        rows = len(shares)
        for name, share in (("mean", 1 / rows), ("sum", 1.0)):
            if torch.allclose(shares[known], torch.full_like(shares[known], share), rtol=1e-2):
                return name
        raise ValueError(
            f"criterion={self.name!r} gives its {rows} rows shares from {shares.min():.4g} to {shares.max():.4g} in "
            "its value, which is neither their mean nor their sum: it weights or masks them in a way that a "
            "replacement does not know. Let the criterion return unreduced losses, or remove the callback that "
            "replaces it."
        )

    @property
    def is_reduced(self) -> bool:
        """Whether the criterion returns one number."""
        return not self.acts_by_element

    @property
    def divides(self) -> bool:
        """False: the shares of the rows hold the divisor."""
        return False

    @property
    def elements(self) -> Tensor:
        """The losses of the rows."""
        if not self.acts_by_element:
            return self._split[0]
        self._check_unreduced()
        return self._value

    def _check_unreduced(self) -> None:
        """Prove that a value with one entry for each row has the losses of the rows, and not of as many classes."""
        key = self._value.shape, self.input.shape
        if key in self.named.proved or len(self._value) < 2 or not self._value.requires_grad:
            return
        first = torch.autograd.grad(self._value[0].sum(), self.input, retain_graph=True, materialize_grads=True)[0]
        if bool((first[1:] != 0).any()):
            raise ValueError(
                f"criterion={self.name!r} does not act row by row: the first of the {len(self._value)} numbers that it "
                "returns depends on other rows too. So there are no per-sample losses. Name a criterion that acts row "
                "by row, or use a method that does not need per-sample losses."
            )
        if bool((first[0] != 0).any()):
            self.named.proved.add(key)

    @cached_property
    def valid(self) -> Tensor | None:
        """Which rows have a share in the value; None if all have one."""
        if self.acts_by_element:
            return None
        _, shares, known = self._split
        counts = (shares != 0) | ~known
        return None if counts.all() else counts

    @property
    def counted(self) -> Tensor | None:
        """Which targets are not to be ignored, if the criterion has an ``ignore_index``; None if all count."""
        ignored = getattr(self.named.criterion, "ignore_index", None)
        return self.target != ignored if self.indexed and isinstance(ignored, int) else None

    def summed(self, weights: Tensor) -> Tensor:
        """The value with other weights of its rows."""
        if self.acts_by_element:
            return super().summed(weights)
        losses, shares, _ = self._split
        change = torch.where(shares == 0, 0.0, shares * (weights - 1) * losses)
        return self._value + change.sum().view_as(self._value)

    def on(self, substitute: Callable[[Tensor], Tensor]) -> "NamedCall":
        """The same call with other tensors in place of its own."""
        leaves = [substitute(leaf) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return self if all(new is old for new, old in zip(leaves, self.leaves)) else self._with(leaves)

    def with_targets_of(self, rows: Tensor) -> "NamedCall":
        """The same call with the targets of other rows."""
        leaves, target = list(self.leaves), self.target
        leaves[self._places[1]] = target[rows]
        return self._with(leaves)

    def _with(self, leaves: list[Any]) -> "NamedCall":
        args, kwargs = tree_unflatten(leaves, self._spec)
        with self.named.quiet(self.input.device):
            value, _ = loss_in(self.function(*args, **kwargs), self.name)
        return NamedCall(self.named, self.function, args, kwargs, value)

    # -- the losses of single rows -------------------------------------------------------------------------------------

    @cached_property
    def _split(self) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) losses of single rows, their shares in the value, and which shares are known by their gradients."""
        rows = len(self.input)
        every = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor) and leaf.shape[:1] == (rows,)]
        compared = [i for i in every if i in self._places[:2]]
        refusal = ""
        for by_row in [every] if every == compared else [every, compared]:
            try:
                losses = self._losses_of_rows(by_row)
            except Exception as error:
                refusal = f"for one row alone it fails ({type(error).__name__}: {error})"
                continue
            self._tell()
            shares, known, off = self._shares(losses, by_row)
            key = tuple(leaf.shape if isinstance(leaf, Tensor) else None for leaf in self.leaves), tuple(by_row)
            if key in self.named.proved:
                return losses, shares, known
            worst = int(off.argmax())
            if off[worst] < (1e-3 if self.input.dtype in (torch.float32, torch.float64) else 5e-2):
                if rows > 1 and known.sum() > 1:  # One row, or rows without a gradient, prove nothing.
                    self.named.proved.add(key)
                return losses, shares, known
            refusal = f"the gradient of row {worst} in the batch is no multiple of its gradient alone"
        raise ValueError(
            f"criterion={self.name!r} does not act row by row: {refusal}. So there are no per-sample losses. Name a "
            "criterion that acts row by row, or use a method that does not need per-sample losses."
        )

    def _losses_of_rows(self, by_row: list[int]) -> Tensor:
        def loss_of(*rows: Tensor) -> Tensor:
            leaves = list(self.leaves)
            for i, row in zip(by_row, rows):
                leaves[i] = row[None]
            args, kwargs = tree_unflatten(leaves, self._spec)
            return loss_in(self.function(*args, **kwargs), self.name)[0].reshape(())

        columns = [self.leaves[i] for i in by_row]
        with self.named.quiet(self.input.device):
            if self.named.by_vmap:
                try:
                    return torch.func.vmap(loss_of)(*columns)
                except Exception as error:
                    self._obstacle = str(error).strip().partition("\n")[0]
            return torch.stack([loss_of(*rows) for rows in zip(*columns)])

    def _tell(self) -> None:
        """Say once that the losses of single rows are slow here."""
        if self._obstacle and self.named.by_vmap:
            self.named.by_vmap = False
            rank_zero_warn(
                f"criterion={self.name!r} cannot be vectorized over rows ({self._obstacle}), so it is called once for "
                f"each of the {len(self.input)} rows of every batch, which is slow. Values are right."
            )

    def _shares(self, losses: Tensor, by_row: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) shares, which of them the gradients show, and how far each row is from having one."""
        inputs = [self.leaves[i] for i in by_row if self.leaves[i].requires_grad]
        sums = self._value.sum(), torch.where(losses.isfinite(), losses, 0.0).sum()
        wide = torch.float64 if losses.device.type == "cpu" else torch.float32

        def gradient(total: Tensor) -> Tensor:
            """(N, D): of a sum, at the inputs of each row."""
            parts = torch.autograd.grad(total, inputs, retain_graph=True, materialize_grads=True)
            return torch.cat([part.reshape(len(part), -1).to(wide) for part in parts], 1)

        whole, alone = map(gradient, sums)
        size, scale = alone.norm(dim=1), alone.norm(dim=1).amax().clamp_min(1e-30)
        known = size > 1e-6 * scale
        shares = torch.where(known, (whole * alone).sum(1) / size.square().clamp_min(1e-60), 0.0)
        off = (whole - shares[:, None] * alone).norm(dim=1) / whole.norm(dim=1).amax().clamp_min(1e-30)
        masked = losses.isnan() & (whole.norm(dim=1) == 0)  # The mean over no element is NaN.
        # Rows without a gradient get the mean share: it changes the value and no gradient.
        mean = torch.where(known, shares, 0.0).sum() / known.sum().clamp_min(1)
        shares = torch.where(known | masked, shares, torch.where(known.any(), mean, 1 / len(shares)))
        return shares.to(losses.dtype).detach(), known | masked, off
