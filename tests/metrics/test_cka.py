"""The value by hand and by a slow loop over pairs of rows, over batches and ranks, and what has none."""

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import MetricCollection

from lightning_objectives.metrics import CKA, linear_cka

X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 1.0], [1.0, 3.0], [0.0, 0.0]])
Y = torch.tensor([[1.0], [0.0], [2.0], [1.0], [1.0]])


def streamed(*batches, metric=None):
    metric = CKA() if metric is None else metric
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


def parts(x, y, size):
    return zip(x.split(size), y.split(size), strict=True)


def hsic(k, m):
    """The unbiased estimate of Song et al., as equation 3 of Nguyen et al. has it, one element at a time."""
    n = len(k)
    pairs = [(i, j) for i, j in itertools.product(range(n), range(n)) if i != j]
    trace = math.fsum(k[i][j] * m[j][i] for i, j in pairs)
    sums = [math.fsum(a[i][j] for i, j in pairs) for a in (k, m)]
    rows = [[math.fsum(a[i][j] for j in range(n) if j != i) for i in range(n)] for a in (k, m)]
    both = math.fsum(a * b for a, b in zip(*rows))
    return (trace + sums[0] * sums[1] / ((n - 1) * (n - 2)) - 2 / (n - 2) * both) / (n * (n - 3))


def slow(x, y):
    """By the products of each pair of rows, (N, N)."""
    k, m = ([[math.fsum(a * b for a, b in zip(p, q)) for q in v.tolist()] for p in v.tolist()] for v in (x, y))
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def drawn(rows, columns, seed, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    noise = [torch.randn(rows, size, generator=generator, dtype=torch.float64) for size in columns]
    return [shift + v + shared @ torch.randn(2, v.shape[1], generator=generator, dtype=torch.float64) for v in noise]


def test_by_hand():
    """From the sheet of the formulas: .295398, and .522233 without the bias."""
    assert linear_cka(X, Y).item() == pytest.approx(0.522233, abs=1e-6)
    assert linear_cka(X, Y, debiased=False).item() == pytest.approx(0.295398, abs=1e-6)
    assert slow(X.double(), Y.double()) == pytest.approx(0.522233, abs=1e-6)
    assert streamed((X[:2], Y[:2]), (X[2:], Y[2:])).item() == pytest.approx(0.522233, abs=1e-6)
    biased = streamed((X[:2], Y[:2]), (X[2:], Y[2:]), metric=CKA(debiased=False))
    assert biased.item() == pytest.approx(0.295398, abs=1e-6)


@settings(deadline=None)
@given(
    rows=st.integers(4, 12),
    columns=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    size=st.integers(1, 12),
    shift=st.sampled_from([0.0, 100.0, -1e4]),
    seed=st.integers(0, 1000),
)
def test_a_slow_loop_over_pairs_gives_the_same(rows, columns, size, shift, seed):
    """About 0, where the loop loses no digits; the code gets the shifted features."""
    x, y = drawn(rows, columns, seed)
    expected = slow(x, y)
    found = [linear_cka(x + shift, y - 2 * shift), streamed(*parts(x + shift, y - 2 * shift, size))]
    for value in found:
        # A self-similarity near 0, as of a column of four rows, makes the loop lose digits too.
        assert value.isnan() or value.item() == pytest.approx(expected, abs=1e-5)
        assert value.isnan() or -1 <= value <= 1
    if rows > 5:
        assert not any(value.isnan() for value in found)


@pytest.mark.parametrize("shift", [100.0, 1e5])
def test_a_mean_far_from_zero_costs_no_digits(shift):
    """Plain sums of fourth powers would have no digit left of features of 1 about 1e5."""
    x, y = (v.round(decimals=3) for v in drawn(300, (8, 6), 0))
    expected = linear_cka(x, y)
    found = streamed(*parts(x + shift, y + shift, 64))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_rotation_scale_and_shift_change_nothing_and_a_mix_does():
    x, _ = drawn(40, (5, 1), 1)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))
    assert linear_cka(x, 3 * x @ turn - 7).item() == pytest.approx(1, abs=1e-6)
    mixed = x * torch.tensor([10.0, 1, 1, 1, 1], dtype=torch.float64)
    assert linear_cka(x, mixed).item() < 0.9


def test_few_rows_bias_the_plain_form_alone():
    generator = torch.Generator().manual_seed(0)
    pairs = [[torch.randn(10, 50, generator=generator) for _ in range(2)] for _ in range(200)]
    assert torch.stack([linear_cka(x, y, debiased=False) for x, y in pairs]).mean() > 0.8
    assert abs(torch.stack([linear_cka(x, y) for x, y in pairs]).mean()) < 0.02


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric CKA was called before")
def test_a_merged_copy_and_forward_keep_one_sum():
    x, y = drawn(30, (4, 3), 2, shift=50)
    expected = linear_cka(x, y)
    first, second, empty = CKA(), CKA(), CKA()
    for batch in parts(x[:12], y[:12], 5):
        first(*batch)
    assert len(getattr(first, first._name)) == 1
    second.update(x[12:], y[12:])
    first.merge_state(second)
    torch.testing.assert_close(first.compute(), expected)
    empty.merge_state(first)
    torch.testing.assert_close(empty.compute(), expected)
    empty.reset()
    assert streamed((x, y), metric=empty) == expected
    fresh = CKA()
    fresh.merge_state(second)
    with pytest.raises(ValueError, match=r"had \(4, 3\) columns"):
        fresh.update(x, x)


def test_half_precision_and_a_rank_without_rows():
    x, y = (v.bfloat16() for v in drawn(60, (5, 4), 3))
    torch.testing.assert_close(streamed(*parts(x, y, 7)), linear_cka(x.double(), y.double()))
    torch.testing.assert_close(streamed((x[:0], y[:0]), (x, y)), linear_cka(x, y))
    metric = CKA().half()
    metric.update(x, y)
    assert getattr(metric, metric._name)[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (X[:3], Y[:3]),
        (X[:0], Y[:0]),
        (torch.full((9, 2), 3.7), torch.randn(9, 2)),
        (torch.randn(9, 2), torch.full((9, 1), -1e8)),
        (torch.eye(6), torch.randn(6, 2)),  # rows that are all alike: all that is shared is bias
        (torch.full((9, 2), math.inf), torch.randn(9, 2)),
        (torch.randn(9, 2), torch.randn(9, 2).index_fill(0, torch.tensor([4]), torch.nan)),
    ],
    ids=["three rows", "no rows", "constant", "constant teacher", "orthogonal rows", "infinite", "NaN"],
)
def test_what_has_no_similarity_is_nan(x, y):
    assert linear_cka(x, y).isnan()
    assert streamed(*parts(x, y, 4)).isnan()
    assert streamed(*parts(x, y, 1)).isnan()


def test_wrong_shapes_are_refused():
    metric = CKA()
    for x, y in ((X[:3], Y), (X[0], Y), (X, Y[:, 0]), (X[None], Y)):
        with pytest.raises(ValueError, match="of the shape"):
            metric.update(x, y)
        with pytest.raises(ValueError, match="of the shape"):
            linear_cka(x, y)
    metric.update(X, Y)
    with pytest.raises(ValueError, match=r"\(5, 1\) .* had \(2, 1\) columns"):
        metric.update(Y, Y)
    metric.reset()
    metric.update(Y, X)


def test_two_in_a_collection_stay_apart():
    metrics = MetricCollection({"a": CKA(), "b": CKA(debiased=False)})
    metrics.update(features=X, teacher_features=Y)
    assert {name: round(value.item(), 4) for name, value in metrics.compute().items()} == {"a": 0.5222, "b": 0.2954}


@pytest.mark.processes
@pytest.mark.timeout(180)
def test_ranks_about_their_own_first_rows_equal_one(tmp_path):
    torch.multiprocessing.spawn(_rank, args=(str(tmp_path / "store"),), nprocs=2)


def _rank(rank, store):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    warnings.filterwarnings("ignore", "The ``compute`` method of metric CKA was called before")
    x, y = drawn(20, (4, 3), 5, shift=100)
    expected = linear_cka(x, y)
    for count in (11, 20, 0, 1):  # of the first rank
        mine = slice(0, count) if rank == 0 else slice(count, 20)
        metric = CKA()
        for batch in parts(x[mine], y[mine], 3) if len(x[mine]) else ():
            metric.update(*batch)
        torch.testing.assert_close(metric.compute(), expected)
        assert len(getattr(metric, metric._name)) == min(len(x[mine]), 1), "the rank's own state comes back"
    torch.distributed.destroy_process_group()
