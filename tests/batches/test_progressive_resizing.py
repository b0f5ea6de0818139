import pytest
import torch
import torch.nn.functional as F
from helpers import fit
from lightning import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives.batches import ProgressiveResizing, progressive_size
from lightning_objectives.callbacks import TransformBatch


@pytest.mark.parametrize(
    ("progress", "size"),
    [(0.0, (15, 16)), (0.5, (15, 16)), (0.65, (22, 24)), (0.79, (30, 32)), (0.8, (30, 32)), (1.0, (30, 32))],
)
def test_sizes_by_hand(progress, size):
    """At 0.65 the scale is 3/4: 24 pixels wide, and 30 · 24 / 32 = 22.5, rounded down."""
    assert progressive_size(30, 32, progress) == size


def test_no_part_of_the_training_grows():
    """Composer divides by zero here."""
    settings = {"delay_fraction": 0.6, "finetune_fraction": 0.4}
    assert progressive_size(32, 32, 0.59, **settings) == (16, 16)
    assert progressive_size(32, 32, 0.6, **settings) == (32, 32)


def test_sizes_stay_within_the_image():
    for progress in torch.linspace(0, 1, 50).tolist():
        height, width = progressive_size(3, 5, progress, initial_scale=0.01)
        assert 1 <= height <= 3
        assert 1 <= width <= 5


def transformed(method, images, progress):
    return method(images, torch.tensor(progress), torch.Generator().manual_seed(0))


def test_resized_images_are_those_of_torchvision():
    from torchvision.transforms.v2.functional import resize

    images = torch.rand(2, 3, 16, 16)
    small, index, weight = transformed(ProgressiveResizing(), images, 0.0)
    torch.testing.assert_close(small, resize(images, [8, 8], antialias=True))
    assert index.tolist() == [[0], [1]]
    assert weight.tolist() == [[1.0], [1.0]]


def test_crops_are_parts_of_the_images():
    images = torch.arange(2 * 64.0).view(2, 1, 8, 8)
    crop, _, _ = transformed(ProgressiveResizing(mode="crop"), images, 0.0)
    first = int(crop[0, 0, 0, 0])
    top, left = divmod(first, 8)
    assert torch.equal(crop, images[:, :, top : top + 4, left : left + 4])
    method, places = ProgressiveResizing(mode="crop"), set()
    for seed in range(20):
        crop, _, _ = method(images, torch.tensor(0.0), torch.Generator().manual_seed(seed))
        places.add(int(crop[0, 0, 0, 0]))
    assert len(places) > 5


def test_at_the_end_images_are_whole():
    images = torch.rand(2, 3, 8, 8)
    for mode in ("resize", "crop"):
        assert torch.equal(transformed(ProgressiveResizing(mode=mode), images, 0.9)[0], images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "nearest"}, "must be 'resize' or 'crop'"),
        ({"initial_scale": 0.0}, r"initial_scale=0\.0 must be in \(0, 1\]"),
        ({"delay_fraction": 0.9}, "1 together at most"),
        ({"size_increment": 0}, "size_increment=0 must be >= 1"),
    ],
)
def test_settings_outside_their_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveResizing(**settings)


def test_images_of_whole_numbers_are_refused():
    with pytest.raises(ValueError, match=r"must be \(N, C, H, W\) images of floating point"):
        transformed(ProgressiveResizing(), torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 0.0)


class Pooled(LightningModule):
    """A network for images of any size."""

    def __init__(self, dense=False):
        super().__init__()
        self.conv, self.fc, self.dense = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 1), dense
        self.sizes = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.sizes.append(tuple(x.shape[2:]))
        logits = self.fc(self.conv(x).relu())
        if self.dense:
            return F.cross_entropy(logits, y[:, None, None].expand(-1, 8, 8))
        return F.cross_entropy(logits.mean((2, 3)), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20, 1, 8, 8, generator=generator), torch.randint(3, (20,), generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=4)


def test_a_training_begins_small_and_ends_whole():
    net, _ = fit(TransformBatch(ProgressiveResizing()), net=Pooled, train=batches())
    assert net.sizes == [(4, 4)] * 7 + [(8, 8)] * 3  # at 0.7 the scale is 5/6, and 6.7 pixels are nearer to 8

    class ByHand(Pooled):
        def training_step(self, batch, batch_idx):
            done = self.trainer.global_step / 10
            small, _, _ = ProgressiveResizing()(batch[0], torch.tensor(done), torch.Generator())
            return super().training_step((small, batch[1]), batch_idx)

    by_hand, _ = fit(net=ByHand, train=batches())
    torch.testing.assert_close(net.state_dict(), by_hand.state_dict())


def test_targets_of_positions_are_refused():
    with pytest.raises(ValueError, match="changes the size of the images, but the criterion compares"):
        fit(TransformBatch(ProgressiveResizing()), net=lambda: Pooled(dense=True), train=batches())


def test_a_scale_of_one_is_the_plain_run():
    plain, _ = fit(net=Pooled, train=batches())
    net, _ = fit(TransformBatch(ProgressiveResizing(initial_scale=1.0)), net=Pooled, train=batches())
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), plain.state_dict().values()))
