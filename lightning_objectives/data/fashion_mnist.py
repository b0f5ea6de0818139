"""Loads Fashion-MNIST from its IDX files."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_objectives.data._module import ImageDataModule, stratified_split

DEBIAN = "/usr/share/datasets/fashion-mnist"
"""Where Debian's package ``dataset-fashion-mnist`` puts the files."""


def read_idx(path: Path) -> Tensor:
    """Read the uint8 tensor in a gzipped IDX file.

    Raises:
        ValueError: the file is truncated or corrupt, or holds values of another type.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or corrupt ({error}): delete it and download it again.") from error
    # Two zeros, the type (8 is uint8), the number of dimensions, each dimension as big-endian uint32, the values.
    if len(data) < 4 or data[:3] != b"\0\0\x08" or len(data) < 4 + 4 * data[3]:
        raise ValueError(
            f"{path} begins with {data[:4].hex(' ')}, but an IDX file of bytes begins with 00 00 08 and the number of "
            "dimensions: delete it and download it again."
        )
    start = 4 + 4 * data[3]
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise ValueError(
            f"{path} holds {len(data) - start} values where its shape {shape} needs {math.prod(shape)}: it is "
            "truncated or corrupt. Delete it and download it again."
        )
    if len(data) == start:
        return torch.zeros(shape, dtype=torch.uint8)
    # A bytearray is a copy that may be written to; torch.tensor would read it number by number.
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=start).reshape(shape)


class FashionMNISTDataModule(ImageDataModule):
    """Loads Fashion-MNIST, 70,000 pieces of clothing of 10 classes, as images (1, 28, 28) float32 in [0, 1].

    Args:
        data_dir: folder with the four gzipped IDX files, or with torchvision's ``FashionMNIST/raw`` that holds them.
        download: let torchvision download them into ``data_dir`` if they are missing.
        batch_size: of every loader.
        val_fraction: the share of the 60,000 training images in the validation set, the same for each class.
        seed: of the split, which depends on nothing else.
        num_workers: number of processes that load; few are enough because the data lie in memory.

    Raises:
        ValueError: the batch size is below 1, or the fraction outside [0, 1); in ``setup``, a file is truncated or
            corrupt.
        FileNotFoundError: in ``setup``, a file is missing.
        ModuleNotFoundError: to download, torchvision is not installed; the extra ``examples`` has it.

    Paper: Xiao et al., Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms, 2017,
    https://arxiv.org/abs/1708.07747.
    """

    def __init__(
        self,
        *,
        data_dir: str | Path = DEBIAN,
        download: bool = False,
        batch_size: int = 64,
        val_fraction: float = 0.1,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        stratified_split(torch.zeros(1), [val_fraction], seed=seed)  # raises now if the fraction is wrong, not in setup
        self.data_dir = data_dir
        self.download = download
        self.val_fraction = val_fraction
        self.seed = seed

    def prepare_data(self) -> None:
        """Download the files that are missing if ``download=True``; Lightning calls it in one process only."""
        if not self.download or self._folder() is not None:
            return
        try:
            from torchvision.datasets import FashionMNIST
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "download=True needs torchvision: pip install 'lightning-objectives[examples]'."
            ) from error
        FashionMNIST(self.data_dir, download=True)

    def setup(self, stage: str | None = None) -> None:
        """Read the files and split off the validation set, the same way for every stage."""
        images, target = self._read("train")
        train, val = stratified_split(target, [self.val_fraction], seed=self.seed)
        self.train, self.val = (_scaled(images[part], target[part]) for part in (train, val))
        self.test = _scaled(*self._read("t10k"))

    def _folder(self) -> Path | None:
        names = [f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
        for folder in (Path(self.data_dir), Path(self.data_dir, "FashionMNIST", "raw")):
            if all((folder / name).exists() for name in names):
                return folder
        return None

    def _read(self, part: str) -> tuple[Tensor, Tensor]:
        folder = self._folder()
        if folder is None:
            raise FileNotFoundError(
                f"data_dir={str(self.data_dir)!r} lacks some of the files train|t10k-images-idx3|labels-idx1-ubyte.gz: "
                "install Debian's package dataset-fashion-mnist, or give a folder of your own and download=True."
            )
        images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
        target = read_idx(folder / f"{part}-labels-idx1-ubyte.gz").long()
        if images.shape[1:] != (28, 28) or target.shape != images.shape[:1] or (target > 9).any():
            raise ValueError(
                f"{folder}: the {part} images {tuple(images.shape)} and labels {tuple(target.shape)}, up to "
                f"{max(target.flatten().tolist(), default=0)}, must be (N, 28, 28) and (N,) up to 9: they are "
                "not Fashion-MNIST's. Delete these files and download them again."
            )
        return images, target


def _scaled(images: Tensor, target: Tensor) -> TensorDataset:
    return TensorDataset(images[:, None].float() / 255, target)
