"""Averages on the CPU of weights on a GPU, which stands in only by its name: that path has run on none."""

from types import SimpleNamespace

import torch
from torch import nn

from lightning_objectives._weights import tracked as module


def test_copies_to_the_cpu_wait_once_for_all_of_them(monkeypatch):
    tensors, done = module.Tracked(nn.Linear(2, 2), buffers=False, device=None), []
    tensors.collect()
    gpu = SimpleNamespace(device=torch.device("cuda", 0))
    tensors._copies = [(tensor, gpu) for tensor in tensors.inputs]
    monkeypatch.setattr(torch, "_foreach_copy_", lambda to, source, non_blocking: done.append((len(to), non_blocking)))
    fake = SimpleNamespace(synchronize=lambda: done.append("waited"))
    monkeypatch.setattr(torch, "get_device_module", lambda device: fake)
    tensors.fetch()
    assert done == [(2, True), "waited"]


def test_they_go_to_pinned_memory(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "empty_like", lambda tensor, **settings: asked.append(settings["pin_memory"]))
    for name, to in (("cuda", "cpu"), ("cpu", "cpu"), ("cuda", "cuda")):
        module._empty_copy(SimpleNamespace(device=torch.device(name)), torch.device(to), torch.float32)
    assert asked == [True, False, False]
