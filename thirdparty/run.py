"""Runs the cases of one package in its environment, each with every callback, and prints the record.

``python -m thirdparty.run PACKAGE OUT.json [CASE]``
"""

import copy
import importlib
import importlib.metadata
import json
import logging
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

PACKAGE = "lightning_objectives"
TOLERANCE = 1e-6
CALLBACKS = (
    "AdaptAtTest AddRegularizer AverageWeights Calibrate ChangeLayers CombineTerms Distill LogMetrics "
    "MergeCheckpoints PerturbWeights Refer ReplaceLoss ReweightSamples SurveyData TransformBatch TransformGradients "
    "WrapHead"
).split()
"""By their names the warnings of this package are known."""
REOPEN = """
import sys
sys.modules["lightning_objectives"] = None  # importing it raises
from importlib import import_module
(case,) = (case for case in import_module(f"thirdparty.packages.{sys.argv[1]}").CASES if case.name == sys.argv[2])
case.reopen(sys.argv[3])
"""
OPEN = """
import sys
sys.modules["lightning_objectives"] = None  # importing it raises
import json
import torch
keys, plain, *paths = sys.argv[1:]
def opened(path, safely):
    try:
        file = torch.load(path, weights_only=safely)
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace(chr(10), " ")[:300]
    return "yes" if sorted(file["state_dict"]) == json.loads(open(keys).read()) else "its state_dict has other keys"
safely = opened(plain, True) == "yes"  # as far as the plain checkpoints of this module do
for path in paths:
    print(opened(path, safely))
"""


def run(package: str, only: str | None = None) -> dict[str, Any]:
    """Run the cases of a package."""
    home = importlib.import_module(f"thirdparty.packages.{package}")
    versions = {name: importlib.metadata.version(name) for name in home.DISTRIBUTIONS}
    cases = [case for case in home.CASES if only is None or case.name == only]
    return {"versions": versions, "cases": {case.name: run_case(package, case) for case in cases}}


def run_case(package: str, case: Any) -> dict[str, Any]:
    """Run one case with every callback."""
    importlib.import_module(case.lightning)  # before ours, as in a user's program
    from thirdparty.rows import ROWS, TOGETHER, Row

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        plain, error = fit(case, [], root / "plain", still=False)
        if error is not None:
            return {"about": case.about, "broken": short(error)}
        still, _ = fit(case, [], root / "still", still=True)
        record: dict[str, Any] = {
            "about": case.about,
            "steps": len(plain.weights) - 1,
            "own trainer": case.train is not None,
            "copied": plain.copied,
        }
        keys = root / "keys.json"
        keys.write_text(json.dumps(sorted(plain.module.state_dict())))
        cells: dict[str, Any] = {}
        files: dict[str, list[Path]] = {}
        for row in ROWS:
            cells[row.name] = cell(case, row, plain, still, root / row.name, files)
        works = [row for row in ROWS if cells[row.name]["outcome"] == "works"]
        # Two primary averages, and two weightings, are refused. The row of CombineTerms brings a regularizer along.
        left_out = (
            "AverageWeights(BEMA)",
            "AddRegularizer(LogPartitionPenalty)",
            'ReweightSamples(unit="element")',
        )
        works = [row for row in works if row.name not in left_out]
        ema = next(row for row in ROWS if row.name == "AverageWeights(EMA)")
        told = {row.name: cells[row.name].get("told", {}) for row in works}

        def make(case: Any, _: Any, directory: Path) -> list[Any]:
            words = {row.name: told_to(case, row, told[row.name], plain) for row in works}
            return [callback for row in works for callback in row.make(case, words[row.name], directory)]

        alone = all(row.leaves_alone for row in works)
        check = ema.check if ema in works else None
        together = Row(name=TOGETHER, make=make, leaves_alone=alone, in_step=False, check=check)
        if works:
            cells[TOGETHER] = cell(case, together, plain, still, root / "together", files, words={})
            cells[TOGETHER]["rows"] = [row.name for row in works]
        opened(cells, files, keys, next(iter(plain.files)))
        if case.reopen is not None:
            record["own files"] = reopened(package, case, root / ema.name / "saved")
        record["cells"] = cells
        return record


def told_to(case: Any, row: Any, words: dict[str, Any], plain: Any) -> dict[str, Any]:
    """The words of the user, and the teacher: the network before the training, or the one that was trained plainly."""
    if not row.name.startswith("Distill"):
        return dict(words)
    if case.module is not None:
        return {**words, "teacher": case.teacher(case.fresh()).eval()}
    plain.module.trainer = None
    return {**words, "teacher": case.teacher(copy.deepcopy(plain.module)).eval()}


def cell(
    case: Any, row: Any, plain: Any, still: Any, directory: Path, files: dict[str, list[Path]], words: Any = None
) -> dict[str, Any]:
    """Run one callback: without a word from the user first, then with what its message asks for."""
    from thirdparty import rows
    from thirdparty.watch import gradient_difference, largest_difference

    told: dict[str, Any] = {}
    made: list[Any] = []

    def trained(make: Any, where: Path, still: bool) -> tuple[Any, BaseException | None]:
        nonlocal made
        try:
            made = make(case, told_to(case, row, told, plain), where)
        except Exception as error:
            return None, error
        return fit(case, made, where, still=still)

    done, error = trained(row.make, directory, still=False)
    result: dict[str, Any] = {}
    user = case.told(row.name.partition("(")[0]) if words is None else words
    if error is not None and user:
        result["first"] = short(error)
        told = user
        result["told"] = told
        done, error = trained(row.make, directory / "told", still=False)
    if error is not None:
        sentence = refused(error)
        return {**result, "outcome": "refused" if sentence else "raw error", "says": short(error)} | (
            {} if sentence else {"where": where_raised(error)}
        )
    checks: dict[str, Any] = {}
    change = largest_difference(done.weights[-1], plain.weights[-1]) if len(done.weights) == len(plain.weights) else 1.0
    if row.leaves_alone:
        same = len(done.weights) == len(plain.weights) and all(
            largest_difference(a, b) == 0 for a, b in zip(done.weights, plain.weights)
        )
        checks["the training is the plain one"] = same
    else:
        checks["the training changed"] = change > 0
    left = sorted(done.left - plain.left) + done.ours
    checks["nothing is left"] = not left
    if left:
        result["left"] = left[:8]
    if row.check is not None:
        try:
            checks |= row.check(case, done, plain, made)
        except Exception as error:
            checks["check by hand"] = False
            result["check"] = short(error)
    if row.neutral is not None:
        rows.SEEN.clear()
        neutral, error = trained(row.neutral, directory / "neutral", still=True)
        if error is not None:
            checks["neutral form"] = False
            result["neutral"] = short(error) + where_raised(error)
        else:
            checks["neutral form, gradients"] = gradient_difference(neutral, still)
            pairs = list(zip(neutral.losses, still.losses))
            checks["neutral form, losses"] = max(abs(a - b) / max(1.0, abs(b)) for a, b in pairs) if pairs else 1.0
            if row.name == "ReweightSamples" and case.samples is not None:
                checks[f"{case.samples} rows in the first batch"] = rows.SEEN[:1] == [case.samples]
                result["rows seen"] = rows.SEEN[:1]
    files[row.name] = [*done.files]
    if done.kept:
        result["kept"] = done.kept[:3]
    if done.warned:
        result["warned"] = done.warned
    outcome = "works" if all(map(holds, checks.values())) else "wrong"
    if (row.for_classes and not case.classifies and not case.one_logit) or (row.in_step and case.manual):
        outcome = "meaningless"
    rounded = {name: value if isinstance(value, bool) else float(f"{value:.1e}") for name, value in checks.items()}
    return {**result, "outcome": outcome, "checks": rounded}


def holds(value: Any) -> bool:
    """Whether a check holds: true, or a difference within the tolerance."""
    return bool(value) if isinstance(value, bool) else bool(value <= TOLERANCE)


def fit(case: Any, callbacks: list[Any], directory: Path, *, still: bool) -> tuple[Any, BaseException | None]:
    """Train once, with the callback that watches first."""
    from thirdparty.watch import recording, watch

    directory.mkdir(parents=True, exist_ok=True)
    options = {
        "default_root_dir": str(directory),
        "max_epochs": 2,
        "logger": False,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
        "num_sanity_val_steps": 0,
    }
    error: BaseException | None = None
    with recording(directory, case.lightning, still=still) as recorded, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            case.fit([watch(case.lightning), *callbacks], options)
        except Exception as failure:
            error = failure
    names = re.compile(rf"\b({'|'.join(CALLBACKS)})\b")
    own = [str(w.message) for w in caught if PACKAGE in w.filename or names.search(str(w.message))]
    recorded.warned = list(dict.fromkeys(own))[:3]
    if error is None and recorded.module is None:
        error = RuntimeError("the package did not pass the callback on: no fit was seen")
    return recorded, error


def refused(error: BaseException) -> bool:
    """Whether the error is a sentence of this package, and not an error of something that it called or does wrong."""
    frames = traceback.extract_tb(error.__traceback__)
    raised = bool(frames) and PACKAGE in Path(frames[-1].filename).parts and "raise " in (frames[-1].line or "")
    return raised and isinstance(error, (ValueError, TypeError, RuntimeError))


def where_raised(error: BaseException) -> str:
    """The last line of this package and the last line of all."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if PACKAGE in Path(frame.filename).parts]
    lines = [f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno} {f.name}" for f in [*own[-1:], *frames[-1:]]]
    return " <- ".join(reversed(lines))


def short(error: BaseException) -> str:
    """The error in one line, without addresses and temporary paths."""
    return short_line(f"{type(error).__name__}: {error}".replace("\n", " "))


def short_line(text: str) -> str:
    """A line without addresses and temporary paths."""
    text = re.sub(r"/\S*/(?=[\w.=-]+)", "", re.sub(r"0x[0-9a-f]+", "0x", text))
    return text if len(text) <= 600 else text[:600] + " ..."


def opened(cells: dict[str, Any], files: dict[str, list[Path]], keys: Path, plain: Path) -> None:
    """Open all checkpoints in one process without this package, with ``weights_only=True`` if the plain one allows."""
    paths = [(name, path) for name, found in files.items() for path in found]
    words = [sys.executable, "-c", OPEN, str(keys), str(plain), *(str(path) for _, path in paths)]
    done = subprocess.run(words, capture_output=True, text=True)
    answers = done.stdout.splitlines()
    if len(answers) != len(paths):
        raise RuntimeError(done.stderr)
    for (name, _), answer in zip(paths, answers):
        cell = cells[name]
        if answer != "yes":
            cell["opening"] = answer
        # A package that saves the callbacks among its own settings needs their package, whichever it is.
        if "kept" not in cell:
            checks = cell["checks"]
            checks["opens without this package"] = answer == "yes" and checks.get("opens without this package", True)
            cell["outcome"] = cell["outcome"] if answer == "yes" else "wrong"


def reopened(package: str, case: Any, folder: Path) -> str:
    """Open the package's own files in a process without this package."""
    words = [sys.executable, "-W", "ignore", "-c", REOPEN, package, case.name, str(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    return "open" if done.returncode == 0 else short_line(done.stderr.strip().splitlines()[-1])


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    record = run(sys.argv[1], *sys.argv[3:])
    Path(sys.argv[2]).write_text(json.dumps(record, indent=1) + "\n")
