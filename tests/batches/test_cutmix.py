import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup as TimmMixup

from lightning_objectives.batches import CutMix, cutmix, cutmix_box


@pytest.mark.parametrize(
    ("share", "centre", "box"),
    [
        (0.75, (4, 4), (2, 6, 2, 6)),  # a quarter of 8 by 8 is 4 by 4
        (0.75, (0, 7), (0, 2, 5, 8)),  # cut off at two borders
        (1.0, (4, 4), (4, 4, 4, 4)),  # nothing
        (0.0, (4, 4), (0, 8, 0, 8)),  # everything
        (0.8, (4, 4), (3, 6, 3, 6)),  # int(3.58) = 3 by 3
    ],
)
def test_boxes_by_hand(share, centre, box):
    assert cutmix_box(8, 8, share, centre) == box


@pytest.mark.parametrize("seed", range(5))
def test_equals_timm(monkeypatch, seed):
    monkeypatch.setattr("numpy.random.beta", lambda a, b, size=None: 0.36)  # 8 by 12: even
    images, target = torch.rand(6, 3, 10, 15), torch.tensor([0, 1, 2, 3, 4, 0])
    np.random.seed(seed)
    timm = TimmMixup(mixup_alpha=0.0, cutmix_alpha=1.0, label_smoothing=0.0, num_classes=5)
    theirs, labels = timm(images.clone(), target)
    np.random.seed(seed)  # timm's draws: whether to mix at all, then the centre
    np.random.rand()
    centre = np.random.randint(0, 10), np.random.randint(0, 15)
    flipped = torch.arange(5, -1, -1)
    mine, share = cutmix(images, flipped, cutmix_box(10, 15, 0.36, centre))
    assert torch.equal(mine, theirs)
    torch.testing.assert_close(share * torch.eye(5)[target] + (1 - share) * torch.eye(5)[target[flipped]], labels)


def test_labels_have_the_shares_of_the_areas():
    """Image n is full of the number n: the counts of pixels are the shares."""
    inputs = torch.arange(5.0)[:, None, None, None].expand(5, 1, 9, 7).clone()
    for seed in range(20):
        mixed, index, weight = CutMix()(inputs, torch.Generator().manual_seed(seed))
        counted = torch.stack([(mixed == c).float().mean((1, 2, 3)) for c in range(5)], 1)
        torch.testing.assert_close(torch.einsum("nk,nkc->nc", weight, torch.eye(5)[index]), counted)


def test_prob_is_the_share_of_mixed_batches():
    generator, inputs = torch.Generator().manual_seed(0), torch.rand(7, 1, 32, 32)
    kept = [torch.equal(CutMix(prob=0.25)(inputs, generator)[0], inputs) for _ in range(400)]
    assert sum(kept) == pytest.approx(300, abs=35)  # a box may also be empty
    assert not CutMix(prob=0.0).active(step=0)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"alpha=-1\.0 must be > 0"):
        CutMix(alpha=-1.0)
    with pytest.raises(ValueError, match=r"inputs of the shape \(2, 3\), torch.float32, must be \(N, ..., H, W\)"):
        cutmix(torch.zeros(2, 3), torch.tensor([1, 0]), (0, 1, 0, 1))
