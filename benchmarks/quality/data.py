"""The data of the tasks, in memory; everything drawn is drawn from the seed of the run alone."""

import shutil
import subprocess
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, TensorDataset

from lightning_objectives.data import FashionMNISTDataModule
from lightning_objectives.data.with_index import Indexed

CLASSES = 10
MEAN, STD = 0.286, 0.353
SIMILAR = {0: 6, 6: 2, 2: 4, 4: 3, 3: 1, 1: 8, 8: 5, 5: 7, 7: 9, 9: 0}
"""What asymmetric noise turns each class into: tops into tops, shoes into shoes, and the ends of the two chains."""
TEST_LINES = VAL_LINES = 0.008
"""The shares of the text's lines, from its end, that are tested and validated on."""


@dataclass(frozen=True)
class Splits:
    """Training, validation and test data of one task and seed."""

    train: Dataset
    val: Dataset
    test: Dataset


@dataclass(frozen=True)
class Fashion:
    """A part of Fashion-MNIST's 54,000 training images; its 6,000 of validation and 10,000 of test stay whole.

    ``noise`` is the share of training labels that are replaced: by any other class (``symmetric``) or by a similar one
    (``asymmetric``). ``tail`` is the ratio of the largest class to the smallest, the sizes falling geometrically.
    """

    size: int = 8000
    noise: float = 0.0
    kind: str = "symmetric"
    tail: float = 1.0

    def splits(self, seed: int) -> Splits:
        whole = _fashion()
        images, labels = whole.train.tensors
        generator = torch.Generator().manual_seed(seed)
        chosen = chosen_of(labels, self.counts(), generator)
        target = noisy(labels[chosen], self.noise, self.kind, generator)
        return Splits(Batchable(images[chosen], target, index=chosen), whole.val, whole.test)

    def counts(self) -> list[int]:
        """The number of training images of each class."""
        shares = torch.tensor([self.tail ** (-k / (CLASSES - 1)) for k in range(CLASSES)], dtype=torch.float64)
        return (self.size * shares / shares.sum()).round().int().tolist()


class Batchable(Dataset):
    """Images and labels, a batch at a time; with ``indexed`` each batch tells where in the whole data it lies."""

    def __init__(self, images: Tensor, target: Tensor, *, index: Tensor) -> None:
        self.tensors = images, target
        self.index = index
        self.indexed = False

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: list[int]) -> object:
        batch = tuple(tensor[rows] for tensor in self.tensors)
        return Indexed(batch, self.index[rows]) if self.indexed else batch


@cache
def _fashion() -> Splits:
    source = FashionMNISTDataModule()
    source.setup()
    parts = []
    for part in (source.train, source.val, source.test):
        images, target = part.tensors
        parts.append(TensorDataset((images - MEAN) / STD, target))
    return Splits(*parts)


def chosen_of(labels: Tensor, counts: list[int], generator: torch.Generator) -> Tensor:
    """Positions of as many samples of each class as it should have."""
    found = []
    for label, count in enumerate(counts):
        members = (labels == label).nonzero().squeeze(1)
        if count > len(members):
            raise ValueError(f"{count} samples of class {label} are asked for, but there are {len(members)}.")
        found.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(found)


def noisy(target: Tensor, rate: float, kind: str, generator: torch.Generator) -> Tensor:
    """The labels with exactly ``rate`` of each class replaced, to within a sample."""
    target = target.clone()
    classes = target.clone()
    for label in range(CLASSES):
        members = (classes == label).nonzero().squeeze(1)
        flipped = members[torch.randperm(len(members), generator=generator)[: round(rate * len(members))]]
        if kind == "symmetric":
            target[flipped] = (label + torch.randint(1, CLASSES, (len(flipped),), generator=generator)) % CLASSES
        else:
            target[flipped] = SIMILAR[label]
    return target


@dataclass(frozen=True)
class Text:
    """The King James Bible as characters: Debian's packages ``bible-kjv`` and ``bible-kjv-text``."""

    context: int = 64

    def splits(self, seed: int) -> Splits:
        train, val, test = (Windows(part, self.context) for part in _text())
        return Splits(train, val, test)


class Windows(Dataset):
    """All windows of a text, by where they begin: the characters, and those that follow each of them."""

    def __init__(self, text: Tensor, context: int) -> None:
        self.text = text
        self.context = context

    def __len__(self) -> int:
        return len(self.text) - self.context

    def __getitem__(self, starts: list[int]) -> tuple[Tensor, Tensor]:
        where = torch.tensor(starts)[:, None] + torch.arange(self.context + 1)
        window = self.text[where]
        return window[:, :-1], window[:, 1:]


def vocabulary() -> int:
    """How many characters the text has."""
    return 1 + max(int(part.max()) for part in _text())


@cache
def _text() -> tuple[Tensor, Tensor, Tensor]:
    """The characters of the training, validation and test lines, as their places in the alphabet."""
    if shutil.which("bible") is None:
        raise FileNotFoundError("The text is Debian's: apt-get install bible-kjv bible-kjv-text (public domain text).")
    command = ["bible", "-f", "gen1:1-rev22:21"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL).stdout
    lines = [line.partition(" ")[2] for line in said.splitlines()]  # without chapter and verse
    alphabet = {character: place for place, character in enumerate(sorted({"\n", *"".join(lines)}))}
    ends = [len(lines) - round((TEST_LINES + VAL_LINES) * len(lines)), len(lines) - round(TEST_LINES * len(lines))]
    parts = lines[: ends[0]], lines[ends[0] : ends[1]], lines[ends[1] :]
    return tuple(torch.tensor([alphabet[c] for c in "\n".join(part)]) for part in parts)  # type: ignore[return-value]


def train_loader(data: Dataset, *, batch_size: int, seed: int, steps: int | None = None) -> DataLoader:
    """Shuffled whole batches, the same for every arm of a seed; ``steps`` of them, or an epoch of the data."""
    generator = torch.Generator().manual_seed(seed)
    rows = None if steps is None else steps * batch_size
    sampler = RandomSampler(data, num_samples=rows, generator=generator)
    return DataLoader(data, sampler=BatchSampler(sampler, batch_size, drop_last=True), batch_size=None)


def eval_loader(data: Dataset, *, batch_size: int = 1000, rows: int | None = None) -> DataLoader:
    """Everything once (or the first rows), in order; of a text, the windows that do not overlap."""
    step = data.context if isinstance(data, Windows) else 1
    sampler = range(0, min(len(data), rows or len(data)), step)
    return DataLoader(data, sampler=BatchSampler(sampler, batch_size, drop_last=False), batch_size=None)
