"""torchvision: an FCN with two criteria, and a Faster R-CNN on lists of images with a sum of four losses."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from thirdparty.case import Case

REQUIREMENTS: tuple[str, ...] = ()
TITLE = "torchvision"
DISTRIBUTIONS = ("torchvision", "torch", "lightning")
NOTE = "torchvision has no LightningModule; this is the usual one around a detector."


def detector() -> Any:
    """A Faster R-CNN on a small backbone, in the usual module."""
    import lightning as L
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
    backbone.out_channels = 8

    class Detector(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = FasterRCNN(
                backbone,
                min_size=64,
                max_size=64,
                rpn_anchor_generator=AnchorGenerator(sizes=((16, 32),), aspect_ratios=((1.0,),)),
                box_roi_pool=MultiScaleRoIAlign(featmap_names=["0"], output_size=2, sampling_ratio=2),
                box_head=nn.Sequential(nn.Flatten(), nn.Linear(32, 16), nn.ReLU()),
                box_predictor=_predictor(),
            )

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            images, targets = batch
            losses = self.model(images, targets)
            self.log_dict(losses, batch_size=len(images))
            return sum(losses.values())

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            images, _ = batch
            boxes = self.model(images)
            self.log("val_boxes", float(sum(len(b["boxes"]) for b in boxes)), batch_size=len(images))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    return Detector()


def _predictor() -> nn.Module:
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

    return FastRCNNPredictor(16, 3)


def _data() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    items = []
    for i in range(10):
        image = torch.rand(3, 64, 48 + 8 * (i % 3), generator=generator)
        corner = torch.randint(0, 24, (2, 2), generator=generator).float()
        boxes = torch.cat([corner, corner + 20], 1)
        items.append((image, {"boxes": boxes, "labels": torch.tensor([1, 1 + i % 2])}))
    collate = lambda batch: tuple(zip(*batch))  # noqa: E731  # as in torchvision's references
    return DataLoader(items, batch_size=4, collate_fn=collate), DataLoader(items[:4], batch_size=4, collate_fn=collate)


def segmenter() -> Any:
    """An FCN with an auxiliary classifier, trained as in torchvision's references/segmentation."""
    import lightning as L
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU())
            self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            x = self.first(x)
            return {"aux": x, "out": self.second(x)}

    class Segmenter(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = FCN(Backbone(), FCNHead(8, 3), FCNHead(8, 3))

        def criterion(self, outputs: dict[str, Tensor], target: Tensor) -> Tensor:
            losses = {name: F.cross_entropy(x, target, ignore_index=255) for name, x in outputs.items()}
            return losses["out"] + 0.5 * losses["aux"]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            image, target = batch
            loss = self.criterion(self.model(image), target)
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            image, target = batch
            self.log("val_loss", F.cross_entropy(self.model(image)["out"], target, ignore_index=255))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    return Segmenter()


def _pixels() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(10, 3, 32, 32, generator=generator)
    masks = torch.randint(0, 3, (10, 32, 32), generator=generator)
    masks[:, 0] = 255
    pairs = TensorDataset(images, masks)
    return DataLoader(pairs, batch_size=4), DataLoader(TensorDataset(*pairs[:4]), batch_size=4)


CASES = (
    Case(
        name="FCN",
        about="FCN with an auxiliary classifier: two criteria, pixels of 255 are ignored",
        module=segmenter,
        data=_pixels,
        samples=4,
        settings={"which": 0, "head": "model.classifier.4", "LogMetrics": {}, "Calibrate": {}},
        teacher=lambda module: module.model,
    ),
    Case(
        name="Faster R-CNN",
        about="FasterRCNN on a small backbone: lists of images of several sizes, a sum of four losses",
        module=detector,
        data=_data,
        settings={"which": 2, "head": "model.roi_heads.box_predictor.cls_score"},
        teacher=lambda module: module.model,
    ),
)
