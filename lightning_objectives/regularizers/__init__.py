"""Adds a term to the loss: signals -> (N,) or a scalar."""

from lightning_objectives.regularizers.log_partition_penalty import LogPartitionPenalty, log_partition_penalty
from lightning_objectives.regularizers.spectral_decoupling import SpectralDecoupling, spectral_decoupling

__all__ = ["LogPartitionPenalty", "SpectralDecoupling", "log_partition_penalty", "spectral_decoupling"]
