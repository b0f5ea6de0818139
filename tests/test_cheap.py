"""The tests' short cuts change nothing of a training."""

import importlib.metadata
import random

import cheap
import numpy as np
import torch
from helpers import equal, fit, loader
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric

from lightning_objectives.callbacks import LogMetrics


def trained():
    net, runner = fit(LogMetrics(), val=loader(seed=1))
    streams = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()
    return net, runner.callback_metrics, streams


def test_a_training_is_the_same_without_them(monkeypatch):
    net, metrics, streams = trained()
    assert metrics
    monkeypatch.setattr(_ResultMetric, "to", _ResultMetric.to.__wrapped__)
    monkeypatch.setattr(importlib.metadata, "entry_points", importlib.metadata.entry_points.__wrapped__)
    for device, usual in cheap.SEEDS.items():
        monkeypatch.setattr(device, "manual_seed_all", usual)
    other, others, theirs = trained()
    assert equal(net, other)
    assert metrics == others
    assert streams == theirs


def test_a_value_elsewhere_is_moved():
    """On the meta device, which holds no numbers, in the place of a GPU."""
    metric = _ResultMetric.__new__(_ResultMetric)
    torch.nn.Module.__init__(metric)
    metric.__dict__.update(is_tensor=True, value=torch.zeros(2))
    assert metric.to("cpu") is metric
    assert metric.to(torch.device("meta")).value.device.type == "meta"
