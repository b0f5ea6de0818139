"""Several batch transforms, and several weightings, in one training."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, equal, fit

from lightning_objectives.batches import Mixup
from lightning_objectives.callbacks import AddRegularizer, ReplaceLoss, ReweightSamples, TransformBatch
from lightning_objectives.weighting import LossBasedReweighting

ORDER = torch.tensor([3, 0, 7, 1, 4, 2, 6, 5])


class Seen(Net):
    """Keeps what its step gets."""

    def training_step(self, batch, batch_idx):
        self.inputs = batch[0]
        return super().training_step(batch, batch_idx)


def shifted(inputs):
    """Moves the inputs and mixes nothing, as a change of colour would."""
    return inputs + 1, torch.arange(len(inputs))[:, None], torch.ones(len(inputs), 1)


def doubled(inputs):
    return inputs * 2, *shifted(inputs)[1:]


def halved(inputs):
    partner = torch.stack([torch.arange(len(inputs)), ORDER[: len(inputs)]], 1)
    return (inputs + inputs[ORDER]) / 2, partner, torch.full((len(inputs), 2), 0.5)


def swapped(inputs):
    """Each row becomes another one, with a quarter of the next."""
    rows = torch.arange(len(inputs)).flip(0)
    index = torch.stack([rows, rows.roll(1)], 1)
    return 0.75 * inputs[index[:, 0]] + 0.25 * inputs[index[:, 1]], index, torch.tensor([[0.75, 0.25]]).expand(8, 2)


def test_transforms_act_in_the_order_given():
    first, _ = fit(TransformBatch(shifted), TransformBatch(halved), net=Seen, max_steps=1)
    net, _ = fit(net=Seen, max_steps=1)
    torch.testing.assert_close(first.inputs, halved(net.inputs + 1)[0])
    first, _ = fit(TransformBatch(doubled), TransformBatch(shifted), net=Seen)
    second, _ = fit(TransformBatch(shifted), TransformBatch(doubled), net=Seen)
    last = fit(net=Seen)[0].inputs
    assert torch.equal(first.inputs, last * 2 + 1)
    assert torch.equal(second.inputs, (last + 1) * 2)


class ByHand(Net):
    """Both mixtures of the labels, as a distribution of classes."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        labels = F.one_hot(y, 3).float()
        for mix in (halved, swapped):
            x, index, weight = mix(x)
            labels = (labels[index] * weight[..., None]).sum(1)
        return F.cross_entropy(self(x), labels)


def test_the_labels_are_mixed_twice():
    ours, _ = fit(TransformBatch(halved), TransformBatch(swapped))
    torch.testing.assert_close(ours.state_dict(), fit(net=ByHand)[0].state_dict())
    replaced, _ = fit(
        TransformBatch(halved),
        TransformBatch(swapped),
        ReplaceLoss(lambda logits, target: F.cross_entropy(logits, target, reduction="none")),
    )
    torch.testing.assert_close(replaced.state_dict(), ours.state_dict())


def test_one_that_mixes_nothing_changes_nothing_of_the_other():
    def plain(inputs):
        return inputs, *shifted(inputs)[1:]

    alone, _ = fit(TransformBatch(Mixup()))
    assert equal(alone, fit(TransformBatch(Mixup()), TransformBatch(plain))[0])
    fit(TransformBatch(Mixup()), TransformBatch(Mixup(alpha=0.4)))


class Ignoring(Net):
    """Ignores the labels of every other row."""

    def criterion(self, logits, y):
        return F.cross_entropy(logits, torch.where(torch.arange(len(y)) % 2 == 0, -100, y))


def test_ignored_labels_have_no_part_in_a_mixed_target():
    targets, labels = [], []

    def noted(inputs):
        index = torch.stack([torch.arange(8), torch.tensor([2, 3, 4, 5, 0, 1, 7, 6])], 1)
        return inputs, index, torch.full((8, 2), 0.5)

    def term(logits, target):
        targets.append(target)
        return 0 * logits.sum()

    class Seen(Ignoring):
        def criterion(self, logits, y):
            labels.append(F.one_hot(y, 3).float())
            return super().criterion(logits, y)

    fit(TransformBatch(noted), AddRegularizer(term), net=Seen, max_steps=1)
    (target,), (own,) = targets, labels
    assert target[[0, 2, 4]].eq(0).all()  # Both labels are ignored.
    torch.testing.assert_close(target[[1, 3, 5]], (own[[1, 3, 5]] + own[[3, 5, 1]]) / 2)
    torch.testing.assert_close(target[[6, 7]], own[[7, 7]])  # One of the two is ignored.


def by_loss(losses):
    return losses / losses.mean()


def by_row(losses):
    weights = torch.arange(1.0, len(losses) + 1)
    return weights / weights.mean()


def selected(losses):
    """Keeps some, and does not make up for the others."""
    return (losses > losses.median()).float()


def product_by_hand(*weightings):
    class Product(Net):
        def training_step(self, batch, batch_idx):
            losses = F.cross_entropy(self(batch[0]), batch[1], reduction="none")
            weights = [weighting(losses.detach()) for weighting in weightings]
            product = torch.stack(weights).prod(0)
            means = torch.stack([weight.mean() for weight in weights]).prod()
            return (product * means / product.mean() * losses).mean()

    return fit(net=Product)[0]


@pytest.mark.parametrize("weightings", [(by_loss, by_row), (by_row, selected), (by_loss, by_row, selected)])
def test_weightings_multiply_and_keep_their_mean(weightings):
    ours, _ = fit(*(ReweightSamples(weighting) for weighting in weightings))
    torch.testing.assert_close(ours.state_dict(), product_by_hand(*weightings).state_dict())


def test_weights_of_one_change_nothing_of_the_others():
    alone, _ = fit(ReweightSamples(LossBasedReweighting()))
    for chain in ([torch.ones_like], [torch.ones_like, torch.ones_like]):
        first = [ReweightSamples(lambda losses, ones=ones: ones(losses)) for ones in chain]
        assert equal(alone, fit(*first, ReweightSamples(LossBasedReweighting()))[0])
        assert equal(alone, fit(ReweightSamples(LossBasedReweighting()), *first)[0])


def test_no_sample_left_is_no_division_by_zero():
    def none(losses):
        return torch.zeros_like(losses)

    net, _ = fit(ReweightSamples(none), ReweightSamples(by_row))
    assert equal(net, fit(ReweightSamples(none))[0])


def test_losses_that_the_user_reduces_are_weighted_by_the_product():
    class Own(Net):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), batch[1], reduction="none").mean()

    ours, _ = fit(ReweightSamples(by_loss), ReweightSamples(by_row), net=Own)
    torch.testing.assert_close(ours.state_dict(), product_by_hand(by_loss, by_row).state_dict())


def test_weightings_of_different_units_are_refused():
    with pytest.raises(ValueError, match=r"by_loss.*unit='sample'.*by_row.*unit='element'"):
        fit(ReweightSamples(by_loss), ReweightSamples(by_row, unit="element"))
