"""Measures the batches of an evaluation epoch by metrics, and logs the results at its end."""

from typing import Any

from torch import Tensor
from torchmetrics import Metric, MetricCollection

from lightning_objectives.metrics import default_metrics


class Measured:
    """Holds the metrics of one epoch, by the name of the weights and by data loader.

    Args:
        metrics: what to measure; by default :func:`default_metrics` for as many classes as the logits have.
    """

    def __init__(self, metrics: Metric | MetricCollection | None) -> None:
        self.metrics = metrics
        self._collections: dict[tuple[str, int], MetricCollection] = {}

    def update(self, name: str, loader: int, logits: Tensor, target: Tensor) -> None:
        """Measure one batch; ``name`` stands before the names of the metrics."""
        key = name, loader
        if key not in self._collections:
            metrics = self.metrics or default_metrics(logits.shape[1] if logits.dim() > 1 else 1)
            metrics = metrics if isinstance(metrics, MetricCollection) else MetricCollection([metrics])
            self._collections[key] = metrics.clone().to(logits.device)
        self._collections[key].update(logits, target)

    def log(self, trainer: Any, module: Any, prefix: str) -> None:
        """Log everything, and begin anew."""
        several = len({loader for _, loader in self._collections}) > 1
        # Every rank computes the same value over the samples of all ranks, so the mean over the ranks changes nothing;
        # Lightning warns without it.
        sync = trainer.world_size > 1
        for (name, loader), metrics in self._collections.items():
            suffix = f"/dataloader_idx_{loader}" if several else ""
            for key, value in metrics.compute().items():
                module.log(f"{prefix}{name}{key}{suffix}", value, sync_dist=sync, add_dataloader_idx=False)
        self._collections = {}
