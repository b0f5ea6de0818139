"""SIGKILL at drawn moments, in every plug-in's training; resumed, it ends as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from processes import start
from safetensors.torch import load_file

from lightning_objectives.testing.conformance import exemplars
from lightning_objectives.testing.conformance.resume import difference, files, saved

pytestmark = pytest.mark.processes
SERVER = Path(__file__).with_name("kill_server.py")
ROWS = [row.name for row in exemplars()]
TRAININGS, KILLS = 2, 2  # of each row; kills of each training
FIRST, LAST = 4, 13  # batches, from 0: a checkpoint is there, and another one comes
WITHIN = {"step": 0.02, "saving": 0.01, "write": 0.003}  # seconds after it began
NO_PLUG_INS = ("tmp", "checkpoints", "end.pt")


def drawn(row):
    """Where each training of a row is killed."""
    draw = random.Random(row)  # a string: the same in every process
    for _ in range(TRAININGS):
        batches = sorted(draw.sample(range(FIRST, LAST), KILLS))
        yield [{"on": draw.choice([*WITHIN]), "batch": batch, "after": draw.random()} for batch in batches]


def test_there_are_at_least_fifty_kills():
    assert sum(len(kills) for row in ROWS for kills in drawn(row)) >= 50


@pytest.fixture(scope="module")
def order(tmp_path_factory):
    """Gives orders to a server, and gets its answers."""
    server = start(SERVER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def send(**words):
        server.stdin.write(json.dumps(words).encode() + b"\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        assert answer, "the server has ended; what it printed says why"
        return json.loads(answer)

    try:
        send(warm_up=str(tmp_path_factory.mktemp("warm")))
        yield send
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.parametrize("row", ROWS)
def test_killed_and_resumed_it_ends_to_the_bit(row, order, tmp_path, record_property):
    whole = order(row=row, root=str(tmp_path / "whole"))
    assert whole["status"] == 0
    writes = any(what == "write" for what, _ in whole["events"])
    for number, kills in enumerate(drawn(row)):
        root = tmp_path / str(number)
        for kill in kills:
            if not writes and kill["on"] == "write":
                kill["on"] = "saving"
            kill["after"] *= WITHIN[kill["on"]]
            answer = order(row=row, root=str(root), kill=kill)
            assert answer["status"] == -signal.SIGKILL, "the training ended before it could be killed"
            where = landed(answer["events"])
            record_property("kill", f"{kill['on']} {kill['batch']} + {1000 * kill['after']:.1f} ms: {where}")
            print(row, kill, where)
            everything_is_whole(root)
        assert order(row=row, root=str(root))["status"] == 0
        compare(root, tmp_path / "whole")
    record_property("cell", f"kills|{row}|killed_and_resumed|pass")


def landed(events):
    """What the training was doing when it was killed."""
    open_ones = []
    for what, which in events:
        if what in ("saving", "write"):
            open_ones.append((what, which))
        if what in ("saved", "written"):
            began = ("saving" if what == "saved" else "write", which)
            open_ones = [one for one in open_ones if one[0] != began[0] or which not in one[1]]
    batch = [which for what, which in events if what == "step"][-1]
    return f"batch {batch}, in " + (" and ".join(sorted({f"a {what}" for what, _ in open_ones})) or "the step")


def everything_is_whole(root):
    """What has a name can be read; what was being written has a hidden one."""
    found = [path for path in root.rglob("*") if path.is_file() and path.relative_to(root).parts[0] != "tmp"]
    assert any(path.suffix == ".ckpt" for path in found)
    for path in found:
        if path.suffix == ".ckpt" and not path.name.startswith("."):
            torch.load(path, weights_only=True)
        elif path.suffix == ".safetensors" and not path.name.startswith("."):
            load_file(path)
        else:
            assert path.name.startswith("."), f"{path} has a name that says nothing of what it is"


def compare(root, whole):
    a, b = (torch.load(path / "end.pt", weights_only=True) for path in (root, whole))
    assert not difference(a["weights"], b["weights"])
    assert a["losses"] == b["losses"][len(b["losses"]) - len(a["losses"]) :]  # none, if the last checkpoint was there
    names = {path.name for path in (whole / "checkpoints").iterdir()}
    assert {path.name for path in (root / "checkpoints").iterdir()} == names
    for name in names:
        assert not difference(saved(root / "checkpoints" / name, root), saved(whole / "checkpoints" / name, whole))
    mine, theirs = files(root, but=NO_PLUG_INS), files(whole, but=NO_PLUG_INS)
    # What left the window stays while one of the two newest checkpoints tells of it, and a process that was killed
    # after the last one and only ends has not seen the one before.
    told = {Path(entry["file"]).name for entry in _entries(whole)}
    old = {
        name for name in mine.keys() ^ theirs.keys() if name.startswith("merge/step=") and Path(name).name not in told
    }
    assert not difference(*({n: value for n, value in found.items() if n not in old} for found in (mine, theirs)))


def _entries(root):
    newest = max((root / "checkpoints").glob("step=*.ckpt"), key=lambda path: int(path.stem.removeprefix("step=")))
    states = torch.load(newest, weights_only=True)["callbacks"].values()
    return [entry for state in states if "window" in state for entry in state["window"]["entries"]]
