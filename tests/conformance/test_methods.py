"""Every method: zero strength, resume, pickle, files that are read as data, the command line. The laws run beside."""

import copy
import inspect
import io
import pickle

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from torch import nn
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from lightning_objectives import callbacks, cli
from lightning_objectives.callbacks import LogMetrics
from lightning_objectives.discovery import methods
from lightning_objectives.kinds import Method
from lightning_objectives.testing import build
from lightning_objectives.testing.common import close
from lightning_objectives.testing.conformance import Case, Condition, Memory, PlugIn, Trial, every_method, outcome
from lightning_objectives.testing.conformance.case import CLASSES, Classifier
from lightning_objectives.testing.conformance.conditions import resuming
from lightning_objectives.testing.conformance.conditions.devices import on_a_gpu
from lightning_objectives.testing.conformance.resume import difference
from lightning_objectives.testing.metrics import ALL, FIRST, SECOND, _signals, _updated

MEMORY = Memory()
PLACED = [(row, cls) for row in every_method() for _, cls in methods() if cls.__name__ == row.name]
OTHERS = [cls for _, cls in methods() if issubclass(cls, (LRScheduler, Metric))]
OUTSIDE = [cls for _, cls in methods() if issubclass(cls, Method) and not cls.callback]
"""Methods that no callback places: they work on files after a training."""


def test_no_method_is_forgotten():
    here = [*(cls for _, cls in PLACED), *OTHERS, *OUTSIDE]
    assert len(set(here)) == len(here)
    assert set(here) == {cls for _, cls in methods()}


def scheduled(cls):
    """The case's module with a schedule, one step of it a batch."""

    class Scheduled(Classifier):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = cls(optimizer, **getattr(cls, "example", {}))
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return Scheduled


class TwoLoaders(Case):
    """For metrics that compare the data loaders of a validation."""

    def fit(self, callbacks, *, val=None, **settings):
        return super().fit(callbacks, val=[self.loader(), self.loader()] if val is None else val, **settings)


class OnMaps(Classifier):
    """It has a layer with maps, for methods that compare hidden layers."""

    def __init__(self):
        super().__init__()
        self.backbone[0] = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten())


class OfAnySize(Classifier):
    """It takes images of any size."""

    def __init__(self):
        super().__init__()
        self.backbone[0] = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())


class OnCandidates(Classifier):
    """Its targets are sets of two candidates for each sample."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        candidates = nn.functional.one_hot(y, CLASSES) + nn.functional.one_hot((y + 1) % CLASSES, CLASSES)
        return nn.functional.cross_entropy(self(x), candidates / 2)


CASES = {"ProgressivePurification": OnCandidates}
"""The modules of methods that change nothing where each sample has one class."""


def teacher_on_maps():
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        maps = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(2), nn.Flatten())
        return nn.Sequential(maps, nn.Linear(4, 3))


HIDDEN = {"teacher": teacher_on_maps, "layers": lambda: "backbone.0.0", "teacher_layers": lambda: "0.0"}


def trial_of(cls):
    """A method in a training."""
    if issubclass(cls, LRScheduler):
        return Trial(PlugIn(cls.__name__, lambda case: []), Case(module=scheduled(cls)), MEMORY)
    if issubclass(cls, Metric):
        asked = inspect.signature(cls.update).parameters
        case = TwoLoaders() if "loader" in asked else Case()
        other = {"teacher": case.settings["teacher"]()} if "teacher_features" in asked else {}
        return Trial(PlugIn(cls.__name__, lambda case: [LogMetrics(build(cls), **other)]), case, MEMORY)
    asks = hasattr(cls, "forward") and "hidden" in inspect.signature(cls.forward).parameters
    case = Case(module=OnMaps, settings=HIDDEN) if asks else Case()
    if not getattr(cls, "keeps_size", True):
        case = Case(module=OfAnySize)
    if cls.__name__ in CASES:
        case = Case(module=CASES[cls.__name__])
    return Trial(next(row for row, known in PLACED if known is cls), case, MEMORY)


def resume(trial):
    """Interrupted within epochs, and stopped at an epoch's end."""
    resuming.resumed_twice(trial)
    resuming.resumed_after_an_early_stop(trial)


def zero_strength(trial):
    """The training without it, to the bit."""
    plain, idle = trial.plain(), trial.idle()
    trial.require_same(plain, idle, "at zero strength it must be the training without it.")
    trial.require_to_act(plain, trial.fit())


def pickled(trial):
    """A callback that was pickled, or copied, with its method trains as a new one."""
    run = trial.fit()
    for how in (lambda made: pickle.loads(pickle.dumps(made)), copy.deepcopy):
        trial.require_same(run, trial.fit([how(callback) for callback in trial.make()]), "a copy must do the same.")


def weights_only(trial):
    """Its checkpoint is read as data, and holds what the callbacks know."""
    run = trial.fit()
    file = f"{run.trainer.default_root_dir}/end.ckpt"
    run.trainer.save_checkpoint(file)
    read = torch.load(file, weights_only=True).get("callbacks", {})
    states = {callback.state_key: callback.state_dict() for callback in run.callbacks if callback.state_dict()}
    other = difference({key: read.get(key) for key in states}, states)
    trial.require(not other, f"what is read must be what was saved, but differs in {other}.")


@pytest.mark.parametrize(
    "check", [zero_strength, resume, pickled, weights_only, on_a_gpu], ids=lambda check: check.__name__
)
@pytest.mark.parametrize("cls", [cls for _, cls in PLACED], ids=lambda cls: cls.__name__)
def test_placed(cls, check, record_property, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    record_property("cell", f"methods|{cls.__name__}|{check.__name__}|{outcome(Condition('', check), trial_of(cls))}")


# -- metrics and schedules, which are torch's and torchmetrics' own ----------------------------------------------------


@pytest.mark.parametrize("cls", OTHERS, ids=lambda cls: cls.__name__)
def test_resume(cls, record_property, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    resume(trial_of(cls))
    record_property("cell", f"methods|{cls.__name__}|resume|pass")


def rates(schedule, steps):
    found = []
    for _ in range(steps):
        schedule.optimizer.step()
        schedule.step()
        found.append(schedule.get_last_lr())
    return found


def as_pickle(thing):
    return pickle.loads(pickle.dumps(thing))


def as_data(new, old):
    """Load the state of another from a file that is read as data."""
    file = io.BytesIO()
    torch.save(old.state_dict(), file)
    new.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    return new


@pytest.mark.parametrize("how", ["pickled", "weights_only"])
@pytest.mark.parametrize("cls", OTHERS, ids=lambda cls: cls.__name__)
def test_it_goes_on(cls, how, record_property):
    old = build(cls)
    if issubclass(cls, Metric):
        old.persistent(True)
        old.update(**_signals(old, FIRST))
        new = as_pickle(old) if how == "pickled" else as_data(_persistent(build(cls)), old)
        assert close(_updated(new, SECOND).compute(), _updated(build(cls), ALL).compute())
    else:
        rates(old, 7)
        new = as_pickle(old) if how == "pickled" else as_data(build(cls), old)
        new.optimizer.load_state_dict(old.optimizer.state_dict())
        assert rates(new, 20) == rates(old, 20)
    record_property("cell", f"methods|{cls.__name__}|{how}|pass")


def _persistent(metric):
    metric.persistent(True)
    return metric


# -- the command line --------------------------------------------------------------------------------------------------


def entry(cls, **wrong):
    """The callback of a method, as YAML has it."""
    verb, room = getattr(callbacks, cls.callback), cls.room
    first = next(iter(inspect.signature(verb).parameters))
    settings = {name: list(v) if isinstance(v, tuple) else v for name, v in build(cls).settings().items()}
    method = {"class_path": f"lightning_objectives.{room}.{cls.__name__}", "init_args": {**settings, **wrong}}
    given = {first: method, **verb.example}
    if "teacher" in inspect.signature(verb).parameters:
        given["teacher"] = "timm:resnet18"  # loaded when a training begins
    return {"class_path": f"lightning_objectives.callbacks.{cls.callback}", "init_args": given}


def written(path, *entries):
    config = {
        "seed_everything": 0,
        "model": {"class_path": "lightning_objectives.testing.conformance.case.Classifier"},
        "trainer": {"accelerator": "cpu", "logger": False, "callbacks": list(entries)},
    }
    path.write_text(yaml.safe_dump(config))
    return path


def printed(path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "--config", str(path), "--print_config"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_yaml_there_and_back(tmp_path, monkeypatch, capsys, record_property):
    """All methods in one file: what is printed is what is loaded, and builds what was meant."""
    trainers = []
    monkeypatch.setattr(Trainer, "fit", lambda trainer, *_, **__: trainers.append(trainer))
    placed = [cls for _, cls in PLACED]
    again = tmp_path / "again.yaml"
    again.write_text(printed(written(tmp_path / "all.yaml", *map(entry, placed)), capsys))
    assert printed(again, capsys) == again.read_text()
    cli.main(["fit", "--config", str(again)])
    found = [m for callback in trainers[0].callbacks for m in vars(callback).values() if isinstance(m, Method)]
    for cls in placed:
        (method,) = (m for m in found if type(m) is cls)
        assert method.settings() == build(cls).settings()  # a float that was written as 10 comes back as 10.0
        record_property("cell", f"methods|{cls.__name__}|cli|pass")
    # What a setting that does not exist does depends on the callback alone.
    for cls in {cls.callback: cls for cls in placed}.values():
        with pytest.raises(SystemExit) as stop:
            cli.main(["fit", "--config", str(written(tmp_path / "wrong.yaml", entry(cls, no_such_setting=1)))])
        assert stop.value.code == 2
        assert "no_such_setting" in capsys.readouterr().err
