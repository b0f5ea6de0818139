import averaging_runs
import pytest
import torch
from averaging_nets import equal, loader
from processes import killed, ranks

pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore")]
RUNS = averaging_runs.__file__


def test_a_training_that_was_killed_goes_on_to_the_bit(tmp_path):
    last = killed(RUNS, "killed", tmp_path, directory=tmp_path)
    assert last.name == "epoch=1.ckpt"
    resumed = averaging_runs.single(tmp_path / "resumed", last, seed=123)
    whole = averaging_runs.single(tmp_path / "whole")
    assert equal(resumed, whole)


def test_two_processes_hold_equal_averages_and_those_of_the_joined_batch(tmp_path):
    first, second = ranks(RUNS, "ddp", tmp_path)
    assert equal(first["plain"], second["plain"])
    for result in (first, second):  # of BatchNorm's raw statistics each process has its own, as in any DDP
        for key in ("running_mean", "running_var"):
            assert result["norm"]["averages"]["raw"].pop(f"layers.1.{key}").isfinite().all()
    assert equal(first["norm"], second["norm"])
    (tmp_path / "alone").mkdir()
    alone = averaging_runs.ddp(tmp_path / "alone", data=loader(batch_size=8, dtype=torch.float64))
    for name, tensor in alone["plain"]["net"].items():
        torch.testing.assert_close(first["plain"]["net"][name], tensor, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        first["plain"]["averages"]["averages"], alone["plain"]["averages"]["averages"], rtol=0, atol=1e-6
    )
    saved = torch.load(tmp_path / "plain" / "epoch=1.ckpt", weights_only=True)
    assert equal(dict(saved["state_dict"]), first["plain"]["net"])
    (states,) = [state["ranks"] for key, state in saved["callbacks"].items() if key == "RestoreRandomState"]
    assert len(states) == 2


@pytest.mark.parametrize("files", ["distributed", "consolidated"])
def test_sharded_weights_are_averaged_shard_by_shard(tmp_path, files):
    first, second = ranks(RUNS, "sharded", tmp_path / files)
    assert equal(first["whole"]["averages"], second["whole"]["averages"])
    assert equal(first["resumed"]["averages"], first["whole"]["averages"])
    assert equal(first["resumed"]["net"], first["whole"]["net"])
    if files == "consolidated":
        saved = torch.load(tmp_path / files / "whole" / "epoch=1.ckpt", weights_only=True)
        assert equal(dict(saved["state_dict"]), first["whole"]["net"])
    (tmp_path / "alone").mkdir()
    alone = averaging_runs.ddp(tmp_path / "alone", data=loader(batch_size=8, dtype=torch.float64))
    torch.testing.assert_close(first["whole"]["net"], alone["plain"]["net"], rtol=0, atol=1e-5, check_dtype=False)
    for mine, rule in ((first["whole"], "bema"), (first["whole"], "ema")):
        torch.testing.assert_close(
            mine["averages"]["averages"][rule], alone["plain"]["averages"]["averages"][rule],
            rtol=0, atol=1e-5, check_dtype=False,
        )  # fmt: skip
