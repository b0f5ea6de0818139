"""Data modules that need no download, or fetch what they need; and `with_index`."""

from lightning_objectives.data.cifar import CIFAR10DataModule, CIFAR100DataModule
from lightning_objectives.data.digits import DigitsDataModule
from lightning_objectives.data.fashion_mnist import FashionMNISTDataModule
from lightning_objectives.data.imagenet import ImageNetDataModule
from lightning_objectives.data.with_index import Indexed, WithIndex, with_index

__all__ = [
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "DigitsDataModule",
    "FashionMNISTDataModule",
    "ImageNetDataModule",
    "Indexed",
    "WithIndex",
    "with_index",
]
