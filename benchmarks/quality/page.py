"""The page: what was asked, the plot, the numbers, the verdict, the command. All figures come from the results."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import lightning_objectives
from benchmarks.quality import grid
from benchmarks.quality.plots import CALIBRATED, draw
from benchmarks.quality.results import Results
from benchmarks.quality.stats import verdict
from benchmarks.quality.store import Store

DOCS = Path(__file__).parents[2] / "docs" / "evidence"
WORDS = Path(lightning_objectives.__file__).parent / "evidence.json"
PROSE = Path(__file__).parent / "prose"
SECTIONS = {
    "Multi-sample dropout": ("dropout", ("dropout",)),
    "Distillation with two heads": ("distillation", ("distillation", "logit distillation", "one head", "alignment")),
    "Reweighting by the loss": ("reweighting", ("reweighting",)),
    "BEMA, EMA, SWA": ("averages", ("BEMA", "EMA", "SWA")),
    "Merges in the place of a decay": ("merging", ("WSM",)),
    "All together": ("together", ("together",)),
    "Calibration": ("calibration", ()),
}
COMMAND = "python -m benchmarks.quality run --only '{}'"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    return f"{value:.4f}"


def words(results: Results) -> dict[str, str]:
    """The verdict of each claim."""
    found = {}
    for name, claim in grid.CLAIMS.items():
        differences = [results.compared(asked) for asked in claim.judged]
        found[name] = verdict(["not shown" if d is None else d.word for d in differences])
    return found


def tally(results: Results, claim: grid.Claim) -> str:
    """How often each word was said of a claim's comparisons."""
    said = Counter(d.word if (d := results.compared(asked)) else "not shown" for asked in claim.judged)
    return ", ".join(f"{count} {word}" for word, count in sorted(said.items()))


def judged(results: Results, claim: grid.Claim) -> str:
    """What a claim is judged by, a row a comparison."""
    rows = []
    for asked in claim.judged:
        measure = asked.measure or grid.TASKS[asked.task].measure
        found = results.compared(asked)
        if found is None:
            rows.append([asked.task, asked.arm, asked.against, measure, "", "", "", "0", "not shown"])
            continue
        means = ["", ""]
        if results.values(asked.task, asked.arm) and " to " not in measure:
            both = [results.values(asked.task, arm, measure) for arm in (asked.arm, asked.against)]
            means = [number(float(np.mean(list(values.values())))) for values in both]
        interval = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
        row = [asked.task, asked.arm, asked.against, measure, *means, interval, str(len(found.values)), found.word]
        rows.append(row)
    return table(
        ("task", "arm", "against", "measure", "arm's mean", "other's", "difference, 95 %", "seeds", "word"), rows
    )


def everything(results: Results) -> str:
    """Mean and standard deviation of every arm on every task."""
    rows = []
    for task in grid.TASKS:
        for arm in grid.arms(task):
            runs = [run for seed in results.seeds if (run := results.run(task, arm, seed))]
            if not runs:
                continue
            cells = [task, arm, str(len(runs)), f"{runs[0]['factor']:g}", str(runs[0]["steps"])]
            cells.append(f"{np.mean([run['seconds']['training'] for run in runs]):.1f}")
            for measure in ("error", "worst class", "nll", "ece", "ece scaled"):
                values = [run["final"]["raw"]["test"].get(measure) for run in runs]
                cells.append("" if None in values else f"{np.mean(values):.4f} ± {np.std(values):.4f}")
            rows.append(cells)
    head = ("task", "arm", "seeds", "rate ×", "steps", "CPU s", "error", "worst class", "NLL", "ECE", "ECE scaled")
    return table(head, rows)


def readouts(results: Results) -> str:
    """What was read out of the trainings at a constant rate."""
    rows = []
    for task in ("characters", "clean"):
        runs = [run for seed in results.seeds if (run := results.run(task, "constant", seed))]
        for name in runs[0]["final"] if runs else ():
            tests = [run["final"][name]["test"] for run in runs]
            cells = [f"{np.mean(v):.4f} ± {np.std(v):.4f}" for v in ([t["nll"] for t in tests],)]
            errors = [test.get("error") for test in tests]
            cells.append("" if None in errors else f"{np.mean(errors):.4f} ± {np.std(errors):.4f}")
            rows.append([task, name, str(len(runs)), *cells])
    return table(("task", "read out", "seeds", "test NLL", "test error"), rows)


def reached(results: Results) -> str:
    """At which part of the training each average's validation loss is at what the raw weights end with."""
    rows = []
    for task in ("characters", "clean"):
        for arm in ("constant, a third", "constant"):
            steps, raw = results.curve(task, arm, "raw/nll")
            if not len(raw):
                continue
            row = [task, str(steps[-1])]
            for family in ("raw", "EMA", "BEMA", "SWA", "BEMA φ=400"):
                _, curve = results.curve(task, arm, f"{results.readout(task, f'constant: {family}')}/nll")
                below = np.flatnonzero(curve.mean(0) <= raw.mean(0)[-1])
                row.append(str(steps[below[0]]) if len(below) else "never")
            rows.append(row)
    return table(("task", "steps", "raw", "EMA", "BEMA", "SWA", "BEMA φ=400"), rows)


def calibration(results: Results) -> str:
    rows = []
    for label, name in CALIBRATED.items():
        cells = []
        for measure in ("ece", "ece scaled", "nll", "nll scaled", "brier", "brier scaled"):
            values = list(results.values("clean", name, measure).values())
            cells.append(number(float(np.mean(values))) if values else "")
        if any(cells):
            rows.append([label, *cells])
    return table(("clean", "ECE", "scaled", "NLL", "scaled", "Brier", "scaled"), rows)


EXTRA = {
    "BEMA, EMA, SWA": lambda r: (
        "The step at which the mean validation loss is first at what the raw weights end with:\n\n" + reached(r)
    ),
    "Merges in the place of a decay": readouts,
    "Calibration": calibration,
}


def prose(name: str) -> list[str]:
    """What was written by hand for a section: what is asked, and behind the numbers what they mean."""
    file = PROSE / f"{name}.md"
    asked, _, meant = file.read_text().partition("\n---\n") if file.exists() else ("", "", "")
    return [asked.strip(), meant.strip()]


def write(store: Store, *, docs: Path = DOCS, verdicts: Path = WORDS) -> None:
    """Make the page, its plots and the words of the command line anew."""
    results = Results(store)
    said = words(results)
    draw(results, docs)
    planned, done = list(grid.jobs()), [job for job in grid.jobs() if job.key in store.runs]
    seconds = sum(run["seconds"]["all"] for run in store.runs.values())
    missing = dict.fromkeys(f"{g.claim} on {g.task}" for g in grid.GROUPS if _missing(results, g))
    versions = sorted({json.dumps(run["versions"]) for run in store.runs.values()})
    revisions = sorted({run["revision"] for run in store.runs.values()})
    parts = ["# Does it help? Evidence on real data, with seeds", prose("introduction")[0]]
    rows = [
        [title, name, f"**{said[name]}**", tally(results, grid.CLAIMS[name])]
        for title, (_, names) in SECTIONS.items()
        for name in names
    ]
    parts.append(table(("section", "claim", "verdict", "comparisons"), rows))
    parts.append(
        f"{len(done)} of {len(planned)} planned runs, {seconds / 3600:.2f} core hours of CPU time. Versions: "
        f"{'; '.join(versions)}; revisions {', '.join(revisions)}."
    )
    if missing:
        parts.append(f"**Not run, or not on all seeds**: {'; '.join(missing)}.")
    parts.append(prose("introduction")[1])
    for title, (plot, names) in SECTIONS.items():
        asked, meant = prose(plot)
        parts += [f"## {title}", asked]
        parts.append(f"![{title}]({plot}.png)" if (docs / f"{plot}.png").exists() else "*No run of it yet.*")
        for name in names:
            claim = grid.CLAIMS[name]
            label = ", ".join(f"`{method}`" for method in claim.methods) or name
            parts += [f"**{label}: {said[name]}.**", judged(results, claim)]
        if title in EXTRA:
            parts.append(EXTRA[title](results))
        parts.append(meant)
        tasks = list(dict.fromkeys(group.task for group in grid.GROUPS if group.claim in (plot, *names)))
        if tasks:
            parts.append("Command: " + ", ".join(f"`{COMMAND.format(task)}`" for task in tasks) + ".")
    parts += ["## Every arm", everything(results)]
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "index.md").write_text("\n\n".join(part for part in parts if part) + "\n")
    by_class = {method: said[name] for name, claim in grid.CLAIMS.items() for method in claim.methods}
    verdicts.write_text(json.dumps(dict(sorted(by_class.items())), indent=1) + "\n")


def _missing(results: Results, group: grid.Group) -> bool:
    return any(results.run(group.task, arm.name, seed) is None for arm in group.arms for seed in group.seeds)
