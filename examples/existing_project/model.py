"""A LightningModule as one finds it in a project: it knows of no plug-in."""

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy


class Digits(L.LightningModule):
    """A small convolutional classifier of 8x8 digits."""

    def __init__(self, width: int = 16, dropout: float = 0.1, lr: float = 0.02, decay: bool = True) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
        )
        self.classifier = nn.Linear(8 * width, 10)
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 1, 8, 8) -> logits (N, 10)."""
        return self.classifier(self.backbone(images))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy with a little label smoothing."""
        images, target = batch
        loss = F.cross_entropy(self(images), target, label_smoothing=0.05)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The project's own logging."""
        images, target = batch
        logits = self(images)
        self.accuracy(logits, target)
        self.log("val_loss", F.cross_entropy(logits, target), prog_bar=True)
        self.log("val_acc", self.accuracy, prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """The accuracy."""
        images, target = batch
        self.accuracy(self(images), target)
        self.log("test_acc", self.accuracy)

    def configure_optimizers(self) -> dict:
        """SGD with two parameter groups; one cycle of the learning rate, or a constant one."""
        decayed = [p for p in self.parameters() if p.ndim > 1]
        plain = [p for p in self.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, lr=self.hparams["lr"], momentum=0.9, nesterov=True)
        if not self.hparams["decay"]:
            return {"optimizer": optimizer}
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.hparams["lr"], total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
