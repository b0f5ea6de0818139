"""Modules of the tests of averages in checkpoints, which also open where this package cannot be imported."""

import torch
from averaging_nets import Net


class Classifier(Net):
    def __init__(self):
        super().__init__(torch.nn.Linear(4, 3))

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), (batch[1] > 0).long().squeeze(1))

    def validation_step(self, batch, batch_idx):
        return self.training_step(batch, batch_idx)


class Holder(Net):
    """Keeps itself in its checkpoint, as packages do that save a whole module."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["model"] = self
