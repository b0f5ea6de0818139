"""Merges three fine-tunings of one network by every method of ``lightning_objectives.merging``, and compares them.

A base network learns scikit-learn's digits from 100 images. Three copies of it are fine-tuned, each on the images of
some classes only, and forget the other classes. Can a merge of the three do all ten? It takes about half a minute::

    python examples/stories/merging.py --out merging.md
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, TensorDataset

import lightning_objectives as lo
from lightning_objectives.kinds import Merge

TASKS = {"0-3": (0, 1, 2, 3), "4-6": (4, 5, 6), "7-9": (7, 8, 9)}
"""The classes that each fine-tuning sees."""
ROWS_OF_BASE, EPOCHS_OF_BASE, EPOCHS = 100, 30, 10
SNAPSHOTS = 4
"""How many of the last epochs of each fine-tuning WSM merges."""
SCALES = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
"""Where a scale is chosen by the loss on the selection part."""
SURVEYS = {lo.FisherMerging: lo.Fisher(chunk_size=64), lo.RegMean: lo.GramMatrices()}
"""What each network's own data are surveyed for, for the methods that ask for an importance."""
METHODS: tuple[type[Merge], ...] = (
    lo.UniformSoup,
    lo.WeightedAverage,
    lo.GreedySoup,
    lo.FrankWolfeMerging,
    lo.ModelStock,
    lo.FisherMerging,
    lo.RegMean,
    lo.TaskArithmetic,
    lo.TIES,
    lo.DARE,
    lo.DELLA,
    lo.ModelBreadcrumbs,
)
"""The methods that merge the three files at once; SLERP and WSM have functions of their own below."""
SETTINGS: dict[type[Merge], dict[str, Any]] = {
    # Shares by the number of classes: without a reason for other shares it would be UniformSoup.
    lo.WeightedAverage: {"shares": [len(classes) for classes in TASKS.values()]},
}
"""All other settings are the defaults."""


class Part(NamedTuple):
    """Images and their classes."""

    images: Tensor
    target: Tensor

    def of(self, classes: Sequence[int]) -> "Part":
        """The images of some classes."""
        rows = torch.isin(self.target, torch.tensor(classes))
        return Part(self.images[rows], self.target[rows])


class Score(NamedTuple):
    """What one seed gives in one row of the table: for each task, and then for all classes."""

    accuracy: list[float]
    nll: list[float]
    seconds: float | None = None


class Changes(NamedTuple):
    """What the fine-tunings have in common: the cosine between the changes of each two is 0 if nothing."""

    cosines: list[float]
    sizes: list[float]
    """The mean absolute change of a weight, for each fine-tuning."""


def network() -> nn.Module:
    """A network of 13 thousand weights for images of 8 x 8 points."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))


def logits_of(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """What the network gives with the weights of a state dict."""
    net = network()
    net.load_state_dict(state)
    with torch.no_grad():
        return net(images)  # type: ignore[no-any-return]  # a module


class Lab:
    """One seed: the data, the base, the three fine-tunings, and their files in a folder."""

    def __init__(self, seed: int, folder: Path, *, epochs: int) -> None:
        self.seed, self.folder, self.epochs = seed, folder, epochs
        data = lo.DigitsDataModule(val_fraction=0.2, test_fraction=0.2, seed=seed)
        data.setup()
        self.train, self.selection, self.validation = (Part(*p.tensors) for p in (data.train, data.val, data.test))
        torch.manual_seed(seed)
        few = torch.randperm(len(self.train.target))[:ROWS_OF_BASE]
        net = network()
        self.fit(net, Part(self.train.images[few], self.train.target[few]), epochs=EPOCHS_OF_BASE)
        self.base = folder / "base.pt"
        torch.save(net.state_dict(), self.base)
        self.files = [self.fine_tuned(name, self.train.of(classes)) for name, classes in TASKS.items()]
        self.joint = self.fine_tuned("joint", self.train)

    def fit(self, net: nn.Module, part: Part, *, epochs: int, snapshots: str = "") -> None:
        """Train at a constant learning rate, and keep a file of each epoch if they have a name."""
        optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
        for epoch in range(epochs):
            for rows in torch.randperm(len(part.target)).split(32):
                optimizer.zero_grad()
                F.cross_entropy(net(part.images[rows]), part.target[rows]).backward()
                optimizer.step()
            if snapshots:
                torch.save(net.state_dict(), self.folder / f"{snapshots}-step={epoch + 1}.pt")

    def fine_tuned(self, name: str, part: Part) -> Path:
        """The file of a fine-tuning of the base."""
        net = network()
        net.load_state_dict(torch.load(self.base))
        self.fit(net, part, epochs=self.epochs, snapshots=name)
        return self.folder / f"{name}-step={self.epochs}.pt"

    def score(self, state: dict[str, Tensor]) -> float:
        """Minus the loss on the selection part."""
        return -F.cross_entropy(logits_of(state, self.selection.images), self.selection.target).item()

    def gradient(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The gradient of the loss on the selection part."""
        net = network()
        net.load_state_dict(state)
        F.cross_entropy(net(self.selection.images), self.selection.target).backward()
        return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}

    def importance(self, method: Merge) -> list[Path]:
        """For each fine-tuning the file of a survey of its own training data."""
        paths = []
        for (name, classes), file in zip(TASKS.items(), self.files):
            net = network()
            net.load_state_dict(torch.load(file))
            survey = SURVEYS[type(method)]
            paths.append(self.folder / f"{type(survey).__name__}-{name}.safetensors")
            loader = DataLoader(TensorDataset(*self.train.of(classes)), batch_size=64)
            lo.survey_data(survey, net, loader, path=paths[-1])
        return paths

    def merged(self, method: Merge, files: Sequence[Path] | None = None, name: str = "merged") -> Path:
        """The file of a merge, for which the method gets what it asks for."""
        offers: dict[str, Callable[[], Any]] = {
            "base": lambda: self.base,
            "evaluate": lambda: self.score,
            "gradient": lambda: self.gradient,
            "importance": lambda: self.importance(method),
        }
        asked = {what: offers[what]() for what in method.asks}
        out = self.folder / f"{name}.pt"
        return lo.merge_checkpoints(files or self.files, method, out, seed=self.seed, **asked)

    def scale_chosen(self, cls: type[Merge]) -> Path:
        """The merge with the scale that is best on the selection part."""
        files = [self.merged(cls(scale=scale), name=f"scale{scale}") for scale in SCALES]  # type: ignore[call-arg]  # some
        return max(files, key=lambda file: self.score(torch.load(file)))

    def slerp(self) -> Path:
        """Half way from the first network to the second, and from there a third of the way to the third."""
        half = self.merged(lo.SLERP(share=0.5), self.files[:2], "half")
        return self.merged(lo.SLERP(share=1 / 3), [half, self.files[2]])

    def wsm(self) -> Path:
        """WSM in place of a decay of each fine-tuning, and the plain mean of the three."""
        last = range(self.epochs, max(0, self.epochs - SNAPSHOTS), -1)
        files = [
            self.merged(lo.WSM(), [self.folder / f"{name}-step={epoch}.pt" for epoch in last], f"wsm-{name}")
            for name in TASKS
        ]
        return self.merged(lo.UniformSoup(), files)

    def changes(self) -> Changes:
        """How far each fine-tuning went from the base, and in which direction."""
        base = parameters_to_vector(torch.load(self.base).values())
        changes = [parameters_to_vector(torch.load(file).values()) - base for file in self.files]
        cosines = [F.cosine_similarity(one, other, dim=0).item() for one, other in combinations(changes, 2)]
        return Changes(cosines, [change.abs().mean().item() for change in changes])

    def measured(self, log_p: Tensor, seconds: float | None = None) -> Score:
        """Accuracy and NLL on the validation part."""
        target = self.validation.target
        right, nll = (log_p.argmax(1) == target).float(), F.nll_loss(log_p, target, reduction="none")
        groups = [torch.isin(target, torch.tensor(classes)) for classes in TASKS.values()]
        rows = [*groups, torch.ones_like(groups[0])]
        return Score([100 * right[r].mean().item() for r in rows], [nll[r].mean().item() for r in rows], seconds)

    def of_file(self, file: Path, seconds: float | None = None) -> Score:
        """Accuracy and NLL of the weights in a file."""
        return self.measured(logits_of(torch.load(file), self.validation.images).log_softmax(1), seconds)

    def timed(self, merge: Callable[[], Path]) -> Score:
        """Accuracy and NLL of a merge, and its seconds with all that it needs: surveys, searches, files."""
        start = time.perf_counter()
        file = merge()
        return self.of_file(file, time.perf_counter() - start)


def references(lab: Lab) -> dict[str, Score]:
    """What stands beside the merges: no merge, more data, or three networks at inference."""
    log_p = [logits_of(torch.load(file), lab.validation.images).log_softmax(1) for file in lab.files]
    together = torch.stack(log_p).exp().mean(0).log()
    alone = {f"fine-tuned on {name}": lab.of_file(file) for name, file in zip(TASKS, lab.files)}
    joint = lab.of_file(lab.joint)
    return {"base": lab.of_file(lab.base), **alone, "mean of the three predictions": lab.measured(together)} | {
        "one fine-tuning on all data": joint
    }


def merges(lab: Lab) -> dict[str, Score]:
    """Every merge, with the name of its method first."""
    found = {}
    for cls in METHODS:
        method = cls(**SETTINGS.get(cls, {}))
        found[cls.__name__] = lab.timed(lambda method=method: lab.merged(method))  # type: ignore[misc]  # a default
        if "scale" in method.settings():
            found[f"{cls.__name__}, scale chosen"] = lab.timed(lambda cls=cls: lab.scale_chosen(cls))  # type: ignore[misc]
    longer = lo.FrankWolfeMerging(iterations=100)  # Added after the first run, see docs/stories/merging.md.
    found["FrankWolfeMerging, 100 iterations"] = lab.timed(lambda: lab.merged(longer))
    found["SLERP, two at a time"] = lab.timed(lab.slerp)
    found["WSM of each, then UniformSoup"] = lab.timed(lab.wsm)
    return found


def run(seeds: int, epochs: int) -> tuple[dict[str, list[Score]], dict[str, list[Score]], Changes]:
    """The references and the merges, each with its scores of all seeds, and the changes of all seeds."""
    beside: dict[str, list[Score]] = {}
    merged: dict[str, list[Score]] = {}
    changes = Changes([], [])
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as folder:
            lab = Lab(seed, Path(folder), epochs=epochs)
            for all_seeds, own in zip(changes, lab.changes()):
                all_seeds.extend(own)
            for table, scores in ((beside, references(lab)), (merged, merges(lab))):
                for name, score in scores.items():
                    table.setdefault(name, []).append(score)
    return beside, merged, changes


def cell(values: list[float], digits: int) -> str:
    """Mean and standard deviation over the seeds."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def table(beside: dict[str, list[Score]], merged: dict[str, list[Score]], changes: Changes) -> str:
    """Two Markdown tables, accuracy and NLL; the merges from the least NLL of all classes to the greatest."""
    ordered = sorted(merged, key=lambda name: mean(score.nll[-1] for score in merged[name]))
    rows = beside | {name: merged[name] for name in ordered}
    names, lines = [*TASKS, "all"], []
    for kind, digits, last in (("accuracy, %", 1, " ms |"), ("NLL", 3, "")):
        lines += [f"| {kind} | {' | '.join(names)} |{last}", "| --- |" + " --: |" * (len(names) + bool(last))]
        for name, scores in rows.items():
            values = [(s.nll if kind == "NLL" else s.accuracy) for s in scores]
            cells = [cell([v[place] for v in values], digits) for place in range(len(names))]
            times = [1000 * s.seconds for s in scores if s.seconds is not None]
            cells += [f"{mean(times):.0f}" if times else ""] if last else []
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    cosines, sizes = changes
    lines.append(f"Cosines between the changes of two fine-tunings: {min(cosines):.2f} to {max(cosines):.2f}. ")
    lines[-1] += f"Mean absolute change of a weight: {min(sizes):.3f} to {max(sizes):.3f}.\n"
    return "\n".join(lines)


def main() -> None:
    """Run, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of each fine-tuning")
    parser.add_argument("--out", type=Path, default=Path("merging.md"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = table(*run(args.seeds, args.epochs))
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
