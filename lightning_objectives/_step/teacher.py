"""Asks a trained network that never changes what it says of each batch of a training."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from lightning_objectives._files.logit_cache import LogitCache, fingerprint
from lightning_objectives._step.batch import tensors_of
from lightning_objectives._step.frozen import Answer, Frozen, Normalization
from lightning_objectives._step.network import followed, network_call
from lightning_objectives._step.step import Step


class Teacher:
    """A frozen network beside the user's module, called as the step calls its own.

    Args:
        network: the trained network, which is changed in place.
        rank: the number of this process.
        call: how to call it, if the user says it.
        head: the path of its head.
        features: whether a method asks for the input of its head.
        layers: the layers whose outputs a method asks for.
        normalizations: the normalization of the data, and that of the network; None where the user says none.
        cache: a directory for its logits by sample.
        cache_top_k: how many of them to keep for each sample.

    Raises:
        ValueError: the normalization of the network is unknown, or features are asked for beside a cache.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        rank: int,
        call: Callable[[nn.Module, Any], Any] | None = None,
        head: str | None = None,
        features: bool = False,
        layers: str | Sequence[str] | None = None,
        normalizations: tuple[Normalization | None, Normalization | None] = (None, None),
        cache: str | None = None,
        cache_top_k: int | None = None,
    ) -> None:
        self.call = call
        translate = _translation(network, *normalizations)
        self.frozen = Frozen(network, head=head, tap=features, layers=layers, translate=translate)
        self.cache: LogitCache | None = None
        if cache is not None:
            if features or layers:
                asked = "teacher_features" if features else "teacher_hidden"
                raise ValueError(f"cache={cache!r} keeps logits only, but a method asks for {asked}. Remove cache=.")
            self.cache = LogitCache(cache, top_k=cache_top_k, teacher=fingerprint(network, *normalizations), rank=rank)

    def answer(self, step: Step) -> Answer:
        """What the network says of the batch; it runs once for each batch."""
        if self not in step.of_batch:
            step.of_batch[self] = self._asked(step)
        answer: Answer = step.of_batch[self]
        return answer

    def share_cache(self, trainer: Any) -> None:
        """Write the logits of an epoch to the cache, and read those of the other ranks."""
        if self.cache is not None:
            self.cache.save()
            trainer.strategy.barrier()
            if trainer.world_size > 1:
                self.cache.load()

    def _asked(self, step: Step) -> Answer:
        frozen, dtype = self.frozen, step.module.dtype
        if self.call is not None:
            how, batch = self.call, step.user_batch
            return frozen.answer(lambda network: how(network, batch), next(tensors_of(batch), None), dtype)
        call = network_call(step, like=frozen.network)
        args, kwargs = ((step.get("inputs"),), {}) if call is None else (call.args, call.kwargs)
        if self.cache is None:
            return frozen(*args, dtype=dtype, **kwargs)
        leaves, spec = tree_flatten((args, kwargs))
        inputs = next(leaf for leaf in leaves if isinstance(leaf, Tensor))

        def of_rows(known: Tensor) -> Tensor:
            """The logits of some rows of the batch."""
            rows = [
                leaf[known] if isinstance(leaf, Tensor) and leaf.shape[:1] == known.shape else leaf for leaf in leaves
            ]
            args, kwargs = tree_unflatten(rows, spec)
            return frozen(*args, dtype=dtype, **kwargs).logits

        return Answer(self.cache(step.get("index"), inputs, of_rows), None)


def _translation(
    network: nn.Module, data: Normalization | None, own: Normalization | None
) -> tuple[Normalization, Normalization] | None:
    if data is None:
        return None
    if own is None:
        config = getattr(network, "pretrained_cfg", None) or {}
        if not {"mean", "std"} <= set(config):
            raise ValueError(
                f"data_normalization={data} needs the teacher's normalization to translate the inputs, but "
                f"{type(network).__name__} has none: give teacher_normalization=(mean, std)."
            )
        own = config["mean"], config["std"]
    return data, own


def as_rows(step: Step, logits: Tensor, *, like: Tensor) -> Tensor:
    """Another network's logits as the rows (N, C) that the criterion compares."""
    own = followed(step, logits)
    if own is not None and step.call is not None:
        return step.call.table(own)
    return rows_of(logits, like)


def rows_of(teacher: Tensor, student: Tensor, *, names: tuple[str, str] = ("teacher", "student")) -> Tensor:
    """Turn a teacher's logits into rows (N, C) like the student's, whatever dimension its classes are in.

    Raises:
        ValueError: the classes or the rows are not the student's, or the dimension of the classes is unknown.

    >>> import torch
    >>> rows_of(torch.zeros(4), torch.zeros(4, 1)).shape, rows_of(torch.zeros(2, 3, 5), torch.zeros(10, 3)).shape
    (torch.Size([4, 1]), torch.Size([10, 3]))
    """
    rows, classes = student.shape
    if classes == 1 and teacher.numel() == rows:
        return teacher.reshape(rows, 1)
    dimensions = {d % teacher.dim() for d in (1, -1) if teacher.dim() > 1 and teacher.shape[d] == classes}
    if len(dimensions) == 1:
        logits = teacher.movedim(dimensions.pop(), -1).flatten(0, -2)
        if len(logits) == rows:
            return logits
    raise ValueError(
        f"The {names[0]} gives logits of shape {tuple(teacher.shape)}, the {names[1]} {rows} rows of {classes} "
        f"classes. The two must be of the same samples and the same classes, in the same order. Use a {names[0]} of "
        "these classes, or wrap it in a module that selects them."
    )
