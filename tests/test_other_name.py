"""A project on ``pytorch_lightning``, with ``lightning`` beside it, and without."""

import os
import subprocess
import sys
from pathlib import Path

import other_name_runs
import pytest
from other_name_runs import check_mixins, check_resume, config
from processes import start
from pytorch_lightning.cli import LightningCLI


def test_all_five_and_a_resume(tmp_path):
    check_resume(tmp_path)


def test_mixins_and_our_data(tmp_path):
    check_mixins(tmp_path)


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_its_own_command_line(tmp_path):
    words = ["fit", "--config", config(tmp_path, "other_name_runs.Net")]
    cli = LightningCLI(subclass_mode_model=True, subclass_mode_data=True, save_config_callback=None, args=words)
    assert isinstance(cli.model, other_name_runs.Net)
    assert cli.trainer.callbacks[0]._averages.updates == 2


@pytest.mark.processes
def test_without_lightning(tmp_path):
    process = start(other_name_runs.__file__, tmp_path)
    try:
        assert process.wait(timeout=240) == 0
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "done").exists()


OURS_FIRST = """
import sys
from importlib.util import find_spec
import lightning_objectives as lo
before, data = lo.EMACallback(decay=0.5), lo.DigitsDataModule(batch_size=400)
assert len({"lightning", "pytorch_lightning"} & set(sys.modules)) == 1, "the first that is installed is enough"
assert find_spec("pytorch_lightning"), "to look for it is not to import it"
finders, sys.meta_path = sys.meta_path, [finder for finder in sys.meta_path if "lightning" in repr(finder).lower()]
assert len(sys.meta_path) == 1
assert find_spec("pytorch_lightning") is None, "it may not be installed"
sys.meta_path = finders
import pytorch_lightning as pl
"""
OTHER_FIRST = """
import sys
import pytorch_lightning as pl
import lightning_objectives as lo
before, data = lo.EMACallback(decay=0.5), lo.DigitsDataModule(batch_size=400)
assert "lightning" not in sys.modules, "the Lightning that the program has imported is enough"
import lightning.pytorch
"""
BOTH = """
import lightning.pytorch
for other in (pl, lightning.pytorch):
    assert issubclass(lo.EMACallback, other.Callback)
    assert isinstance(before, other.Callback)
    assert isinstance(data, other.LightningDataModule)
    assert issubclass(lo.CIFAR10DataModule, other.LightningDataModule)
assert not [finder for finder in sys.meta_path if "lightning" in repr(finder).lower()], "nothing is left behind"

import other_name_runs, pickle
trainer = pl.Trainer(max_steps=2, callbacks=before, enable_checkpointing=False, **other_name_runs.QUIET)
trainer.fit(other_name_runs.Net(), datamodule=data)
assert before._averages.updates == 2
assert isinstance(pickle.loads(pickle.dumps(before)), pl.Callback)
"""


NEITHER = """
import sys
sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None
import lightning_objectives as lo
try:
    lo.AverageWeights
except ModuleNotFoundError as error:
    assert "Callbacks need Lightning: pip install lightning" in str(error)
else:
    raise AssertionError("there is none")
"""


@pytest.mark.processes
@pytest.mark.parametrize("code", [OURS_FIRST + BOTH, OTHER_FIRST + BOTH, NEITHER])
def test_both_names_in_either_order_and_neither(code, tmp_path):
    path = os.pathsep.join([str(Path(other_name_runs.__file__).parent), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-W", "ignore", "-c", code]
    run = subprocess.run(words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
