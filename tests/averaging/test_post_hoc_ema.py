"""Averages of any width from snapshots of two: an average that was kept all the time is the number."""

from importlib import import_module

import numpy as np
import pytest
import torch
from helpers import Net, fit
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_objectives import cli
from lightning_objectives.averaging import (
    EMA,
    PowerEMA,
    post_hoc_ema,
    post_hoc_ema_coefficients,
    power_ema_exponent,
)
from lightning_objectives.callbacks import AverageWeights

WIDTHS = (0.05, 0.1)


def profile(time, width, grid):
    """A profile on a grid of times, each the share of its interval."""
    exponent = power_ema_exponent(width) + 1
    return np.diff(np.minimum(grid / time, 1.0) ** exponent)


def test_the_shares_are_those_of_a_least_squares_fit_of_the_profiles():
    """By a fit on 20,000 intervals, without the formula of the inner products."""
    snapshots = [(time, width) for time in (3.0, 6.0, 8.0, 10.0) for width in WIDTHS]
    grid = np.linspace(0, 10, 20_001)
    table = np.stack([profile(time, width, grid) for time, width in snapshots], 1)
    shares = np.linalg.lstsq(table, profile(10.0, 0.07, grid), rcond=None)[0]
    ours = post_hoc_ema_coefficients(snapshots, sigma_rel=0.07)
    np.testing.assert_allclose(ours.coefficients, shares / shares.sum(), atol=2e-3)
    distance = table @ np.array(ours.coefficients) - profile(10.0, 0.07, grid)
    error = np.linalg.norm(distance) / np.linalg.norm(profile(10.0, 0.07, grid))
    assert ours.error == pytest.approx(error, rel=1e-2)


def test_a_width_that_was_kept_is_its_own_snapshot():
    snapshots = [(time, width) for time in (50, 100) for width in WIDTHS]
    ours = post_hoc_ema_coefficients(snapshots, sigma_rel=0.1)
    np.testing.assert_allclose(ours.coefficients, [0, 0, 0, 1], atol=1e-9)
    assert ours.error < 1e-6
    earlier = post_hoc_ema_coefficients(snapshots, sigma_rel=0.05, updates=50)
    np.testing.assert_allclose(earlier.coefficients, [1, 0, 0, 0], atol=1e-9)


def test_one_pair_by_hand():
    """Exponents 0, 1 and 2 at the time 1: (a + 1)(b + 1) / (a + b + 1) is 1, 1 and 4/3, and 1 and 3/2 with the last."""
    zero, one, two = 1 / np.sqrt(12), np.sqrt(2) / 6, np.sqrt(3) / (4 * np.sqrt(5))
    ours = post_hoc_ema_coefficients([(1.0, zero), (1.0, one)], sigma_rel=two)
    # [1 1; 1 4/3] x = [1; 3/2] gives x = (-1/2, 3/2), which sum to 1.
    np.testing.assert_allclose(ours.coefficients, [-0.5, 1.5], atol=1e-6)


@pytest.mark.parametrize(
    ("snapshots", "settings", "message"),
    [
        ([], {}, "must hold one average at least"),
        ([(0, 0.1)], {}, "each with an update at least"),
        ([(5, 0.1)], {"updates": 6}, "between the first snapshot and the latest, 5"),
        ([(5, 0.1)], {"updates": 4}, "between the first snapshot and the latest, 5"),
        ([(5, 0.1)], {"sigma_rel": 0.3}, "sigma_rel=0.3 must be"),
    ],
)
def test_snapshots_that_cannot_be_used_are_refused(snapshots, settings, message):
    with pytest.raises(ValueError, match=message):
        post_hoc_ema_coefficients(snapshots, **{"sigma_rel": 0.1, **settings})


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """40 epochs of 3 steps with a file after every 10 steps; the same again, in which other widths were kept."""
    folder = tmp_path_factory.mktemp("files")
    saver = ModelCheckpoint(folder, every_n_train_steps=10, save_top_k=-1, filename="{step}")
    fit(
        AverageWeights([PowerEMA(sigma_rel=w) for w in WIDTHS]),
        saver,
        net=Net,
        max_epochs=40,
        enable_checkpointing=True,
    )
    kept = AverageWeights([PowerEMA(sigma_rel=w) for w in (0.07, 0.15)])
    fit(kept, net=Net, max_epochs=40)
    return folder, kept


@pytest.mark.parametrize(("width", "name", "within"), [(0.07, "powerema", 2e-4), (0.15, "powerema_2", 2e-3)])
@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_width_after_the_fact_is_the_average_that_was_kept(width, name, within, suffix, training, tmp_path):
    folder, kept = training
    files = sorted(folder.glob("step=*.ckpt"))
    found = post_hoc_ema(files, tmp_path / f"out.{suffix}", sigma_rel=width, max_error=0.1)
    assert len(found.coefficients) == 2 * len(files) == 24
    if suffix == "ckpt":
        weights = torch.load(tmp_path / "out.ckpt", weights_only=True)
        assert "optimizer_states" not in weights
        Net.load_from_checkpoint(tmp_path / "out.ckpt")
        weights = weights["state_dict"]
    else:
        from safetensors.torch import load_file

        weights = load_file(tmp_path / "out.safetensors")
    raw = torch.load(folder / "step=120.ckpt", weights_only=True)["callbacks"]
    raw = next(state["raw"] for key, state in raw.items() if "AverageWeights" in key)
    for key, value in kept.weights(name).items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=within)
        assert (raw[key] - value).abs().max() > 10 * within  # it is no trivial average


def test_each_file_is_opened_once_to_look_and_once_to_add_up(training, tmp_path, monkeypatch):
    opened = []
    module = import_module("lightning_objectives.averaging.post_hoc_ema")
    real = module.open_source
    monkeypatch.setattr(module, "open_source", lambda path: opened.append(path) or real(path))
    files = sorted(training[0].glob("step=*.ckpt"))
    post_hoc_ema(files, tmp_path / "out.ckpt", sigma_rel=0.1, max_error=0.1)
    assert sorted(opened) == sorted(2 * files)


def test_too_few_snapshots_are_refused_and_nothing_is_written(training, tmp_path, capsys):
    folder, _ = training
    last = folder / "step=120.ckpt"
    with pytest.raises(ValueError, match=r"only to within .*%, and max_error=0.05 is less. Give more snapshots"):
        post_hoc_ema([last], tmp_path / "out.ckpt", sigma_rel=0.2, verbose=True)
    assert "the profile is off by" in capsys.readouterr().out
    post_hoc_ema([last], tmp_path / "out.ckpt", sigma_rel=0.1, dry_run=True)
    assert not (tmp_path / "out.ckpt").exists()


def test_the_command(training, tmp_path, capsys):
    folder, _ = training
    files, out = [str(file) for file in sorted(folder.glob("step=*.ckpt"))], tmp_path / "wide.safetensors"
    cli.main(["ema", *files, "--width", "0.07", "-o", str(out), "--dry-run"])
    shown = capsys.readouterr().out
    assert shown.count("share ") == 24
    assert "wrote nothing (--dry-run)" in shown
    assert not out.exists()
    cli.main(["ema", *files, "--width", "0.07", "-o", str(out)])
    assert f"wrote {out}" in capsys.readouterr().out
    for words in (
        ["--width", "0.07"],
        ["--width", "0.5", "--force"],
        ["--width", "0.25", "--force", "--max-error", "0.001"],
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["ema", *files, *words, "-o", str(out)])
        assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert "exists: choose another name" in errors
    assert "sigma_rel=0.5 must be" in errors
    assert "Give more snapshots" in errors


def test_files_without_such_averages_are_refused(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="ema", enable_version_counter=False)
    fit(AverageWeights(EMA()), saver, net=Net, max_epochs=1, enable_checkpointing=True)
    with pytest.raises(ValueError, match="holds no PowerEMA with an update"):
        post_hoc_ema([tmp_path / "ema.ckpt"], tmp_path / "out.ckpt", sigma_rel=0.1)


def test_averages_that_count_differently_are_refused(tmp_path):
    for name, every in (("one", 1), ("two", 2)):
        saver = ModelCheckpoint(tmp_path, filename=name, enable_version_counter=False)
        average = AverageWeights(PowerEMA(), every_n_steps=every)
        fit(average, saver, net=Net, max_epochs=2, enable_checkpointing=True)
    with pytest.raises(ValueError, match="count their updates differently"):
        post_hoc_ema([tmp_path / "one.ckpt", tmp_path / "two.ckpt"], tmp_path / "out.ckpt", sigma_rel=0.1)
