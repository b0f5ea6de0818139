"""``python -m benchmarks.quality``: all that is not done yet, and then the page."""

import argparse
import time

from benchmarks.quality.store import Store


def taught(store: Store) -> bool:
    """Whether a run is left to be done that needs the teacher."""
    from benchmarks.quality.grid import arms, jobs

    left = (job for job in jobs() if job.key not in store.runs)
    return any(part.callback == "Distill" for job in left for part in arms(job.task)[job.arm].parts)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("what", nargs="?", default="all", choices=("all", "budget", "costs", "teacher", "run", "page"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after these")
    parser.add_argument("--only", default="", help="runs whose key holds this")
    given = parser.parse_args()
    until = time.time() + 60 * given.minutes
    if given.what == "budget":
        from benchmarks.quality import budget

        budget.write()
    if given.what == "costs":
        from benchmarks.quality import costs

        costs.write()
    if given.what == "teacher" or (given.what == "all" and taught(Store())):
        from benchmarks.quality import teacher

        teacher.train()
    if given.what in ("all", "run"):
        from benchmarks.quality import pool

        pool.run(Store(), workers=given.workers, until=until, only=given.only)
    if given.what in ("all", "page"):
        from benchmarks.quality import page

        page.write(Store())


if __name__ == "__main__":
    main()
