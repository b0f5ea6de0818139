"""What a teacher said of each sample, kept on disk."""

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from lightning_objectives._files.intact import hint
from lightning_objectives._files.writing import replaced, write_safetensors

_LOOKED_AT = 4096
"""About how many elements of a sample its checksum looks at."""


class LogitCache:
    """Asks the teacher once a sample, and remembers: all logits, or the ``top_k`` largest.

    Of the top k, the other classes share evenly the probability that is left, so that the softmax of what is remembered
    keeps the mass of each of the k and of all the others together. Samples are known by their index; each time one
    comes again its inputs must be those of the first time, by a checksum, or the logits would not be theirs.

    Each rank writes a file of its own, and reads those of all.

    Args:
        directory: where the files lie; made if it is not there.
        top_k: how many logits of a sample are kept; None keeps all.
        teacher: what the teacher is known by; files of another are refused.
        rank: of this process.
    """

    def __init__(self, directory: str, *, top_k: int | None, teacher: str, rank: int = 0) -> None:
        self.directory = Path(directory)
        self.top_k = top_k
        self.teacher = teacher
        self.rank = rank
        self.classes: int | None = None
        self._new = False
        self._rows: dict[str, Tensor] = {"known": torch.zeros(0, dtype=torch.bool)}
        self.directory.mkdir(parents=True, exist_ok=True)
        self.load()

    def __call__(self, index: Tensor, inputs: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """The logits (N, C), float32, of samples by their index; ``ask`` gives those of inputs never seen.

        Raises:
            ValueError: the inputs of a sample are not those of the first time, or there is not one row a sample.
        """
        device, index, sums = inputs.device, index.cpu(), checksums(inputs).cpu()
        highest = int(index.max()) + 1
        known = torch.zeros(len(index), dtype=torch.bool)
        here = index < len(self._rows["known"])
        known[here] = self._rows["known"][index[here]]
        if not known.all():
            logits = ask(inputs[(~known).to(device)]).detach().float().cpu()
            self._write(index[~known], highest, {"sums": sums[~known], **self._kept(logits)})
        other = (self._rows["sums"][index] != sums).nonzero().flatten()
        if len(other):
            raise ValueError(
                f"The inputs of the sample {int(index[other[0]])} are not those that {str(self.directory)!r} knows: "
                "either they are augmented at random, or mixed, and no logits can be kept for them (take cache= out); "
                "or the files are of other data (give another directory)."
            )
        return self._read(index).to(device)

    def _kept(self, logits: Tensor) -> dict[str, Tensor]:
        if logits.dim() != 2:
            raise ValueError(f"The cache keeps one row of logits a sample, not logits of shape {tuple(logits.shape)}.")
        if logits.isnan().any():
            raise ValueError("The teacher gives NaN, which is not kept: mend it, or the inputs, or take cache= out.")
        self.classes = logits.shape[1]
        if self.top_k is None:
            return {"values": logits}
        if self.top_k >= self.classes:
            raise ValueError(f"cache_top_k={self.top_k} must be below the {self.classes} classes; None keeps them all.")
        values, classes = logits.topk(self.top_k, 1)
        left = logits.scatter(1, classes, -torch.inf).logsumexp(1) - math.log(self.classes - self.top_k)
        return {"values": values, "classes": classes.int(), "rest": left}

    def _write(self, index: Tensor, size: int, rows: dict[str, Tensor]) -> None:
        self._new = True
        for name, given in {**rows, "known": torch.ones(len(index), dtype=torch.bool)}.items():
            old = self._rows.get(name, given[:0])
            if len(old) < size:  # twice as long, so that growing is rare
                grown = old.new_zeros(max(size, 2 * len(old)), *old.shape[1:])
                grown[: len(old)] = old
                self._rows[name] = old = grown
            old[index] = given

    def _read(self, index: Tensor) -> Tensor:
        values = self._rows["values"][index]
        if self.top_k is None:
            return values
        assert self.classes is not None
        rest = self._rows["rest"][index][:, None].repeat(1, self.classes)
        return rest.scatter(1, self._rows["classes"][index].long(), values)

    def save(self) -> None:
        """Write what is new, whole or not at all.

        Raises:
            OSError: the disk is full, say; the file of before is still there.
        """
        if not self._new:
            return
        file = self.directory / f"logits-{self.rank}.safetensors"
        entries = {name: (rows.dtype, tuple(rows.shape), name) for name, rows in self._rows.items()}
        with replaced(file) as partial:
            write_safetensors(partial, entries, self._rows.__getitem__, {**self._label(), "classes": str(self.classes)})
        self._new = False

    def _label(self) -> dict[str, str]:
        return {"teacher": self.teacher, "top_k": str(self.top_k)}

    def load(self) -> None:
        """Read what all the ranks, and earlier trainings, have written.

        Raises:
            ValueError: a file is damaged, of another teacher, or of another number of logits. Nothing of it
                is taken then.
        """
        for file in sorted(self.directory.glob("logits-*.safetensors")):
            try:
                file.open("rb").close()  # of what may not be opened safetensors says that it is missing
                with safe_open(file, framework="pt") as opened:
                    label = dict(opened.metadata() or {})
                    rows = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no dictionary
            except OSError as error:
                raise ValueError(
                    f"{str(file)!r} cannot be read ({error}): delete it, or give another directory."
                ) from error
            except Exception as error:  # safetensors has its own
                raise ValueError(f"{str(file)!r} is damaged ({error}): delete it.{hint(file)}") from error
            wrong = [name for name, value in self._label().items() if label.get(name) != value]
            if wrong:
                raise ValueError(
                    f"{str(file)!r} was written with another {wrong[0]} ({label.get(wrong[0])}, now "
                    f"{self._label()[wrong[0]]}): give another directory, or delete it."
                )
            self.classes = self._check(file, label, rows)
            index = rows.pop("known").nonzero().flatten()
            new, size = self._new, len(index) and int(index.max()) + 1
            self._write(index, size, {name: value[index] for name, value in rows.items()})
            self._new = new

    def _check(self, file: Path, label: dict[str, str], rows: dict[str, Tensor]) -> int:
        """See that a file holds what :meth:`save` writes; returns the number of classes."""
        count, said = len(rows["known"]) if rows.get("known") is not None else 0, label.get("classes", "")
        classes = int(said) if said.isdecimal() and len(said) < 10 else 0
        k = classes if self.top_k is None else self.top_k
        forms = {
            "known": (torch.bool, (count,)),
            "sums": (torch.int64, (count,)),
            "values": (torch.float32, (count, k)),
        }
        if self.top_k is not None:
            forms |= {"classes": (torch.int32, (count, k)), "rest": (torch.float32, (count,))}
        sound = classes > 0 and {name: (value.dtype, tuple(value.shape)) for name, value in rows.items()} == forms
        if sound and self.top_k is not None:
            sound = bool(((rows["classes"] >= 0) & (rows["classes"] < classes)).all())
        if not sound or any(value.isnan().any() for value in rows.values()) or self.classes not in (None, classes):
            raise ValueError(
                f"{str(file)!r} is damaged: it does not hold the logits of {said or 'no'} classes, by sample, that a "
                "teacher gave: delete it."
            )
        return classes


def checksums(inputs: Tensor) -> Tensor:
    """(N,) int64, from the bits of the inputs: whole numbers, the same on every device and in every batch.

    >>> checksums(torch.tensor([[1.0, 2.0], [2.0, 1.0]])).unique().numel()
    2
    """
    rows = inputs.detach().flatten(1)
    rows = rows[:, :: max(1, rows.shape[1] // _LOOKED_AT)].contiguous()
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    position = torch.arange(rows.shape[1], device=rows.device)
    return (rows.view(whole).long() * (2 * 2654435761 * position + 1)).sum(1)


def fingerprint(network: nn.Module, *settings: object) -> str:
    """What a teacher is known by: its class, its weights, and the settings that change what it sees.

    >>> net = nn.Linear(2, 1)
    >>> before = fingerprint(net)
    >>> before == fingerprint(net), before == fingerprint(nn.init.zeros_(net.weight) is None or net)
    (True, False)
    """
    found = hashlib.sha256(repr((type(network).__qualname__, settings)).encode())
    for name, value in network.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
