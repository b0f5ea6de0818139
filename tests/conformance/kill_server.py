"""A process that has imported everything, and forks one for each training, which it can kill: a kill costs no import.

Orders come as lines of JSON: ``row``, ``root``, and where it is to be killed, ``kill``: after the training has said
``on`` (``step``, ``saving`` or ``write``) at batch ``batch`` or later, and ``after`` seconds more. Answers go back so.
"""

import builtins
import contextlib
import importlib
import io
import json
import os
import select
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_objectives.testing.conformance import Case, exemplars
from lightning_objectives.testing.conformance.resume import shuffled, with_random_state

EVERY, EPOCHS, BATCH_SIZE = 4, 3, 5  # 5 batches an epoch: saved within each epoch and at its end, never at one batch
DEADLINE = 60
SLOW = 0.003  # seconds


class Say(L.Callback):
    """Reports the steps and the saving; it comes first."""

    def __init__(self, report):
        self.report = report

    def on_fit_start(self, trainer, pl_module):
        save = trainer.save_checkpoint

        def reported(path, *args, **kwargs):
            self.report("saving", Path(path).name)
            save(path, *args, **kwargs)
            self.report("saved", Path(path).name)

        trainer.save_checkpoint = reported

    def on_train_batch_start(self, trainer, *_):
        self.report("step", trainer.fit_loop.total_batch_idx)


def report_writes(root, report):
    """Say when a plug-in begins to write a file of its own, in whatever thread, and when the file gets its name.

    The disk is slow: a file is there, and empty, for a while before anything is written to it.
    """
    own, opened = f"{root}{os.sep}", io.open

    def slowly(file, mode="r", *args, **kwargs):
        found = opened(file, mode, *args, **kwargs)
        if "w" in mode and str(file).startswith(own) and _plug_ins(str(file), root):
            report("write", Path(file).name)
            time.sleep(SLOW)
        return found

    def hook(event, args):
        if event == "os.rename" and str(args[0]).startswith(own) and _plug_ins(str(args[0]), root):
            report("written", Path(args[1]).name)

    io.open = builtins.open = slowly
    sys.addaudithook(hook)


def _plug_ins(path, root):
    return Path(path).relative_to(root).parts[0] not in ("tmp", "checkpoints", "end.pt")


def train(row, root, report):
    """A training, from the newest checkpoint where there is one; what it ended with lies in ``end.pt``."""
    folder, case = root / "checkpoints", Case(batch_size=BATCH_SIZE)
    (root / "tmp").mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(root / "tmp")  # where Lightning's files begin, before they are moved to their names
    found = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    callbacks = with_random_state(next(p for p in exemplars() if p.name == row).make(case))
    saving = {"save_top_k": -1, "enable_version_counter": False, "filename": "{step}"}
    savers = [ModelCheckpoint(folder, **saving), ModelCheckpoint(folder, every_n_train_steps=EVERY, **saving)]
    run = case.fit(
        [Say(report), *callbacks, *savers],
        train=shuffled(case, callbacks, stateful=True),
        ckpt_path=found[-1] if found else None,
        seed=99 if found else 0,
        max_epochs=EPOCHS,
        default_root_dir=root,
        enable_checkpointing=True,
    )
    torch.save({"weights": run.weights, "losses": run.losses}, root / "end.pt")


def forked(work):
    """The id of a process that does the work and reports into a pipe, and the pipe's other end."""
    reads, writes = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writes)
        return pid, reads
    code = 1
    try:
        os.close(reads)
        work(lambda *words: os.write(writes, (" ".join(map(str, words)) + "\n").encode()))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def heard(reads, events, deadline):
    """Wait for what the training says; False once it has ended."""
    ready, _, _ = select.select([reads], [], [], max(0.0, deadline - time.monotonic()))
    if not ready:
        raise TimeoutError(f"nothing was heard for too long, after {events[-3:]}")
    said = os.read(reads, 1 << 16)
    events.extend(line.split(" ", 1) for line in said.decode().splitlines())  # a line is written in one piece
    return bool(said)


def due(events, kill):
    """Whether the moment has come from which the kill is ``after`` seconds away."""
    batch = -1
    for what, which in events:
        batch = int(which) if what == "step" else batch
        if what == kill["on"] and batch >= kill["batch"]:
            return True
    return False


def obey(order):
    root = Path(order["root"])

    def work(report):
        report_writes(str(root), report)
        train(order["row"], root, report)

    pid, reads = forked(work)
    events, deadline, kill = [], time.monotonic() + DEADLINE, order.get("kill")
    try:
        while not (kill and due(events, kill)) and heard(reads, events, deadline):
            pass
        if kill:
            time.sleep(kill["after"])
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while heard(reads, events, deadline):
            pass
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(reads)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return {"status": status, "events": events}


def warm_up(root):
    """Import what a training with everything imports on its way, and nothing more: no thread may run before a fork."""
    report = root / "modules"

    def work(_):
        for row in exemplars()[-2:]:  # those of all callbacks together
            train(row.name, root / row.name.replace(" ", "-"), lambda *_: None)
        report.write_text("\n".join(sys.modules))

    pid, reads = forked(work)
    os.close(reads)
    os.waitpid(pid, 0)
    for name in report.read_text().splitlines():
        if name not in sys.modules and name != "__main__":
            with contextlib.suppress(Exception):  # some exist only once something else has been called
                importlib.import_module(name)


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what trainings print
    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        answers.write(json.dumps(warm_up(Path(order["warm_up"])) if "warm_up" in order else obey(order)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
