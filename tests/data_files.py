"""Small files in the formats of the real data sets."""

import gzip
import pickle
import struct

import numpy as np
from PIL import Image


def write_fashion_mnist(folder, each=10):
    """IDX files of ten classes, as many images each in the training set, and as many in all in the test set."""
    random = np.random.default_rng(0)
    for part, n in (("train", 10 * each), ("t10k", 10)):
        images = random.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        header = struct.pack(">4BIII", 0, 0, 8, 3, *images.shape)
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(header + images.tobytes())
        with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(struct.pack(">4BI", 0, 0, 8, 1, n) + bytes(k % 10 for k in range(n)))


def write_cifar(folder, classes, each=2):
    """The pickled batches of CIFAR-10, ``each`` images of each class in each batch, or of CIFAR-100.

    The first pixel of an image holds its class in the red channel.
    """
    random = np.random.default_rng(0)
    ten = classes == 10
    folder = folder / ("cifar-10-batches-py" if ten else "cifar-100-python")
    folder.mkdir()
    for name in [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"] if ten else ["train", "test"]:
        labels = [k % classes for k in range(classes * each)]
        data = random.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        data[:, 0] = labels
        batch = {"data": data, "labels" if ten else "fine_labels": labels, "batch_label": name}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    names = [str(k) for k in range(classes)]
    meta = {"label_names": names} if ten else {"fine_label_names": names, "coarse_label_names": names[:20]}
    (folder / ("batches.meta" if ten else "meta")).write_bytes(pickle.dumps(meta, protocol=2))


def write_image_folders(folder, classes, each=4):
    """``train/<class>/<n>.JPEG`` and ``val/...``; the images of class k have the grey k * 255 / (classes - 1)."""
    for part in ("train", "val"):
        for k in range(classes):
            of_class = folder / part / f"n{k:08d}"
            of_class.mkdir(parents=True)
            for n in range(each):
                Image.new("RGB", (48 + 4 * n, 40), (255 * k // (classes - 1),) * 3).save(of_class / f"{n}.JPEG")
