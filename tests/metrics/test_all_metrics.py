"""What every metric keeps: shapes, batches, ranks, types, copies. The values are in each metric's own test."""

import copy
import inspect
import math
import pickle
import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import Metric, MetricCollection

from lightning_objectives.discovery import methods
from lightning_objectives.metrics import FalseHeadRate, MarginError, default_metrics

CLASSES = [
    cls
    for room, cls in methods()
    if room == "metrics"
    and list(inspect.signature(cls.update).parameters)[1:] == ["preds", "target"]
    and cls is not FalseHeadRate  # It is of one number of classes.
]
EVERY = [cls for room, cls in methods() if room == "metrics"]
"""Also those that ask for features, the head or the loader."""
each = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def data(n=60, c=7, seed=0, soft=False):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, c, generator=generator)
    target = torch.randint(c, (n,), generator=generator)
    if soft:
        target = torch.rand(n, c, generator=generator).softmax(1)
    return logits, target


def made(cls):
    return cls(counts=range(7, 0, -1)) if cls is FalseHeadRate else cls()


def value(metric, *batches):
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


def batch_of(cls):
    """What a metric's update names, for 60 rows."""
    logits, target = data()
    generator = torch.Generator().manual_seed(1)
    shown = {
        "features": torch.randn(60, 5, generator=generator),
        "head": torch.nn.Linear(5, 7),
        "loader": torch.arange(60) % 2,
        "logits": logits,
        "preds": logits,
        "target": target,
        "teacher_features": torch.randn(60, 4, generator=generator),
    }
    torch.nn.init.constant_(shown["head"].weight, -0.5)
    return [shown[name] for name in inspect.signature(cls.update).parameters if name != "self"]


def states(metric):
    """The sums; what is kept of each row is a list beside them."""
    kept = {name: getattr(metric, name) for name in metric.metric_state}
    return {name: state for name, state in kept.items() if not isinstance(state, list)}


@each
@pytest.mark.parametrize("soft", [False, True])
def test_order_and_batches_do_not_matter(cls, soft):
    logits, target = data(soft=soft)
    whole = value(cls(), (logits, target))
    order = torch.randperm(60)
    torch.testing.assert_close(value(cls(), (logits[order], target[order])), whole)
    torch.testing.assert_close(value(cls(), *zip(logits.split([1, 40, 19]), target.split([1, 40, 19]))), whole)
    assert whole.dtype == torch.float32
    assert whole.shape == ()


@each
def test_what_torchmetrics_fixes_stays_fixed(cls):
    metric = cls()
    with pytest.raises(RuntimeError, match="Can't change const `higher_is_better`"):
        metric.higher_is_better = not metric.higher_is_better


@each
def test_one_hot_targets_equal_class_indices(cls):
    logits, target = data()
    one_hot = torch.nn.functional.one_hot(target, 7).float()
    torch.testing.assert_close(value(cls(), (logits, one_hot)), value(cls(), (logits, target)))


@each
def test_logits_equal_their_probabilities_and_are_never_guessed(cls):
    logits, target = data()
    expected = value(cls(), (logits, target))
    torch.testing.assert_close(value(cls(from_logits=False), (logits.softmax(1), target)), expected)
    # Logits that look like probabilities are logits all the same.
    inside = logits.sigmoid()
    assert inside.amin() > 0
    assert inside.amax() < 1
    torch.testing.assert_close(
        value(cls(), (inside, target)), value(cls(from_logits=False), (inside.softmax(1), target))
    )


@each
@pytest.mark.parametrize("soft", [False, True])
def test_positions_are_rows(cls, soft):
    logits, target = data(n=2 * 3 * 5, soft=soft)
    maps = logits.reshape(2, 3, 5, 7).movedim(-1, 1)
    target_maps = target.reshape(2, 3, 5, 7).movedim(-1, 1) if soft else target.reshape(2, 3, 5)
    torch.testing.assert_close(value(cls(), (maps, target_maps)), value(cls(), (logits, target)))


@each
def test_ignored_rows_do_not_count(cls):
    logits, target = data()
    kept = target != 3
    expected = value(cls(), (logits[kept], target[kept]))
    torch.testing.assert_close(value(cls(ignore_index=3), (logits, target)), expected)
    hidden = target.masked_fill(~kept, -100)
    spoilt = logits.masked_fill(~kept[:, None], torch.nan)
    torch.testing.assert_close(value(cls(), (spoilt, hidden)), expected)
    with pytest.raises(ValueError, match=f"{int((~kept).sum())} of 60 rows"):
        value(cls(ignore_index=None), (logits, hidden))


@each
def test_one_column_is_two_classes(cls):
    logit = torch.tensor([-2.0, 0.5, 3.0, -0.1])
    target = torch.tensor([0, 1, 0, 1])
    soft = torch.tensor([0.1, 0.8, 0.4, 1.0])
    two = torch.stack([-logit / 2, logit / 2], 1)
    for p, t, expected in (
        (logit, target, (two, target)),
        (logit[:, None], target, (two, target)),
        (logit[:, None], target[:, None], (two, target)),
        (logit[:, None], target[:, None].float(), (two, target)),
        (logit, target.bool(), (two, target)),
        (logit, soft, (two, torch.stack([1 - soft, soft], 1))),
        (logit.reshape(2, 1, 2), soft.reshape(2, 2), (two, torch.stack([1 - soft, soft], 1))),
    ):
        torch.testing.assert_close(value(cls(), (p, t)), value(cls(), expected))
        torch.testing.assert_close(value(cls(from_logits=False), (p.sigmoid(), t)), value(cls(), expected))


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_computed_in_float32(cls, dtype):
    logits, target = data()
    low = logits.to(dtype)
    _, soft = data(soft=True)
    if dtype.itemsize == 2:
        assert torch.equal(value(cls(), (low, target)), value(cls(), (low.float(), target)))
        assert torch.equal(value(cls(), (low, soft)), value(cls(), (low.float(), soft)))
    torch.testing.assert_close(value(cls(), (low, target)), value(cls(), (logits, target)), atol=0.02, rtol=0.02)


@each
def test_probabilities_of_half_precision_are_accepted(cls):
    logits, target = data(n=20, c=300)
    low = logits.softmax(1).bfloat16()  # whose sums are 1 to three digits
    expected = value(cls(), (low.float().log(), target))
    torch.testing.assert_close(value(cls(from_logits=False), (low, target)), expected, rtol=1e-3, atol=1e-3)


@each
def test_wrong_shapes_and_types_are_refused(cls):
    logits, target = data()
    for bad, message in (
        ((logits.argmax(1), target), "not predicted classes"),
        ((logits, target[:-1]), r"target \(59,\) .* does not fit preds \(60, 7\)"),
        ((logits, target.float()), "does not fit"),
        ((logits.reshape(5, 12, 7), target.reshape(5, 12)), r"movedim\(-1, 1\)"),
        ((logits.sum(), target), "expected"),
        ((logits[:, :0], target), "expected"),
    ):
        with pytest.raises(ValueError, match=message):
            cls().update(*bad)


@each
def test_wrong_values_stop_compute(cls):
    logits, target = data()
    soft = logits.softmax(1)
    for metric, batch in (
        (cls(from_logits=False), (logits, target)),
        (cls(from_logits=False), (2 * soft, target)),
        (cls(from_logits=False), (torch.tensor([1.2, 0.3]), torch.tensor([0, 1]))),
        (cls(), (logits, target + 1)),
        (cls(), (logits, target - 1)),
        (cls(), (logits, 2 * soft)),
        (cls(), (logits, logits)),
    ):
        metric.update(*batch)
        with pytest.raises(ValueError, match=r"rows break a rule.*from_logits"):
            metric.compute()


@each
@pytest.mark.parametrize("soft", [False, True])
def test_nan_gives_nan_and_no_rows_too(cls, soft):
    logits, target = data(soft=soft)
    assert value(cls(), (logits[:0], target[:0])).isnan()
    logits[3, 2] = torch.nan
    assert value(cls(), (logits, target)).isnan()
    assert value(cls(), (torch.full_like(logits, torch.nan), target)).isnan()


@pytest.mark.parametrize("cls", EVERY, ids=lambda cls: cls.__name__)
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric .* was called before")
def test_before_the_first_batch_the_value_is_nan(cls):
    if cls.__name__ == "OODDetection":
        with pytest.raises(ValueError, match="pass two loaders"):
            made(cls).compute()
        return
    found = made(cls).compute()
    assert all(number.isnan() for number in (found.values() if isinstance(found, dict) else [found]))


@each
def test_large_logits_and_masked_classes_are_finite(cls):
    logits, target = data()
    assert value(cls(), (1e4 * logits, target)).isfinite()
    masked = logits.index_fill(1, torch.tensor([6]), -torch.inf)
    assert value(cls(), (masked, target % 6)).isfinite()
    one_hot = torch.nn.functional.one_hot(target % 6, 7).float()
    torch.testing.assert_close(value(cls(), (masked, one_hot)), value(cls(), (masked, target % 6)))


@each
def test_forward_returns_the_batch_and_accumulates(cls):
    logits, target = data()
    metric = cls()
    for rows in torch.arange(60).split(25):
        torch.testing.assert_close(metric(logits[rows], target[rows]), value(cls(), (logits[rows], target[rows])))
    torch.testing.assert_close(metric.compute(), value(cls(), (logits, target)))


@each
def test_the_gradient_is_there_where_it_is_declared(cls):
    logits, target = data()
    logits.requires_grad_()
    metric = cls()
    batch = metric(logits, target)
    assert batch.requires_grad is cls.is_differentiable
    if batch.requires_grad:
        batch.backward()
        assert logits.grad.abs().sum() > 0
    assert not any(state.requires_grad for state in states(metric).values())


@each
def test_reset_copy_pickle_and_merge(cls):
    logits, target = data()
    whole = value(cls(), (logits, target))
    metric = cls()
    metric.update(logits[:20], target[:20])
    for other in (copy.deepcopy(metric), metric.clone(), pickle.loads(pickle.dumps(metric))):
        torch.testing.assert_close(value(other, (logits[20:], target[20:])), whole)
    rest = cls()
    rest.update(logits[20:], target[20:])
    metric.merge_state(rest)
    torch.testing.assert_close(metric.compute(), whole)
    metric.reset()
    assert all((state == 0).all() for state in states(metric).values())
    torch.testing.assert_close(value(metric, (logits, target)), whole)


@each
def test_merging_metrics_of_other_settings_is_refused(cls):
    one, other = cls(), cls(ignore_index=1)
    with pytest.raises(ValueError, match="to be present"):
        one.merge_state(other)


@each
def test_the_state_has_a_constant_size(cls):
    """From the first batch on, which shows the number of classes."""
    metric = cls()
    logits, target = data(n=5000)
    metric.update(logits, target)
    sizes = {name: state.shape for name, state in states(metric).items()}
    for _ in range(20):
        metric.update(logits, target)
    assert {name: state.shape for name, state in states(metric).items()} == sizes
    keeps_rows = any(isinstance(state, list) for state in metric.metric_state.values())
    assert keeps_rows == (cls.__name__ == "AURC")


@each
def test_states_keep_their_types_when_a_module_is_cast(cls):
    logits, target = data()
    for cast in ("half", "bfloat16", "double", "float"):
        module = torch.nn.Module()
        module.metric = cls()
        module.metric.update(logits[:9], target[:9])
        getattr(module, cast)()
        module.to(torch.bfloat16)
        assert {state.dtype for state in states(module.metric).values()} <= {torch.float64, torch.int64}
        torch.testing.assert_close(
            value(module.metric, (logits[9:], target[9:])), value(cls(), (logits, target)), rtol=0, atol=0
        )


@each
def test_devices_without_float64_sum_in_float32(cls, monkeypatch):
    monkeypatch.setattr("lightning_objectives.metrics._sums.WITHOUT_FLOAT64", ("meta",))
    metric = cls().to("meta")
    assert {state.dtype for state in states(metric).values()} <= {torch.float32, torch.int64}
    assert {state.device.type for state in states(metric).values()} == {"meta"}
    metric.reset()
    assert {state.dtype for state in states(metric).values()} <= {torch.float32, torch.int64}


@each
def test_inference_mode_and_back(cls):
    logits, target = data()
    metric = cls()
    with torch.inference_mode():
        metric.update(logits, target)
        metric.reset()
        metric.update(logits[:20], target[:20])
    torch.testing.assert_close(value(metric, (logits[20:], target[20:])), value(cls(), (logits, target)))


@each
def test_the_global_random_state_is_not_touched(cls):
    before = torch.get_rng_state()
    value(cls(), data())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_collection_keeps_metrics_apart_that_agree_on_the_first_batch():
    # All right in the first batch, so that top-1 equals top-5 there; all wrong at rank 2 in the second.
    collection = default_metrics(7)
    first, second = torch.eye(7) * 9, torch.eye(7) * 9
    collection.update(first, torch.arange(7))
    collection.update(second, (torch.arange(7) + 1) % 7)
    values = {name: float(v) for name, v in collection.compute().items()}
    assert values["top1"] == 0.5
    # Behind the hot class i rank 0, 1, ... without i: the target i + 1 is fifth at i = 3 and too late at 4 and 5.
    assert values["top5"] == pytest.approx((7 + 5) / 14)
    collection.reset()
    assert len(collection.compute_groups) == 5


@each
def test_a_collection_equals_its_metrics(cls):
    logits, target = data()
    half = target.clone()
    half[:30] = 0
    collection = MetricCollection({"all": cls(), "some": cls(ignore_index=1), "probabilities": cls(from_logits=False)})
    batches = [(logits.softmax(1)[:30], half[:30]), (logits.softmax(1)[30:], half[30:])]
    for batch in batches:
        collection.update(*batch)
    got = collection.compute()
    for name, metric in collection.items():
        assert torch.equal(got[name], value(type(metric)(**settings(metric)), *batches))


def other_values(cls):
    """Each number among the settings with another value, by its name."""
    for name, setting in inspect.signature(cls).parameters.items():
        default = setting.default
        if name not in ("from_logits", "ignore_index") and isinstance(default, (bool, int, float)):
            yield {name: not default if isinstance(default, bool) else default + 1}


def test_a_collection_keeps_metrics_of_other_settings_apart():
    """In the first batch all of them agree: every row is right by far."""
    tried = [(cls, other) for cls in CLASSES for other in other_values(cls)]
    assert (MarginError, {"margin": 1.0}) in tried
    for cls, other in tried:
        collection = MetricCollection({"first": cls(), "second": cls(**other)})
        batches = [(30 * torch.eye(7), torch.arange(7)), data()]
        for batch in batches:
            collection.update(*batch)
        got = collection.compute()
        assert torch.equal(got["first"], value(cls(), *batches)), (cls, other)
        assert torch.equal(got["second"], value(cls(**other), *batches)), (cls, other)


def settings(metric):
    return {name: getattr(metric, name) for name in ("from_logits", "ignore_index")}


def test_default_metrics():
    assert sorted(default_metrics(5)) == ["brier", "ece", "nll", "top1"]
    logits, target = data()
    got = default_metrics(7)(logits, target)
    for name in ("brier", "ece", "nll", "top1", "top5"):
        assert math.isfinite(got[name])
    with pytest.raises(ValueError, match="num_classes=0"):
        default_metrics(0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_logged_by_lightning(precision):
    logits, target = data(n=50)
    expected = default_metrics(7)(logits.bfloat16() if precision == "bf16-true" else logits, target)

    class Net(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.metrics = default_metrics(7)
            self.layer = torch.nn.Linear(1, 1)  # something that the precision casts

        def validation_step(self, batch, batch_idx):
            self.metrics.update(*batch)
            self.log_dict(self.metrics)

    trainer = pl.Trainer(
        precision=precision,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    net, loader = Net(), DataLoader(TensorDataset(logits, target), batch_size=20)
    for _ in range(2):  # the states are reset in between
        (got,) = trainer.validate(net, loader, verbose=False)
        assert got == pytest.approx({name: float(v) for name, v in expected.items()}, rel=1e-6)
    assert "metrics" not in str(net.state_dict().keys())


@each
def test_plot_draws_values(cls):
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = cls().plot([torch.tensor(0.2), torch.tensor(0.1)])
    assert axes.lines
    plt.close(figure)


@pytest.mark.processes
@pytest.mark.timeout(60)
def test_two_ranks_equal_one(tmp_path):
    torch.multiprocessing.spawn(_rank, args=(str(tmp_path / "store"),), nprocs=2)


def _rank(rank, store):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    logits, target = data()
    mine = slice(0, 20) if rank == 0 else slice(20, 60)  # uneven
    for cls in CLASSES:
        metric = cls()
        metric.update(logits[mine], target[mine])
        local = {name: state.clone() for name, state in states(metric).items()}
        alone: Metric = cls()
        alone.sync_on_compute = alone._to_sync = False
        torch.testing.assert_close(metric.compute(), value(alone, (logits, target)))
        for name, state in states(metric).items():
            assert torch.equal(state, local[name]), "the ranks' own states come back"
        if hasattr(metric, "bins"):
            assert metric.bins().rows.sum() == 60
    torch.distributed.destroy_process_group()


@pytest.mark.processes
@pytest.mark.timeout(60)
def test_a_rank_without_a_batch_changes_nothing(tmp_path):
    torch.multiprocessing.spawn(_rank_without_a_batch, args=(str(tmp_path / "store"),), nprocs=2)


def _rank_without_a_batch(rank, store):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    warnings.filterwarnings("ignore", "The ``compute`` method of metric .* was called before")
    for cls in EVERY:
        for first in (0, 1):  # the rank that has all batches
            metric, alone, new = made(cls), made(cls), made(cls)
            alone.sync_on_compute = alone._to_sync = False
            if rank == first:
                metric.update(*batch_of(cls))
            torch.testing.assert_close(metric.compute(), value(alone, batch_of(cls)), msg=cls.__name__)
            if rank != first:  # its own states come back
                for name, state in metric.metric_state.items():
                    assert state == [] if isinstance(state, list) else state.shape == getattr(new, name).shape
    torch.distributed.destroy_process_group()
