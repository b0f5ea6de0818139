"""Losses of whole samples in place of a criterion on positions."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import fit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives.batches import Mixup
from lightning_objectives.callbacks import ReplaceLoss, ReweightSamples, TransformBatch, WrapHead
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.losses import DiceLoss, dice_loss


def images(classes=3, ignored=True):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 2, 3, 5, generator=generator)
    y = torch.randint(classes, (12, 3, 5), generator=generator)
    if ignored:
        y[torch.rand(y.shape, generator=generator) < 0.2] = 255
        y[3] = 255  # an image of which nothing counts
    return DataLoader(TensorDataset(x, y), batch_size=4)


class Segmenter(L.LightningModule):
    def __init__(self, classes=3):
        super().__init__()
        self.body, self.head = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, classes, 1)

    def forward(self, x):
        return self.head(self.body(x).relu())

    def loss(self, logits, y):
        return F.cross_entropy(logits, y, ignore_index=255)

    def training_step(self, batch, batch_idx):
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5)


def trained(*callbacks, net=Segmenter, train=None):
    return fit(*callbacks, net=net, train=images() if train is None else train)[0].state_dict()


def test_dice_in_place_of_cross_entropy():
    """The mean is over the images in which something counts."""

    class ByHand(Segmenter):
        def loss(self, logits, y):
            losses = dice_loss(logits, y, y != 255)
            return losses[(y != 255).flatten(1).any(1)].mean()

    torch.testing.assert_close(trained(ReplaceLoss(DiceLoss())), trained(net=ByHand))


@pytest.mark.parametrize("channels", [(), (1,)])
def test_two_classes_by_one_logit(channels):
    class Binary(Segmenter):
        def __init__(self):
            super().__init__(classes=1)

        def loss(self, logits, y):
            return F.binary_cross_entropy_with_logits(logits, y[:, None].float())

    class ByHand(Binary):
        def loss(self, logits, y):
            return dice_loss(logits, y).mean()

    train = images(classes=2, ignored=False)
    net = trained(ReplaceLoss(DiceLoss()), net=Binary, train=train)
    torch.testing.assert_close(net, trained(net=ByHand, train=train))


def test_weights_of_images():
    """One weight for each image that counts."""

    def weights(losses):
        return (losses / losses.mean()).detach()

    class ByHand(Segmenter):
        def loss(self, logits, y):
            losses = dice_loss(logits, y, y != 255)[(y != 255).flatten(1).any(1)]
            return (weights(losses) * losses).mean()

    net = trained(ReplaceLoss(DiceLoss()), ReweightSamples(weights))
    torch.testing.assert_close(net, trained(net=ByHand))


def test_mixed_images_have_mixed_targets_and_stacks_a_mean():
    targets = []

    class Noting(DiceLoss):
        def forward(self, logits, target, mask=None):
            targets.append(target)
            return super().forward(logits, target, mask)

    trained(ReplaceLoss(Noting()), TransformBatch(Mixup(alpha=1.0)), train=images(ignored=False))
    for target in targets:
        assert target.shape == (4, 3, 3, 5)
        torch.testing.assert_close(target.sum(1), torch.ones(4, 3, 5))
    assert any(((target > 0) & (target < 1)).any() for target in targets)
    stacked = trained(ReplaceLoss(DiceLoss()), WrapHead(MultiSampleDropout(num_samples=2, p=0.0)))
    torch.testing.assert_close(stacked, trained(ReplaceLoss(DiceLoss())))


def in_rows(logits, y):
    return F.cross_entropy(logits.movedim(1, -1).flatten(0, 2), y.flatten(), ignore_index=255)


def reduced_by_hand(logits, y):
    return F.cross_entropy(logits, y, ignore_index=255, reduction="none").mean()


def without_channel(logits, y):
    return F.binary_cross_entropy_with_logits(logits[:, 0], (y == 1).float())


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (in_rows, "rows of their own"),
        (reduced_by_hand, "has one value for each"),
        (without_channel, "several labels that may hold together"),
    ],
)
def test_what_has_no_whole_images_is_refused(loss, message):
    class Other(Segmenter):
        def loss(self, logits, y):
            return loss(logits, y)

    with pytest.raises(ValueError, match=message):
        trained(ReplaceLoss(DiceLoss()), net=Other)
