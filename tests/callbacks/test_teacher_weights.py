"""Files of a teacher's weights as people write them: one network is read, and of two you choose one."""

import lightning as L
import pytest
import torch
import yaml
from helpers import Net, equal, fit, loader
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_objectives import cli
from lightning_objectives._files.network import load_network
from lightning_objectives.callbacks import Distill
from lightning_objectives.distillation import VanillaKD


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def behind(prefix, seed=1):
    return {prefix + key: value for key, value in net(seed).state_dict().items()}


class WithCriterion(nn.Module):
    """A network whose criterion has a buffer only if it was told one."""

    def __init__(self, pos_weight=None):
        super().__init__()
        self.net, self.criterion = net(3), nn.BCEWithLogitsLoss(pos_weight=pos_weight)


def compiled(state):
    return {key.replace("1.", "1._orig_mod."): value for key, value in state.items()}


ONE = {
    "net": {"net": behind(""), "acc": 93.1, "epoch": 1},
    "model": {"model": behind(""), "args": {"lr": 0.1}},
    "model_state_dict": {"model_state_dict": behind(""), "epoch": 3, "optimizer_state_dict": {"state": {}}},
    "state_dict beside an EMA": {"state_dict": behind(""), "state_dict_ema": behind("", 2)},
    "model beside an EMA": {"model": behind("module."), "model_ema": behind("module.", 2)},
    "an unusual name": {"student": behind("")},
    "a model beside a discriminator": {"model": behind(""), "net": {"w": torch.ones(1)}},
    "DDP": behind("module."),
    "compiled inside": {"state_dict": compiled(behind(""))},
    "compiled and DDP": {"model": {f"_orig_mod.{k}": v for k, v in behind("module.").items()}},
    "student with a projection": {"state_dict": behind("student.") | {"projection.weight": torch.ones(2)}},
}


@pytest.mark.parametrize("name", ONE)
def test_one_network(tmp_path, name):
    torch.save(ONE[name], tmp_path / "a.pt")
    assert equal(load_network(net(), tmp_path / "a.pt"), net(1))


def test_a_compiled_network_takes_plain_names(tmp_path):
    torch.save(behind(""), tmp_path / "a.pt")
    into = nn.Sequential(*net())
    into[1] = torch.compile(into[1])
    read = load_network(into, tmp_path / "a.pt").state_dict()
    assert equal({key.replace("_orig_mod.", ""): value for key, value in read.items()}, net(1).state_dict())


@pytest.mark.parametrize("prefix", ["", "lit."])
def test_the_buffer_of_a_criterion_has_no_part_in_the_answers(tmp_path, prefix):
    saved = WithCriterion(torch.ones(3))
    torch.save({"state_dict": {prefix + key: value for key, value in saved.state_dict().items()}}, tmp_path / "a.pt")
    assert equal(load_network(WithCriterion(), tmp_path / "a.pt").net, saved.net)


TWO = {
    "student and teacher": (
        {"state_dict": behind("student.", 1) | behind("teacher.", 2)},
        {"student.": 1, "teacher.": 2, "state_dict.teacher.": 2},
    ),
    "a copy inside": ({"state_dict": behind("", 1) | behind("ema.", 2)}, {"": 1, "ema.": 2}),
    "two entries": ({"net": behind("module.", 1), "model": behind("", 2)}, {"net.module.": 1, "net.": 1, "model.": 2}),
    "an EMA beside": (
        {"state_dict": behind("", 1), "state_dict_ema": behind("module.", 2)},
        {"state_dict.": 1, "state_dict_ema.module.": 2, "state_dict_ema.": 2, "": 1},
    ),
    "of no state dict": (behind("student.", 1) | behind("teacher.", 2), {"student.": 1, "teacher.": 2}),
    "compiled": ({"state_dict": behind("a._orig_mod.") | behind("b.", 2)}, {"a.": 1, "a._orig_mod.": 1, "b.": 2}),
}


@pytest.mark.parametrize("name", TWO)
def test_of_two_networks_the_prefix_chooses(tmp_path, name):
    contents, choices = TWO[name]
    torch.save(contents, tmp_path / "a.pt")
    if name != "an EMA beside":
        with pytest.raises(ValueError, match=r"a\.pt.*Several prefixes fit: \[.*Choose one, .*teacher_prefix='"):
            load_network(net(), tmp_path / "a.pt")
    for prefix, seed in choices.items():
        assert equal(load_network(net(), tmp_path / "a.pt", prefix=prefix), net(seed))


def test_a_prefix_that_is_none(tmp_path):
    torch.save(behind("a.") | behind("b."), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"teacher_prefix='c\.': no tensor of .*a\.pt.* There are \['a\.0\.bias'"):
        load_network(net(), tmp_path / "a.pt", prefix="c.")
    with pytest.raises(
        ValueError, match=r"teacher_prefix='a\.' chooses among the weights of a file: give teacher_weights="
    ):
        load_network(net(), prefix="a.")


def test_two_names_that_are_one_are_refused(tmp_path):
    torch.save(behind("") | behind("_orig_mod."), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt.*with and without what torch\.compile puts into names"):
        load_network(net(), tmp_path / "a.pt")


PREFIX = st.lists(st.sampled_from(["net", "model", "module", "_orig_mod", "0", "fc"]), max_size=3)


@settings(max_examples=60, deadline=None)
@given(key=st.sampled_from(["", "state_dict", "model", "net", "x"]), words=PREFIX, other=PREFIX, chosen=st.booleans())
def test_what_is_read_is_what_was_written(tmp_path_factory, key, words, other, chosen):
    """Whatever stands before the names: the right network, the chosen one, or a refusal; never another one."""
    file = tmp_path_factory.mktemp("drawn") / "a.pt"
    mine, theirs = ("".join(f"{word}." for word in path) for path in (words, other))
    state = behind(theirs, 2) | behind(mine, 1)
    torch.save({key: state} if key else state, file)
    alone = len(state) == len(net().state_dict())
    try:
        read = load_network(net(), file, prefix=mine if chosen else None)
    except ValueError as error:
        assert not alone
        assert "a.pt" in str(error)  # noqa: PT017
    else:
        assert equal(read, net(1))
        assert alone or chosen


# Teachers from a configuration


def test_the_setting_reaches_the_file(tmp_path):
    state = {f"{prefix}{key}": value for prefix in ("a.", "b.") for key, value in Net().state_dict().items()}
    torch.save(state, tmp_path / "a.pt")
    distill = Distill(VanillaKD(), teacher=Net(), teacher_weights=str(tmp_path / "a.pt"), teacher_prefix="b.")
    fit(distill, train=loader())


class Given(L.LightningModule):
    def __init__(self, width: int = 6):
        super().__init__()
        self.body, self.fc = nn.Linear(4, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.fc(self.body(x).relu())

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class GivenData(L.LightningDataModule):
    def train_dataloader(self):
        return loader()


CONSTANT = Given()


def trained():
    return CONSTANT


def run(teacher, *words, callback="Distill", **settings):
    method = (
        {"distillation": {"class_path": "lightning_objectives.distillation.VanillaKD"}} if callback == "Distill" else {}
    )
    init = {"teacher": teacher, **method, **settings}
    config = {
        "model": {"class_path": f"{__name__}.Given"},
        "data": {"class_path": f"{__name__}.GivenData"},
        "trainer": {
            "accelerator": "cpu", "logger": False, "max_epochs": 1, "enable_progress_bar": False,
            "enable_model_summary": False, "enable_checkpointing": False,
            "callbacks": [{"class_path": f"lightning_objectives.callbacks.{callback}", "init_args": init}],
        },
    }  # fmt: skip
    with open("config.yaml", "w") as file:  # noqa: PTH123
        yaml.safe_dump(config, file)
    cli.main(["fit", "-c", "config.yaml", *words])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("callback", ["Distill", "DualHeadKDCallback"])
def test_a_module_of_a_configuration_needs_weights(tmp_path, monkeypatch, callback, capsys):
    monkeypatch.chdir(tmp_path)
    inline = {"class_path": f"{__name__}.Given", "init_args": {"width": 6}}
    with pytest.raises((ValueError, SystemExit)) as caught:
        run(inline, callback=callback)
    assert "Given of the configuration has random weights" in str(caught.value) + capsys.readouterr().err
    torch.save(Given().state_dict(), "teacher.pt")
    run(inline, callback=callback, teacher_weights="teacher.pt")
    run(f"{__name__}.trained", callback=callback)
    assert all(p.requires_grad for p in CONSTANT.parameters())


def test_a_module_of_a_program_is_taken_even_under_a_parser():
    """jsonargparse calls the program, but the program builds the callback."""
    import jsonargparse

    def program(width: int = 6) -> Distill:
        return Distill(VanillaKD(), teacher=nn.Linear(width, 2))

    assert isinstance(jsonargparse.auto_cli(program, args=[]), Distill)


def test_a_function_that_returns_no_module():
    with pytest.raises(ValueError, match=r"os\.getcwd\(\) returned a str, but must return a trained"):
        load_network("os.getcwd")
