"""Short names of classes in configurations, and sentences in place of pages of usage."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import Trainer

from lightning_objectives import cli
from lightning_objectives.cli.parsing import explained, refused

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
NET = "examples.existing_project.model.Digits"
CONFIG = {
    "seed_everything": 0,
    "model": {"class_path": NET},
    "data": {"class_path": "DigitsDataModule"},
    "trainer": {
        "max_steps": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "limit_val_batches": 0,
    },
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])

    def write(*callbacks, **changes):
        trainer = {**CONFIG["trainer"], "callbacks": list(callbacks)}
        Path("run.yaml").write_text(yaml.safe_dump({**CONFIG, "trainer": trainer, **changes}))
        return "run.yaml"

    return write


@pytest.fixture
def trainers(monkeypatch):
    """All trainers that have fitted."""
    seen, fit = [], Trainer.fit
    monkeypatch.setattr(
        Trainer, "fit", lambda self, *args, **kwargs: (seen.append(self), fit(self, *args, **kwargs))[1]
    )
    return seen


def test_short_names_in_yaml_and_on_the_command_line(config, trainers):
    average = {"class_path": "AverageWeights", "init_args": {"rule": {"class_path": "BEMA"}, "start_step": 5000}}
    schedule = {"class_path": "WarmupStableSchedule", "init_args": {"warmup_steps": 2}}
    path = config(average, optimizer={"class_path": "SGD", "init_args": {"lr": 0.1}}, lr_scheduler=schedule)
    words = ["--trainer.callbacks+=ReplaceLoss", "--trainer.callbacks.loss=FocalLoss"]
    words += ["--trainer.callbacks.loss.gamma=0.5", "--trainer.callbacks+=LearningRateMonitor"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "-c", path, *words, "--print_config"])
    assert not stop.value.code
    words = words[:-1]
    with pytest.warns(UserWarning, match="never began|will be overridden"):
        cli.main(["fit", "-c", path, *words])
    ours = [callback for callback in trainers[0].callbacks if type(callback).__module__.startswith("lightning_obj")]
    assert [type(callback).__name__ for callback in ours] == ["AverageWeights", "ReplaceLoss"]
    assert (type(ours[0].rule).__name__, ours[1].loss.gamma) == ("BEMA", 0.5)


def test_the_short_name_of_a_callback_alone(config, trainers):
    cli.main(["fit", "-c", config("RestoreRandomState"), "--trainer.callbacks+=LossReweightingCallback"])
    names = [type(callback).__name__ for callback in trainers[0].callbacks]
    assert {"RestoreRandomState", "LossReweightingCallback"} < set(names)


RULE = {"class_path": "AverageWeights", "init_args": {"rule": {"class_path": "EMA", "init_args": {"decya": 0.5}}}}


@pytest.mark.parametrize(
    ("callbacks", "changes", "words", "message"),
    [
        ([], {"modle": 1}, [], "there is no option 'modle'. Did you mean 'model'?"),
        ([], {}, ["--modle=1"], "there is no option 'modle'. Did you mean 'model'?"),
        ([], {"trainer": {"max_stepz": 3}}, [], "no option 'trainer.max_stepz'. Did you mean 'trainer.max_steps'?"),
        (
            [],
            {"model": {"class_path": NET, "init_args": {"widht": 3}}},
            [],
            "model: Digits has no setting 'widht'. Did you mean 'width'? Its settings: width, dropout, lr, decay.",
        ),
        ([], {"model": {"class_path": NET + "s"}}, [], "model: examples.existing_project.model has no 'Digitss'."),
        (
            [],
            {"model": {"class_path": NET, "init_args": {"width": "wide"}}},
            [],
            "model: width: Expected a <class 'int'>. Got value: wide",
        ),
        ([RULE], {}, [], "trainer.callbacks: EMA has no setting 'decya'. Did you mean 'decay'? Its settings: decay, "),
        (["EMACalback"], {}, [], "trainer.callbacks: there is no class 'EMACalback'. Did you mean 'EMACallback'?"),
        ([], {}, ["--trainer.callbacks+=LogMetric"], "there is no class 'LogMetric'. Did you mean 'LogMetrics'?"),
        ([], {}, ["--trainer.callbacks+=EarlyStoping"], "Did you mean 'EarlyStopping'?"),
        (
            [],
            {},
            ["--trainer.callbacks+=EMACallback", "--trainer.callbacks.decya=0.5"],
            "trainer.callbacks: EMACallback has no setting 'decya'. Did you mean 'decay'?",
        ),
        (
            [{"class_path": "AverageWeights", "init_args": {"rule": {"class_path": "FocalLoss"}}}],
            {},
            [],
            "FocalLoss is a class of lightning_objectives, but not of the kind that is needed here.",
        ),
        ([{"class_path": "EMACallback", "init_args": {"decay": 2}}], {}, [], "decay=2.0 must be in [0, 1)."),
        ([], {}, ["-c", "nothing.yaml"], "File does not exist"),
    ],
)
def test_what_is_wrong_is_a_sentence(config, trainers, capsys, callbacks, changes, words, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "-c", config(*callbacks, **changes), *words])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "usage:" not in err
    assert "lightning-objectives: " in err
    assert message in err
    assert trainers == []


def test_help_of_a_class_has_no_marks(config, capsys):
    loss = ["--trainer.callbacks+=ReplaceLoss", "--trainer.callbacks.loss.help=FocalLoss"]
    average = ["--trainer.callbacks.help", "EMACallback"]
    for words, said in ((loss, "γ ≥ 0; the paper's best is 2."), (average, "AverageWeights with the rule EMA")):
        with pytest.raises(SystemExit) as stop:
            cli.main(["fit", *words])
        assert not stop.value.code
        out = capsys.readouterr().out
        assert said in out
        assert not {"`", "\\"} & {*out}


def test_what_is_not_known_is_shown_as_it_is():
    assert explained("Something else.", ["model"], ["EMA"]) == "Something else."
    assert refused(ValueError("of the user's")) is None


def test_ctrl_c_in_a_fit(config, request, monkeypatch, capsys):
    # A process that a shell starts in the background ignores the signal.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from examples.existing_project.model import Digits

    monkeypatch.setattr(Digits, "training_step", lambda *args: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "-c", config()])
    assert stop.value.code == 130
    assert "lightning-objectives: fit was interrupted.\n" in capsys.readouterr().err
