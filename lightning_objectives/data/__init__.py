"""Loads data sets of images for examples and benchmarks, and numbers the items of your own with `with_index`."""

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
