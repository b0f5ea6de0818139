"""Averages on the CPU of weights on a GPU, which stands in only by its name: that path has run on none."""

from types import SimpleNamespace

import torch
from torch import nn

from lightning_objectives._weights import tracked as module
from lightning_objectives._weights.averages import Averages
from lightning_objectives.averaging import EMA


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


def test_shadows_and_raw_weights_move_with_the_module():
    """To the meta device, which every machine has; with tensors that are exchanged, as a move to a GPU leaves them."""
    net = nn.Linear(2, 2)
    averages = Averages(net, {"ema": EMA(decay=0.5)})
    averages.update(1)
    averages.swap_in("ema")
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        net.to("meta")
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert all(value.is_meta for name in ("raw", "ema") for value in averages.weights(name).values())
    assert averages.journal.held.keys() == {"weight", "bias"}
    assert all(value.is_meta for value in averages.journal.held.values())
    assert all(shadow.is_meta for shadow in averages.states["ema"].slots["average"])
