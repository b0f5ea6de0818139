"""Runs the packages that are named, or all; records them, and writes ``docs/third_party.md``.

``python -m thirdparty page`` only writes the page anew out of ``thirdparty/records``.
"""

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from thirdparty import page
from thirdparty.environments import PACKAGES, RECORDS, ROOT, python

FAULTS = ("wrong", "meaningless", "raw error")


def run(package: str) -> dict[str, Any]:
    """Build the environment of a package, and run its cases there."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder) / "record.json"
        words = [python(package), "-W", "ignore", "-m", "thirdparty.run", package, record]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        subprocess.run(words, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(record.read_text())
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return {"date": today, "seconds": round(time.monotonic() - start), **found}


def outcomes(record: dict[str, Any]) -> dict[tuple[str, str], str]:
    """The outcome of each callback with each module of a package."""
    cases = record.get("cases", {}).items()
    return {(case, row): cell["outcome"] for case, found in cases for row, cell in found.get("cells", {}).items()}


def main(words: list[str]) -> int:
    """The exit code is 1 if a number is wrong, an error raw, a method senseless, or a package does not run."""
    RECORDS.mkdir(exist_ok=True)
    faults = 0
    for package in [] if words == ["page"] else words or PACKAGES:
        path = RECORDS / f"{package}.json"
        before = outcomes(json.loads(path.read_text())) if path.exists() else {}
        try:
            record = run(package)
        except subprocess.CalledProcessError as error:
            print(f"{package}: {error}", flush=True)  # its own messages stand above; the old record stays
            faults += 1
            continue
        path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        for (case, row), outcome in outcomes(record).items():
            faults += outcome in FAULTS
            was = before.get((case, row), "new")
            if outcome in FAULTS or was != outcome:
                print(f"{package}, {case}, {row}: {was} -> {outcome}", flush=True)
    page.write(page.recorded())
    return int(faults > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
