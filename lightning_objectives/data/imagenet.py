"""ImageNet, and whatever else is a folder or a stream of labelled images, as timm reads it."""

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from lightning_objectives.data._module import ImageDataModule


class ImageNetDataModule(ImageDataModule):
    """Images (3, S, S) float32, normalised, augmented and read by timm.

    Args:
        data_dir: the folder that holds ``train/`` and ``val/`` with a folder a class, or ``train.tar`` and
            ``validation.tar`` of such folders or of tar files a class; or what the reader takes.
        reader: which of timm's readers: empty for folders and tar files, ``hfds/...`` and ``hfids/...`` for a data set
            of Hugging Face (the second as a stream), ``wds/...`` for WebDataset shards, ``torch/...`` for those of
            torchvision.
        train_split: as the reader calls it.
        val_split: as the reader calls it; also what is tested, since the labels of ImageNet's test set are not public.
        train_samples: the number of samples of a stream, where its reader cannot tell.
        val_samples: the same of the validation set.
        download: let the reader fetch what is missing.
        batch_size: of every loader, and on every device.
        image_size: S.
        crop_pct: the share of the shorter side that the centre crop of the validation keeps.
        interpolation: of the resizing.
        auto_augment: timm's name of a policy, such as ``rand-m9-mstd0.5-inc1``; None for crops and flips alone.
        color_jitter: how much brightness, contrast and saturation vary, where no policy is named.
        re_prob: the probability of erasing a part of an image.
        mean: of each channel, in [0, 1].
        std: of each channel.
        seed: of the shuffling of streams.
        num_workers: processes that load and augment.

    Raises:
        ValueError: a batch size below 1; in ``setup`` one folder for both splits, or splits of other classes.
        FileNotFoundError: in ``setup`` where there is no such folder.

    Ranks: Lightning divides what is read from folders among the ranks, timm's readers divide streams themselves. The
    last training batch is dropped where it is not full.

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
        """Open the two sets."""
        if not self.reader and not Path(self.data_dir).is_dir():
            raise FileNotFoundError(
                f"data_dir={str(self.data_dir)!r} does not exist: give the folder that holds {self.train_split}/ and "
                f"{self.val_split}/, or say with reader= which of timm's readers is meant."
            )
        train = self._read(self.train_split, self.train_samples, is_training=True)
        val = self._read(self.val_split, self.val_samples, is_training=False)
        if not self.reader:
            self._check(train.reader, val.reader)
        self.train, self.val, self.test = train, val, val

    def _check(self, train: Any, val: Any) -> None:
        # timm takes the folder itself where it finds none of the split's name, and counts the classes of each anew
        if train.root == val.root:
            raise ValueError(
                f"data_dir={str(self.data_dir)!r} has no folders (or tar files) of the names {self.train_split!r} and "
                f"{self.val_split!r}: the same images would be trained and validated on."
            )
        classes = [set(getattr(r, "class_to_idx", None) or r.class_name_to_idx) for r in (train, val)]
        if classes[0] != classes[1]:
            raise ValueError(
                f"{train.root} has {len(classes[0])} classes and {val.root} has {len(classes[1])}, of which "
                f"{sorted(classes[0] ^ classes[1])[:5]} are in one only: their labels would not be the same."
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

        # timm's prefetcher normalises on a GPU, and hides the loader from Lightning, which has to divide it among ranks
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
