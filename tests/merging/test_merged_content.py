"""What ``MergeCheckpoints`` writes beside the weights, and what it does with tensors that are not finite."""

import lightning as L
import pytest
import torch
from averaging_nets import Net
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives import cli
from lightning_objectives.callbacks import MergeCheckpoints
from lightning_objectives.merging import WSM, merge_checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:The `srun`", "ignore:.*litlogger.*", "ignore:.*num_workers.*")


class Words(L.LightningDataModule):
    """A data module with hyperparameters and a state, as one that builds a vocabulary."""

    def __init__(self, size, words=()):
        super().__init__()
        self.save_hyperparameters()
        self.seen = list(words)

    def train_dataloader(self):
        draw = torch.Generator().manual_seed(0)
        return DataLoader(TensorDataset(torch.randn(8, 4, generator=draw), torch.zeros(8, 1)), batch_size=2)

    def state_dict(self):
        return {"seen": ["a", "b"]}

    def load_state_dict(self, state_dict):
        self.seen = state_dict["seen"]


class Bare(L.LightningDataModule):
    """A data module without hyperparameters, and without a state."""

    train_dataloader = Words.train_dataloader


class AsDict(Words):
    """One whose constructor takes all its settings in one dictionary."""

    def __init__(self, settings):
        super(Words, self).__init__()
        self.save_hyperparameters(settings)


def train(net, folder, data, **settings):
    merge = MergeCheckpoints(WSM(), last=2, every_n_steps=1, directory=folder / "merge", **settings)
    saved = ModelCheckpoint(folder, filename="plain", save_weights_only=True)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, callbacks=[merge, saved], max_epochs=1, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(net, datamodule=data)
    return merge.path, folder / "plain.ckpt"


@pytest.mark.parametrize(
    "data", [Words(8, words=("x",)), AsDict({"size": 8}), Bare()], ids=lambda data: type(data).__name__
)
@pytest.mark.parametrize("keep", ["files", "sum"])
def test_the_file_has_what_lightnings_own_has_of_the_data_module(tmp_path, data, keep):
    merged, plain = (torch.load(path, weights_only=True) for path in train(Net(), tmp_path, data, keep=keep))
    assert merged.keys() == plain.keys() - {"loops"}
    for key in merged.keys() - {"state_dict", "epoch"}:
        assert merged[key] == plain[key], key


def test_the_data_module_opens_from_the_merge(tmp_path):
    path, _ = train(Net(), tmp_path, Words(8))
    data = Words.load_from_checkpoint(path)
    assert (data.hparams.size, data.seen) == (8, ["a", "b"])


class Odd(Net):
    """A buffer that is not a number until the third batch, one with an infinite entry, and a mask beside numbers."""

    def __init__(self, until=2):
        super().__init__()
        self.until = until
        self.register_buffer("threshold", torch.tensor(torch.nan))
        self.register_buffer("highest", torch.tensor([-torch.inf, 1.0]))
        self.register_buffer("mask", torch.tensor([-torch.inf, 0.0]))
        self.ended = False

    def on_train_batch_start(self, batch, batch_idx):
        self.mask[1] += 1
        if batch_idx >= self.until:
            self.threshold.fill_(batch_idx)
            self.highest[0] = batch_idx

    def on_fit_end(self):
        self.ended = True


@pytest.mark.parametrize("keep", ["files", "sum"])
@pytest.mark.parametrize("until", [3, 9], ids=["set between two snapshots", "never set"])
def test_a_buffer_that_is_not_finite_is_that_of_the_newest(tmp_path, keep, until):
    net = Odd(until)
    path, _ = train(net, tmp_path, Words(8), keep=keep)
    state = torch.load(path, weights_only=True)["state_dict"]
    assert torch.equal(state["threshold"], net.threshold) or (until == 9 and state["threshold"].isnan())
    assert torch.equal(state["highest"], net.highest)
    assert state["mask"].tolist() == [-torch.inf, pytest.approx(3 + WSM().coefficients([3, 4])[1].item())]
    assert net.ended
    Odd.load_from_checkpoint(path)


@pytest.mark.parametrize("keep", ["files", "sum"])
def test_the_note_names_the_buffers(tmp_path, keep, monkeypatch):
    said = []
    for place in ("window", "running_sum"):
        monkeypatch.setattr(f"lightning_objectives._snapshots.{place}.rank_zero_info", said.append)
    train(Odd(3), tmp_path, Words(8), keep=keep)
    notes = [message for message in said if "of the newest" in message]
    assert len(notes) == 1
    assert "'threshold'" in notes[0]
    assert "'highest'" in notes[0]
    assert "mask" not in notes[0]


class Failing(Net):
    """A parameter, without a gradient, that becomes something else than a number."""

    def __init__(self, value):
        super().__init__()
        self.value = value
        self.scale = torch.nn.Parameter(torch.ones(2), requires_grad=False)

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 3:
            self.scale.data[0] = self.value


@pytest.mark.parametrize("keep", ["files", "sum"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_parameter_that_is_not_finite_is_refused(tmp_path, keep, value):
    with pytest.raises(ValueError, match="scale is NaN or infinite in"):
        train(Failing(value), tmp_path, Words(8), keep=keep)
    assert not (tmp_path / "merge/merged.ckpt").exists()


def test_a_sum_that_goes_on_still_has_the_newest(tmp_path):
    """The file is of a step after a NaN: the finite value that follows is not averaged with later ones."""
    merge = MergeCheckpoints(WSM(), last=8, every_n_steps=1, keep="sum", directory=tmp_path / "merge")
    settings = {"accelerator": "cpu", "logger": False, "max_epochs": 2, "enable_progress_bar": False}
    saved = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
    trainer = L.Trainer(callbacks=[merge, saved], enable_model_summary=False, **settings)
    trainer.fit(Odd(1), datamodule=Words(8))
    whole = torch.load(merge.path, weights_only=True)["state_dict"]
    again = MergeCheckpoints(WSM(), last=8, every_n_steps=1, keep="sum", directory=tmp_path / "again")
    trainer = L.Trainer(callbacks=[again], enable_model_summary=False, enable_checkpointing=False, **settings)
    trainer.fit(Odd(1), datamodule=Words(8), ckpt_path=tmp_path / "step=4.ckpt", weights_only=True)
    resumed = torch.load(again.path, weights_only=True)["state_dict"]
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_snapshots_tell_the_command_which_buffers_are_odd(tmp_path):
    train(Odd(9), tmp_path, Words(8))
    snapshots = sorted((tmp_path / "merge").glob("step=*"))
    with pytest.warns(UserWarning, match=r"\['threshold'\] of the newest"):
        merged = merge_checkpoints(snapshots, WSM(), tmp_path / "m.pt")
    assert torch.load(merged, weights_only=True)["threshold"].isnan()


def test_a_buffer_of_plain_files_is_told(tmp_path, capsys):
    for step in (1, 2):
        torch.save({"w": torch.ones(2) * step, "t": torch.tensor(torch.nan)}, tmp_path / f"step={step}.pt")
    files = [tmp_path / f"step={step}.pt" for step in (1, 2)]
    with pytest.raises(ValueError, match=r"t is NaN .*buffers=\['t'\] \(--buffer t\)"):
        merge_checkpoints(files, WSM(), tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"buffers=\['u'\] are no tensors .*it has \['t', 'w'\]"):
        merge_checkpoints(files, WSM(), tmp_path / "m.pt", buffers=["u"])
    assert not (tmp_path / "m.pt").exists()
    cli.main(["merge", *map(str, files), "-o", str(tmp_path / "m.pt"), "--buffer", "t"])
    assert "['t'] of the newest" in capsys.readouterr().out
    assert torch.load(tmp_path / "m.pt")["t"].isnan()


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "3", '{"w": 1}', "[[1], 2]", ""], ids=lambda text: text[:9])
def test_a_snapshot_that_lists_no_buffers_tells_nothing(tmp_path, text):
    for step in (1, 2):
        file = tmp_path / f"step={step}.safetensors"
        save_file({"w": torch.tensor([torch.nan])}, file, {"buffers that are not finite": text})
    with pytest.raises(ValueError, match="w is NaN or infinite in"):
        merge_checkpoints(tmp_path.iterdir(), WSM(), tmp_path / "m.pt")
