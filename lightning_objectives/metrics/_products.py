"""Base class of the metrics that the products of the features are enough for."""

import torch
from torch import Tensor

from lightning_objectives.metrics._sums import WITHOUT_FLOAT64, Sums
from lightning_objectives.shapes import check_shapes


class FeatureProducts(Sums):
    """Adds up the products of the features, a D x D matrix in float64, and keeps no row."""

    def __init__(self) -> None:
        super().__init__()
        self._add_sum("count", torch.tensor(0))
        self._add_sum("products", torch.zeros((), dtype=torch.float64))

    def update(self, features: Tensor) -> None:
        """Add a batch of features (N, D)."""
        check_shapes(features=features)
        known = self._sum("products").shape
        if known and known[0] != features.shape[1]:
            raise ValueError(
                f"features of the shape {tuple(features.shape)} have {features.shape[1]} columns, but those before had "
                f"{known[0]}. Use one {type(self).__name__} for each."
            )
        wide = torch.float32 if features.device.type in WITHOUT_FLOAT64 else torch.float64
        z = features.detach().to(wide)
        self._add(count=len(z), products=z.T @ z)

    def _singular_values(self) -> Tensor:
        """Those of all rows as a matrix, the greatest first, on the CPU; NaN without rows, or if one is not finite."""
        products, count = self._sum("products").cpu().double(), int(self._sum("count"))
        if not count or not products.isfinite().all():
            return products.new_full((1,), torch.nan)
        squares: Tensor = torch.linalg.eigvalsh(products)
        return squares.flip(0)[:count].clamp_min(0).sqrt()
