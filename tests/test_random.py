"""Private draws leave every random stream of the training where it was, those of GPUs too."""

import pytest
import torch
from torch import nn

from lightning_objectives._trainer.random import private_stream
from lightning_objectives.callbacks import Distill
from lightning_objectives.distillation import DualHead


def test_a_stream_on_the_cpu_seeds_no_gpu(monkeypatch):
    """`torch.manual_seed` would: a GPU's stream would begin anew at each private draw."""
    monkeypatch.setattr("torch.cuda.manual_seed_all", lambda seed: pytest.fail("a GPU was seeded"))
    with private_stream(1):
        first = torch.rand(2)
    torch.default_generator.manual_seed(1)
    assert torch.equal(first, torch.rand(2))


def test_a_head_is_drawn_on_the_cpu_whatever_the_default_device_is():
    """`configure_model` runs with the strategy's device as torch's default one; "meta" stands for a GPU here."""
    heads = []
    for device in ("cpu", "meta"):
        method = DualHead()
        with torch.device(device):
            callback = Distill(method, teacher=nn.Identity())
            callback.build_parts(nn.Linear(4, 3, device="cpu"))
        heads.append(method.auxiliary_head.state_dict())
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
