"""A project on ``pytorch_lightning``, with ``lightning`` beside it, and without."""

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
