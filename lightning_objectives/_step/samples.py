"""Finds out which sample of the batch each element of a criterion's call belongs to."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_objectives._step.batch import tensors_of
from lightning_objectives._step.calls import Call
from lightning_objectives._step.trace import (
    CASTS,
    INDICATORS,
    JOINS,
    RESIZES,
    SELECTIONS,
    SHAPES,
    VALUES,
    Node,
    Replay,
    Trace,
)

_WAY_OUT = (
    "Say batch_size= (a number, or the path of one in the batch), sample_dim= (the dimension of the criterion's input "
    "that counts the samples), answer `objective_batch_size(batch)` with the mixin, or use unit='element'."
)


@dataclass(frozen=True, eq=False)
class Samples:
    """Which sample each element belongs to."""

    count: int
    ids: Tensor | None = None
    """The number of the sample of each element; None if the first dimension counts the samples."""
    has_all: bool = False
    """Whether it is known that each sample has an element."""


@dataclass(frozen=True)
class Sizes:
    """What is known of the number of samples in a batch."""

    told: int | None
    """What the user says."""
    loader: frozenset[int]
    """How many items the data loader puts into a batch: its ``batch_size``, or what is left for the last one."""
    batch: frozenset[int]
    """The lengths of the tensors in the batch."""

    @property
    def possible(self) -> frozenset[int]:
        """The numbers that it may be."""
        if self.told is not None:
            return frozenset({self.told})
        return self.loader & self.batch or self.loader | self.batch

    @staticmethod
    def of(batch: Any, told: int | None, loader: frozenset[int]) -> "Sizes":
        """Read a batch."""
        lengths = frozenset(len(tensor) for tensor in tensors_of(batch))
        return Sizes(told, loader, lengths | (_list_sizes(batch) & loader))

    def __str__(self) -> str:
        if self.told is not None:
            return f"you say that the batch has {self.told} samples"
        loader = f"the data loader gives {sorted(self.loader)} samples a batch, and " if self.loader else ""
        return f"{loader}the tensors of the batch have the lengths {sorted(self.batch)}"


def _list_sizes(batch: Any) -> frozenset[int]:
    """The lengths of lists with one item for each sample, such as images of several sizes.

    A pair of two tensors is the batch itself, and not a list of two samples.
    """
    if not isinstance(batch, (tuple, list)):
        return frozenset()
    inner = frozenset(len(item) for item in batch if isinstance(item, (tuple, list)))
    return inner | (frozenset() if any(isinstance(item, Tensor) for item in batch) else frozenset({len(batch)}))


def loader_sizes(loaders: Any) -> frozenset[int]:
    """How many samples the batches of a data loader, or of several, may have; empty if that is unknown."""
    if isinstance(loaders, Mapping):
        return frozenset().union(*map(loader_sizes, loaders.values()))
    if isinstance(loaders, (list, tuple)):
        return frozenset().union(*map(loader_sizes, loaders))
    size = getattr(loaders, "batch_size", None)
    if not isinstance(size, int):
        return frozenset()
    try:
        total = len(loaders.sampler)
    except (AttributeError, TypeError):
        return frozenset({size})
    rest = total % size
    return frozenset({size} if total >= size else ()) | ({rest} if rest and not loaders.drop_last else set())


@dataclass(eq=False)
class SampleFinder:
    """Finds the samples of each batch of a fit; what one batch has proved settles later batches that leave a doubt.

    The paths from the tensors of the batch to the criterion's target, and from the head's output to its input, are
    recorded. A tensor with the number of the sample in place of each number, sent along the same path, says which
    sample each element belongs to. Which dimension counts the samples where a path begins is known from its length.
    """

    sample_dim: int | None = None
    axes: dict[tuple[bool, int], int] = field(default_factory=dict)
    """The dimension that counts the samples where a path begins, as an earlier batch has proved: by whether it begins
    in the batch, and by the number of dimensions there."""
    is_plain: bool = False
    """Whether an earlier batch has proved that the first dimension of the losses counts the samples."""
    _known: dict[Any, tuple[Tensor, bool] | None] = field(default_factory=dict)
    _told: bool = False

    def find(self, call: Call, compared: Call, elements: Tensor, sizes: Sizes, trace: Trace) -> Samples:
        """Find the samples of one call.

        Args:
            call: the call, as changed by callbacks.
            compared: the user's own call, whose input and target were recorded.
            elements: the losses of the call.
            sizes: what is known of the number of samples.
            trace: the recorded paths.

        Raises:
            ValueError: they are unknown.
        """
        shape = elements.shape
        if not shape:
            raise ValueError(
                "The criterion compares one sample without a batch dimension, so there are no rows. Add a batch "
                "dimension."
            )
        if self.sample_dim is not None:
            return self._along(elements, self.sample_dim - (self.sample_dim > 1 and call.by_class), sizes)
        ends = [trace.node_of(tensor) for tensor in (compared.compared_with, compared.input)]
        paths = [node for node in ends if node is not None and node.obstacle is None and len(node.roots()) == 1]
        for node in paths:
            found = self._traced(call, shape, node, sizes)
            if found is not None:
                return found
        if shape[0] in sizes.possible and (self.is_plain or not self._rivals(shape, sizes)):
            return Samples(shape[0])
        obstacles = [node.obstacle for node in ends if node is not None and node.obstacle is not None]
        why = f", because your code applies {obstacles[0]!r}" if obstacles else ""
        raise ValueError(
            f"It is unknown which of the criterion's losses {tuple(shape)} belong to one sample: the criterion compares"
            f" {shape[0]} rows, and {sizes}. Neither the way of the target from the batch nor that of the logits from "
            f"the head shows it{why}. {_WAY_OUT}"
        )

    @staticmethod
    def _rivals(shape: torch.Size, sizes: Sizes) -> list[int]:
        """The other numbers of samples, and dimensions of the losses, that would be possible too."""
        others = [n for n in sizes.possible if n != shape[0] and (n in shape or shape[0] % max(n, 1) == 0)]
        return others + [n for n in shape[1:] if n == shape[0] and n > 1]

    def _along(self, elements: Tensor, dim: int, sizes: Sizes) -> Samples:
        shape = elements.shape
        if dim >= len(shape) or (sizes.told is not None and shape[dim] != sizes.told):
            raise ValueError(
                f"sample_dim={self.sample_dim} does not fit: the criterion's losses have the shape {tuple(shape)}"
                + (f", and you say that the batch has {sizes.told} samples." if sizes.told is not None else ".")
                + " Count the dimensions of the criterion's input from 0."
            )
        if dim == 0:
            return Samples(shape[0])
        numbers = torch.arange(shape[dim], device=elements.device).view(-1, *[1] * (len(shape) - dim - 1))
        return Samples(shape[dim], numbers.expand(shape), elements.numel() > 0)

    def _traced(self, call: Call, shape: torch.Size, node: Node, sizes: Sizes) -> Samples | None:
        """The samples by one path; None if it does not show them."""
        (root,) = node.roots()
        lengths, key = root.tensor.shape, (root.of_batch, root.tensor.dim())
        known = self.axes.get(key)
        axes = [axis for axis, length in enumerate(lengths) if length in sizes.possible] if known is None else [known]
        proofs = {axis: proof for axis in axes if (proof := self._ids(call, shape, node, root, axis)) is not None}
        distinct = [a for a in proofs if not any(b < a and torch.equal(proofs[a][0], proofs[b][0]) for b in proofs)]
        if len(distinct) > 1:
            distinct = [axis for axis in distinct if lengths[axis] in sizes.loader] or distinct
        if len(distinct) > 1 and len({lengths[axis] for axis in distinct}) == 1 and distinct[0] == 0:
            self._tell(root, distinct)
            distinct = [0]
        if len(distinct) != 1:
            return None
        axis, count, (ids, has_all) = distinct[0], lengths[distinct[0]], proofs[distinct[0]]
        if sizes.told is not None and count != sizes.told:
            return None
        if known is None:  # Later batches do not wait for the device again.
            self.axes[key] = axis
            first = torch.arange(shape[0], device=ids.device).view(-1, *[1] * (len(shape) - 1))
            self.is_plain = _keeps_places(node) and shape[0] == count and bool((ids == first).all())
        return Samples(count) if self.is_plain and shape[0] == count else Samples(count, ids, has_all)

    def _tell(self, root: Node, axes: list[int]) -> None:
        if not self._told:
            self._told = True
            where = "a tensor of the batch" if root.of_batch else "the head's output"
            rank_zero_warn(
                f"The dimensions {axes} of {where} {tuple(root.tensor.shape)} have the length of the batch. The first "
                "is taken to count the samples, as is usual; say sample_dim= if another one does."
            )

    def _ids(self, call: Call, elements: torch.Size, node: Node, root: Node, axis: int) -> tuple[Tensor, bool] | None:
        """The sample of each element, if dimension ``axis`` of the root counts them; None if they mix.

        The flag says whether each sample is known to have an element. It is asked only where the answer is kept.
        """
        key = axis, elements, root.of_batch, _signature(node)
        if key in self._known:
            return self._known[key]
        shape = root.tensor.shape
        numbers = torch.arange(shape[axis], device=root.tensor.device)
        start = numbers.view(-1, *[1] * (len(shape) - axis - 1)).expand(shape)
        known: tuple[Tensor, bool] | None = None
        with suppress(_MixedError, RuntimeError):  # RuntimeError: of other shapes
            ids = Replay(root, start, _numbers)(node)
            if call.by_class and ids.dim() == len(elements) + 1:
                ids = _constant(ids, (call.class_dim or 0) % ids.dim() if ids.dim() > 1 else 0)
            ids = _reduced(ids, elements)
            if not bool((ids < 0).any()):  # Rows of no sample are such as those of a memory.
                has_all = key[-1] is not None and torch.zeros_like(numbers).index_fill_(0, ids.flatten(), 1).all()
                known = ids, bool(has_all)
        if key[-1] is not None:
            self._known[key] = known
        return known


def _keeps_places(node: Node) -> bool:
    """Whether nothing on the path to a node moves, drops or reshapes anything."""
    return node.function is None or (node.name in CASTS | VALUES and all(map(_keeps_places, node.sources())))


class _MixedError(Exception):
    """One number comes from several samples."""


def _signature(node: Node) -> Any:
    """What the samples of a path depend on; None if that is the values of a tensor."""
    parts: list[Any] = []

    def add(value: Any) -> None:
        if isinstance(value, (Node, Tensor)):
            parts.append(None)
        elif isinstance(value, dict):
            for item in value.values():
                add(item)
        elif isinstance(value, (tuple, list)):
            for item in value:
                add(item)
        else:
            parts.append(str(value))

    def visit(node: Node) -> None:
        parts.append((node.name, node.position, node.tensor.shape))
        if node.function is not None:
            for source in node.sources():
                visit(source)
            if node.name not in CASTS | VALUES | JOINS:
                add((node.args[1:], node.kwargs))

    visit(node)
    return None if None in parts else tuple(parts)


def _numbers(node: Node, of: Callable[[Node], Any]) -> Any:
    """Do to the numbers of the samples what an operation does to the places of logits, and not to their values."""
    shape, others = node.tensor.shape, node.sources()
    if node.name in CASTS:
        return of(others[0])
    if node.name in VALUES:
        operands = [of(other).expand(shape) for other in others]
        if not all(torch.equal(operands[0], other) for other in operands[1:]):
            raise _MixedError
        return operands[0]
    if node.name in INDICATORS:
        return of(others[0]).unsqueeze(-1).expand(shape)
    if node.name in RESIZES:
        numbers = of(others[0])
        for dim in range(2, numbers.dim()):
            numbers = _constant(numbers, dim).unsqueeze(dim)
        return numbers.expand(shape)
    if node.name in SHAPES:
        numbers = of(others[0])
        if _has_equal_columns(numbers) and numbers.shape[-1] == shape[-1]:  # Without a copy for each column.
            return numbers[..., :1].reshape(*shape[:-1], 1).expand(shape)
        return numbers.reshape(shape)
    if node.name in JOINS:
        parts = [
            of(part) if isinstance(part, Node) else torch.full_like(part, -1, dtype=torch.int64)
            for part in node.args[0]
        ]
        return node.function(parts, *node.args[1:], **node.kwargs)  # type: ignore[misc]  # every operation has one
    if node.name in SELECTIONS and _has_equal_columns(of(others[0])):
        try:
            thin = node.run(lambda other: of(other)[..., :1], first_alone=True)
            if thin.shape == (*shape[:-1], 1):
                return thin.expand(shape)
        except (RuntimeError, IndexError):
            pass  # It selects among the columns.
    return node.run(of, first_alone=True)


def _has_equal_columns(numbers: Tensor) -> bool:
    return numbers.dim() > 1 and numbers.stride(-1) == 0


def _reduced(numbers: Tensor, shape: torch.Size) -> Tensor:
    """Drop dimensions along which all numbers are equal, until the shape is that of the losses."""
    results: list[Tensor] = []
    for dims in combinations(range(numbers.dim()), max(0, numbers.dim() - len(shape))):
        rest = [size for dim, size in enumerate(numbers.shape) if dim not in dims]
        if all(size in (1, other) for size, other in zip(rest, shape)):
            with suppress(_MixedError):
                result = numbers
                for dim in reversed(dims):
                    result = _constant(result, dim)
                results.append(result.expand(shape))
    if not results or not all(torch.equal(results[0], other) for other in results[1:]):
        raise _MixedError
    return results[0]


def _constant(numbers: Tensor, dim: int) -> Tensor:
    """Drop a dimension along which all numbers are equal, but for those of no sample."""
    if not numbers.shape[dim]:
        raise _MixedError
    if numbers.stride(dim) == 0:
        return numbers.select(dim, 0)
    largest = numbers.amax(dim, keepdim=True)
    if not bool(((numbers == largest) | (numbers < 0)).all()):
        raise _MixedError
    return largest.squeeze(dim)
