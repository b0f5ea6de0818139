"""Runs every ``bench_*.py`` of this folder and prints one table.

Each has ``run() -> (ours, times)``: the name of what is measured, and the median seconds of it and of what it is
compared with.
"""

import importlib
import pkgutil

import torch

import benchmarks


def main() -> None:
    torch.set_num_threads(1)  # on a busy machine two threads mostly wait for each other, once for each parameter
    print(f"{'benchmark':<12}{'ours':<28}{'ms':>8}  {'compared with':<44}{'ms':>8}{'ratio':>8}")
    for found in sorted(pkgutil.iter_modules(benchmarks.__path__), key=lambda module: module.name):
        if found.name.startswith("bench_"):
            ours, times = importlib.import_module(f"benchmarks.{found.name}").run()
            mine = times.pop(ours)
            for other, seconds in times.items():
                row = f"{found.name.removeprefix('bench_'):<12}{ours:<28}{1e3 * mine:>8.2f}  "
                print(f"{row}{other:<44}{1e3 * seconds:>8.2f}{mine / seconds:>8.2f}")


if __name__ == "__main__":
    main()
