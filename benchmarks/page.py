"""Writes ``docs/performance.md`` from ``benchmarks/results``, and ``docs/performance_gpu.md`` from its folder ``gpu``.

``python -m benchmarks.page`` writes both; ``python -m benchmarks.page FOLDER OUT`` reads other files.
"""

import json
import sys
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.peers_picture import PICTURE, beside_peers, drawn

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "performance.md"
GPU_RESULTS, GPU_PAGE = RESULTS / "gpu", ROOT / "docs" / "performance_gpu.md"
HEAD = """# Performance

What each part costs, compared with other libraries and with the time that the hardware needs at minimum.
"""
HOW = """## How it was measured

This page is made from the files in `benchmarks/results`, which hold every repeat. `make bench` measures again,
`make bench-peers` installs the other libraries first, `python -m benchmarks.speed ROW` measures one row and
`python -m benchmarks.page` writes this page.

Your times will differ, but the ratios should be similar. The variants of a table ran in turn, in one process or each in
a process of its own. A ratio is the median time of a variant divided by that of the variant named *limit*. "CPU" is the
same ratio for the processor time of all threads, which other work on the machine disturbs less. "GiB/s" is the memory
traffic that the operation needs at minimum, divided by the time it took. What could not be run is blank.
"""
TARGETS = """What we promised ourselves before we measured. A target that we miss stays here, and the row says why.
"""
GPU_HEAD = """# Performance on a GPU

Some rows of [Performance](performance.md), measured with `--device cuda`. Under each stands its card. The targets were
set for the CPU and are judged here all the same. On a GPU most of these operations are so short that starting their
kernels costs more than the work, so a ratio to one large operation says little about them.
The tests do not run on a GPU.
"""
ORDER = (
    "ema_update trainer_step swap seam merging merging_ties merging_blocks distillation multi_sample_dropout "
    "large_vocabulary large_logits calibration_error weighting alignment perturbation adaptation growth all_five "
    "compiled"
).split()

WHY = {
    "large_logits": """\
*Why it is less than nothing.* A replaced loss needs less memory than torch's cross entropy, because its gradient is all
that it keeps. So beside a penalty or a distance that reads the logits in chunks, cross entropy is computed in chunks
too, which makes room for the other gradient. The stacks of multi-sample dropout are computed one after the other, and
each again in the backward pass.""",
    "adaptation": """\
*What is missed, and why.* A batch of the small network takes 4 ms, and most of that are calls. The optimizer of TENT
and the other statistics of each layer are calls too. The resnet18 shows what is left where the work lies
in the layers.""",
    "perturbation": """\
*What is missed, and why.* The step of the MLP is nearly nothing but calls. What ours does beyond the two passes takes
about a millisecond there: the states of the random streams and copies of the buffers, twice each, and a second walk
through Lightning's and our own Python. It does not grow with the network. On the resnet it is
nearly as fast as two passes by hand: the moved weights lie in memory of their own for the second pass, so that nothing
is copied back. Three earlier runs gave 2.09 to 2.36 times the plain step, and by hand 2.07 to 2.40.""",
    "ema_update": """\
*What is missed, and why.* An update is one `torch._foreach_lerp_` over cached lists, and a profile of it shows
nothing else above a tenth. On the CPU torch works through such a list tensor by tensor, a call and a start of
the threads each, where the limit is one call. Tried: lists by type and device that are made once, no state
dict, one look at the addresses in C (all kept); the small tensors copied into one and averaged in one call,
which takes as long, since `torch.cat` spends as much on each of them as `lerp_` does. Four averages must move 9
tensors' worth of bytes where one moves 3, so that 3.0, and not 2.5, is what the memory allows; the weights are
read once for all of them, part by part.""",
    "trainer_step": """\
*What is missed, and why.* The update itself takes what the row above says; what is left is what Lightning
spends on calling one more callback some twenty times a step.""",
    "swap": """\
*What is missed, and why.* Three copies each way, as the limit's, tensor by tensor: a network of many small
tensors takes more calls than two flat ones, and lies in many small pages of memory. Tried: the whole tensor put
aside at once (slower); pieces of 2^15 to 2^20 elements (2^19 kept); several tensors a call, planned once for
there and back (kept). Not tried: an exchange of the pointers, which would break what holds on to them: captured
graphs, views, and memory that processes share.""",
    "seam": """\
*What is missed, and why.* While a method is not active, nothing is caught and the step runs in no mode. What is
left is a few dozen lines of Python, and what Lightning spends on any callback by calling it some twenty times a
step.""",
    "distillation": """\
*What is missed, and why.* The teacher's forward pass in inference mode, which the user's own code by hand takes
as well, is nearly all that is added: the ratio is that of the two networks on this machine. Tried: the teacher in
channels_last, whatever the student's layout (a twelfth of its time less; it is the user's network, and some take no
other layout, so it is left as it is given); its BatchNorm folded into its convolutions (nothing).""",
    "multi_sample_dropout": """\
*What is missed, and why.* One product for all samples, as the limit's. The profile shows what is not a product, in
falling order: the masks, whose draw runs in one thread whatever their number, and their product with the features,
forward and backward; the softmax of M times as many logits, and its gradient; the gradients of M losses side by
side. Tried: no copy of the features before the dropout (kept); one draw for all samples (kept); 31 random bits a
feature in the place of torch's 64, which halves the time of the masks (kept; one sample is torch's dropout bit by
bit); the same from 64-bit words (2 % of the limit less) or as a bool mask (slower). One loss of M times as many
rows takes 2 % less, and keeps one more copy of the logits.""",
    "large_vocabulary": """\
*What is missed, and why.* The products are nearly all of the plain loss already. Chunks of 512 tokens keep the
memory within its bound, and cost time in torch's own function. By hand, the gradients are made in the forward
pass, in the one buffer that holds a chunk's logits: what is not a product is some four passes over it. In three
buffers (logits, softmax, its logarithm) it took more memory than the bound.""",
    "calibration_error": """\
*What is missed, and why.* At 256 rows a `max` is as short as ten calls of anything. An update is some fifteen
calls of NumPy, which take half of it, four sums of torch, the bookkeeping of torchmetrics around each update, and
the Python between them. Tried: one pass over the bits of the probabilities, for the class and for whether any is
negative or NaN; rules of validity that are looked at row by row only where the extremes break one; sums and
torchmetrics' own counts that go past `Module.__setattr__` (all kept). Rows that are collected and counted later
would be faster, and wrong for who reads or copies the state in between.""",
    "weighting": """\
*What is missed, and why.* A hundredth of such a step is within its noise, as the seam's row says of the same
one. What is added are some twenty-five operators on a number a sample, 0.2 ms in the table of the loss alone.""",
    "merging": """\
*What is missed, and why.* Files of torch are read twice, once for the checksums in them, which nobody else looks at:
zlib computes them at about 1 GB a second and thread, those of several files at the same time. The merged file is
written twice there, since torch.save wants all tensors at once, and put on the disk within the time. Tried: large
tensors are read ahead while the one before is added up, of all files together (kept: of safetensors files 7.7 s in the
place of 12.9, one run each, faster than one reader alone).""",
}
"""By row, why a target of it is missed and what was tried; said where it is."""
NOTES = {
    "all_five": """\
*What is left over* is below zero: two of the three that change the loss cost together hardly more than one. A profile
of `ReweightSamples` alone says why. Of what it adds to such a short step nearly half is not its own: the network's
convolutions and its backward pass take longer (1.3 of 3.1 ms, under the profiler), since with more Python between
them torch's second thread falls asleep and has to be woken. That is paid once, whoever causes it.""",
    "seam": """\
The steps of the resnet18 differ by some hundredths from run to run, which is more than what is asked for. This
row was run twice on that day; the second time it gave 1.026 for the method that is never active, and 1.037 for
the active one.""",
    "swap": """\
Four runs of this row on that day, with all other work on the machine stopped, gave between 1.076 and 1.111 for
the EMA; the one that is shown is the last, and the only one with the code as it is.""",
    "compiled": """\
A compiled network has as many graphs and breaks under each callback as alone; a head within it is refused. Where the
whole step is compiled and returns the criterion's value as it is, only the first one breaks the graph, at the
criterion: it is proved there that the plug-in has an effect. It is no faster for that here: the graph still computes
the criterion, and its gradient of nothing, beside what takes its place. Behind a large vocabulary compile the network
alone. A head that is wrapped, in a step that is compiled around it, breaks the graph in each.""",
}
"""By row, what has to be said of its figures, whatever they are."""


def page(results: Path) -> str:
    """The text of the page."""
    rows = [json.loads(file.read_text()) for file in sorted(results.glob("*.json"))]
    rows.sort(key=lambda row: (ORDER.index(row["row"]) if row["row"] in ORDER else len(ORDER), row["row"]))
    on_cpu = all(row["device"] == "cpu" for row in rows)
    parts = [HEAD, *beside_peers(rows), HOW, *_unmeasured(rows)] if on_cpu else [GPU_HEAD]
    for row in rows:
        parts += [f"## {row['title']}\n", row["text"] + "\n", *[_table(row, table) for table in row["tables"]]]
        if busy(row):
            loads = f"{row['load_before'][0]} before and {row['load'][0]} after"
            parts.append(f"**The machine was busy (load {loads}): do not rely on these times and ratios.**\n")
        parts += [f"{note}\n" for note in row["notes"]]
        if on_cpu and row["row"] in WHY and not all(kept for table in row["tables"] for *_, kept in promises(table)):
            parts.append(WHY[row["row"]] + "\n")
        if on_cpu and row["row"] in NOTES:
            parts.append(NOTES[row["row"]] + "\n")
        if row["absent"]:
            told = "; ".join(f"{name} ({_code(why)})" for name, why in row["absent"].items())
            parts.append(f"Not run: {told}.\n")
        parts.append(_where(row))
    parts += ["## Targets\n", TARGETS, _targets(rows)]
    return "\n".join(parts).rstrip() + "\n"


def _unmeasured(rows: list[dict[str, Any]]) -> list[str]:
    missing = [name for name in ORDER if name not in {row["row"] for row in rows}]
    told = []
    if missing:
        told.append(f"Not measured yet: {', '.join(f'`{name}`' for name in missing)}.\n")
    told.append("All of this was measured on a CPU. Some rows were also measured [on a GPU](performance_gpu.md).\n")
    return told


def _targets(rows: list[dict[str, Any]]) -> str:
    lines = ["| Row | Target | Measured | |", "| --- | --- | ---: | --- |"]
    for row in rows:
        for table in row["tables"]:
            for words, target, measured, kept in promises(table):
                lines.append(f"| {row['title']} | {words}: {target} | {measured} | {_verdict(row, kept)} |")
    return "\n".join(lines) + "\n"


def promises(table: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """What is promised of a table: in words, the bound, what was measured, and whether it was kept."""
    found = []
    for words, value, sign, bound in table.get("promised", []):
        words = words if table["name"] in words else f"{table['name']}: {words}"
        kept = value <= bound if sign == "<=" else value >= bound
        found.append((words, f"{sign} {bound:g}", f"{value:.4g}", kept))
    for target in table.get("targets", []):
        wall, of, over, most = table["wall"], target["of"], target["over"], target["at_most"]
        if of not in wall or (over and over not in wall):
            continue
        mine = median(wall[of])
        if target["kind"] == "seconds":
            found.append((f"{table['name']}: {of}", f"<= {1e3 * most:g} ms", f"{1e3 * mine:.4g} ms", mine <= most))
            continue
        other, words = median(wall[over]), f"{table['name']}: {of} over {over}"
        if target["kind"] == "difference":
            added = mine - other
            found.append((words, f"<= {1e3 * most:+g} ms", f"{1e3 * added:+.3f} ms", added <= most))
        else:
            found.append((words, f"<= {most:g}", f"{mine / other:.3f}", mine / other <= most))
    return found


def _table(row: dict[str, Any], table: dict[str, Any]) -> str:
    name = f"**{table['name'][:1].upper()}{table['name'][1:]}**\n"
    if "columns" in table:
        head = [table["columns"], ["---", *["---:"] * (len(table["columns"]) - 1)]]
        lines = [[_shown(value) for value in line] for line in table["rows"]]
        return name + "\n" + "\n".join("| " + " | ".join(line) + " |" for line in [*head, *lines]) + "\n"
    lines = ["| | median | quartiles | to the limit | CPU |", "| --- | ---: | ---: | ---: | ---: |"]
    limit, moved = table["limit"], table.get("moved", {})
    if moved:
        lines = [f"{line} {end} |" for line, end in zip(lines, ("GiB/s", "---:"))]
    for key, seconds in table["wall"].items():
        low, high = (quantiles(seconds, n=4)[i] for i in (0, 2)) if len(seconds) > 1 else (seconds[0], seconds[0])
        ratio = f"{median(seconds) / median(table['wall'][limit]):.3f}" if limit else ""
        base = median(table["cpu"][limit]) if limit else 0
        cpu = f"{median(table['cpu'][key]) / base:.3f}" if base else ""
        shown = f"{key} (limit)" if key == limit else key
        lines.append(f"| {shown} | {_time(median(seconds))} | {_time(low)} to {_time(high)} | {ratio} | {cpu} |")
        if moved:
            lines[-1] += f" {moved[key] / median(seconds) / 2**30:.2f} |" if key in moved else " |"
    lines += [f"| {key} | | | | |" + " |" * bool(moved) for key in table["blank"]]
    return name + "\n" + "\n".join(lines) + "\n"


def busy(row: dict[str, Any]) -> bool:
    """Whether more ran on the machine than the row and what stood before it: its times are then no judges."""
    return max(row["load_before"][0], row["load"][0]) > row["threads"] + 0.75


def _verdict(row: dict[str, Any], kept: bool) -> str:
    return "not judged: busy machine" if busy(row) else "kept" if kept else "**missed**"


def _where(row: dict[str, Any]) -> str:
    used = [name for name in ("torch", "lightning", "timm", "torchmetrics") if name in row["versions"]]
    versions = ", ".join(f"{name} {row['versions'][name]}" for name in ["python", *used])
    revision = row["revision"][:10] + (" with changes" if row["modified"] else "")
    return (
        f"<small>`{row['command']}`, {row['date'][:10]}, revision {revision}; {row['machine']}, "
        f"{_device(row)}{row['threads']} threads, load {row['load_before'][0]} before; {versions}.</small>\n"
    )


def _device(row: dict[str, Any]) -> str:
    return "" if row["device"] == "cpu" else f"{row['device']}, "


def _time(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 1
        else f"{1e3 * seconds:.2f} ms"
        if seconds >= 1e-3
        else f"{1e6 * seconds:.1f} µs"
    )


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`"


def main() -> None:
    pairs = [(RESULTS, PAGE), (GPU_RESULTS, GPU_PAGE)]
    for results, out in [tuple(map(Path, sys.argv[1:]))] if sys.argv[1:] else pairs:
        out.write_text(page(results))
    if not sys.argv[1:]:
        PICTURE.write_text(drawn(RESULTS))


if __name__ == "__main__":
    main()
