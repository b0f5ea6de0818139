import pytest
import torch
from timm.data.mixup import Mixup as TimmMixup

from lightning_objectives.batches import Mixup, mixup


def test_by_hand():
    """0.75 * 0 + 0.25 * 4 and 0.75 * 4 + 0.25 * 8 and 0.75 * 8."""
    inputs = torch.tensor([[0.0], [4.0], [8.0]])
    torch.testing.assert_close(mixup(inputs, torch.tensor([1, 2, 0]), 0.75), torch.tensor([[1.0], [5.0], [6.0]]))


def test_equals_timm(monkeypatch):
    monkeypatch.setattr("numpy.random.beta", lambda a, b, size=None: 0.3)
    images, target = torch.rand(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    theirs, labels = TimmMixup(mixup_alpha=0.4, label_smoothing=0.0, num_classes=5)(images.clone(), target)
    flipped = torch.arange(5, -1, -1)
    torch.testing.assert_close(mixup(images, flipped, 0.3), theirs)
    mine = 0.3 * torch.eye(5)[target] + 0.7 * torch.eye(5)[target[flipped]]
    torch.testing.assert_close(mine, labels)


def test_inputs_and_labels_are_mixed_alike():
    """Of one-hot inputs the mixture is the label's distribution itself."""
    inputs = torch.eye(5)
    mixed, index, weight = Mixup(alpha=1.0)(inputs, torch.Generator().manual_seed(3))
    torch.testing.assert_close(mixed, torch.einsum("nk,nkc->nc", weight, torch.eye(5)[index]))
    assert sorted(index[:, 1].tolist()) == [0, 1, 2, 3, 4]
    assert (weight[:, 1] > 0).all()


def test_shares_are_of_the_beta_distribution():
    """Beta(0.5, 0.5) has the mean 1/2 and the variance 1/8."""
    generator = torch.Generator().manual_seed(0)
    shares = torch.stack([Mixup(alpha=0.5)(torch.zeros(1, 1), generator)[2][0, 0] for _ in range(2000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(0.125, abs=0.01)


def test_prob_is_the_share_of_mixed_batches():
    generator, inputs = torch.Generator().manual_seed(0), torch.rand(2, 1)
    kept = [torch.equal(Mixup(prob=0.25)(inputs, generator)[2][:, 0], torch.ones(2)) for _ in range(400)]
    assert sum(kept) == pytest.approx(300, abs=30)
    assert not Mixup(prob=0.0).active(step=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"alpha": 0.0}, r"alpha=0\.0 must be > 0"), ({"prob": 1.5}, r"prob=1\.5 must be in \[0, 1\]")],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Mixup(**settings)


def test_tokens_are_refused():
    with pytest.raises(ValueError, match=r"inputs of torch\.int64 cannot be mixed"):
        mixup(torch.zeros(2, 3, dtype=torch.long), torch.tensor([1, 0]), 0.5)
