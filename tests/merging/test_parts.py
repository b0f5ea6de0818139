"""Which part of a checkpoint is merged, and what stays beside it."""

import pytest
import torch
from timm.models import load_checkpoint
from torch import nn

from lightning_objectives import cli
from lightning_objectives.merging import WSM, merge_checkpoints


def write(folder, make):
    """Two checkpoints, with the values 1 and 3, so that the mean is 2."""
    for step, value in ((1, 1.0), (2, 3.0)):
        torch.save(make(step, value), folder / f"step={step}.pth")
    return [folder / f"step={step}.pth" for step in (1, 2)]


def weights(value):
    return {"weight": torch.full((1, 2), float(value))}


def momentum(value):
    return {"state": {0: {"momentum_buffer": torch.full((1, 2), float(value))}}, "param_groups": [{"lr": 0.1}]}


def of_timm(step, value):
    return {
        "epoch": step, "arch": "resnet18", "version": 2, "state_dict": weights(value), "optimizer": momentum(value),
        "amp_scaler": {"scale": 65536.0}, "state_dict_ema": weights(100 + value), "metric": 77.0,
    }  # fmt: skip


def of_torchvision(step, value):
    return {
        "model": weights(value), "optimizer": momentum(value), "lr_scheduler": {"last_epoch": step}, "epoch": step,
        "args": {"lr": 0.1}, "scaler": {"scale": 65536.0},
        "model_ema": {"module.weight": weights(100 + value)["weight"]},
    }  # fmt: skip


def of_a_tutorial(step, value):
    return {
        "epoch": step, "model_state_dict": weights(value), "optimizer_state_dict": momentum(value), "loss": 0.5,
        "best_acc1": torch.tensor(0.9), "classes": ["a", "b"],
    }  # fmt: skip


def of_lightning(step, value):
    return {
        "pytorch-lightning_version": "2.6.0", "global_step": step, "epoch": 0, "state_dict": weights(value),
        "optimizer_states": [momentum(value)], "lr_schedulers": [], "loops": {}, "callbacks": {},
        "ema_state_dict": weights(9), "mine": {"words": torch.ones(2)}, "datamodule_hyper_parameters": {"size": 8},
    }  # fmt: skip


KEPT = {
    of_timm: ("state_dict", {"arch", "version"}),
    of_torchvision: ("model", {"args"}),
    of_a_tutorial: ("model_state_dict", {"classes"}),
    of_lightning: (
        "state_dict",
        {"pytorch-lightning_version", "global_step", "epoch", "mine", "datamodule_hyper_parameters"},
    ),
}


@pytest.mark.parametrize("make", KEPT, ids=lambda make: make.__name__)
def test_what_belongs_to_one_training_does_not_stay(tmp_path, make):
    place, kept = KEPT[make]
    merged = torch.load(merge_checkpoints(write(tmp_path, make), WSM(shape="linear"), tmp_path / "m.pth"))
    assert merged.keys() == {place, *kept}
    assert torch.equal(merged[place]["weight"], weights(2)["weight"])


def test_timm_loads_the_merge(tmp_path):
    merged = merge_checkpoints(write(tmp_path, of_timm), WSM(shape="linear"), tmp_path / "m.pth")
    net = nn.Linear(2, 1, bias=False)
    load_checkpoint(net, str(merged))
    assert torch.equal(net.weight.data, weights(2)["weight"])


@pytest.mark.parametrize(("make", "part"), [(of_timm, "state_dict_ema"), (of_torchvision, "model_ema")])
def test_a_part_is_chosen(tmp_path, make, part, capsys):
    files = write(tmp_path, make)
    cli.main(["merge", *map(str, files), "--shape", "linear", "--part", part, "-o", str(tmp_path / "m.pth")])
    merged, place = torch.load(tmp_path / "m.pth"), KEPT[make][0]
    assert part not in merged
    assert torch.equal(next(iter(merged[place].values())), weights(102)["weight"])
    assert "left out, because it belongs to one training: " in capsys.readouterr().out


def test_the_command_says_what_it_leaves_out(tmp_path, capsys):
    cli.main(["merge", *map(str, write(tmp_path, of_timm)), "-o", str(tmp_path / "m.pth")])
    assert "one training: amp_scaler, epoch, metric, optimizer, state_dict_ema\n" in capsys.readouterr().out


REFUSED = {
    "two": (lambda s, v: {"model": weights(v), "net": weights(v)}, None, r"parts, \['model', 'net'\].*--part model"),
    "unknown": (lambda s, v: {"ema": weights(v), "epoch": s}, None, r"in the parts \['ema'\].*part='ema'"),
    "none such": (of_timm, "model", r"part='model': .* but \['state_dict', 'state_dict_ema'\]"),
    "not weights": (of_timm, "optimizer", r"part='optimizer': .*no such part"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_part_or_not_the_only_one(tmp_path, kind):
    make, part, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        merge_checkpoints(write(tmp_path, make), WSM(), tmp_path / "m.pth", part=part)
    assert not (tmp_path / "m.pth").exists()
