"""What is done to a training: an arm is a list of the library's callbacks and methods, by their names."""

from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_objectives import callbacks, discovery

METHODS = {cls.__name__: cls for _, cls in discovery.methods()}


@dataclass(frozen=True)
class Part:
    """One callback around one method, as a user would write it."""

    callback: str
    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    placing: dict[str, Any] = field(default_factory=dict)

    def build(self, **more: Any) -> Any:
        """The callback; ``more`` is what only the run knows (a teacher, a directory)."""
        return getattr(callbacks, self.callback)(METHODS[self.method](**self.settings), **self.placing, **more)


@dataclass(frozen=True)
class Arm:
    """One way to train.

    ``recipe`` changes the task's optimizer or schedule. ``length`` multiplies the task's steps; ``as_long_as`` names
    the arm whose training time it is given instead, by the measured cost of a step. The learning rate is searched for
    each arm alone, unless ``tuned_as`` names the arm whose choice it takes. ``carries`` says which averages and merges
    ride on the training, which they do not change.
    """

    name: str
    parts: tuple[Part, ...] = ()
    label_weight: float = 1.0
    recipe: dict[str, Any] = field(default_factory=dict)
    length: float = 1.0
    as_long_as: str | None = None
    tuned_as: str | None = None
    carries: str = ""

    @property
    def searched(self) -> str:
        """The arm whose search decides."""
        return self.tuned_as or self.name

    def settings(self) -> dict[str, Any]:
        """What is not at its default, for the record."""
        plain = asdict(Arm(self.name))
        return {key: value for key, value in asdict(self).items() if value != plain[key]}


def dropout(num_samples: int = 1, p: float = 0.3) -> Part:
    """(Multi-sample) dropout before the head; one sample is ordinary dropout."""
    return Part("WrapHead", "MultiSampleDropout", {"num_samples": num_samples, "p": p}, {"head": "network.head"})


def reweight(strategy: str, temperature: float, *, unit: str = "sample", warmup_steps: int = 0) -> Part:
    settings = {"strategy": strategy, "temperature": temperature, "warmup_steps": warmup_steps}
    return Part("ReweightSamples", "LossBasedReweighting", settings, {"unit": unit})


def distill(method: str, *, weight: float = 1.0, **settings: Any) -> Part:
    return Part("Distill", method, settings, {"weight": weight, "head": "network.head"})


AVERAGES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    **{f"EMA {d}": ("EMA", {"decay": d, "warmup": True}, {}) for d in (0.9, 0.95, 0.98)},
    **{f"BEMA η={e}": ("BEMA", {"bias_power": e}, {}) for e in (0.2, 0.4, 0.8)},
    **{f"SWA from {s}": ("SWA", {}, {"start": s}) for s in (0.5, 0.75, 0.9)},
    "BEMA φ=400": ("BEMA", {"bias_power": 0.2}, {"every_n_steps": 400}),
}
"""Rule, settings, and when it is updated; a start is a part of all steps. Three candidates a rule, and the trap."""
FEW = ("EMA 0.95", "BEMA η=0.4")
"""Those that ride on the arms of the combinations."""


def averages(carries: str, steps: int) -> dict[str, Any]:
    """The callbacks that carry averages beside a training, none of them primary, by the names above."""
    names = {"": (), "few": FEW, "all": tuple(AVERAGES)}[carries]
    made: dict[str, Any] = {}
    for name in names:
        rule, settings, placing = AVERAGES[name]
        placing = {**placing, "start_step": round(placing.get("start", 0.0) * steps)}
        placing.pop("start", None)
        made[name] = Part("AverageWeights", rule, settings, placing).build(primary=False, buffers="average")
    return made


def logged_names(carried: dict[str, Any]) -> dict[str, str]:
    """The names above by those under which they are logged: the rule's own, numbered where it repeats."""
    rules = [AVERAGES[name][0].lower() for name in carried]
    numbers = [rules[: place + 1].count(rule) for place, rule in enumerate(rules)]
    return {f"{r}_{n}" if n > 1 else r: name for r, n, name in zip(rules, numbers, carried)}


def step_callbacks(arm: Arm, **taught: Any) -> list[Any]:
    """The callbacks that change the training itself; ``taught`` are the settings of a teacher."""
    return [part.build(**(taught if part.callback == "Distill" else {})) for part in arm.parts]
