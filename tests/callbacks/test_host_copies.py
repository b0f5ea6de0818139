"""What the host knows of a batch on the device: whether a target is one to ignore."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from bare_step import loss_and_gradient
from lightning.pytorch.utilities import move_data_to_device
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives._step.calls import parse
from lightning_objectives._step.host import HostCopies
from lightning_objectives.callbacks import LogMetrics, ReplaceLoss, ReweightSamples
from lightning_objectives.losses import LDRLoss
from lightning_objectives.testing.conformance.conditions.devices import _OnTheGPU
from lightning_objectives.testing.fake_gpu import FakeGPU
from lightning_objectives.weighting import LossBasedReweighting


def copies_of(batch):
    """The batch on the GPU, and what the host remembers."""
    strategy = SimpleNamespace(batch_to_device=lambda batch: move_data_to_device(batch, torch.device("cuda", 0)))
    host = HostCopies(SimpleNamespace(strategy=strategy))
    return strategy.batch_to_device(batch), host


def test_it_knows_the_tensors_of_the_batch_and_their_views():
    with FakeGPU() as gpu:
        batch, host = copies_of({"x": torch.ones(2, 3), "y": torch.tensor([[0, 1, 2], [2, 1, 0]])})
        y = batch["y"]
        for view in (y, y.flatten(), y[:, 1:], y.T, y.view(3, 2), y[0].expand(4, 3)):
            assert host.lacks(view, -100)
            assert not host.lacks(view, 2)
        assert not gpu.waits


def test_it_does_not_know_what_was_computed_or_written_to():
    with FakeGPU():
        y = torch.tensor([0, 1, 2, 1])
        (moved,), host = copies_of([y])
        for other in (moved + 0, moved[moved > 0], moved.int(), torch.zeros_like(moved), moved.view(torch.int32)):
            assert not host.lacks(other, -100)
        view = moved[1:]
        assert host.lacks(view, -100)
        moved[0] = -100
        assert not host.lacks(moved, -100)
        assert not host.lacks(view, -100)


def test_it_does_not_know_once_the_host_has_changed():
    with FakeGPU():
        y = torch.tensor([0, 1])
        (moved,), host = copies_of([y])
        y[0] = 3
        assert not host.lacks(moved, -100)


def test_it_knows_the_latest_batch_alone():
    with FakeGPU():
        strategy = SimpleNamespace(batch_to_device=lambda batch: move_data_to_device(batch, torch.device("cuda", 0)))
        host = HostCopies(SimpleNamespace(strategy=strategy))
        first, second = (strategy.batch_to_device(torch.tensor([n, n])) for n in (0, 1))
        assert not host.lacks(first, -100)
        assert host.lacks(second, -100)
        host.remove()
        assert host.lacks(second, -100)
        assert "HostCopies" not in repr(strategy.batch_to_device)


def test_on_the_cpu_it_asks_nothing():
    y = torch.tensor([0, 1])
    strategy = SimpleNamespace(batch_to_device=lambda batch: move_data_to_device(batch, torch.device("cpu")))
    host = HostCopies(SimpleNamespace(strategy=strategy))
    assert not host.lacks(strategy.batch_to_device(y), -100)


@pytest.mark.parametrize("target", [[0, 1, 2, 1], [0, 1, -100, 1]], ids=["all count", "one does not"])
def test_a_call_is_the_same_call(target):
    with FakeGPU():
        (y,), host = copies_of([torch.tensor(target)])
        logits, weight = torch.randn(4, 3, device="cuda"), torch.tensor([1.0, 2.0, 3.0]).to("cuda")
        for options in ({}, {"weight": weight}, {"label_smoothing": 0.1}, {"reduction": "sum"}):
            call = parse(F.cross_entropy, (logits, y), options)
            settled = host.settled(call)
            assert (settled.valid is None) is (-100 not in target)
            ones = torch.ones_like(call.elements)
            torch.testing.assert_close(settled.weighted(ones), call.weighted(ones), rtol=1e-6, atol=0)
            torch.testing.assert_close(settled.weighted(ones), call.value(), rtol=1e-6, atol=0)


class Net(L.LightningModule):
    """Changes the batch on the device, which only the device knows of."""

    changes = False

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.losses = []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        if self.changes:
            y[0] = -100
        return x, y

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self.fc(x), y)
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch, batch_idx):
        F.cross_entropy(self.fc(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trained(*callbacks, changes=False, ignored=(), gpu=False):
    torch.manual_seed(0)
    net = Net()
    net.changes = changes
    x, y = torch.randn(24, 4), torch.arange(24) % 3
    for row in ignored:
        y[row] = -100
    strategy = _OnTheGPU("cuda:0") if gpu else "auto"
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
    trainer = L.Trainer(
        accelerator="cpu", devices=1, strategy=strategy, callbacks=[*callbacks], enable_model_summary=False, **settings
    )
    loaders = [DataLoader(TensorDataset(x, y.clone()), batch_size=8) for _ in range(2)]
    trainer.fit(net, *loaders)
    assert "batch_to_device" not in vars(trainer.strategy)
    return [float(loss) for loss in net.losses], {name: float(v) for name, v in trainer.callback_metrics.items()}


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.parametrize("ignored", [(), (1, 9, 10)], ids=["all count", "some do not"])
@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize(
    "make",
    [lambda: ReweightSamples(LossBasedReweighting()), lambda: ReplaceLoss(LDRLoss()), LogMetrics],
    ids=["ReweightSamples", "ReplaceLoss", "LogMetrics"],
)
def test_the_numbers_are_those_of_the_cpu(make, changes, ignored):
    """Also where the user's own code ignores a target on the device, after the host has seen it."""
    losses, logged = trained(make(), changes=changes, ignored=ignored)
    with FakeGPU():
        there = trained(make(), changes=changes, ignored=ignored, gpu=True)
    assert there[0] == pytest.approx(losses, rel=1e-5)
    assert there[1] == pytest.approx(logged, rel=1e-5)


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.parametrize("settings", [{}, {"sample_dim": 1}], ids=["found", "said"])
def test_samples_along_another_dimension(settings):
    """Sequences with the time first: the elements of a sample are found, or said, and lie where the losses lie."""

    class TimeFirst(Net):
        def training_step(self, batch, batch_idx):
            x, y = (part.transpose(0, 1) for part in batch)
            loss = F.cross_entropy(self.fc(x).movedim(2, 1), y)
            self.losses.append(loss.detach())
            return loss

        def validation_step(self, batch, batch_idx):
            pass

    def run(gpu):
        torch.manual_seed(0)
        net, x, y = TimeFirst(), torch.randn(24, 5, 4), torch.randint(3, (24, 5))
        strategy = _OnTheGPU("cuda:0") if gpu else "auto"
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 1}
        callback = ReweightSamples(LossBasedReweighting(), **settings)
        trainer = L.Trainer(
            accelerator="cpu", devices=1, strategy=strategy, callbacks=[callback], enable_model_summary=False, **quiet
        )
        trainer.fit(net, DataLoader(TensorDataset(x, y), batch_size=8))
        return [float(loss) for loss in net.losses]

    expected = run(gpu=False)
    with FakeGPU() as gpu:
        assert run(gpu=True) == pytest.approx(expected, rel=1e-5)
    assert "_kept" not in {wait.function for wait in gpu.waits}


def losses_seen(compute, *batch, **settings):
    """The losses that a weighting gets in a second step."""
    seen = []

    def weighting(losses):
        seen.append(losses)
        return torch.ones_like(losses)

    loss_and_gradient(compute, batch, ReweightSamples(weighting, **settings), steps=2)
    return seen[-1]


def test_a_sample_that_the_step_leaves_out_is_no_row():
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    seen = losses_seen(lambda module, input, target: F.mse_loss(input[1:], target[1:]), x, y)
    torch.testing.assert_close(seen, (x[1:] - y[1:]).square().mean(1))


@pytest.mark.parametrize("settings", [{}, {"sample_dim": 1}], ids=["found", "said"])
def test_a_sample_of_ignored_targets_is_no_row(settings):
    """Three samples of two positions, the time first; the second sample is ignored whole, the third in part."""
    x, y = torch.randn(3, 2, 4), torch.tensor([[0, 1], [-100, -100], [2, -100]])

    def compute(module, logits, target):
        return F.cross_entropy(logits.transpose(0, 1).movedim(2, 1), target.transpose(0, 1))

    seen = losses_seen(compute, x, y, **settings)
    expected = torch.stack([F.cross_entropy(x[0], y[0]), F.cross_entropy(x[2, :1], y[2, :1])])
    torch.testing.assert_close(seen, expected)
