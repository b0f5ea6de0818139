"""ReweightSamples says once in a fit that a batch of one sample has nothing to weigh."""

import warnings

import pytest
import torch
from helpers import Net, equal, fit, loader, trainer

from lightning_objectives.callbacks import LossReweightingCallback, ReweightSamples
from lightning_objectives.weighting import LossBasedReweighting

WORDS = "got a micro-batch of one sample over all ranks"


def warnings_of(run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = run()
    return [str(w.message) for w in caught if "ReweightSamples" in str(w.message)], result


@pytest.mark.parametrize("callback", [ReweightSamples(LossBasedReweighting()), LossReweightingCallback()])
def test_it_says_so_once_in_a_fit(callback):
    said, (net, _) = warnings_of(lambda: fit(callback, train=loader(1)))
    assert len(said) == 1
    assert WORDS in said[0]
    assert equal(net, fit(train=loader(1))[0]), "nothing is changed"
    again, _ = warnings_of(lambda: fit(callback, train=loader(1)))
    assert len(again) == 1, "each fit says so"


def test_the_last_batch_alone_is_enough():
    said, _ = warnings_of(lambda: fit(ReweightSamples(LossBasedReweighting()), train=loader(8, n=17)))
    assert len(said) == 1
    assert "drop_last=True" in said[0]


def test_larger_batches_say_nothing():
    said, _ = warnings_of(lambda: fit(ReweightSamples(LossBasedReweighting()), train=loader(2)))
    assert not said


def test_a_warm_up_says_nothing_yet():
    method = LossBasedReweighting(warmup_steps=10**6)
    said, _ = warnings_of(lambda: fit(ReweightSamples(method), train=loader(1)))
    assert not said


def test_one_element_is_called_so():
    said, _ = warnings_of(lambda: fit(ReweightSamples(LossBasedReweighting(), unit="element"), train=loader(1)))
    assert "a micro-batch of one element" in said[0]


def test_an_exception_ends_a_fit_too():
    class Fails(Net):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            raise RuntimeError("stop")

    callback = ReweightSamples(LossBasedReweighting())

    def run():
        with pytest.raises(RuntimeError, match="stop"):
            trainer(callback).fit(Fails(), loader(1))

    for _ in range(2):
        said, _ = warnings_of(run)
        assert len(said) == 1


def test_the_count_comes_from_all_ranks(monkeypatch):
    """One sample on each of two ranks are two, which have something to weigh."""
    from lightning_objectives.callbacks import reweight_samples

    def gather(tensors):
        return [torch.cat([t, t + 1]) for t in tensors], slice(0, len(tensors[0]))

    monkeypatch.setattr(reweight_samples, "gather_rows", gather)
    said, _ = warnings_of(lambda: fit(ReweightSamples(LossBasedReweighting()), train=loader(1)))
    assert not said
