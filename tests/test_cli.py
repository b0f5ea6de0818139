import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule

from lightning_objectives import __version__, cli, discovery

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
RECORDS = []


class Net(LightningModule):
    def __init__(self, width: int = 3, classes: int = 10):
        super().__init__()
        self.layer = torch.nn.Linear(64, classes)
        self.width = width

    def forward(self, x):
        return self.layer(x.flatten(1))

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self(batch[0]).argmax(1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Rule:
    def __init__(self, decay: float = 0.5):
        self.decay = decay


class Record(Callback):
    """As our callbacks are given: a callback that is given a method."""

    def __init__(self, *, rule: Rule):
        self.rule = rule

    def setup(self, trainer, pl_module: LightningModule, stage: str):
        RECORDS.append((stage, self.rule.decay, pl_module.width, type(trainer.datamodule).__name__))


CONFIG = {
    "seed_everything": 0,
    "model": {"class_path": f"{__name__}.Net", "init_args": {"width": 7}},
    "data": {"class_path": "lightning_objectives.data.DigitsDataModule", "init_args": {"batch_size": 256}},
    "trainer": {
        "max_steps": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "callbacks": [
            {
                "class_path": f"{__name__}.Record",
                "init_args": {"rule": {"class_path": f"{__name__}.Rule", "init_args": {"decay": 0.9}}},
            },
        ],
    },
}


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    RECORDS.clear()
    path = tmp_path / "config.yaml"

    def write(**changes):
        path.write_text(yaml.safe_dump({**CONFIG, **changes}))
        return str(path)

    return write


def test_fit_and_the_others_from_yaml(config):
    mine = config()
    for command in ("fit", "validate", "test", "predict"):
        cli.main([command, "--config", mine])
    assert [(stage, *rest) for stage, *rest in RECORDS] == [
        (stage, 0.9, 7, "DigitsDataModule") for stage in ("fit", "validate", "test", "predict")
    ]
    assert yaml.safe_load(Path(mine).read_text()) == CONFIG, "the user's config.yaml is not the one that is written"
    saved = yaml.safe_load(Path("resolved-config.yaml").read_text())
    assert saved["model"]["init_args"] == {"width": 7, "classes": 10}


def test_the_command_line_overrides(config):
    cli.main(["fit", "-c", config(), "--model.init_args.width=4", "--trainer.callbacks.init_args.rule.decay=0.3"])
    assert RECORDS == [("fit", 0.3, 4, "DigitsDataModule")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"modle": {"class_path": f"{__name__}.Net"}}, "modle"),
        ({"trainer": {**CONFIG["trainer"], "max_step": 3}}, "max_step"),
        ({"model": {"class_path": f"{__name__}.Net", "init_args": {"widht": 3}}}, "widht"),
        ({"model": {"class_path": f"{__name__}.Nett"}}, "Nett"),
        ({"model": {"class_path": f"{__name__}.Net", "init_args": {"width": "wide"}}}, "wide"),
    ],
)
def test_a_misspelt_key_stops(config, capsys, changes, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", "--config", config(**changes)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert RECORDS == []


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help(args, capsys):
    cli.main(args)
    out = capsys.readouterr().out
    assert "\n  fit, validate, test, predict\n" in out
    assert "\n  methods\n" in out


def test_help_fits_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words in ([], ["methods"], ["init"], ["inspect"], ["plan"], ["merge"], ["export"], ["ema"]):
        try:
            cli.main([*words, "--help"])
        except SystemExit as stop:
            assert not stop.code  # noqa: PT017  # argparse ends the program after its help
        out = capsys.readouterr().out
        assert out
        assert max(map(len, out.splitlines())) <= 80, out
        if not words:
            assert "Exit status: 0 if all went well; 1 if" in out


def test_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"lightning-objectives {__version__}\n"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("args", "not_imported"),
    [
        (["--help"], ["torch", "lightning", "pytorch_lightning"]),
        (["--version"], ["torch", "lightning", "pytorch_lightning"]),
        (["methods"], ["lightning", "pytorch_lightning", "timm"]),
        (
            ["merge", "a.pt", "b.pt", "-o", "c.pt", "--order", "given"],
            ["lightning", "pytorch_lightning", "torchmetrics"],
        ),
        (["export", "x.pt", "-o", "y.pt", "--weights", "raw"], ["lightning", "pytorch_lightning", "torchmetrics"]),
    ],
)
def test_a_command_imports_only_what_it_needs(args, not_imported, tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "a.pt")
    torch.save({"w": torch.ones(1)}, tmp_path / "b.pt")
    both = {"state_dict": {"w": torch.ones(1)}, "current_model_state": {"w": torch.zeros(1)}, "averaging_state": {}}
    torch.save(both, tmp_path / "x.pt")
    code = f"import sys; from lightning_objectives.cli import main; main({args})"
    check = f"assert not {set(not_imported)} & set(sys.modules), {set(not_imported)} & set(sys.modules)"
    run = subprocess.run([sys.executable, "-c", f"{code}; {check}"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_inspect(config, capsys):
    method = "lightning_objectives.weighting.LossBasedReweighting"
    mine = {"class_path": "lightning_objectives.callbacks.ReweightSamples", "init_args": {"weighting": method}}
    path = config(trainer={**CONFIG["trainer"], "callbacks": [mine]})
    before = sorted(Path.cwd().iterdir())
    cli.main(["inspect", path, "--model.init_args.width=4"])
    out = capsys.readouterr().out
    assert out.startswith("Net\n  criterion   cross_entropy of (256, 10) with (256,) int64, mean,")
    assert "  head        layer (Linear), (256, 64) to (256, 10)\n" in out
    assert "Your callbacks, each alone\n  yes         ReweightSamples(LossBasedReweighting)\n" in out
    assert "  yes         AverageWeights(BEMA)\n" in out
    assert RECORDS == [], "other callbacks than ours do not run"
    assert sorted(Path.cwd().iterdir()) == before
    mine["init_args"]["criterion"] = "no.such.loss"
    with pytest.raises(SystemExit) as stop:
        cli.main(["inspect", config(trainer={**CONFIG["trainer"], "callbacks": [mine]})])
    assert stop.value.code == 1
    assert (
        "  no          ReweightSamples(LossBasedReweighting)\n              criterion='no.such.loss'"
        in capsys.readouterr().out
    )


def test_plan(config, capsys):
    ours = [{"class_path": f"lightning_objectives.callbacks.{n}"} for n in ("EMACallback", "LossReweightingCallback")]
    path = config(trainer={**CONFIG["trainer"], "callbacks": ours})
    cli.main(["plan", "-c", path])
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "Training step of Net: LossReweightingCallback(LossBasedReweighting(strategy='lin_upper', temperature=1.0, "
        "warmup_steps=0))",
        "EMACallback(EMA): Averages the weights exponentially over time: AverageWeights with the rule EMA.",
    ]
    assert err == ""
    ours[1]["init_args"] = {"criterion": "no.such.loss"}
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", config(trainer={**CONFIG["trainer"], "callbacks": ours})])
    assert stop.value.code == 1
    assert "lightning-objectives: criterion='no.such.loss'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "plan"])
def test_help_of_commands_that_read_a_config(command, capsys):
    for words in ([], ["--help"], ["-h"]):
        cli.main([command, *words])
        assert f"usage: lightning-objectives {command} CONFIG" in capsys.readouterr().out


def test_an_unknown_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["fitt", "--config", "x"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "unknown command 'fitt'. Did you mean 'fit'? Known: fit, validate, test, predict, inspect, plan," in err


def test_without_jsonargparse(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit"])
    assert stop.value.code == 2
    assert "fit needs jsonargparse: pip install 'lightning-objectives[cli]'" in capsys.readouterr().err
    cli.main(["methods"])  # needs none


def test_methods_lists_every_method(capsys):
    cli.main(["methods"])
    out = capsys.readouterr().out
    for room, cls in discovery.methods():
        assert f"\n{room}" in f"\n{out}"
        assert f"  {cls.__name__}: " in out
    assert "averaging, placed by AverageWeights\n" in out
    assert out.count("    evidence: ") > 5
    assert "    https://arxiv.org/abs/2502.06733\n" in out, "the paper of a module form stands in its function"
    assert ":math:" not in out
    assert "`" not in out


def test_methods_has_help(capsys):
    cli.main(["methods", "--help"])
    assert "usage: lightning-objectives methods [NAME | --for WORDS]\n\nList all" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected", "others"),
    [
        (["--for", "label noise"], ["EarlyLearningRegularization", "SmallLossSelection"], ["DiceLoss", "EMA"]),
        (["--for=imbalance"], ["LDAMLoss", "ConfusionMatrixLoss"], ["Mixup"]),
        (["--for", "segmentation"], ["DiceLoss", "LovaszSoftmaxLoss"], ["FocalLoss"]),
        (["--for", "Fine-tuning"], ["L2SP", "LayerFreezing"], ["DiceLoss"]),
        (["--for", "a big teacher"], ["VanillaKD"], ["DiceLoss"]),
        (["--for", "overfit"], ["RDrop", "DropoutSchedule"], ["TIES"]),
    ],
    ids=" ".join,
)
def test_methods_for_a_problem(words, expected, others, capsys):
    cli.main(["methods", *words])
    out = capsys.readouterr().out
    assert all(f"  {name}: " in out for name in expected)
    assert not any(f"  {name}: " in out for name in others)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--for", "multitsk"], "'multitsk'. Did you mean 'multi-task'? Known: "),
        (["--for"], "needs a problem"),
        (["--format"], "not '--format'"),
    ],
)
def test_methods_for_nothing(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["methods", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_methods_prints_a_card(capsys):
    cli.main(["methods", "LossBasedReweighting"])
    out = capsys.readouterr().out
    assert out.startswith("weighting.LossBasedReweighting, placed by ReweightSamples\n")
    assert "warmup_steps: int = 0" in out
    assert "Interactions:" in out
    assert "lin_upper" in out
    assert "Differs from the paper:" in out, "the function's own card follows"


def test_methods_of_an_unknown_name(capsys):
    for args, message in (
        (["EMAA"], "not 'EMAA'. Did you mean 'EMA'? Known: "),
        (["EMA", "SWA"], "not 'EMA SWA'"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["methods", *args])
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Paper: A et al., B, ICLR 2025, https://x.org/1.", ["https://x.org/1"]),
        ("Paper: A et al.,\nhttps://x.org/1; also\nhttps://x.org/2.", ["https://x.org/1"]),
        ("See https://x.org/0.\n\nPaper: A, 1992.\n\nSee https://x.org/1.", []),
        ("Nothing.", []),
    ],
)
def test_the_address_of_a_paper(text, expected):
    assert cli.methods.paper(type("Method", (), {"__doc__": text, "__module__": __name__})) == expected


@pytest.mark.processes
def test_as_a_command_with_the_users_files(tmp_path):
    # The words come from sys.argv, and the module from the current directory.
    source = Path(__file__).read_text().split("CONFIG =")[0].replace("pytestmark", "ignored")
    (tmp_path / "my_net.py").write_text(source)
    code = "import sys; sys.path.remove(''); from lightning_objectives.cli import main; main()"
    words = ["fit", "--model=my_net.Net", "--data=lightning_objectives.data.DigitsDataModule", "--trainer.logger=false"]
    words += ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"]
    run = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "`max_steps=1` reached" in run.stderr
    assert "args parameter" not in run.stderr
