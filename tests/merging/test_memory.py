"""What a merge holds in memory at once, of files that it reads piece by piece."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightning_objectives.discovery import methods

FILES, TENSORS, SIZE, WIDTH = 24, 16, 2**19, 256
TABLES = {"TIES": FILES * 3 * 2**20}
"""What a method's docstring says it holds for each file beside the weights, in bytes."""
MERGES = [cls.__name__ for _, cls in methods("merging")]
WORK = """
import json, sys
from pathlib import Path
import lightning_objectives.merging as merging
from benchmarks.speed._memory import peak_of
folder = Path(sys.argv[1])
peaks = {}
for name in sys.argv[2:]:
    method = getattr(merging, name)(**getattr(merging, name).example)
    files = sorted(folder.glob("net*"))[: method.files]
    importance = files if method.every_importance else [folder / "grams.safetensors"] * len(files)
    beside = {"base": folder / "base.safetensors", "importance": importance}
    beside |= {"evaluate": lambda state: 0.0, "gradient": dict}
    given = {asked: beside[asked] for asked in method.asks}
    out = folder / "out.safetensors"
    peaks[name] = peak_of(lambda: merging.merge_checkpoints(files, method, out, order="given", **given))["bytes"]
print(json.dumps(peaks))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the memory of a process")
def test_a_merge_of_many_files_holds_less_than_two_networks(tmp_path):
    """24 files, of which each but the first two is a link: what counts is memory that no file stands behind."""
    for name in ("net00", "net01", "base"):
        save_file(
            {f"layer{i}": torch.rand(SIZE // 4 // WIDTH, WIDTH) for i in range(TENSORS)},
            tmp_path / f"{name}.safetensors",
        )
    save_file({f"layer{i}": torch.eye(WIDTH) for i in range(TENSORS)}, tmp_path / "grams.safetensors")
    for place in range(2, FILES):
        (tmp_path / f"net{place:02}.safetensors").symlink_to(tmp_path / f"net0{place % 2}.safetensors")
    # Large blocks are given back to the system at once, so that no method gets what another has left.
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORK, str(tmp_path), *MERGES]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, env={**os.environ, **settings, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peaks = json.loads(done.stdout.splitlines()[-1])
    assert peaks.keys() == {*MERGES}
    limit = 2 * TENSORS * SIZE
    too_much = {name: peak / limit * 2 for name, peak in peaks.items() if peak > limit + TABLES.get(name, 0)}
    assert not too_much, f"in networks: {too_much}"
