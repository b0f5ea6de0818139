"""Folders that FSDP2 saved on two processes are merged and exported as its whole files are."""

import pytest
import sharded_files_runs
import torch
from averaging_nets import equal
from processes import ranks
from sharded_runs import Net

from lightning_objectives._files.reading import open_source
from lightning_objectives.merging import WSM, export_checkpoint, merge_checkpoints

pytestmark = [pytest.mark.processes, pytest.mark.filterwarnings("ignore")]


def test_folders_of_fsdp2(tmp_path):
    ranks(sharded_files_runs.__file__, "both", tmp_path)
    files = {kind: sorted((tmp_path / kind).glob("epoch=*.ckpt")) for kind in ("distributed", "consolidated")}
    assert [path.is_dir() for path in files["distributed"]] == [True, True]
    assert [path.is_dir() for path in files["consolidated"]] == [False, False]
    pieces = [len(entry.pieces) for entry in open_source(files["distributed"][0])._entries.values()]
    assert set(pieces) == {1, 2}, "a tensor of two ranks, and one of a single row"
    merged, raw = {}, {}
    for kind, paths in files.items():
        merged[kind] = merge_checkpoints(paths, WSM(shape="linear"), tmp_path / f"{kind}.ckpt")
        raw[kind] = export_checkpoint(paths[-1], tmp_path / f"{kind}-raw.ckpt", weights="raw")
    for one in (merged, raw):
        frames = {kind: torch.load(path, weights_only=True) for kind, path in one.items()}
        states = [dict(frame["state_dict"]) for frame in frames.values()]
        assert equal(*states)
        assert not {"optimizer_states", "loops", "callbacks"} & torch.load(merged["distributed"]).keys()
        assert frames["distributed"]["global_step"] == frames["consolidated"]["global_step"]
        Net.load_from_checkpoint(one["distributed"], map_location="cpu")
