"""For all tests: a fixed seed, an empty working directory, a quiet Lightning, and no skip that is not on the list."""

import functools
import gc
import importlib.metadata
import logging
import random

import numpy as np
import pytest
import torch
from skip_list import pytest_configure  # noqa: F401  # a hook

# Each Trainer asks for the entry points of all installed packages, which stay the same while the tests run.
importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)
# Without a GPU, torch keeps each seed for one that may come, with a traceback of the whole stack.
for device in (torch.cuda, torch.xpu, torch.mtia):
    if not device.is_available():
        device.manual_seed_all = lambda seed: None


def pytest_collection_finish(session):
    """Exempt what the imports made from the garbage collection: some trainings collect explicitly, several times."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_start_for_every_test(tmp_path, monkeypatch):
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # an earlier test's `seed_everything`
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)  # a Trainer writes its logs and checkpoints into the working directory
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
