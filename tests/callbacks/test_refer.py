"""A reference: the network as it was, or another one."""

import copy

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, equal, fit, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_objectives.batches import Mixup
from lightning_objectives.callbacks import (
    AddRegularizer,
    PerturbWeights,
    Refer,
    ReplaceLoss,
    ReweightSamples,
    TransformBatch,
    WrapHead,
)
from lightning_objectives.data.with_index import with_index
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.perturbations import SAM
from lightning_objectives.regularizers import L2SP
from lightning_objectives.weighting import DRRho

EXACT = {"rtol": 0, "atol": 0}


class Normed(Net):
    """BatchNorm and dropout, so that the modes show."""

    def __init__(self, **kwargs):
        super().__init__(dropout=0.5, **kwargs)
        self.backbone.insert(1, nn.BatchNorm1d(6))


class WithStart(Net):
    """A module that keeps its own start, for a step by hand."""

    def __init__(self):
        super().__init__()
        self.start = copy.deepcopy(nn.Sequential(self.backbone, self.fc)).requires_grad_(False)


def without_start(net):
    return {name: value for name, value in net.state_dict().items() if not name.startswith("start.")}


def test_the_start_in_every_step():
    L.seed_everything(0, verbose=False)
    net, seen = Normed(), []
    start = copy.deepcopy(net).eval()

    def keep(reference_logits, logits, inputs):
        seen.append((reference_logits, inputs))
        return logits.sum() * 0

    fit(AddRegularizer(keep), Refer(), net=net)
    assert len(seen) == 6
    for reference, inputs in seen:
        torch.testing.assert_close(reference, start(inputs).detach(), **EXACT)
    assert not equal(net, start)


def test_the_reference_changes_nothing_by_itself():
    def idle(reference_logits, reference_losses, reference_weights, logits):
        return logits.sum() * 0

    plain, _ = fit(net=Normed)
    net, _ = fit(AddRegularizer(idle), Refer(), net=Normed)
    assert equal(net, plain)
    assert all(module.training for module in net.modules())


def test_the_end_of_the_epoch_before():
    net, seen, ends = Net(), [], []

    class Ends(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            ends.append(copy.deepcopy(pl_module.backbone[0].weight.detach()))

    def keep(reference_weights, logits):
        seen.append(reference_weights["backbone.0.weight"].clone())
        return logits.sum() * 0

    fit(AddRegularizer(keep), Refer("epoch"), Ends(), net=net, max_epochs=3)
    assert len(seen) == 9
    assert all(torch.equal(weight, ends[step // 3]) for step, weight in enumerate(seen))
    assert not torch.equal(ends[0], ends[1])


@pytest.mark.parametrize("unreduced", [False, True])
def test_the_losses_are_those_of_the_models_criterion(unreduced):
    """With class weights, ignored targets and a reduction by the user, as by hand on the start's logits."""
    weight, seen = torch.tensor([1.0, 2.0, 0.5]), []

    class Weighted(Net):
        def training_step(self, batch, batch_idx):
            x, y = batch
            if not unreduced:
                return F.cross_entropy(self(x), y, weight=weight, ignore_index=2)
            return (F.cross_entropy(self(x), y, weight=weight, reduction="none") * (y != 2)).sum() / (y != 2).sum()

    L.seed_everything(0, verbose=False)
    net = Weighted()
    start = copy.deepcopy(net)

    def keep(losses, reference_losses, inputs, target):
        seen.append((losses, reference_losses, inputs, target))
        return torch.ones_like(losses)

    fit(ReweightSamples(keep), Refer(), net=net)
    for losses, reference, inputs, target in seen:
        assert len(losses) == (target != 2).sum() == len(target)
        expected = F.cross_entropy(start(inputs), target, weight=weight, reduction="none")
        torch.testing.assert_close(reference, expected.detach())
    torch.testing.assert_close(seen[0][0], seen[0][1])
    assert not torch.allclose(seen[-1][0], seen[-1][1])


def test_drrho_is_the_step_by_hand():
    class ByHand(WithStart):
        def training_step(self, batch, batch_idx):
            losses = F.cross_entropy(self(batch[0]), batch[1], reduction="none")
            reference = F.cross_entropy(self.start(batch[0]), batch[1], reduction="none")
            return (((losses - reference).detach() / 0.1).softmax(0) * losses).sum()

    by_hand, _ = fit(net=ByHand)
    net, _ = fit(ReweightSamples(DRRho(temperature=0.1)), Refer(), net=Net)
    torch.testing.assert_close(dict(net.state_dict()), without_start(by_hand))


def test_l2_sp_is_the_step_by_hand():
    class ByHand(WithStart):
        def training_step(self, batch, batch_idx):
            pairs = zip(self.backbone.parameters(), self.start[0].parameters())
            pulls = sum((weight - start).square().sum() for weight, start in pairs)
            new = sum(parameter.square().sum() for parameter in self.fc.parameters())
            return super().training_step(batch, batch_idx) + 0.5 / 2 * pulls + 0.1 / 2 * new

    by_hand, _ = fit(net=ByHand)
    net, _ = fit(AddRegularizer(L2SP(alpha=0.5, beta=0.1)), Refer(), net=Net)
    torch.testing.assert_close(dict(net.state_dict()), without_start(by_hand))


@pytest.mark.parametrize("network", ["start", "epoch"])
def test_a_resumed_training_goes_on_with_the_same_reference(tmp_path, network):
    def run(ckpt_path=None, seed=0):
        L.seed_everything(seed, verbose=False)
        net, saving = Net(), ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_train_steps=1)
        pull = AddRegularizer(L2SP(alpha=1.0))
        runner = trainer(pull, Refer(network), saving, enable_checkpointing=True, max_epochs=3)
        runner.fit(net, loader(), ckpt_path=ckpt_path)
        return net

    whole = run()
    for step in (3, 6):
        assert equal(run(tmp_path / f"step={step}.ckpt", seed=1), whole)


def test_a_second_training_begins_with_its_own_start():
    callbacks = AddRegularizer(L2SP(alpha=1.0)), Refer()
    net, _ = fit(*callbacks)
    again = copy.deepcopy(net)
    fit(*callbacks, net=net)
    fit(AddRegularizer(L2SP(alpha=1.0)), Refer(), net=again)
    assert equal(net, again)


def test_a_file_of_the_same_network(tmp_path):
    L.seed_everything(5, verbose=False)
    other, seen = Net(), []
    torch.save(other.state_dict(), tmp_path / "other.pt")

    def keep(reference_logits, reference_weights, inputs, logits):
        seen.append((reference_logits, inputs, reference_weights))
        return logits.sum() * 0

    fit(AddRegularizer(keep), Refer(weights=str(tmp_path / "other.pt")))
    parameters = {name: parameter.detach() for name, parameter in other.named_parameters()}
    for logits, inputs, weights in seen:
        torch.testing.assert_close(logits, other(inputs).detach(), **EXACT)
        torch.testing.assert_close(weights, parameters, **EXACT)
    with pytest.raises(ValueError, match=r"^prefix='no\.': no tensor of"):
        fit(AddRegularizer(keep), Refer(weights=str(tmp_path / "other.pt"), prefix="no."))


def test_another_network_and_its_cache(tmp_path):
    other = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5))
    seen = []

    def keep(reference_logits, inputs, logits):
        seen.append((reference_logits, inputs))
        return logits.sum() * 0

    fit(AddRegularizer(keep), Refer(other))
    for logits, inputs in seen:
        torch.testing.assert_close(logits, other[0](inputs).detach(), **EXACT)
    first = [logits for logits, _ in seen]
    seen.clear()
    train = DataLoader(with_index(data()), batch_size=8)
    fit(AddRegularizer(keep), Refer(other, cache=str(tmp_path / "cache")), train=train)
    torch.testing.assert_close([logits for logits, _ in seen], first, **EXACT)
    assert list((tmp_path / "cache").iterdir())


def test_beside_what_changes_the_batch_the_head_and_the_weights():
    """The inputs are mixed and the head is stacked; the reference sees the mixed inputs, with a plain head."""
    seen, inputs = [], []

    class Inputs(Net):
        def training_step(self, batch, batch_idx):
            inputs.append(batch[0].clone())
            return super().training_step(batch, batch_idx)

    def keep(reference_logits, reference_losses, logits):
        seen.append(reference_logits)
        assert reference_losses.shape == (8,)
        return logits.sum() * 0

    L.seed_everything(0, verbose=False)
    net = Inputs()
    start = copy.deepcopy(net)
    callbacks = [AddRegularizer(keep), Refer(), TransformBatch(Mixup(alpha=1.0))]
    callbacks += [WrapHead(MultiSampleDropout(num_samples=3)), PerturbWeights(SAM())]
    fit(*callbacks, net=net)
    assert len(seen) == len(inputs) == 12
    for logits, x in zip(seen, inputs):
        torch.testing.assert_close(logits, start(x).detach(), **EXACT)


def test_a_replaced_loss_may_ask_for_it():
    def anchored(logits, target, reference_logits):
        return F.cross_entropy(logits, target, reduction="none") + (logits - reference_logits).square().sum(1)

    class Ignoring(Net):
        def criterion(self, logits, y):
            return F.cross_entropy(logits, y, ignore_index=1)

    class ByHand(WithStart):
        def training_step(self, batch, batch_idx):
            x, y = batch
            apart = (self(x) - self.start(x)).square().sum(1)
            return F.cross_entropy(self(x), y, ignore_index=1) + apart[y != 1].mean()

    by_hand, _ = fit(net=ByHand)
    net, _ = fit(ReplaceLoss(anchored), Refer(), net=Ignoring)
    torch.testing.assert_close(dict(net.state_dict()), without_start(by_hand))


def test_refusals():
    with pytest.raises(ValueError, match=r"'reference_logits' is not available.*Add Refer\(\), the callback that"):
        fit(AddRegularizer(lambda reference_logits: reference_logits.sum()))
    with pytest.raises(ValueError, match="both take the place 'reference'"):
        fit(Refer(), Refer("epoch"))
    with pytest.raises(ValueError, match="cache= and data_normalization= have no effect"):
        Refer(cache="here")
    with pytest.raises(ValueError, match="would be used in the first epoch alone"):
        Refer("epoch", weights="file.pt")
    with pytest.raises(ValueError, match="cache_top_k=3 must be at least 1, and needs a directory"):
        Refer(nn.Linear(4, 3), cache_top_k=3)

    class Twice(Net):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]) + self(batch[0]), batch[1])

    with pytest.raises(ValueError, match="calls its network 2 times"):
        fit(ReweightSamples(DRRho()), Refer(), net=Twice)
