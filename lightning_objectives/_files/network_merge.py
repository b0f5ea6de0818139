"""Merges the tensors of one network, one at a time, by any merge."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor

from lightning_objectives._files.linear_merge import check_finite, merged_or_newest, merged_tensor, surely_finite, wide
from lightning_objectives._files.progress import Progress
from lightning_objectives._files.reading import check_match
from lightning_objectives._files.source import Source, first_names
from lightning_objectives.kinds import Merge, MergePiece

_PIECE = 2**17
"""How many elements a merge by elements or by rows gets at once, of rows about as many: few enough for the cache, and
enough for two threads or more."""

Evaluate = Callable[[dict[str, Tensor]], float]
"""Gives the score of a state dict; greater is better."""
Gradient = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
"""Gives the gradient of a loss at a state dict, by name; names that it leaves out do not count."""


class NetworkMerge:
    """Merges one tensor after the other; iterate over it to see all pieces of those that are not merged linearly.

    :meth:`prepare` it before you ask for tensors.

    Args:
        method: the merge.
        sources: the files, oldest first.
        steps: of the files.
        base: what the files were trained from, for a merge that asks for it.
        importance: of each file in turn, for a merge that asks for it.
        buffers: the tensors that are buffers. A merge that is not linear takes their plain mean.
        evaluate: gives the score of a state dict, for a merge that asks for it.
        gradient: gives the gradient of a loss at a state dict, for a merge that asks for it.
        seed: of all draws.
        prefetch: is called with the files and the name of a tensor that will be read next.
        visible: whether each iteration shows a progress bar.

    Raises:
        ValueError: what the merge asks for is missing, or does not fit the files.
    """

    def __init__(
        self,
        method: Merge,
        sources: Sequence[Source],
        steps: Sequence[int],
        *,
        base: Source | None = None,
        importance: Sequence[Source] | None = None,
        buffers: Collection[str] = (),
        evaluate: Evaluate | None = None,
        gradient: Gradient | None = None,
        seed: int = 0,
        prefetch: Callable[[Sequence[Source], str], object] | None = None,
        visible: bool = False,
    ) -> None:
        check_asked(method, {"base": base, "importance": importance, "evaluate": evaluate, "gradient": gradient})
        self.method = method
        self.sources = list(sources)
        """The files that have a part in the merge."""
        self.copied: list[str] = []
        """The buffers that are the newest file's, because they have no finite merge."""
        self.shares: list[float] | None = None
        """Of all files, if the merge is linear; None until a search has found them."""
        self._buffers = buffers
        self.base = base
        self.importance = importance
        self._seed = seed
        self._prefetch = prefetch
        self._visible = visible
        self._used = [1 / len(sources)] * len(sources)
        self._statistics: Any = None
        self._evaluate = evaluate
        self._gradient = gradient
        self._steps = steps
        if base is not None:
            check_match(base, sources[-1])
        if importance is not None:
            self._check_importance(importance)
        if method.linear and not method.searches():
            self.shares = self._used = method.coefficients(steps).tolist()
            self._check_shares()

    def prepare(self) -> None:
        """Compute what the merge must know of all tensors first: its statistics, or the shares that it searches."""
        score = self._evaluate
        if not self.method.linear:
            self._statistics = self.method.statistics(self)
        elif self.method.searches():
            one = self._slopes if score is None else lambda shares: score(self._trial(shares.tolist()))
            self.shares = self.method.search(one, self._steps).tolist()
            self._check_shares()
            # A file without a share may be damaged or of a failed training, so it is not read again.
            self.sources, self._used = _with_a_share(self.sources, self.shares)

    @property
    def newest(self) -> Source:
        """The newest file that has a part in the merge; it gives the types, the names and the whole numbers."""
        return self.sources[-1]

    @property
    def files(self) -> list[Source]:
        """All files that are read."""
        return [*self.sources, *([self.base] if self.base is not None else []), *(self.importance or [])]

    def tensor(self, name: str) -> Tensor:
        """Merge one tensor, in the newest's type.

        Raises:
            ValueError: the merge would not be finite, and the tensor is no buffer.
        """
        if self.is_linear(name):
            return merged_or_newest(name, self.sources, self._used, buffers=self._buffers, copied=self.copied)
        dtype, shape = self.newest.form(name)
        merged = torch.empty(shape, dtype=dtype)
        parts = self._parts(merged)
        digest = sha256(repr((self._seed, name)).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
        finite = True
        for part, piece in zip(parts, self._pieces(name)):
            options = {"generator": generator, "statistics": self._statistics}
            result = self.method.tensor(piece.weights, base=piece.base, importance=piece.importance, **options)
            if result.shape != part.shape:
                raise ValueError(
                    f"{self.method!r} merged {name} of the shape {tuple(part.shape)} into {tuple(result.shape)}: its "
                    "tensor(weights, ...) must keep the shape."
                )
            part.copy_(result)
            if not surely_finite(wide(part)):
                finite = False
                part.copy_(torch.where(_shared_infinities(piece), piece.weights[-1], result))
        if not finite:
            check_finite(name, merged, [*self.sources, *([self.base] if self.base is not None else [])])
        return merged

    def try_out(self, name: str, elements: int) -> int:
        """Merge about so many elements of a tensor as if it were the whole network, and return the bytes that it read.

        Raises:
            ValueError: the method refuses the tensor, or its merge is not finite.
        """
        if self.is_linear(name):
            merged_tensor(name, self.sources, self._used)
            return sum(source.tensor(name).nbytes for source in self.sources)
        size = 0
        for piece in self._pieces(name):
            generator = torch.Generator().manual_seed(self._seed)
            self.method.tensor(piece.weights, base=piece.base, importance=piece.importance, generator=generator)
            size += piece.weights[-1].numel()
            if size >= elements:
                break
        whole = [source.tensor(name).nbytes for source in self.files]
        return sum(whole) * size // torch.Size(self.newest.form(name)[1]).numel()

    def merged(self) -> dict[str, Tensor]:
        """The whole merge in memory, by plain name."""
        self.prepare()
        return {name: self.tensor(name).clone() for name in self.newest.keys}

    def __iter__(self) -> Iterator[MergePiece]:
        """Give all that is not merged linearly once; names that are tied in all files are one tensor.

        A method may skip what it does not need: the next tensor is read ahead only if the last pieces were all read.
        """
        first: dict[tuple[object, ...], str] = {}
        for name in self.newest.keys:
            if not self.is_linear(name):
                first.setdefault(self.storage_key(name), name)
        sizes = {name: torch.Size(self.newest.form(name)[1]).numel() for name in first.values()}
        with Progress(visible=self._visible) as progress:
            progress.begin(sum(sizes.values()) * len(self.files), stages=1)
            progress.stage("measuring")
            read = False
            for name, following in zip(sizes, [*list(sizes)[1:], None]):
                if read and following is not None and self._prefetch is not None:
                    self._prefetch(self.files, following)
                read = True
                for piece in self._pieces(name):
                    yield piece
                    read = read and getattr(piece.weights, "read", True)
                progress.add(sizes[name] * len(self.files))

    def storage_key(self, name: str) -> tuple[object, ...]:
        """Equal for names that are tied in every file."""
        return tuple(source.storage_key(name) for source in self.files)

    def is_linear(self, name: str) -> bool:
        """Whether a tensor is merged by shares, or copied because it holds whole numbers."""
        dtype = self.newest.form(name)[0]
        if self.method.linear or name in self._buffers or not (dtype.is_floating_point or dtype.is_complex):
            return True
        importance = self.importance if not self.method.every_importance else None
        return importance is not None and all(name not in source.keys for source in importance)

    def _pieces(self, name: str) -> Iterator[MergePiece]:
        columns: list[Sequence[Tensor]] = [[source.tensor(name)] for source in self.files]
        columns = [self._parts(tensor) for (tensor,) in columns]
        count = len(self.sources)
        for tensors in zip(*columns):
            rest = list(tensors[count:])
            base = wide(rest.pop(0)) if self.base is not None else None
            yield MergePiece(_Widened(tensors[:count]), base, None if self.importance is None else _Widened(rest))

    def _parts(self, tensor: Tensor) -> Sequence[Tensor]:
        """What the method gets of a tensor at once."""
        if self.method.by_element:
            return torch.split(tensor.contiguous().view(-1), _PIECE)
        if self.method.by_row and tensor.numel():
            length = tensor.shape[-1] if tensor.dim() else 1
            return torch.split(tensor.contiguous().view(-1, length), max(1, _PIECE // length))
        return [tensor]

    def _trial(self, shares: Sequence[float]) -> dict[str, Tensor]:
        """The merge by these shares, as its file would hold it."""
        sources, used = _with_a_share(self.sources, shares)
        buffers, copied = self._buffers, list[str]()
        keys = sources[-1].keys.items()
        return {
            key: merged_or_newest(name, sources, used, buffers=buffers, copied=copied).clone() for name, key in keys
        }

    def _slopes(self, shares: Tensor) -> Tensor:
        """The inner products of the gradient at a merge with each file."""
        assert self._gradient is not None
        found = self._gradient(self._trial(shares.tolist()))
        names = {key: name for name, key in self.newest.keys.items()}
        unknown = found.keys() - names.keys()
        if unknown or not found:
            raise ValueError(
                f"gradient returned {first_names(found)}, but {self.newest.path} has {first_names(names)}: it must "
                "return the gradient of some of these tensors, by name."
            )
        slopes = torch.zeros(len(self.sources), dtype=torch.float64)
        for key, gradient in found.items():
            shape = self.newest.form(names[key])[1]
            if tuple(gradient.shape) != shape:
                raise ValueError(f"The gradient of {key} is of the shape {tuple(gradient.shape)}, but must be {shape}.")
            own = gradient.detach().cpu().double().flatten()
            for place, source in enumerate(self.sources):
                slopes[place] += own @ source.tensor(names[key]).double().flatten()
        return slopes

    def _check_shares(self) -> None:
        if self.shares is None or len(self.shares) != len(self.sources) or not any(self.shares):
            raise ValueError(
                f"{self.method!r} gave the shares {self.shares} for {len(self.sources)} files: it must give one for "
                "each, and their sum must be 1."
            )

    def _check_importance(self, importance: Sequence[Source]) -> None:
        if len(importance) != len(self.sources):
            raise ValueError(
                f"There are {len(self.sources)} files, but {len(importance)} files of importance: give one for each "
                "file, in the same order."
            )
        for source in importance:
            merged = [name for name in self.newest.keys if not self.is_linear(name)]
            # Wrong names would leave plain means of everything, if not every tensor must have an importance.
            unknown = source.keys.keys() - self.newest.keys.keys()
            if not self.method.every_importance and (unknown or not merged):
                raise ValueError(
                    f"{source.path} holds the importance of {first_names(source.keys)}, but {self.newest.path} has "
                    f"{first_names(self.newest.keys)}: the names must be the same."
                )
            missing = [name for name in merged if name not in source.keys]
            if missing:
                raise ValueError(
                    f"{source.path} has no importance of {first_names(missing)}: add it, or say that these are buffers "
                    "(buffers=[...], --buffer): their plain mean is taken."
                )
            for name in merged:
                (dtype, shape), of_weight = source.form(name), self.newest.form(name)[1]
                expected = self.method.importance_shape(of_weight)
                if shape != expected or not dtype.is_floating_point:
                    raise ValueError(
                        f"The importance of {name} is {dtype} {shape} in {source.path}, but for {of_weight} weights "
                        f"must be "
                        + (f"real numbers of the shape {expected}." if expected else "left out: there is none.")
                    )


class _Widened(Sequence[Tensor]):
    """Tensors that are widened only when they are asked for, so that a merge may hold one at a time."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors
        self.read = False
        """Whether one was asked for."""

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, place: Any) -> Any:
        self.read = True
        tensors = self._tensors[place]
        return wide(tensors) if isinstance(tensors, Tensor) else _Widened(tensors)


def check_asked(method: Merge, have: Mapping[str, object]) -> None:
    """Refuse to merge without what a merge asks for, or with what it would not use.

    Raises:
        ValueError: with the way out.
    """
    for name, value in have.items():
        if name in method.asks and value is None:
            raise ValueError(f"{method!r} cannot merge without {name}: {_WAYS_OUT[name]}")
        if name not in method.asks and value is not None:
            raise ValueError(f"{method!r} does not use {name}, so it would change nothing: leave it out.")


_WAYS_OUT = {
    "base": "give base=, the file of the weights that all files were trained from (--base FILE).",
    "importance": "give importance=, a file of the importance of each weight for each file, in the same order "
    "(--importance FILE for each).",
    "evaluate": "give evaluate=, a function that takes a state dict and returns its score on held-out data, greater is "
    "better (--evaluate package.module.function).",
    "gradient": "give gradient=, a function that takes a state dict and returns the gradient of a loss by name "
    "(--gradient package.module.function).",
}


def _with_a_share(sources: Sequence[Source], shares: Sequence[float]) -> tuple[list[Source], list[float]]:
    used = [(source, share) for source, share in zip(sources, shares) if share != 0]
    return [source for source, _ in used], [share for _, share in used]


def _shared_infinities(piece: MergePiece) -> Tensor:
    newest = piece.weights[-1]
    shared = newest.isinf()
    for tensor in [*piece.weights, *([piece.base] if piece.base is not None else [])]:
        shared &= tensor == newest
    return shared
