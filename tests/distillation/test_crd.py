import math

import lightning as L
import pytest
import torch
from helpers import Net, data, equal, fit, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_objectives.callbacks import Distill
from lightning_objectives.data import with_index
from lightning_objectives.distillation import CRD
from lightning_objectives.distillation.crd import _of_other_classes, _terms

SAMPLES, ROWS = 20, 4


def built(**settings):
    torch.manual_seed(0)
    method = CRD(**settings)
    method.build(features=6, teacher_features=8)
    return method


def signals(target=(0, 1, 2, 1), index=(5, 0, 11, 7), labels=None):
    """Signals of four samples out of twenty, whose classes are 0, 1, 2, 0, ... if they are known."""
    generator = torch.Generator().manual_seed(1)
    bank = {
        "student": torch.randn(SAMPLES, 128, generator=generator) / 128**0.5,
        "teacher": torch.randn(SAMPLES, 128, generator=generator) / 128**0.5,
        "label": torch.arange(SAMPLES) % 3.0 if labels is None else labels,
    }
    index = torch.tensor(index)
    return {
        "features": torch.randn(ROWS, 6, generator=generator),
        "teacher_features": torch.randn(ROWS, 8, generator=generator),
        "logits": torch.zeros(ROWS, 3),
        "target": torch.tensor(target),
        "index": index,
        "memory": {name: rows[index] for name, rows in bank.items()},
        "memory_bank": bank,
    }


def called(method, given):
    return method(**given, generator=torch.Generator().manual_seed(2))


def vectors(method, name, features):
    return nn.functional.normalize(method.maps[name](features), dim=1)


def test_by_hand():
    """One side: K = 3 negatives, 50 samples, Z = 1000, so that c = Z / 50 = 20; the mean of the two rows.

    The authors' 1e-7 in the denominator makes it 1.362579.
    """
    positives = torch.tensor([0.9, 0.5])
    negatives = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.4, -0.5]])
    terms = _terms(positives, negatives, torch.tensor([[True], [True]]), temperature=0.07, scale=20.0)
    assert terms.mean().item() == pytest.approx(1.362579, rel=5e-6)


def published(anchor, own, negatives, *, temperature):
    """The authors' form with exponentials, for one row: scores by the constant Z, and a denominator with 1e-7."""
    count = len(negatives)
    z = math.exp(1 / (2 * 128 * temperature**2)) * SAMPLES
    scores = [math.exp(torch.dot(anchor, other).item() / temperature) / z for other in [own, *negatives]]
    noise = count / SAMPLES
    value = -math.log(scores[0] / (scores[0] + noise + 1e-7))
    return value - sum(math.log(noise / (score + noise + 1e-7)) for score in scores[1:])


@pytest.mark.parametrize("temperature", [0.07, 0.3])
def test_equals_a_slow_loop(temperature):
    method, given = built(negatives=5, temperature=temperature), signals()
    draws = torch.randint(2**62, (ROWS, 5), generator=torch.Generator().manual_seed(2)).tolist()
    student = vectors(method, "student", given["features"])
    teacher = vectors(method, "teacher", given["teacher_features"])
    bank = given["memory_bank"]
    labels = bank["label"].clone()
    labels[given["index"]] = given["target"].float()
    expected = []
    for row, number in enumerate(given["index"].tolist()):
        ordered = sorted(range(SAMPLES), key=lambda sample: labels[sample].item())
        others = [sample for sample in ordered if labels[sample] != given["target"][row]]
        places = [others[draw % len(others)] for draw in draws[row]]
        value = 0.0
        for anchor, name in ((student[row], "teacher"), (teacher[row], "student")):
            value += published(anchor, bank[name][number], bank[name][places], temperature=temperature)
        expected.append(value)
    torch.testing.assert_close(called(method, given), torch.tensor(expected), rtol=2e-5, atol=0)


def test_negatives_are_all_of_the_other_classes_alike():
    """As many draws as there are others give each of them once."""
    classes = torch.tensor([2.0, 0.0, 1.0, 0.0, -1.0, 2.0, 0.0])
    for own in (0.0, 1.0, 2.0, 5.0):
        others = [place for place, label in enumerate(classes.tolist()) if label != own]
        places, some = _of_other_classes(classes, torch.tensor([own]), torch.arange(2 * len(others))[None])
        assert some.tolist() == [[True]]
        assert sorted(places[0].tolist()) == sorted(2 * others)


def test_a_sample_is_never_its_own_negative():
    """Also when it comes for the first time, and no class is known: the positive alone has a product of 1."""
    given = signals(target=(0, 1, 2, 1), labels=torch.full((SAMPLES,), -1.0))
    method = built(negatives=400)
    for name, features in (("student", "teacher_features"), ("teacher", "features")):
        other = vectors(method, "teacher" if name == "student" else "student", given[features]).detach()
        given["memory_bank"][name].zero_()[given["index"]] = other
    given["memory_bank"]["student"][given["index"][1:]] = 0
    given["memory_bank"]["teacher"][given["index"][1:]] = 0
    given["memory"] = {name: rows[given["index"]] for name, rows in given["memory_bank"].items()}
    shift = math.log(400) + 1 / (256 * 0.07**2)
    alone = math.log1p(math.exp(shift - 1 / 0.07)) + 400 * math.log1p(math.exp(-shift))
    assert called(method, given)[0].item() == pytest.approx(2 * alone, rel=1e-4)


def test_with_one_class_there_are_no_negatives():
    method, given = built(negatives=7), signals(target=(1, 1, 1, 1), labels=torch.ones(SAMPLES))
    shift = math.log(7) + 1 / (256 * 0.07**2)
    expected = 0
    for name, other, features in (("student", "teacher", "features"), ("teacher", "student", "teacher_features")):
        products = (vectors(method, name, given[features]) * given["memory"][other]).sum(1)
        expected = expected + (shift - products / 0.07).exp().log1p()
    torch.testing.assert_close(called(method, given), expected)


def test_a_row_without_a_class_counts_nothing():
    method, given = built(negatives=9), signals(target=(0, -100, 2, 3))
    values = called(method, given)
    assert [value == 0 for value in values.tolist()] == [False, True, False, True]
    labels = method.learn(**{name: given[name] for name in given if name not in ("index", "memory_bank")})["label"]
    assert labels.tolist() == [0.0, 0.0, 2.0, 1.0]  # Those of the bank for rows 1 and 3: 0 mod 3 and 7 mod 3.


def test_the_bank_holds_running_means_of_length_one():
    method, given = built(momentum=0.8), signals()
    learned = method.learn(**{name: given[name] for name in given if name not in ("index", "memory_bank")})
    for name, features in (("student", "features"), ("teacher", "teacher_features")):
        mixed = 0.8 * given["memory"][name] + 0.2 * vectors(method, name, given[features])
        torch.testing.assert_close(learned[name], mixed / mixed.norm(dim=1, keepdim=True))
    assert learned["label"].tolist() == [0.0, 1.0, 2.0, 1.0]


@pytest.mark.parametrize("temperature", [0.07, 0.1])
def test_the_scale_is_what_the_authors_code_estimates(temperature):
    """Their first batch meets a bank of uniform numbers: the mean of the scores, times the samples, is their Z."""
    generator = torch.Generator().manual_seed(0)
    assert [CRD.remembers[name].spread for name in ("student", "teacher")] == [(3 / 128) ** 0.5] * 2
    bank = (2 * torch.rand(50_000, 128, generator=generator) - 1) * CRD.remembers["teacher"].spread
    anchors = nn.functional.normalize(torch.randn(64, 128, generator=generator), dim=1)
    estimate = (anchors @ bank.T / temperature).exp().mean().item()
    assert math.exp(1 / (256 * temperature**2)) == pytest.approx(estimate, rel=0.01)


def test_both_maps_are_trained_and_the_teacher_is_not():
    method, given = built(negatives=5), signals()
    for name in ("features", "teacher_features"):
        given[name] = given[name].clone().requires_grad_()
    called(method, given).sum().backward()
    assert given["teacher_features"].grad is None
    assert given["features"].grad.abs().sum() > 0
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.parameters())


def test_features_of_zeros_stay_finite():
    method, given = built(negatives=5), signals()
    for layer in method.maps.values():
        nn.init.zeros_(layer.bias)
    given["features"] = torch.zeros(ROWS, 6, requires_grad=True)
    called(method, given).sum().backward()
    assert given["features"].grad.isfinite().all()


def teacher():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))


def indexed():
    return DataLoader(with_index(data()), batch_size=8)


def test_in_a_training_it_fills_the_bank():
    callback = Distill(CRD(negatives=6), teacher=teacher(), weight=0.8)
    net, _ = fit(callback, train=indexed(), max_epochs=1)
    assert not equal(net, fit(train=indexed(), net=Unpacked, max_epochs=1)[0])
    rows = callback.state_dict()
    assert rows["memory.label"].tolist() == data().tensors[1].tolist()
    for name in ("student", "teacher"):
        torch.testing.assert_close(rows[f"memory.{name}"].norm(dim=1), torch.ones(24))
    assert callback.method.maps["student"].weight.shape == (128, 6)
    assert callback.method.maps["teacher"].weight.shape == (128, 9)


class Unpacked(Net):
    """Takes the item of an indexed batch."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch.item if hasattr(batch, "item") else batch, batch_idx)


def test_a_resumed_training_goes_on(tmp_path):
    """With the banks and the maps as they were."""

    def run(ckpt_path=None, seed=0):
        L.seed_everything(seed, verbose=False)
        net, saving = Net(), ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1)
        callback = Distill(CRD(negatives=6), teacher=teacher())
        trainer(callback, saving, enable_checkpointing=True).fit(net, indexed(), ckpt_path=ckpt_path)
        return net, callback.state_dict()

    (whole, state), (resumed, other) = run(), run(tmp_path / "step=3.ckpt", seed=1)
    assert equal(whole, resumed)
    torch.testing.assert_close(state, other, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"negatives": 0}, "negatives=0 must be >= 1"),
        ({"temperature": 0.0}, r"temperature=0\.0 must be > 0 and finite"),
        ({"temperature": math.nan}, "temperature=nan must be > 0 and finite"),
        ({"momentum": 1.0}, r"momentum=1\.0 must be in \[0, 1\)"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        CRD(**settings)


def test_a_head_of_the_teacher_without_a_size_is_refused():
    with pytest.raises(ValueError, match=r"head ReLU holds no layer with a matrix .* with teacher_head='path\.to\.it'"):
        fit(Distill(CRD(), teacher=teacher(), teacher_head="1"), train=indexed())


def test_maps_of_features_are_refused():
    with pytest.raises(ValueError, match=r"features of the shape \(4, 6, 2\), torch.float32, must be \(N, D\)"):
        called(built(), {**signals(), "features": torch.zeros(4, 6, 2)})
