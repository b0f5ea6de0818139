"""Loads handwritten digits, without a download."""

import torch
from torch.utils.data import TensorDataset

from lightning_objectives.data._module import ImageDataModule, stratified_split


class DigitsDataModule(ImageDataModule):
    """Loads scikit-learn's 1797 handwritten digits of 10 classes, as images (1, 8, 8) float32 in [0, 1].

    Args:
        batch_size: of every loader.
        val_fraction: the share of the validation set, the same for each class.
        test_fraction: the share of the test set; the rest is the training set.
        seed: of the split, which depends on nothing else.
        num_workers: number of processes that load; 0 is fastest because the data lie in memory.

    Raises:
        ValueError: the batch size is below 1, or the fractions leave no training set.
        ModuleNotFoundError: in ``setup``, scikit-learn is not installed; the extra ``examples`` has it.

    Example:
        >>> data = DigitsDataModule(batch_size=32)
        >>> data.setup()
        >>> images, target = next(iter(data.val_dataloader()))
        >>> images.shape, target.shape
        (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """

    def __init__(
        self,
        *,
        batch_size: int = 64,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        stratified_split(torch.zeros(1), [val_fraction, test_fraction], seed=seed)  # raises now, not in setup
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:
        """Read and split the data, the same way for every stage."""
        try:
            from sklearn.datasets import load_digits
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "DigitsDataModule needs scikit-learn: pip install 'lightning-objectives[examples]'."
            ) from error
        digits = load_digits()
        images = torch.from_numpy(digits.images).float()[:, None] / 16
        target = torch.from_numpy(digits.target).long()
        parts = stratified_split(target, [self.val_fraction, self.test_fraction], seed=self.seed)
        self.train, self.val, self.test = (TensorDataset(images[part], target[part]) for part in parts)
