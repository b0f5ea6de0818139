"""Mixes the rows of a batch into a new batch: batch -> batch."""

from lightning_objectives.batches.augmix import AugMix
from lightning_objectives.batches.cutmix import CutMix, cutmix, cutmix_box
from lightning_objectives.batches.manifold_mixup import ManifoldMixup
from lightning_objectives.batches.mixup import Mixup, mixup
from lightning_objectives.batches.mixup_or_cutmix import MixupOrCutMix
from lightning_objectives.batches.progressive_resizing import ProgressiveResizing, progressive_size
from lightning_objectives.batches.rand_augment import RandAugment
from lightning_objectives.batches.random_erasing import RandomErasing, draw_boxes, erase_boxes

__all__ = [
    "AugMix",
    "CutMix",
    "ManifoldMixup",
    "Mixup",
    "MixupOrCutMix",
    "ProgressiveResizing",
    "RandAugment",
    "RandomErasing",
    "cutmix",
    "cutmix_box",
    "draw_boxes",
    "erase_boxes",
    "mixup",
    "progressive_size",
]
