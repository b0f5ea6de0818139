"""Every plug-in in several processes: ``python processes_run.py RUN DIRECTORY`` writes what was found, as JSON.

The imports, which take longer than the trainings, are paid once: all processes are forks of this one.
"""

import json
import os
import socket
import sys
import time
import traceback
from functools import partial, wraps
from pathlib import Path

import torch
from processes_conditions import (
    CONDITIONS,
    Ranked,
    Sharing,
    ddp,
    ddp_spawn,
    doubled,
    fits,
    joined,
    save_on_two_load_on_one,
    seeds_by_rank,
)

from lightning_objectives.testing.conformance import Condition, every_method, exemplars, outcome


def forked(count, work):
    """Call ``work(rank)`` in ``count`` processes that find each other as those of one training."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sys.stdout.flush()
    children = []
    for rank in range(count):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            if count > 1:
                os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            work(rank)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert not any(codes), codes


def tried(plug_in, check):
    """A cell; what does not hold is a cell too, with the error."""
    started = time.monotonic()
    try:
        found = outcome(Condition("ranks", check), Ranked(plug_in, doubled()))
    except Exception:
        found = f"FAILED: {traceback.format_exc(limit=-6)}"
    print(f"{time.monotonic() - started:6.2f} s", plug_in, check.__name__, found.splitlines()[0], flush=True)
    return [str(plug_in), check.__name__, found]


def rows(plug_ins):
    """Of these, or of those that the environment names."""
    named = os.environ.get("ROWS")
    return [row for row in plug_ins if named is None or str(row) in named.split(",")]


def pair(directory, rank):
    """All conditions of two processes for callbacks, the two that tell most for methods."""
    sharing = Sharing(directory)
    cells = []
    for plug_ins, checks in ((exemplars(), CONDITIONS), ([*filter(fits, every_method())], (ddp, seeds_by_rank))):
        for plug_in in rows(plug_ins):
            sharing.runs = {}
            cells += [tried(plug_in, sharing.bound(check)) for check in checks]
    (directory / f"pair{rank}.json").write_text(json.dumps(cells))


def one(directory):
    """What one process makes of the files of two."""

    cells = []
    for condition in (save_on_two_load_on_one, ddp_spawn):
        check = wraps(condition)(partial(condition, directory=directory))
        cells += [tried(plug_in, check) for plug_in in rows(exemplars())]
    (directory / "one.json").write_text(json.dumps(cells))


def main(run, directory):
    directory.mkdir(exist_ok=True)
    if run == "conditions":
        forked(2, lambda rank: pair(directory, rank))
        forked(1, lambda rank: one(directory))
    for count in (1, 2, 4) if run == "joined" else ():
        forked(count, lambda rank, count=count: torch.save(joined(count, rank), directory / f"{count}-{rank}.pt"))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
