"""The harness of the third-party modules: its files are complete, and so is the record; the page comes out of it."""

import json
from importlib import import_module

import pytest
import torch
from torch import nn

import lightning_objectives as lo
from thirdparty import page, rows
from thirdparty.__main__ import FAULTS, outcomes
from thirdparty.environments import PACKAGES, RECORDS
from thirdparty.run import CALLBACKS
from thirdparty.watch import Recording, gradient_difference, largest_difference, left_behind, ours, traces


def home(package):
    return import_module(f"thirdparty.packages.{package}")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_file_has_its_fields(package):
    file = home(package)
    assert file.TITLE
    assert file.NOTE.strip()
    assert all("==" in requirement for requirement in file.REQUIREMENTS), "versions are pinned"
    assert {"torch"} < set(file.DISTRIBUTIONS)
    names = [case.name for case in file.CASES]
    assert names
    assert len(set(names)) == len(names)
    for case in file.CASES:
        assert (case.train is None) == (case.module is not None and case.data is not None), case.name


@pytest.mark.parametrize("package", PACKAGES)
def test_the_record_of_a_package_is_complete(package):
    record = json.loads((RECORDS / f"{package}.json").read_text())
    assert set(record["versions"]) == set(home(package).DISTRIBUTIONS)
    pinned = dict(requirement.split("==") for requirement in home(package).REQUIREMENTS)
    assert {name: record["versions"][name] for name in pinned if name in record["versions"]}.items() <= pinned.items()
    assert list(record["cases"]) == [case.name for case in home(package).CASES]
    for name, case in record["cases"].items():
        assert "broken" in case or list(case["cells"]) == [*(row.name for row in rows.ROWS), rows.TOGETHER], name


def test_the_page_is_written_out_of_the_record():
    assert page.PAGE.read_text() == page.text(page.recorded()), "run `python -m thirdparty page`"


def test_each_kind_of_callback_has_a_row():
    ready_made = {name for name in lo.callbacks.__all__ if name.endswith("Callback")}
    not_tried = {
        "AdaptAtTest",
        "ChangeLayers",
        "PerturbWeights",
        "Refer",
        "SurveyData",
    }  # The packages were run before they were written.
    acting = set(lo.callbacks.__all__) - ready_made - {"RestoreRandomState"}
    assert {row.name.partition("(")[0] for row in rows.ROWS} == acting - not_tried == set(CALLBACKS) - not_tried


def test_a_page_shows_what_is_recorded():
    cells = {
        "LogMetrics": {"outcome": "wrong", "checks": {"nll": 0.5, "top-1": True}},
        "Calibrate": {"outcome": "refused", "says": "ValueError: there is *nothing* to fit."},
        "Distill": {"outcome": "works", "told": {"head": "fc"}, "checks": {"distance": 1e-7}},
    }
    case = {"about": "a network", "steps": 6, "own trainer": True, "copied": True, "cells": cells}
    text = page.text({"gan": {"date": "2026-01-02", "versions": {"torch": "2.4.0"}, "cases": {"Net": case}}})
    assert "| Manual optimization: Net | **wrong** | refused |" in text
    assert "- `LogMetrics`: **wrong**: nll: off by 0.5." in text
    assert "- `Calibrate`: refused: “there is \\*nothing\\* to fit.”" in text
    assert "- `Distill`: told `head='fc'`." in text
    assert "The package copies your callbacks" in text
    assert outcomes({"cases": {"Net": case}})["Net", "LogMetrics"] in FAULTS


def test_gradients_are_compared_over_all_steps(tmp_path):
    one, two = Recording(tmp_path), Recording(tmp_path)
    one.gradients = [[torch.tensor([1.0, 10.0]), None]] * 2
    two.gradients = [[torch.tensor([1.0, 10.0]), None], [torch.tensor([2.0, 10.0]), None]]
    assert gradient_difference(one, one) == 0
    assert gradient_difference(one, two) == pytest.approx(0.1)
    two.gradients = two.gradients[:1]
    assert gradient_difference(one, two) == float("inf")
    assert largest_difference({"a": torch.tensor([0.5])}, {"a": torch.tensor([0.25])}) == 0.25


def test_what_is_left_on_a_module_is_seen():
    net = nn.Sequential(nn.Linear(2, 2))
    before = traces(net)
    assert not left_behind(before, traces(net))
    net[0].forward = net[0].forward  # a function of its own, which does the same
    assert left_behind(before, traces(net)) == {"0.forward"}
    del net[0].forward
    handle = net[0].register_forward_hook(lambda *_: None)
    assert left_behind(before, traces(net)) == {"0._forward_hooks[0]"}
    handle.remove()
    weight = net[0].weight
    net[0].weight = nn.Parameter(weight.detach().clone())
    assert "parameter 0.weight is replaced" in left_behind(before, traces(net))
    net[0].weight = weight
    net[0].told = lo.EMA()
    assert left_behind(before, traces(net)) == {"0.told"}
    assert [path for path, _ in ours(net, "net")] == ["net._modules.0.told"]
