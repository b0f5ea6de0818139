"""For all tests: a fixed seed, an empty working directory, a quiet Lightning, and no skip that is not on the list."""

import logging
import random

import cheap
import numpy as np
import pytest
import torch
from skip_list import pytest_configure  # noqa: F401  # a hook

cheap.before_imports()


def pytest_collection_finish(session):
    cheap.after_imports()


@pytest.fixture(autouse=True)
def _same_start_for_every_test(tmp_path, monkeypatch):
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):  # an earlier test's `seed_everything`
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)  # a Trainer writes its logs and checkpoints into the working directory
    for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
