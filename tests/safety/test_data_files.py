"""Files of data sets: pickles are opened only where they are the authors', and every format is checked."""

import gzip
import pickle
import struct

import pytest
import torch
from corruptions import DRAWN, EXAMPLES, REPLACED, Runs, drawn, nothing_left, unless_refused
from data_files import write_cifar, write_fashion_mnist

from lightning_objectives.data import CIFAR10DataModule, CIFAR100DataModule, FashionMNISTDataModule

pytestmark = pytest.mark.filterwarnings("ignore")

CIFAR = {
    10: (CIFAR10DataModule, "cifar-10-batches-py/data_batch_1"),
    100: (CIFAR100DataModule, "cifar-100-python/train"),
}
# An archive that is no file, or of another format, is one of these by its checksum.
PICKLES = {
    **{kind: make for kind, make in REPLACED.items() if kind != "directory"},
    "code": lambda path: path.write_bytes(pickle.dumps(Runs())),
    "code in a batch": lambda path: path.write_bytes(pickle.dumps({"data": Runs(), "labels": [0]}, protocol=2)),
    "ours, not the authors'": lambda path: None,
}


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("classes", CIFAR)
def test_cifar(tmp_path, classes, kind):
    """No file that is not the authors' own, by torchvision's checksums, is unpickled."""
    write_cifar(tmp_path, classes)
    cls, name = CIFAR[classes]
    PICKLES[kind](tmp_path / name)
    with nothing_left(tmp_path), pytest.raises(FileNotFoundError, match=r"holds no sound cifar-.*give the folder"):
        cls(data_dir=tmp_path, num_workers=0).setup()


@pytest.mark.parametrize("damage", DRAWN)
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_damage_to_fashion_mnist(tmp_path, name, damage):
    """gzip has a checksum: what is read is what was written."""
    write_fashion_mnist(tmp_path, each=2)
    path = tmp_path / name
    whole = path.read_bytes()

    def setup():
        data = FashionMNISTDataModule(data_dir=tmp_path)
        data.setup()
        return [tensor for part in (data.train, data.val, data.test) for tensor in part.tensors]

    right = setup()

    def run(draw):
        path.write_bytes(DRAWN[damage](whole, draw))
        with nothing_left(tmp_path):
            found = unless_refused(setup, path)
        assert found is None or all(map(torch.equal, found, right))  # what does not matter was hit: its date

    drawn(EXAMPLES, run)


def idx(*shape, values=b"", type_=8):
    return gzip.compress(struct.pack(f">4B{len(shape)}I", 0, 0, type_, len(shape), *shape) + values)


IDX = {
    "of floats": idx(20, values=bytes(80), type_=13),
    "gigantic": idx(2**32 - 1, 2**32 - 1, 2**32 - 1),
    "too few": idx(20, values=bytes(19)),
    "too many": idx(20, values=bytes(21)),
    "no numbers": gzip.compress(b""),
    "half a header": gzip.compress(b"\0\0\x08\x03\0"),
    "other labels": idx(20, values=bytes([11] * 20)),
    "labels in rows": idx(20, 1, values=bytes(20)),
    "fewer than the images": idx(19, values=bytes(19)),
    "a number": idx(values=b"\1"),
    "no labels": idx(0),
}


@pytest.mark.parametrize("kind", [*IDX, *(kind for kind in REPLACED if kind not in ("missing", "endless_link"))])
def test_fashion_mnist(tmp_path, kind):
    write_fashion_mnist(tmp_path, each=2)
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    path.write_bytes(IDX[kind]) if kind in IDX else REPLACED[kind](path)
    with nothing_left(tmp_path), pytest.raises((ValueError, OSError)) as caught:
        FashionMNISTDataModule(data_dir=tmp_path).setup()
    assert str(tmp_path) in str(caught.value)
