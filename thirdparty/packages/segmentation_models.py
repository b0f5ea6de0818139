"""segmentation-models-pytorch: the LightningModules of its documented examples, binary and multi-class."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from thirdparty.case import Case

REQUIREMENTS = ("segmentation-models-pytorch==0.6.0",)
TITLE = "segmentation-models-pytorch"
DISTRIBUTIONS = ("segmentation-models-pytorch", "torch", "lightning")
NOTE = (
    "The mean and the standard deviation of the images stand in the module, because `get_preprocessing_params` "
    "asks a model hub, which cannot be reached here: `LocalEntryNotFoundError`."
)


def _module(mode: str, classes: int) -> Any:
    """The module of examples/camvid_segmentation_multiclass.ipynb, and of examples/binary_segmentation_intro.ipynb."""
    import lightning as L
    import segmentation_models_pytorch as smp

    class SegmentationModel(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = smp.create_model(
                "FPN", encoder_name="resnet18", in_channels=3, classes=classes, encoder_weights=None
            )
            # smp.encoders.get_preprocessing_params asks the model hub for these.
            self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
            self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
            self.loss_fn = smp.losses.DiceLoss(mode, from_logits=True)
            self.training_step_outputs: list[Any] = []
            self.validation_step_outputs: list[Any] = []

        def forward(self, image: Tensor) -> Any:
            return self.model((image - self.mean) / self.std)

        def shared_step(self, batch: Any, stage: str) -> dict[str, Any]:
            image, mask = batch
            logits = self.forward(image).contiguous()
            loss = self.loss_fn(logits, mask)
            if mode == "binary":
                predicted = (logits.sigmoid() > 0.5).float()
                stats = smp.metrics.get_stats(predicted.long(), mask.long(), mode="binary")
            else:
                predicted = logits.softmax(dim=1).argmax(dim=1)
                stats = smp.metrics.get_stats(predicted, mask, mode="multiclass", num_classes=classes)
            return {"loss": loss, **dict(zip(("tp", "fp", "fn", "tn"), stats))}

        def shared_epoch_end(self, outputs: list[Any], stage: str) -> None:
            stats = [torch.cat([x[name] for x in outputs]) for name in ("tp", "fp", "fn", "tn")]
            self.log(f"{stage}_per_image_iou", smp.metrics.iou_score(*stats, reduction="micro-imagewise"))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            info = self.shared_step(batch, "train")
            self.training_step_outputs.append(info)
            return info

        def on_train_epoch_end(self) -> None:
            self.shared_epoch_end(self.training_step_outputs, "train")
            self.training_step_outputs.clear()

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            info = self.shared_step(batch, "valid")
            self.validation_step_outputs.append(info)
            return info

        def on_validation_epoch_end(self) -> None:
            self.shared_epoch_end(self.validation_step_outputs, "valid")
            self.validation_step_outputs.clear()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), lr=2e-4)
            scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6, eta_min=1e-5)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    return SegmentationModel()


def _data(binary: bool) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(10, 3, 32, 32, generator=generator)
    masks = torch.randint(0, 2 if binary else 3, (10, 32, 32), generator=generator)
    pairs = TensorDataset(images, masks[:, None].float() if binary else masks)
    first = TensorDataset(*pairs[:4])
    return DataLoader(pairs, batch_size=4), DataLoader(first, batch_size=4)


_HEAD = {"head": "model.segmentation_head.0"}
_WORDS = {"criterion": "loss_fn", **_HEAD, "LogMetrics": _HEAD, "Calibrate": _HEAD}

CASES = (
    Case(
        name="FPN, multi-class",
        about="the documented multi-class module: FPN with a Dice loss",
        module=lambda: _module("multiclass", 3),
        data=lambda: _data(binary=False),
        samples=4,
        settings=_WORDS,
    ),
    Case(
        name="FPN, binary",
        about="the documented binary module: FPN with a Dice loss",
        module=lambda: _module("binary", 1),
        data=lambda: _data(binary=True),
        samples=4,
        settings=_WORDS,
        classifies=False,
        one_logit=True,
    ),
)
