"""What is asked: tasks, arms, claims, and what each claim is judged by. Written before the runs, and read with them.

Groups stand in the order in which they are run: what matters most first, within a group seed by seed across its arms,
so that whatever is there when the time is up can be compared in pairs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from benchmarks.quality.arms import Arm, distill, dropout, reweight
from benchmarks.quality.data import Fashion, Text, vocabulary
from benchmarks.quality.nets import CharacterModel, Recipe, mlp, resnet8

SEEDS = (0, 1, 2, 3, 4)
SEARCH_SEED = 100
FACTORS = (0.5, 1.0, 2.0)
"""The declared search: these multiples of the task's learning rate, on one seed of its own, by the validation split.

Of a training that carries averages and merges, the merge decides, since a constant learning rate is meant for one.
"""


@dataclass(frozen=True)
class Task:
    """Data, network and recipe; ``seconds`` is the declared cost of one plain run with its evaluation."""

    name: str
    data: Any
    network: Callable[[], nn.Module]
    recipe: Recipe
    steps: int
    batch_size: int
    seconds: float
    measure: str = "error"
    """By which the search chooses, and claims are judged unless they say otherwise; less is better."""


def _resnet() -> nn.Module:
    return resnet8(8)


def _characters() -> nn.Module:
    return CharacterModel(characters=vocabulary())


_IMAGES = Recipe(lr=0.1)
_MLP = Recipe(lr=0.05)
_TEXT = Recipe(lr=4e-3, optimizer="adamw", weight_decay=0.1)


def _conv(name: str, **data: Any) -> Task:
    return Task(name, Fashion(**data), _resnet, _IMAGES, steps=324, batch_size=128, seconds=8)


TASKS = {
    task.name: task
    for task in (
        _conv("clean"),
        _conv("5 % of the data", size=3000),
        _conv("20 % symmetric noise", noise=0.2),
        _conv("40 % symmetric noise", noise=0.4),
        _conv("20 % asymmetric noise", noise=0.2, kind="asymmetric"),
        _conv("40 % asymmetric noise", noise=0.4, kind="asymmetric"),
        _conv("long tail", tail=100.0),
        Task("MLP", Fashion(size=3000), mlp, _MLP, steps=460, batch_size=128, seconds=5),
        Task("characters", Text(), _characters, _TEXT, steps=576, batch_size=16, seconds=20, measure="nll"),
    )
}

PLAIN = Arm("plain")
CONSTANT = {"decay": 0.0}
NOISY = [name for name in TASKS if "noise" in name]


def _like(arm: Arm, name: str, tuned_as: str, **changes: Any) -> Arm:
    return replace(arm, name=name, tuned_as=tuned_as, **changes)


# Multi-sample dropout.
ONE = Arm("dropout p=0.3", (dropout(1, 0.3),))
EIGHT = Arm("MSD M=8 p=0.3", (dropout(8, 0.3),))
SAMPLES = [Arm(f"MSD M={m} p=0.3", (dropout(m, 0.3),), tuned_as=EIGHT.name) for m in (2, 4, 16)]
RATES = [
    arm
    for p in (0.1, 0.5, 0.7)
    for arm in (
        Arm(f"dropout p={p}", (dropout(1, p),), tuned_as=ONE.name),
        Arm(f"MSD M=8 p={p}", (dropout(8, p),), tuned_as=EIGHT.name),
    )
]
LONGER = _like(ONE, "dropout p=0.3, as long", ONE.name, as_long_as=EIGHT.name)

# Reweighting.
UPPER = Arm("LinUpper r=0.4", (reweight("lin_upper", 0.4),))
MIDDLE = Arm("Quadratic r=0.4", (reweight("quadratic", 0.4),), tuned_as=UPPER.name)
SWEEP = [
    Arm("LinUpper r=1", (reweight("lin_upper", 1.0),), tuned_as=UPPER.name),
    Arm("Extremes r=0.4", (reweight("extremes", 0.4),), tuned_as=UPPER.name),
    Arm("LinUpper r=0.1", (reweight("lin_upper", 0.1),), tuned_as=UPPER.name),
]
TOKENS = Arm("LinUpper r=0.4, each token", (reweight("lin_upper", 0.4, unit="element"),), tuned_as=UPPER.name)

# Averages and merges, on a constant learning rate; and the decays that the merge stands for.
STABLE = Arm("constant", recipe=CONSTANT, carries="all")
SHORT = _like(STABLE, "constant, a third", "constant", length=1 / 3)
COSINE = Arm("cosine")
DECAY = Arm("WSD", recipe={"shape": "1-sqrt", "decay": 0.25})
DECAYS = [
    _like(arm, f"{arm.name}, {label}", arm.name, length=length)
    for arm in (DECAY, COSINE)
    for label, length in (("a third", 1 / 3), ("two thirds", 2 / 3))
]

# Distillation.
DUAL = Arm("DHKD", (distill("DualHead"),))
LOGITS = Arm("logit KD", (distill("VanillaKD"),))
ONE_HEAD = Arm("CE + BinaryKL-Norm, one head", (distill("BinaryKL", normalize=True),))
ALONE = Arm("BinaryKL-Norm alone", (distill("BinaryKL", normalize=True),), label_weight=0.0, tuned_as=ONE_HEAD.name)
PLAIN_KL = [
    Arm("CE + BinaryKL, one head", (distill("BinaryKL"),), tuned_as=ONE_HEAD.name),
    Arm("BinaryKL alone", (distill("BinaryKL"),), label_weight=0.0, tuned_as=ONE_HEAD.name),
]
VARIANTS = [
    Arm(f"DHKD{name}", (distill("DualHead", **settings),), tuned_as=DUAL.name)
    for name, settings in {
        ", aligned": {"align": True},
        ", MLP head": {"auxiliary": "mlp"},
        ", MLP head, aligned": {"auxiliary": "mlp", "align": True},
        " α=0.1": {"alpha": 0.1},
        " α=0.3": {"alpha": 0.3},
        " α=3": {"alpha": 3.0},
    }.items()
]
TAUGHT_AS_LONG = _like(PLAIN, "plain, as long as DHKD", PLAIN.name, as_long_as=DUAL.name)

# All together: every subset of the three that change the training, at a constant learning rate, with what rides on it.
_THREE = {"MSD": dropout(8, 0.1), "reweighting": reweight("lin_upper", 1.0), "DHKD": distill("DualHead", alpha=0.3)}
_SUBSETS = [("MSD",), ("reweighting",), ("DHKD",), ("MSD", "reweighting"), ("MSD", "DHKD"), ("reweighting", "DHKD")]
_SUBSETS += [tuple(_THREE)]
TOGETHER = [
    Arm(" + ".join(["constant", *names]), tuple(_THREE[name] for name in names), carries="few", tuned_as=STABLE.name)
    for names in _SUBSETS
]
TOGETHER = [STABLE, *(replace(arm, recipe=CONSTANT) for arm in TOGETHER)]
ALL = TOGETHER[-1].name


@dataclass(frozen=True)
class Compared:
    """One judged comparison: ``arm`` against ``against`` on a task, by a measure of which less is better.

    Either may name what is read out of an arm's training, as ``constant: BEMA``.
    """

    task: str
    arm: str
    against: str
    measure: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim of a method's paper, the classes that the verdict is of, and the comparisons that it is judged by."""

    name: str
    methods: tuple[str, ...]
    judged: tuple[Compared, ...]


@dataclass(frozen=True)
class Group:
    """Arms that are run on a task, seed by seed, for a claim."""

    claim: str
    task: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = SEEDS


CLAIMS = {
    claim.name: claim
    for claim in (
        Claim(
            "dropout",
            ("MultiSampleDropout",),
            (
                Compared("MLP", EIGHT.name, ONE.name),
                Compared("MLP", EIGHT.name, LONGER.name),
                Compared("clean", EIGHT.name, ONE.name),
                Compared("MLP", EIGHT.name, ONE.name, "steps to the training loss"),
            ),
        ),
        Claim(
            "reweighting",
            ("LossBasedReweighting",),
            (
                Compared("clean", UPPER.name, PLAIN.name),
                Compared("long tail", UPPER.name, PLAIN.name, "worst class"),
                Compared("long tail", UPPER.name, PLAIN.name),
                Compared("40 % symmetric noise", UPPER.name, PLAIN.name),
                Compared("characters", UPPER.name, COSINE.name),
                Compared("characters", TOKENS.name, COSINE.name),
            ),
        ),
        Claim(
            "BEMA",
            ("BEMA",),
            (
                Compared("characters", "constant: BEMA", "constant: raw"),
                Compared("characters", "constant: BEMA", "constant: EMA"),
                Compared("clean", "constant: BEMA", "constant: raw", "nll"),
                Compared("clean", "constant: BEMA", "constant: EMA", "nll"),
            ),
        ),
        Claim(
            "EMA",
            ("EMA",),
            tuple(Compared(t, "constant: EMA", "constant: raw", "nll") for t in ("characters", "clean")),
        ),
        Claim(
            "SWA",
            ("SWA",),
            tuple(Compared(t, "constant: SWA", "constant: raw", "nll") for t in ("characters", "clean")),
        ),
        Claim(
            "WSM",
            ("WSM",),
            (
                Compared("characters", "constant: WSM", "constant: raw"),
                Compared("characters", "constant: WSM", "WSD"),
                Compared("clean", "constant: WSM", "constant: raw", "nll"),
                Compared("clean", "constant: WSM", "WSD", "nll"),
            ),
        ),
        Claim(
            "distillation",
            ("DualHead",),
            (
                Compared("clean", DUAL.name, PLAIN.name),
                Compared("clean", DUAL.name, LOGITS.name),
                Compared("clean", DUAL.name, TAUGHT_AS_LONG.name),
                Compared("5 % of the data", DUAL.name, PLAIN.name),
            ),
        ),
        Claim(
            "logit distillation",
            ("VanillaKD",),
            tuple(Compared(t, LOGITS.name, PLAIN.name) for t in ("clean", "5 % of the data")),
        ),
        Claim(
            "one head",
            ("BinaryKL",),
            tuple(Compared("clean", ONE_HEAD.name, other) for other in (PLAIN.name, ALONE.name)),
        ),
        Claim(
            "alignment",
            ("GradientAlignment",),
            (Compared("clean", VARIANTS[0].name, DUAL.name), Compared("clean", VARIANTS[2].name, VARIANTS[1].name)),
        ),
        Claim(
            "together",
            (),
            tuple(
                Compared("clean", f"{ALL}: WSM 1-sqrt", other, "nll")
                for other in ("constant: raw", *(f"{arm.name}: WSM 1-sqrt" for arm in TOGETHER[:4]))
            ),
        ),
    )
}

GROUPS = (
    # what the verdicts need
    Group("dropout", "MLP", (ONE, EIGHT, LONGER, PLAIN)),
    Group("reweighting", "clean", (PLAIN, UPPER, MIDDLE)),
    Group("WSM", "clean", (STABLE, DECAY)),
    Group("distillation", "clean", (DUAL, LOGITS, ONE_HEAD, ALONE)),
    Group("WSM", "characters", (STABLE, DECAY, COSINE)),
    Group("dropout", "clean", (ONE, EIGHT)),
    Group("reweighting", "40 % symmetric noise", (PLAIN, UPPER, MIDDLE)),
    Group("distillation", "clean", (TAUGHT_AS_LONG, *VARIANTS[:3])),
    Group("reweighting", "characters", (UPPER, TOKENS)),
    Group("reweighting", "long tail", (PLAIN, UPPER, MIDDLE)),
    Group("distillation", "5 % of the data", (PLAIN, DUAL, LOGITS)),
    Group("together", "clean", tuple(TOGETHER)),
    # sweeps, and a look at why
    Group("dropout", "MLP", (*SAMPLES, *RATES)),
    Group("distillation", "clean", tuple(VARIANTS[3:])),
    Group("WSM", "characters", tuple(DECAYS)),
    Group("reweighting", "40 % symmetric noise", tuple(SWEEP)),
    Group("reweighting", "40 % asymmetric noise", (PLAIN, UPPER, MIDDLE)),
    Group("reweighting", "clean", tuple(SWEEP)),
    Group("WSM", "characters", (SHORT,)),
    Group("distillation", "clean", tuple(PLAIN_KL)),
    Group("reweighting", "20 % symmetric noise", (PLAIN, UPPER, MIDDLE)),
    Group("reweighting", "20 % asymmetric noise", (PLAIN, UPPER, MIDDLE)),
    Group("reweighting", "characters", (MIDDLE,)),
    Group("WSM", "clean", (SHORT,)),
    # asked when the rest was known
    Group("reweighting", "characters", (SWEEP[0],)),
)


@dataclass(frozen=True)
class Job:
    """One run. ``factor`` multiplies the learning rate; None is what the search has chosen."""

    claim: str
    task: str
    arm: str
    seed: int
    phase: str
    factor: float | None = None

    @property
    def key(self) -> str:
        """What a run is known by; the same run serves every claim that asks for it."""
        return "|".join([self.task, self.arm, str(self.seed), self.phase, str(self.factor)])


def arms(task: str) -> dict[str, Arm]:
    """All arms of a task, by their names."""
    found: dict[str, Arm] = {}
    for arm in (arm for group in GROUPS if group.task == task for arm in group.arms):
        if found.setdefault(arm.name, arm) != arm:
            raise ValueError(f"Two arms of the task {task!r} are called {arm.name!r}.")
    return found


def searches(claim: str, task: str, arm: str) -> list[Job]:
    """The runs that choose the learning rate of an arm."""
    return [Job(claim, task, arm, SEARCH_SEED, "search", factor) for factor in FACTORS]


def jobs() -> Iterator[Job]:
    """Every run once, in order: the searches of a group, then its seeds across its arms."""
    seen: set[str] = set()
    for group in GROUPS:
        wanted = [job for arm in group.arms for job in searches(group.claim, group.task, arm.searched)]
        wanted += [Job(group.claim, group.task, arm.name, seed, "final") for seed in group.seeds for arm in group.arms]
        for job in wanted:
            if job.key not in seen:
                seen.add(job.key)
                yield job
