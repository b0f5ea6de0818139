"""What Lightning and torch repeat in each small training of the tests, done once or not at all.

Nothing of it changes what a training computes on the CPU: `test_cheap.py` compares trainings with it and without.
"""

import functools
import gc
import importlib.metadata
import os
import sys

import torch


def entry_points():
    """Read the entry points of all installed packages once, not for each Trainer: they stay the same."""
    importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)


SEEDS = {}
"""How each of these devices would be seeded."""


def seeds():
    """Forget the seeds of devices that this machine lacks: torch keeps each, with a traceback of the whole stack."""
    for device in (torch.cuda, torch.xpu, torch.mtia):
        if hasattr(device, "manual_seed_all") and not device.is_available():
            SEEDS[device] = device.manual_seed_all
            device.manual_seed_all = _forget


def _forget(seed):
    pass


def devices():
    """Look for the driver of a GPU once: each Trainer asks three times."""
    if not torch.cuda.is_available():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def guards():
    """Do not measure how long the guards of a compiled graph take, for which torch flushes the caches of the CPU."""
    compiler = sys.modules.get("torch._dynamo.guards")
    if hasattr(compiler, "profile_guard_manager"):
        compiler.profile_guard_manager = lambda *_: 0.0


def metrics():
    """Leave a logged value on the CPU where it is: to move it, Lightning also copies all that is known of it."""
    for name in ("lightning.pytorch", "pytorch_lightning"):
        results = sys.modules.get(f"{name}.trainer.connectors.logger_connector.result")
        if results is not None:
            results._ResultMetric.to = _unless_on_the_cpu(results._ResultMetric.to)


def _unless_on_the_cpu(move):
    @functools.wraps(move)
    def to(self, device, *args, **kwargs):
        stays = self.is_tensor and self.value.device.type == torch.device(device).type == "cpu"
        return self if stays else move(self, device, *args, **kwargs)

    return to


def no_garbage():
    """Collect no garbage during the imports, which make hardly any."""
    gc.disable()


def garbage():
    """Exempt what the imports made from the garbage collection, which some trainings start several times."""
    gc.enable()
    gc.collect()
    gc.freeze()
