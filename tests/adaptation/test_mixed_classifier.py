"""The mixture by hand, its parts, what it inherits, and how the callback runs the other network."""

import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import loader, trainer
from jsonargparse import ArgumentParser
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives.adaptation import LAME, MixedClassifier, mixed_logits
from lightning_objectives.callbacks import AdaptAtTest
from lightning_objectives.testing import assert_laws


def drawn(rows=200, classes=4):
    generator = torch.Generator().manual_seed(0)
    return tuple(2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64) for _ in range(2))


def test_by_hand():
    """Scales of 2 and 0.5 turn the odds 3 : 1 and 1 : 16 into 9 : 1 and 1 : 4; 0.3 * 0.9 + 0.7 * 0.2 = 0.41."""
    own, other = torch.tensor([[3.0, 1.0]]).log(), torch.tensor([[1.0, 16.0]]).log()
    found = mixed_logits(own, other, alpha=0.7, scale=2.0, reference_scale=0.5)
    torch.testing.assert_close(found, torch.tensor([[math.log(0.41), math.log(0.59)]]))


def test_the_ends_are_the_two_classifiers():
    own, other = drawn()
    torch.testing.assert_close(mixed_logits(own, other, alpha=0.0), own.log_softmax(1), rtol=0, atol=0)
    torch.testing.assert_close(mixed_logits(own, other, alpha=1.0), other.log_softmax(1), rtol=0, atol=0)
    assert not MixedClassifier(alpha=0.0).active(step=0)
    assert MixedClassifier(alpha=0.0, scale=2.0).active(step=0)


@pytest.mark.parametrize("alpha", [0.6, 0.9])
def test_where_the_reference_is_sure_the_mixture_follows_it(alpha):
    _, other = drawn()
    first, second = other.softmax(1).topk(2).values.T
    sure = first - second > (1 - alpha) / alpha
    assert 0 < sure.sum() < len(sure)
    for wrong in range(4):  # the other classifier is sure of each class in turn
        own = F.one_hot(torch.full((len(other),), wrong), 4).double() * 1000
        assert torch.equal(mixed_logits(own, other, alpha=alpha).argmax(1)[sure], other.argmax(1)[sure])
    # Below the margin an opponent wins, so that the bound is tight.
    own = F.one_hot(other.topk(2).indices[:, 1], 4).double() * 1000
    assert not (mixed_logits(own, other, alpha=alpha).argmax(1) == other.argmax(1))[~sure].any()


def test_logits_of_1e4_are_not_lost():
    found = mixed_logits(torch.tensor([[1e4, 0.0]]), torch.tensor([[1e4, 0.0]]), alpha=0.5)
    torch.testing.assert_close(found, torch.tensor([[0.0, -1e4]]))


def test_laws_hold_with_settings():
    assert_laws(MixedClassifier(alpha=0.2, scale=3.0, reference_scale=0.5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.1}, r"alpha=1\.1"),
        ({"alpha": math.nan}, "alpha=nan"),
        ({"alpha": 0.5, "scale": 0.0}, r"scale=0\.0 must be finite"),
        ({"alpha": 0.5, "reference_scale": -1.0}, r"reference_scale=-1\.0"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "make", [MixedClassifier, lambda **settings: mixed_logits(*drawn(), **settings)], ids=["class", "function"]
)
def test_bad_settings_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_logits_of_another_shape_are_refused():
    for shapes in (((3,), (3,)), ((2, 1), (2, 1)), ((2, 3), (2, 4)), ((2, 3), (3, 3))):
        with pytest.raises(ValueError, match="logits of the shape"):
            mixed_logits(*map(torch.zeros, shapes), alpha=0.5)


# -- in a test ---------------------------------------------------------------------------------------------------------


class Net(L.LightningModule):
    def __init__(self, classes=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, classes))
        self.seen = []

    def forward(self, x):
        return self.model(x)

    def test_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.seen.append(logits)
        if logits.shape[1] == 1:
            F.binary_cross_entropy_with_logits(logits[:, 0], (batch[1] == 1).float())
        else:
            F.cross_entropy(logits, batch[1])


@pytest.mark.parametrize("classes", [3, 1])
def test_the_other_network_gets_the_same_inputs(classes):
    net, robust = Net(classes), Net(classes, seed=1).model.train()
    before = {name: value.clone() for name, value in robust.state_dict().items()}
    trainer(AdaptAtTest(MixedClassifier(alpha=0.7), reference=robust)).test(net, loader(), verbose=False)
    plain, other = Net(classes).model.eval(), Net(classes, seed=1).model.eval()
    with torch.no_grad():
        for found, (x, _) in zip(net.seen, loader(), strict=True):
            if classes == 1:
                p = 0.3 * plain(x).sigmoid() + 0.7 * other(x).sigmoid()
                torch.testing.assert_close(found.sigmoid(), p)
            else:
                torch.testing.assert_close(found.exp(), 0.3 * plain(x).softmax(1) + 0.7 * other(x).softmax(1))
    assert robust.training, "the user's own network stays as it is"
    assert all(torch.equal(value, before[name]) for name, value in robust.state_dict().items())


def test_a_criterion_in_the_other_network_is_not_the_step_s():
    class Computes(nn.Linear):
        def forward(self, x):
            logits = super().forward(x)
            F.cross_entropy(logits, logits.argmax(1))
            return logits

    net, robust = Net(), Computes(4, 3)
    trainer(AdaptAtTest(MixedClassifier(alpha=1.0), reference=robust)).test(net, loader(), verbose=False)
    torch.testing.assert_close(net.seen[0], robust(next(iter(loader()))[0]).log_softmax(1))


def test_a_reference_that_is_missing_or_not_asked_for_is_refused():
    with pytest.raises(ValueError, match="needs another network beside it: say reference="):
        trainer(AdaptAtTest(MixedClassifier(alpha=0.5))).test(Net(), loader(), verbose=False)
    with pytest.raises(ValueError, match="asks for no logits of another network"):
        AdaptAtTest(LAME(), reference=nn.Linear(4, 3))


def test_a_reference_of_other_classes_is_refused():
    with pytest.raises(ValueError, match=r"logits of shape \(8, 5\).* 8 rows of 3 classes"):
        trainer(AdaptAtTest(MixedClassifier(alpha=0.5), reference=nn.Linear(4, 5))).test(Net(), loader(), verbose=False)


def test_a_signal_that_no_test_has_is_refused():
    class Bad(LAME):
        def predict(self, logits, losses):
            return logits

    with pytest.raises(ValueError, match=r"Bad\.predict asks for 'losses', which a test does not have"):
        AdaptAtTest(Bad())
    with pytest.raises(TypeError, match="asks for 'loses', which is no signal"):

        class Typo(LAME):
            def predict(self, loses):
                return loses


def test_a_reference_that_fails_is_told():
    net = Net()
    with pytest.raises(ValueError, match=r"The reference Linear failed .* wrap it in a module that takes the same\."):
        trainer(AdaptAtTest(MixedClassifier(alpha=0.5), reference=nn.Linear(5, 3))).test(net, loader(), verbose=False)


class Words(Net):
    """Whose inputs are whole numbers, so that they do not say the type of the weights."""

    def __init__(self, seed=0):
        super().__init__(seed=seed)
        self.model = nn.Sequential(nn.EmbeddingBag(9, 6), nn.Linear(6, 3))


def test_autocast_does_not_round_the_weights_of_the_reference():
    x = torch.randint(9, (8, 4), generator=torch.Generator().manual_seed(0))
    net, robust = Words(), Words(seed=1).model
    callback = AdaptAtTest(MixedClassifier(alpha=1.0), reference=robust)
    batches = DataLoader(TensorDataset(x, torch.zeros(8).long()), batch_size=8)
    trainer(callback, precision="bf16-mixed").test(net, batches, verbose=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = robust(x)
    torch.testing.assert_close(net.seen[0], expected.float().log_softmax(1).to(net.seen[0].dtype), rtol=0, atol=0)


def test_a_reference_of_a_configuration_needs_weights(tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(AdaptAtTest, "callback")
    path = "lightning_objectives.adaptation.MixedClassifier"
    given = {
        "adapter": {"class_path": path, "init_args": {"alpha": 0.5}},
        "reference": {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4, "out_features": 3}},
    }
    with pytest.raises(ValueError, match="The reference Linear of the configuration has random weights"):
        parser.instantiate_classes(parser.parse_object({"callback": given}))
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "robust.pt")
    given["reference_weights"] = str(tmp_path / "robust.pt")
    assert parser.instantiate_classes(parser.parse_object({"callback": given})).callback.reference.out_features == 3


def test_something_else_than_a_network_is_refused():
    with pytest.raises(ValueError, match="reference=3 must be a trained module"):
        AdaptAtTest(MixedClassifier(alpha=0.5), reference=3)
