"""What ``MergeCheckpoints`` writes beside the weights, and what it does with tensors that are not finite."""

import lightning as L
import pytest
import torch
from averaging_nets import Net
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives.callbacks import MergeCheckpoints
from lightning_objectives.merging import WSM

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
