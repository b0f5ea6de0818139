"""A survey without a Trainer."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import data
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import lightning_objectives as lo
from lightning_objectives.data import with_index
from lightning_objectives.kinds import Survey


def network(classes=3):
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, classes))


def counts(loader, **settings):
    return lo.survey_data(lo.ClassCounts(), network(), loader, **settings)["counts"].tolist()


COUNTS = data().tensors[1].bincount().tolist()


@pytest.mark.parametrize(
    "settings",
    [{"shuffle": True}, {"drop_last": True, "batch_size": 7}, {"num_workers": 1}, {"batch_size": 100}, {}],
    ids=str,
)
def test_each_sample_counts_once_whatever_the_loader(settings):
    assert counts(DataLoader(data(), **{"batch_size": 5, **settings})) == COUNTS


def test_samplers_of_the_user_are_followed():
    targets = data().tensors[1]
    some = torch.arange(24)[targets != 1]
    assert counts(DataLoader(data(), sampler=SubsetRandomSampler(some.tolist())))[1] == 0
    few = RandomSampler(data(), num_samples=9)
    assert sum(counts(DataLoader(data(), batch_size=2, sampler=few))) == 9
    assert counts([(x[None], y[None]) for x, y in data()]) == COUNTS


def test_the_generator_of_a_sampler_goes_on_where_it_was():
    sampler = WeightedRandomSampler([1.0] * 24, 12, generator=torch.Generator().manual_seed(3))
    loader = DataLoader(data(), batch_size=8, sampler=sampler)
    lists = [counts(loader) for _ in range(2)]
    assert lists[0] == lists[1]
    assert torch.equal(sampler.generator.get_state(), torch.Generator().manual_seed(3).get_state())


def test_the_importance_is_a_mean_over_the_rows():
    net = network().eval()
    sums = lo.fisher_sums(net, *data().tensors)
    result = lo.survey_data(lo.Fisher(), net, DataLoader(data(), batch_size=5, shuffle=True))
    torch.testing.assert_close(result, {name: value / 24 for name, value in sums.items()})


def test_the_line_that_feeds_a_loss():
    counts = lo.survey_data(lo.ClassCounts(), network(), DataLoader(data(), batch_size=8))["counts"]
    assert lo.BalancedSoftmaxLoss(counts=counts).counts == tuple(COUNTS)


class Noisy(Dataset):
    """Draws from all three global streams."""

    def __len__(self):
        return 10

    def __getitem__(self, at):
        x = torch.randn(4) + np.random.rand() + random.random()
        return x, at % 3


def test_nothing_is_left_behind():
    net, loader = network(), DataLoader(Noisy(), batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(5))
    net[3].eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = [torch.rand(1), np.random.rand(), random.random()]
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    first = lo.survey_data(lo.Fisher(), net, loader)
    assert [torch.rand(1), np.random.rand(), random.random()] == expected
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net] == [True, True, True, False, True]
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    assert loader.generator.initial_seed() == 5
    assert torch.equal(loader.generator.get_state(), torch.Generator().manual_seed(5).get_state())
    again = lo.survey_data(lo.Fisher(), net, loader)
    assert all(torch.equal(first[k], again[k]) for k in first)
    other = lo.survey_data(lo.Fisher(), net, loader, seed=1)
    assert not torch.equal(first["4.bias"], other["4.bias"])


class Boom(Survey):
    def forward(self, logits):
        raise RuntimeError("boom")


def test_an_error_leaves_the_network_as_it_was():
    net = network()
    with pytest.raises(RuntimeError, match="boom"):
        lo.survey_data(Boom(), net, DataLoader(data(), batch_size=8))
    assert all(m.training for m in net)
    assert not {"forward"} & {name for m in net.modules() for name in vars(m)}


def test_the_network_is_in_evaluation_mode():
    net = network()
    seen = []
    net[3].register_forward_hook(lambda module, args, output: seen.append(torch.equal(args[0], output)))
    lo.survey_data(lo.ClassCounts(), net, DataLoader(data(), batch_size=8))
    assert seen == [True] * 3


def test_a_step_of_the_users():
    """It scales, ignores a class, and takes its batch from a dictionary."""
    net, targets = network(), data().tensors[1]

    def step(batch):
        return F.cross_entropy(net(batch["x"]), batch["y"], ignore_index=1) / 2

    loader = [{"x": x, "y": y} for x, y in DataLoader(data(), batch_size=8)]
    counts = lo.survey_data(lo.ClassCounts(), net, loader, step=step)["counts"].tolist()
    assert counts == [COUNTS[0], 0, COUNTS[2]]
    ours = lo.survey_data(lo.Fisher(empirical=True), net, loader, step=step)
    kept = TensorDataset(*(tensor[targets != 1] for tensor in data().tensors))
    plain = lo.survey_data(lo.Fisher(empirical=True), net, DataLoader(kept, batch_size=8))
    torch.testing.assert_close(ours, plain)


class Grams(Survey):
    """The second moments of the head's input, as a later survey needs them."""

    def forward(self, features, index):
        return {"gram": features.T @ features, "index": index.sum()}


def test_features_and_indices():
    net = network().eval()
    result = lo.survey_data(Grams(), net, DataLoader(with_index(data()), batch_size=8))
    features = net[:-1](data().tensors[0]).detach()
    torch.testing.assert_close(result["gram"], (features.T @ features).double())
    assert (result["gram"].dtype, result["index"].item()) == (torch.float64, 23 * 24 // 2)


def test_a_number_of_batches():
    assert sum(counts(DataLoader(data(), batch_size=5, shuffle=True), max_batches=2)) == 10


def test_the_result_is_a_file(tmp_path):
    path = tmp_path / "new" / "fisher.safetensors"
    net = network()
    result = lo.survey_data(lo.Fisher(), net, DataLoader(data(), batch_size=8), path=path)
    files = [tmp_path / f"{name}.pt" for name in "ab"]
    for file in files:
        torch.save(network().state_dict(), file)
    merged = tmp_path / "merged.pt"
    buffers = ["*running*", "*tracked"]
    lo.merge_checkpoints(files, lo.FisherMerging(), merged, importance=[path, path], buffers=buffers, order="given")
    assert torch.equal(torch.load(merged, weights_only=True)["0.weight"], net[0].weight)
    assert result.keys() == {name for name, _ in net.named_parameters()}


class NeedsTeacher(Survey):
    def forward(self, teacher_logits):
        return {}


class Growing(Survey):
    def forward(self, logits):
        return {"sum": logits.sum(0)[: len(logits) % 3]}


@pytest.mark.parametrize(
    ("survey", "settings", "batch", "message"),
    [
        (lo.ClassCounts(), {"max_batches": 0}, (4, 3), "max_batches=0 must be >= 1"),
        (lo.ClassCounts(), {"path": "x.pt"}, (4, 3), r"must end in \.safetensors"),
        (lo.ClassCounts(), {"step": lambda batch: batch[0].sum()}, (4, 3), "no criterion was seen"),
        (lo.ClassCounts(), {"step": lambda batch: F.mse_loss(*batch[:1] * 2)}, (4, 3), "is for one class of several"),
        (lo.ClassCounts(), {}, None, "batches of .inputs, target., but the batch is a list of 3"),
        (lo.ClassCounts(), {"which": 1}, (4, 3), "calls 1 criteria; choose a smaller number"),
        (NeedsTeacher(), {}, (4, 3), "'teacher_logits', which there is only in a training step"),
        (Growing(), {}, (4, 3), "names and shapes must not depend on the batch"),
        (lo.Fisher(), {"step": lambda batch: F.cross_entropy(batch[0][:, :3], batch[1])}, (4, 3), "not what the crit"),
    ],
)  # fmt: skip
def test_what_is_refused(survey, settings, batch, message):
    loader = DataLoader(data(n=10), batch_size=4)
    if batch is None:
        loader = [[torch.zeros(2, 4), torch.zeros(2), 0]]
    with pytest.raises(ValueError, match=message):
        lo.survey_data(survey, network(), loader, **settings)


def test_a_loader_without_batches():
    with pytest.raises(ValueError, match="In a loader without batches there was no row"):
        lo.survey_data(lo.ClassCounts(), network(), [])


def test_a_progress_bar(capsys):
    counts(DataLoader(data(), batch_size=8), verbose=True)
    assert "3/3" in capsys.readouterr().err
    counts(DataLoader(data(), batch_size=8))
    assert not capsys.readouterr().err
