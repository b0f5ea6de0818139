"""Modules and hooks for the tests of averages and merges in files; they also open where this package is missing."""

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


def rebuilt(self, checkpoint):
    checkpoint["state_dict"] = {f"net.{k}": v for k, v in self.state_dict().items()}


def cloned(self, checkpoint):
    checkpoint["state_dict"] = {f"net.{k}": v.detach().clone() for k, v in self.named_parameters()}


def cast(self, checkpoint):
    checkpoint["state_dict"] = {f"net.{k}": v.double() for k, v in checkpoint["state_dict"].items()}


def renamed(self, checkpoint):
    checkpoint["state_dict"] = {f"net.{k}": v for k, v in checkpoint["state_dict"].items()}
