"""Builds the environments under ``.compat/``, runs the quick tests in each, and records what ran.

``python -m compat`` does all; ``python -m compat lowest`` one, and keeps what is recorded of the others;
``python -m compat page`` only writes ``docs/compatibility.md`` anew out of ``compat/record.json``.
"""

import datetime
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from compat import other_name, page
from compat.environments import ENVIRONMENTS, NOT_RUN, ROOT

RECORD = Path(__file__).with_name("record.json")
PACKAGES = [
    "lightning", "pytorch-lightning", "torch", "torchmetrics", "timm", "safetensors", "numpy", "tqdm", "jsonargparse",
    "matplotlib", "scikit-learn", "torchvision", "torch-uncertainty",
]  # fmt: skip
VERSIONS = """
import importlib.metadata as m, json, platform, sys
found = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in m.distributions()}
print(json.dumps({"python": platform.python_version(), **{n: found[n] for n in sys.argv[1:] if n in found}}))
"""


def run(name: str) -> dict[str, Any]:
    """Build one environment, run the quick tests in it, and return its record."""
    python = ENVIRONMENTS[name]()
    where = other_name.copy() if name == "pytorch_lightning" else ROOT
    environment = {**os.environ, "PYTHONPATH": str(where), "OMP_NUM_THREADS": "1"}
    words = ["-m", "pytest", "-n", "2", "-m", "not slow and not processes", "--timeout", "1500"]
    # Of the Trainer's conditions the rows of all callbacks together.
    chosen = "(not test_cell or together)"
    words += ["-k", " and not ".join([chosen, *NOT_RUN.get(name, ())])]
    # The pages' tools are not installed; test_compat.py is about the record, which is not there yet.
    words += ["--ignore=tests/test_compat.py", "tests", "lightning_objectives"]
    if name == "lowest":
        words += ["-W", "default"]  # packages of one year warn of those of another
    start = time.monotonic()
    ran = subprocess.run([python, *words], cwd=where, env=environment, stdout=subprocess.PIPE, text=True)
    seconds = time.monotonic() - start
    print(ran.stdout, flush=True)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|errors?|skipped)\b", ran.stdout)}
    versions = subprocess.run([python, "-c", VERSIONS, *PACKAGES], capture_output=True, text=True, check=True).stdout
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": json.loads(versions),
        "counts": counts,
        "failed": re.findall(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, re.MULTILINE),
        "exit": ran.returncode,
        "seconds": round(seconds),
    }


def main(words: list[str]) -> int:
    """Run the environments that are named, or all; the exit code is 1 where a test failed."""
    records = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    for name in [] if words == ["page"] else words or ENVIRONMENTS:
        records[name] = run(name)
        RECORD.write_text(json.dumps({n: records[n] for n in ENVIRONMENTS if n in records}, indent=2) + "\n")
    page.write(records)
    return int(any(record["exit"] for record in records.values()))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
