"""The budget, from the grid: what was planned before the first run."""

from collections import Counter
from pathlib import Path

from benchmarks.quality.grid import FACTORS, GROUPS, SEARCH_SEED, SEEDS, TASKS, Job, arms, jobs

PAGE = Path(__file__).parents[2] / "docs" / "evidence" / "budget.md"
LIMIT_RUNS, LIMIT_HOURS, CORES = 600, 4, 2
CARRYING = {"all": 20, "few": 4, "": 0}
"""Seconds that it takes to judge the averages and merges of a run too."""


def seconds(job: Job) -> float:
    """The declared CPU seconds of a run, its evaluation included."""
    arm = arms(job.task)[job.arm]
    length = 1.5 if arm.as_long_as else arm.length
    return TASKS[job.task].seconds * length + CARRYING[arm.carries]


def rows() -> list[tuple[str, str, str, int, int, float]]:
    """Of each group: claim, task, arms, runs of the search, final runs, seconds; a run counts where it comes first."""
    planned = list(jobs())
    found, place = [], 0
    for group in GROUPS:
        names = {arm.name for arm in group.arms} | {arm.searched for arm in group.arms}
        mine = []
        while place < len(planned) and planned[place].claim == group.claim and planned[place].task == group.task:
            job = planned[place]
            if job.arm not in names or (mine and mine[-1].phase == "final" and job.phase == "search"):
                break
            mine.append(job)
            place += 1
        kinds = Counter(job.phase for job in mine)
        label = ", ".join(arm.name for arm in group.arms)
        found.append((group.claim, group.task, label, kinds["search"], kinds["final"], sum(map(seconds, mine))))
    assert place == len(planned), "a group's runs do not follow each other"
    return found


def write() -> None:
    """The page, which is committed before the grid is started."""
    table = rows()
    search, final, total = sum(r[3] for r in table), sum(r[4] for r in table), sum(r[5] for r in table)
    factors = " or ".join(map(str, FACTORS))
    hours = total / 3600
    lines = [
        *("# The budget of the evidence", ""),
        "Made from `benchmarks/quality/grid.py` by `python -m benchmarks.quality budget`; first before any run. The",
        f"limits: at most {LIMIT_RUNS} runs, and {LIMIT_HOURS} hours on {CORES} cores for everything.",
        "",
        f"Seeds {', '.join(map(str, SEEDS))}: a seed fixes the part of the data, the wrong labels, the initial",
        "weights and the order of the batches, for every arm alike. The search: the learning rate times",
        f"{factors}, on seed {SEARCH_SEED} alone, by the validation split; arms that are variants of another take",
        "its choice. The test split is read once, at the end of each final run. Groups are run in this order, and a",
        "run that serves several is counted where it comes first.",
        "",
        "| claim | task | arms | search runs | final runs | CPU seconds, planned |",
        "|---|---|---|---|---|---|",
        *(f"| {c} | {t} | {a} | {s} | {f} | {x:.0f} |" for c, t, a, s, f, x in table),
        f"| **all** | | | **{search}** | **{final}** | **{total:.0f}** |",
        "",
        f"{search + final} runs, {hours:.1f} core hours, {hours / CORES:.1f} hours on two cores; the teacher aside",
        "(about 15 minutes, once).",
    ]
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text("\n".join(lines) + "\n")
    print(*lines[-2:])
