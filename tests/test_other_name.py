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


FIRST_OURS = """
import sys
import lightning_objectives as lo
before, data = lo.EMACallback(), lo.DigitsDataModule(batch_size=400)
assert len({"lightning", "pytorch_lightning"} & set(sys.modules)) == 1, "the first that is installed is enough"
import other_name_runs
import pytorch_lightning as pl
trainer = pl.Trainer(max_steps=2, callbacks=[before], enable_checkpointing=False, **other_name_runs.QUIET)
trainer.fit(other_name_runs.Net(), other_name_runs.batches(shuffle=False))
assert before._averages.updates == 2
assert isinstance(before, pl.Callback), "it has met its Trainer"
"""
FIRST_OTHER = """
import sys
import pytorch_lightning as pl
import lightning_objectives as lo
before, data = lo.EMACallback(), lo.DigitsDataModule(batch_size=400)
assert "lightning" not in sys.modules, "the Lightning that the program has imported is enough"
import lightning.pytorch
"""
BOTH = """
import pickle, copy
import lightning.pytorch, other_name_runs

class Mine(lo.EMACallback):
    seen = 0
    def on_train_batch_end(self, *args):
        super().on_train_batch_end(*args)
        self.seen += 1

mine = Mine(decay=0.5)
for other in (pl, lightning.pytorch):
    for made in (mine, pickle.loads(pickle.dumps(before)), copy.deepcopy(lo.EMACallback())):
        assert isinstance(made, other.Callback)
    for made in (lo.DigitsDataModule(), data):
        assert isinstance(made, other.LightningDataModule)
trainer = pl.Trainer(max_steps=2, callbacks=mine, enable_checkpointing=False, **other_name_runs.QUIET)
trainer.fit(other_name_runs.Net(), datamodule=data)
assert mine.seen == mine._averages.updates == 2
"""


@pytest.mark.processes
@pytest.mark.parametrize("code", [FIRST_OURS + BOTH, FIRST_OTHER + BOTH])
def test_both_names_in_either_order(code, tmp_path):
    path = os.pathsep.join([str(Path(other_name_runs.__file__).parent), os.environ.get("PYTHONPATH", "")])
    words = [sys.executable, "-W", "ignore", "-c", code]
    run = subprocess.run(words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
