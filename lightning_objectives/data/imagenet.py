"""Loads ImageNet, or any other folder or stream of labelled images, with the readers of timm."""

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from lightning_objectives.data._module import ImageDataModule


class ImageNetDataModule(ImageDataModule):
    """Loads images (3, S, S) float32, which timm reads, augments and normalises.

    Args:
        data_dir: the folder that holds ``train/`` and ``val/`` with one folder for each class, or ``train.tar`` and
            ``validation.tar`` of such folders or with one tar file for each class. Another ``reader`` may need another
            path.
        reader: the name of one of timm's readers: empty for folders and tar files, ``hfds/...`` and ``hfids/...`` for
            a data set of Hugging Face (the second as a stream), ``wds/...`` for WebDataset shards, ``torch/...`` for
            a data set of torchvision.
        train_split: the reader's name for the training set.
        val_split: the reader's name for the validation set, which is also the test set, because the labels of
            ImageNet's own test set are not public.
        train_samples: the number of samples of a stream, if its reader cannot tell.
        val_samples: the same for the validation set.
        download: let the reader download what is missing.
        batch_size: of every loader, and on every device.
        image_size: S.
        crop_pct: the share of the shorter side that the centre crop of validation images keeps.
        interpolation: the method of resizing.
        auto_augment: timm's name of a policy, such as ``rand-m9-mstd0.5-inc1``; None for crops and flips alone.
        color_jitter: how much brightness, contrast and saturation vary if ``auto_augment`` is None.
        re_prob: the probability that a part of an image is erased.
        mean: of each channel, in [0, 1].
        std: of each channel.
        seed: of the order of streams.
        num_workers: number of processes that load and augment.

    Raises:
        ValueError: the batch size is below 1; in ``setup``, both splits are the same folder, or have other classes.
        FileNotFoundError: in ``setup``, the folder does not exist.

    Ranks: Lightning divides the images of folders among the ranks; timm's readers divide streams themselves. A last
    training batch that is not full is dropped.

    Paper: Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, 2015,
    https://arxiv.org/abs/1409.0575.
    """

    def __init__(
        self,
        *,
        data_dir: str | Path = "data/imagenet",
        reader: str = "",
        train_split: str = "train",
        val_split: str = "validation",
        train_samples: int | None = None,
        val_samples: int | None = None,
        download: bool = False,
        batch_size: int = 128,
        image_size: int = 224,
        crop_pct: float = 0.95,
        interpolation: str = "bicubic",
        auto_augment: str | None = None,
        color_jitter: float = 0.4,
        re_prob: float = 0.0,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        seed: int = 0,
        num_workers: int = 8,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        self.data_dir = data_dir
        self.reader = reader
        self.train_split = train_split
        self.val_split = val_split
        self.train_samples = train_samples
        self.val_samples = val_samples
        self.download = download
        self.image_size = image_size
        self.crop_pct = crop_pct
        self.interpolation = interpolation
        self.auto_augment = auto_augment
        self.color_jitter = color_jitter
        self.re_prob = re_prob
        self.mean = mean
        self.std = std
        self.seed = seed

    def setup(self, stage: str | None = None) -> None:
        """Open the training set and the validation set."""
        if not self.reader and not Path(self.data_dir).is_dir():
            raise FileNotFoundError(
                f"data_dir={str(self.data_dir)!r} does not exist: give the folder that holds {self.train_split}/ and "
                f"{self.val_split}/, or name one of timm's readers with reader=."
            )
        train = self._read(self.train_split, self.train_samples, is_training=True)
        val = self._read(self.val_split, self.val_samples, is_training=False)
        if not self.reader:
            self._check(train.reader, val.reader)
        self.train, self.val, self.test = train, val, val

    def _check(self, train: Any, val: Any) -> None:
        # timm uses the folder itself if there is none with the split's name, and numbers the classes of each set anew.
        if train.root == val.root:
            raise ValueError(
                f"data_dir={str(self.data_dir)!r} has no folders (or tar files) {self.train_split!r} and "
                f"{self.val_split!r}, so the same images would be used for training and for validation. Give the "
                "folder that holds both, or their names with train_split= and val_split=."
            )
        classes = [set(getattr(r, "class_to_idx", None) or r.class_name_to_idx) for r in (train, val)]
        if classes[0] != classes[1]:
            raise ValueError(
                f"{train.root} has {len(classes[0])} classes and {val.root} has {len(classes[1])}, and "
                f"{sorted(classes[0] ^ classes[1])[:5]} are in one of them only, so the same label would mean "
                "different classes. Give both sets a folder for each class."
            )

    def _read(self, split: str, num_samples: int | None, *, is_training: bool) -> Any:
        from timm.data.dataset_factory import create_dataset

        tar = Path(self.data_dir, f"{split}.tar")
        return create_dataset(
            self.reader,
            root=str(tar if not self.reader and tar.is_file() else self.data_dir),
            split=split,
            is_training=is_training,
            download=self.download,
            batch_size=self.batch_size,
            num_samples=num_samples,
            seed=self.seed,
        )

    def _loader(self, data: Any, *, shuffle: bool = False) -> DataLoader[Any]:
        from timm.data.loader import create_loader

        # timm's prefetcher would hide the loader from Lightning, which must divide it among the ranks.
        loader: DataLoader[Any] = create_loader(
            data,
            input_size=(3, self.image_size, self.image_size),
            batch_size=self.batch_size,
            is_training=shuffle,
            auto_augment=self.auto_augment,
            color_jitter=self.color_jitter,
            re_prob=self.re_prob,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            mean=self.mean,
            std=self.std,
            num_workers=self.num_workers,
            use_prefetcher=False,
        )
        return loader
