"""Merges checkpoints on disk into one, and exports one of its two sets of weights."""

from lightning_objectives._files.export import export_checkpoint
from lightning_objectives._files.merge import merge_checkpoints
from lightning_objectives.merging.wsm import WSM, wsm_coefficients

__all__ = ["WSM", "export_checkpoint", "merge_checkpoints", "wsm_coefficients"]
