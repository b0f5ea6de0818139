"""A LightningModule for any of timm's classifiers, as a project would have it: it knows of no plug-in."""

from typing import Any, Literal

import lightning as L
import timm
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torchmetrics.classification import MulticlassAccuracy


class ImageClassifier(L.LightningModule):
    """A timm model, cross entropy, one optimizer and one schedule, stepped once an epoch.

    Args:
        model: timm's name, such as ``resnet18``.
        num_classes: of the data.
        in_chans: channels of the images.
        small_images: for images of about 32 pixels: a ResNet's first convolution is 3x3 at stride 1, and its first
            pooling is left out.
        model_args: further settings of timm's model, such as ``channels`` of a ResNet's stages.
        pretrained: start from timm's weights.
        optimizer: timm's name, such as ``sgd`` (with Nesterov's momentum) or ``adamw``.
        lr: learning rate.
        weight_decay: of the weight matrices; biases and norms have none.
        momentum: of SGD.
        schedule: what the learning rate does, epoch by epoch.
        milestones: epochs at which ``multistep`` divides the learning rate by 10.
        warmup_epochs: epochs of linear growth at the beginning.
        label_smoothing: of the cross entropy.
    """

    def __init__(
        self,
        model: str,
        num_classes: int,
        *,
        in_chans: int = 3,
        small_images: bool = False,
        model_args: dict[str, Any] | None = None,
        pretrained: bool = False,
        optimizer: str = "sgd",
        lr: float = 0.1,
        weight_decay: float = 5e-4,
        momentum: float = 0.9,
        schedule: Literal["cosine", "multistep", "constant"] = "cosine",
        milestones: tuple[int, ...] = (),
        warmup_epochs: int = 0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = timm.create_model(
            model, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans, **(model_args or {})
        )
        if small_images:
            if not hasattr(self.model, "conv1") or not hasattr(self.model, "maxpool"):
                raise ValueError(f"small_images=True is for ResNets; {model!r} has no conv1 and maxpool.")
            width = self.model.conv1.out_channels
            self.model.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
            self.model.maxpool = nn.Identity()
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, channels, H, W) -> logits (N, num_classes)."""
        return self.model(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy."""
        images, target = batch
        loss = F.cross_entropy(self(images), target, label_smoothing=self.hparams["label_smoothing"])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The project's own logging."""
        images, target = batch
        logits = self(images)
        self.accuracy(logits, target)
        self.log("val_loss", F.cross_entropy(logits, target), prog_bar=True, sync_dist=True)
        self.log("val_acc", self.accuracy, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The accuracy."""
        images, target = batch
        logits = self(images)
        self.accuracy(logits, target)
        self.log("test_loss", F.cross_entropy(logits, target), sync_dist=True)
        self.log("test_acc", self.accuracy)

    def configure_optimizers(self) -> Any:
        """The optimizer and the schedule."""
        h = self.hparams
        optimizer = create_optimizer_v2(
            self.model, opt=h["optimizer"], lr=h["lr"], weight_decay=h["weight_decay"], momentum=h["momentum"]
        )
        warmup, epochs = h["warmup_epochs"], max(1, self.trainer.max_epochs or 1)
        if h["schedule"] == "cosine":
            main: Any = lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs - warmup))
        else:
            drops = [epoch - warmup for epoch in h["milestones"]] if h["schedule"] == "multistep" else []
            main = lr_scheduler.MultiStepLR(optimizer, drops)
        if not warmup:
            return [optimizer], [main]
        start = lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warmup)
        return [optimizer], [lr_scheduler.SequentialLR(optimizer, [start, main], [warmup])]
