"""``python -m benchmarks.speed [ROW...]``: measure rows, each in a process of its own, and keep them as JSON.

Without a row all of them, then the page. A row that fails is named at the end, and the others are measured.
"""

import argparse
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import torch

import benchmarks.speed as rows
from benchmarks.speed._bench import RESULTS, ROOT, Bench, provenance


def names() -> list[str]:
    """The rows that there are: the files of this folder that measure."""
    found = [module.name for module in pkgutil.iter_modules(rows.__path__) if not module.name.startswith("_")]
    return [name for name in found if {"run", "main"} & vars(importlib.import_module(f"{rows.__name__}.{name}")).keys()]


def measure(row: str, *, tiny: bool, device: str, threads: int, out: Path) -> Path:
    """Measure one row in this process and write its file."""
    torch.set_num_threads(threads)
    bench = Bench(row, tiny=tiny, device=device, threads=threads)
    load = [round(value, 2) for value in os.getloadavg()]
    start = perf_counter()
    module = importlib.import_module(f"{rows.__name__}.{row}")
    if hasattr(module, "run"):
        module.run(bench)
    else:  # a script of its own, which gives its table as dictionaries
        smallest = {"rounds": 1, "memory": False} if tiny else {}
        made = module.main(**smallest)
        bench.figures(row, list(made[0]), [list(line.values()) for line in made])
    command = f"python -m benchmarks.speed {row}" + (f" --device {device}" if device != "cpu" else "")
    result = provenance(bench, command) | {"load_before": load, "seconds": round(perf_counter() - start, 1)}
    title, _, text = (module.__doc__ or row).partition("\n")
    result |= {"title": title.rstrip("."), "text": text.strip(), "tiny": tiny}
    result |= {"tables": bench.tables, "notes": bench.notes, "absent": bench.absent}
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{row}.json"
    path.write_text(_json(result) + "\n")
    return path


def _json(value: object, indent: str = "") -> str:
    """JSON in which a list of plain values takes one line."""
    deeper = indent + " "
    if isinstance(value, dict) and value:
        items = [f"{deeper}{json.dumps(key)}: {_json(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}"
    if isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple)) for item in value):
        return "[\n" + ",\n".join(deeper + _json(item, deeper) for item in value) + f"\n{indent}]"
    return json.dumps(value)


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.speed", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="by default all of them")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to see that all runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON files")
    parser.add_argument("--list", action="store_true", help="name the rows")
    given = parser.parse_args()
    known = names()
    if given.list:
        print("\n".join(known))
        return 0
    unknown = sorted(set(given.rows) - set(known))
    if unknown:
        parser.error(f"{unknown} are no rows; there are {known}.")
    settings = {"tiny": given.tiny, "device": given.device, "threads": given.threads}
    if len(given.rows) == 1:
        measure(given.rows[0], **settings, out=given.out)
        return 0
    failed = []
    for row in given.rows or known:
        command = [sys.executable, "-m", "benchmarks.speed", row, "--out", str(given.out), "--device", given.device]
        command += ["--threads", str(given.threads), *(["--tiny"] if given.tiny else [])]
        environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
        if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
            failed.append(row)
    if failed:
        print(f"failed: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
