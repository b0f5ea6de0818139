"""Keeps a teacher's logits on disk, so that each sample goes through the teacher only once."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lightning_objectives._files.intact import check_permission, hint
from lightning_objectives._files.writing import replaced, write_safetensors

_CHECKED_ELEMENTS = 4096
"""About how many elements of a sample go into its checksum."""


class LogitCache:
    """Asks the teacher once for each sample and keeps its logits: all of them, or the ``top_k`` largest.

    With ``top_k``, the other classes share the remaining probability evenly. The softmax of the kept logits therefore
    gives each of the k classes its own probability, and all others together theirs. The index identifies a sample.
    Each time a sample comes again, a checksum proves that its inputs are those of the first time, because otherwise
    the logits would not be theirs.

    Each rank writes a file of its own, and reads those of all ranks.

    Args:
        directory: the folder of the files, which is made if it does not exist.
        top_k: how many logits of a sample are kept; None keeps all.
        teacher: identifies the teacher; files of another one are refused.
        rank: of this process.
    """

    def __init__(self, directory: str, *, top_k: int | None, teacher: str, rank: int = 0) -> None:
        self.directory = Path(directory)
        self.top_k = top_k
        self.teacher = teacher
        self.rank = rank
        self.classes: int | None = None
        self._label = {"teacher": teacher, "top_k": str(top_k)}
        self._changed = False
        self._rows: dict[str, Tensor] = {"known": torch.zeros(0, dtype=torch.bool, device="cpu")}
        self.directory.mkdir(parents=True, exist_ok=True)
        self.load()

    def __call__(self, index: Tensor, inputs: Tensor, teacher_logits: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the logits (N, C), float32, of samples by their index.

        Args:
            index: (N,) indices of the samples.
            inputs: (N, ...) their inputs.
            teacher_logits: computes the logits of the rows that the cache does not know yet, from their mask (N,).

        Raises:
            ValueError: the inputs of a sample are not those of the first time, or there is not one row a sample.
        """
        device, index, sums = inputs.device, index.cpu(), checksums(inputs).cpu()
        size = int(index.max()) + 1
        known = torch.zeros(len(index), dtype=torch.bool, device="cpu")
        within = index < len(self._rows["known"])
        known[within] = self._rows["known"][index[within]]
        if not known.all():
            logits = teacher_logits((~known).to(device)).detach().float().cpu()
            self._insert(index[~known], size, {"sums": sums[~known], **self._compressed(logits)})
            self._changed = True
        changed = (self._rows["sums"][index] != sums).nonzero().flatten()
        if len(changed):
            raise ValueError(
                f"The inputs of the sample {int(index[changed[0]])} are not those that {str(self.directory)!r} knows: "
                "either they are augmented at random, or mixed, and no logits can be kept for them (leave cache= out); "
                "or the files are of other data (give another directory)."
            )
        return self._logits(index).to(device)

    def _compressed(self, logits: Tensor) -> dict[str, Tensor]:
        """What is kept of the teacher's logits."""
        if logits.dim() != 2:
            raise ValueError(
                f"The teacher gives logits of shape {tuple(logits.shape)}, but the cache keeps one row of logits a "
                "sample, (N, C). Leave cache= out."
            )
        if logits.isnan().any():
            raise ValueError(
                "The teacher gives NaN, which is not kept: check the teacher and its inputs, or leave cache= out."
            )
        self.classes = logits.shape[1]
        if self.top_k is None:
            return {"values": logits}
        if self.top_k >= self.classes:
            raise ValueError(f"cache_top_k={self.top_k} must be below the {self.classes} classes; None keeps them all.")
        values, classes = logits.topk(self.top_k, 1)
        others = logits.scatter(1, classes, -torch.inf).logsumexp(1) - math.log(self.classes - self.top_k)
        return {"values": values, "classes": classes.int(), "rest": others}

    def _insert(self, index: Tensor, size: int, rows: dict[str, Tensor]) -> None:
        """Put rows at their indices, which are all below ``size``."""
        for name, values in {**rows, "known": torch.ones(len(index), dtype=torch.bool, device="cpu")}.items():
            table = self._rows.get(name, values[:0])
            if len(table) < size:  # A table doubles its length, so that growing is rare.
                longer = table.new_zeros(max(size, 2 * len(table)), *table.shape[1:])
                longer[: len(table)] = table
                self._rows[name] = table = longer
            table[index] = values

    def _logits(self, index: Tensor) -> Tensor:
        values = self._rows["values"][index]
        if self.top_k is None:
            return values
        assert self.classes is not None
        others = self._rows["rest"][index][:, None].repeat(1, self.classes)
        return others.scatter(1, self._rows["classes"][index].long(), values)

    def save(self) -> None:
        """Write this rank's file, if there are new samples.

        Raises:
            OSError: the disk is full, for example; the file from before is untouched.
        """
        if not self._changed:
            return
        entries = {name: (rows.dtype, tuple(rows.shape), name) for name, rows in self._rows.items()}
        metadata = {**self._label, "classes": str(self.classes)}
        with replaced(self.directory / f"logits-{self.rank}.safetensors") as partial:
            write_safetensors(partial, entries, self._rows.__getitem__, metadata)
        self._changed = False

    def load(self) -> None:
        """Read what all ranks, and earlier trainings, have written.

        Raises:
            ValueError: a file is damaged, of another teacher, or of another number of logits. Nothing of it is used.
        """
        for file in sorted(self.directory.glob("logits-*.safetensors")):
            label, rows = _contents(file)
            self._check_label(file, label)
            self.classes = self._check_rows(file, label, rows)
            index = rows.pop("known").nonzero().flatten()
            size = int(index.max()) + 1 if len(index) else 0
            self._insert(index, size, {name: values[index] for name, values in rows.items()})

    def _check_label(self, file: Path, label: dict[str, str]) -> None:
        for name, value in self._label.items():
            if label.get(name) != value:
                raise ValueError(
                    f"{str(file)!r} was written with another {name} ({label.get(name)}, now {value}), so its logits "
                    "are not those of this training: give another directory, or delete it."
                )

    def _check_rows(self, file: Path, label: dict[str, str], rows: dict[str, Tensor]) -> int:
        """Check that a file holds what :meth:`save` writes, and return the number of classes."""
        digits = label.get("classes", "")
        classes = int(digits) if digits.isdecimal() and len(digits) < 10 else 0
        sound = (
            classes > 0
            and self.classes in (None, classes)
            and {name: (values.dtype, tuple(values.shape)) for name, values in rows.items()}
            == self._forms(rows["known"].numel() if "known" in rows else 0, classes)
            and not any(values.isnan().any() for values in rows.values())
            and (self.top_k is None or bool(((rows["classes"] >= 0) & (rows["classes"] < classes)).all()))
        )
        if not sound:
            raise ValueError(
                f"{str(file)!r} is damaged: it does not hold the logits of {digits or 'no'} classes, by sample, that a "
                "teacher gave: delete it."
            )
        return classes

    def _forms(self, count: int, classes: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of each table in a file of so many samples."""
        columns = classes if self.top_k is None else self.top_k
        forms: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "known": (torch.bool, (count,)),
            "sums": (torch.int64, (count,)),
            "values": (torch.float32, (count, columns)),
        }
        if self.top_k is not None:
            forms |= {"classes": (torch.int32, (count, columns)), "rest": (torch.float32, (count,))}
        return forms


def _contents(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The label and the tables of a file."""
    try:
        check_permission(file)
        with safe_open(file, framework="pt") as tables:
            rows = {name: tables.get_tensor(name) for name in tables.keys()}  # noqa: SIM118  # it is no dictionary
            return dict(tables.metadata() or {}), rows
    except OSError as error:
        raise ValueError(f"{str(file)!r} cannot be read ({error}): delete it, or give another directory.") from error
    except Exception as error:  # safetensors raises errors of its own
        raise ValueError(f"{str(file)!r} is damaged ({error}): delete it.{hint(file)}") from error


def checksums(inputs: Tensor) -> Tensor:
    """Compute (N,) int64 from the bits of the inputs: whole numbers, the same on every device and in every batch.

    >>> checksums(torch.tensor([[1.0, 2.0], [2.0, 1.0]])).unique().numel()
    2
    """
    rows = inputs.detach().flatten(1)
    rows = rows[:, :: max(1, rows.shape[1] // _CHECKED_ELEMENTS)].contiguous()
    dtype = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    position = torch.arange(rows.shape[1], device=rows.device)
    return (rows.view(dtype).long() * (2 * 2654435761 * position + 1)).sum(1)


def fingerprint(network: nn.Module, *settings: object) -> str:
    """Identify a teacher by its class, its weights, and the settings that change what it sees.

    >>> net = nn.Linear(2, 1)
    >>> before = fingerprint(net)
    >>> before == fingerprint(net), before == fingerprint(nn.init.zeros_(net.weight) is None or net)
    (True, False)
    """
    digest = hashlib.sha256(repr((type(network).__qualname__, settings)).encode())
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
