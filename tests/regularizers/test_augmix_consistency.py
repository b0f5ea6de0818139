import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import fit, weights
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives.batches import AugMix
from lightning_objectives.callbacks import AddRegularizer
from lightning_objectives.regularizers import AugMixConsistency, jensen_shannon_divergence

LOGITS = torch.tensor([[[1.0, 2.0, 0.0]], [[0.0, 1.0, 1.0]], [[2.0, 0.0, -1.0]]])
IMAGES = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_a_known_number():
    """Of the logits (1, 2, 0), (0, 1, 1) and (2, 0, -1)."""
    found = jensen_shannon_divergence(LOGITS[0], [LOGITS[1], LOGITS[2]])
    torch.testing.assert_close(found, torch.tensor([0.252177]), rtol=0, atol=1e-6)


def test_a_slow_loop_in_plain_numbers():
    passes = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)).tolist()
    slow = []
    for row in range(5):
        p = [[math.exp(z) / sum(map(math.exp, one[row])) for z in one[row]] for one in passes]
        mean = [sum(one[k] for one in p) / 4 for k in range(3)]
        slow.append(sum(a * math.log(a / m) for one in p for a, m in zip(one, mean)) / 4)
    passes = torch.tensor(passes)
    torch.testing.assert_close(jensen_shannon_divergence(passes[0], list(passes[1:])), torch.tensor(slow))


def authors(clean, first, second):
    """The term of the authors' loop, without its factor."""
    p = [F.softmax(z, dim=1) for z in (clean, first, second)]
    mixture = torch.clamp(sum(p) / 3, 1e-7, 1).log()
    return sum(F.kl_div(mixture, each, reduction="batchmean") for each in p) / 3


def test_the_mean_and_the_gradients_are_those_of_the_authors_loop():
    passes = [(3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(n))).requires_grad_() for n in range(3)]
    ours, theirs = jensen_shannon_divergence(passes[0], passes[1:]).mean(), authors(*passes)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(torch.autograd.grad(ours, passes), torch.autograd.grad(theirs, passes)):
        torch.testing.assert_close(one, other)
        assert one.abs().max() > 0


def test_equal_passes_are_0_and_sure_ones_that_differ_the_logarithm_of_their_number():
    torch.testing.assert_close(jensen_shannon_divergence(LOGITS[0], [LOGITS[0]] * 2), torch.zeros(1))
    sure = 1e4 * torch.eye(3)[:, None]
    torch.testing.assert_close(jensen_shannon_divergence(sure[0], [sure[1], sure[2]]), torch.tensor([math.log(3)]))


def test_the_order_of_the_passes_means_nothing():
    expected = jensen_shannon_divergence(LOGITS[0], [LOGITS[1], LOGITS[2]])
    torch.testing.assert_close(jensen_shannon_divergence(LOGITS[2], [LOGITS[0], LOGITS[1]]), expected)


def test_a_class_that_is_impossible_everywhere_counts_nothing():
    impossible = torch.full((3, 1, 1), -torch.inf)
    padded = torch.cat([LOGITS, impossible], 2).requires_grad_()
    found = jensen_shannon_divergence(padded[0], [padded[1], padded[2]])
    torch.testing.assert_close(found, jensen_shannon_divergence(LOGITS[0], [LOGITS[1], LOGITS[2]]))
    (slope,) = torch.autograd.grad(found.sum(), padded)
    assert slope.isfinite().all()


def test_the_views_are_two_distortions_of_each_image():
    seen = []

    def again(inputs, seed):
        seen.append((inputs, seed))
        return torch.zeros(8, 3)

    AugMixConsistency(severity=5)(torch.zeros(8, 3), IMAGES, again, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    views = [AugMix(severity=5)(IMAGES, generator)[0] for _ in range(2)]
    assert [torch.equal(view, expected) for (view, _), expected in zip(seen, views)] == [True, True]
    assert not torch.equal(*views)
    assert seen[0][1] != seen[1][1]  # Each pass draws dropout masks of its own.


class ImageNet(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(108, 6), nn.ReLU(), nn.Linear(6, 3))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return F.cross_entropy(self.model(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ByHand(ImageNet):
    """The authors' loop, on the views that the callback drew."""

    def __init__(self, views, strength):
        super().__init__()
        self.views, self.strength = iter(views), strength

    def training_step(self, batch, batch_idx):
        x, y = batch
        clean, first, second = self.model(torch.cat([x, next(self.views), next(self.views)])).split(len(x))
        return F.cross_entropy(clean, y) + self.strength * authors(clean, first, second)


VIEWS = []


class Kept(AugMixConsistency):
    """Keeps the views that the network gets."""

    def forward(self, logits, inputs, again, generator):
        def noted(view, seed):
            VIEWS.append(view)
            return again(view, seed=seed)

        return super().forward(logits, inputs, noted, generator)


@pytest.mark.parametrize("strength", [None, 2.0])
def test_a_training_is_the_authors_with_cross_entropy_on_the_clean_images_alone(strength):
    train = DataLoader(TensorDataset(IMAGES, torch.arange(8) % 3), batch_size=4)
    VIEWS.clear()
    ours, _ = fit(AddRegularizer(Kept(), strength=strength), net=ImageNet, train=train)
    by_hand, _ = fit(net=lambda: ByHand(VIEWS, 12.0 if strength is None else strength), train=train)
    torch.testing.assert_close(weights(ours), weights(by_hand), rtol=1e-4, atol=1e-6)


def test_what_is_refused():
    with pytest.raises(ValueError, match="severity=0 must be in"):
        AugMixConsistency(severity=0)
    with pytest.raises(ValueError, match="belong together"):
        AugMixConsistency(mean=(0.5,))
    with pytest.raises(ValueError, match="others is empty"):
        jensen_shannon_divergence(LOGITS[0], [])
    with pytest.raises(ValueError, match=r"others of the shape \(1, 2\) do not fit logits of the shape \(1, 3\)"):
        jensen_shannon_divergence(LOGITS[0], [torch.zeros(1, 2)])
