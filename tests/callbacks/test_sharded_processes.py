"""Averaging, merging and reweighting together under FSDP2, on two processes that each hold a part of every tensor."""

import pytest
import sharded_runs
import torch
from averaging_nets import equal
from processes import ranks

pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore")]


def test_a_sharded_run_of_three_is_that_of_ddp_and_goes_on_after_a_stop(tmp_path):
    first, second = ranks(sharded_runs.__file__, "together", tmp_path)
    ddp = first["ddp"]
    for files in ("distributed", "consolidated"):
        whole, resumed = first[files], first[f"{files}, resumed"]
        assert set(zip(whole["rows"], second[files]["rows"])) == {(3, 2), (1, 0), (2, 1)}  # of 5, 1 and 3 rows
        assert 2 * len(resumed["rows"]) == len(whole["rows"])
        for part in ("net", "averages", "merged", "logged"):
            assert part == "logged" or equal(second[files][part], whole[part])  # the loss is that of a rank's own rows
            assert equal(resumed[part], whole[part])
            torch.testing.assert_close(whole[part], ddp[part], rtol=0, atol=1e-6)
    assert not ddp["rows"]
    assert ddp["logged"]["train/effective_sample_size"] < 7
    averages = ddp["averages"]
    kinds = [ddp["net"], averages["raw"], ddp["merged"], averages["averages"]["ema"]["slots"]["average"]]
    assert len({round(float(kind["fc.weight"][0]), 4) for kind in kinds}) == 4

    for refused in (first["refused"], second["refused"]):
        assert refused["steps"] == 0
        assert "Distill cannot work under ModelParallelStrategy: it adds parameters" in refused["error"]
