"""Mixes the rows of a batch into a new batch: batch -> batch."""

from lightning_objectives.batches.cutmix import CutMix, cutmix, cutmix_box
from lightning_objectives.batches.mixup import Mixup, mixup
from lightning_objectives.batches.mixup_or_cutmix import MixupOrCutMix

__all__ = ["CutMix", "Mixup", "MixupOrCutMix", "cutmix", "cutmix_box", "mixup"]
