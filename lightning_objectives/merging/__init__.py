"""Checkpoints on disk -> one."""

from lightning_objectives.merging._checkpoints import merge_checkpoints
from lightning_objectives.merging._export import export_checkpoint
from lightning_objectives.merging.wsm import WSM, wsm_coefficients

__all__ = ["WSM", "export_checkpoint", "merge_checkpoints", "wsm_coefficients"]
