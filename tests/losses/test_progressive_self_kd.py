import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, equal, fit, trainer
from torch.utils.data import DataLoader

from lightning_objectives.callbacks import ReplaceLoss
from lightning_objectives.data import with_index
from lightning_objectives.losses import ProgressiveSelfKD, progressive_self_kd_loss
from lightning_objectives.testing import assert_laws


def indexed(shuffle=True, **kwargs):
    return DataLoader(with_index(data(**kwargs)), batch_size=8, shuffle=shuffle)


def test_by_hand():
    """p = (0.8, 0.2), y = (1, 0), q = (0.4, 0.6), alpha 0.5: 0.7 · 0.22314 + 0.3 · 1.60944."""
    logits, q = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.4, 0.6]])
    loss = progressive_self_kd_loss(logits, torch.tensor([0]), q, alpha=0.5)
    assert loss.item() == pytest.approx(0.639032, abs=1e-6)
    soft = progressive_self_kd_loss(logits, torch.tensor([[1.0, 0.0]]), q, alpha=0.5)
    torch.testing.assert_close(soft, loss)


def test_at_alpha_0_and_for_new_samples_it_is_cross_entropy():
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    plain = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(progressive_self_kd_loss(logits, target, torch.rand(5, 3), alpha=0.0), plain)
    torch.testing.assert_close(progressive_self_kd_loss(logits, target, torch.zeros(5, 3), alpha=0.8), plain)


def test_no_gradient_flows_into_the_earlier_predictions():
    q = torch.rand(2, 3, requires_grad=True)
    logits = torch.randn(2, 3, requires_grad=True)
    progressive_self_kd_loss(logits, torch.tensor([0, 1]), q).sum().backward()
    assert q.grad is None


def test_predictions_of_other_classes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 4\)"):
        progressive_self_kd_loss(torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(2, 4))


def test_the_laws_hold():
    assert_laws(ProgressiveSelfKD(alpha=0.3))


class ByHand(Net):
    """The authors' loop: a table of predictions, written after each batch."""

    def __init__(self):
        super().__init__()
        self.table, self.wrong = torch.zeros(24, 3), []

    def training_step(self, batch, batch_idx):
        (x, y), index = batch.item, batch.index
        logits, alpha = self(x), 0.8 * self.global_step / 9
        hard = F.one_hot(y, 3).float()
        known = self.table[index].sum(1, keepdim=True) > 0
        soft = torch.where(known, (1 - alpha) * hard + alpha * self.table[index], hard)
        self.table[index] = logits.detach().softmax(1)
        return -(soft * logits.log_softmax(1)).sum(1).mean()


def test_a_training_is_the_authors_loop():
    ours = ReplaceLoss(ProgressiveSelfKD())
    net, _ = fit(ours, train=indexed(), max_epochs=3)
    hand, _ = fit(net=ByHand, train=indexed(), max_epochs=3)
    torch.testing.assert_close(dict(net.named_parameters()), dict(hand.named_parameters()), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.state_dict()["memory.predictions"], hand.table, rtol=0, atol=1e-6)


def test_a_resumed_training_goes_on(tmp_path):
    whole, _ = fit(ReplaceLoss(ProgressiveSelfKD()), train=indexed(shuffle=False), max_epochs=3)

    class Saving(Net):
        def on_train_epoch_end(self):
            if self.current_epoch == 0:
                self.trainer.save_checkpoint(tmp_path / "one.ckpt")

    fit(ReplaceLoss(ProgressiveSelfKD()), net=Saving, train=indexed(shuffle=False), max_epochs=3)
    resumed = Net()
    runner = trainer(ReplaceLoss(ProgressiveSelfKD()), max_epochs=3)
    runner.fit(resumed, indexed(shuffle=False), ckpt_path=tmp_path / "one.ckpt")
    assert equal(whole, resumed)


class Ignoring(Net):
    def criterion(self, logits, y):
        return F.cross_entropy(logits, torch.where(y == 2, -100, y))


def test_targets_that_do_not_count_teach_nothing():
    callback = ReplaceLoss(ProgressiveSelfKD())
    fit(callback, net=Ignoring, train=indexed(), max_epochs=2)
    rows = callback.state_dict()["memory.predictions"].sum(1) > 0
    assert torch.equal(rows, data().tensors[1] != 2)


def test_rows_that_are_no_samples_are_refused():
    class Sequences(Net):
        def criterion(self, logits, y):
            return F.cross_entropy(logits.repeat(2, 1), y.repeat(2))

    with pytest.raises(ValueError, match=r"compares 16 rows of 8 samples\. Use it where each sample is one row"):
        fit(ReplaceLoss(ProgressiveSelfKD()), net=Sequences, train=indexed())


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_settings_that_mean_nothing_are_refused(alpha):
    with pytest.raises(ValueError, match="must be in"):
        ProgressiveSelfKD(alpha=alpha)
    copy.deepcopy(ProgressiveSelfKD(alpha=1.0))
