"""The iteration by a slow loop, its limits, and what is refused."""

import math

import pytest
import torch

from lightning_objectives.adaptation import LAME, feature_affinity, lame_logits


def slow_affinity(features, affinity, k):
    """One pair at a time, without torch."""
    rows = [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in features]
    count = len(rows)
    distances = [[math.dist(a, b) for b in rows] for a in rows]
    if affinity == "linear":
        return [[sum(x * y for x, y in zip(a, b)) for b in rows] for a in rows]
    if affinity == "knn":
        near = [sorted((j for j in range(count) if j != i), key=lambda j: distances[i][j])[:k] for i in range(count)]
        return [[float(j in near[i]) for j in range(count)] for i in range(count)]
    width = sum(sorted(row)[min(k, count) - 1] for row in distances) / count
    return [[math.exp(-(d**2) / (2 * width**2)) for d in row] for row in distances]


def slow_lame(logits, weights, strength, iterations):
    """One sample and class at a time."""

    def softmax(row):
        powers = [math.exp(value - max(row)) for value in row]
        return [power / sum(powers) for power in powers]

    prior = [softmax(row) for row in logits]
    z, energies = prior, []
    for iteration in range(iterations):
        pull = [[strength * sum(w * other[c] for w, other in zip(ws, z)) for c in range(len(z[0]))] for ws in weights]
        z = [softmax([math.log(p) + a for p, a in zip(ps, pulls)]) for ps, pulls in zip(prior, pull)]
        energy = sum(
            q * (math.log(q) - math.log(p) - a)
            for qs, ps, pulls in zip(z, prior, pull)
            for q, p, a in zip(qs, ps, pulls)
        )
        energies.append(energy)
        if iteration > 1 and abs(energy - energies[-2]) <= 1e-8 * abs(energies[-2]):
            break
    return z, energies


def drawn(rows=7, classes=3, dim=4):
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    return torch.randn(rows, classes, **draw), torch.randn(rows, dim, **draw)


@pytest.mark.parametrize("affinity", ["knn", "linear", "rbf"])
@pytest.mark.parametrize("neighbors", [1, 3, 20])
def test_a_slow_loop_gives_the_same_affinities(affinity, neighbors):
    _, features = drawn()
    if affinity == "rbf" and neighbors == 1:
        expected = torch.eye(7, dtype=torch.float64).tolist()  # the nearest sample is the sample itself
    else:
        expected = slow_affinity(features.tolist(), affinity, neighbors)
    found = feature_affinity(features, affinity=affinity, neighbors=neighbors)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("settings", [{}, {"affinity": "knn", "strength": 0.5}, {"iterations": 2}], ids=str)
def test_a_slow_loop_gives_the_same_predictions(settings):
    logits, features = drawn()
    settings = {"affinity": "rbf", "neighbors": 3, "strength": 1.0, "iterations": 100, **settings}
    weights = slow_affinity(features.tolist(), settings["affinity"], settings["neighbors"])
    z, energies = slow_lame(logits.tolist(), weights, settings["strength"], settings["iterations"])
    found = lame_logits(logits, features, **settings)
    torch.testing.assert_close(found.exp(), torch.tensor(z, dtype=torch.float64), rtol=1e-9, atol=1e-12)
    assert len(energies) < 100
    if settings["affinity"] == "rbf":
        assert energies == sorted(energies, reverse=True)


def test_one_iteration_by_hand():
    """Two equal samples with p = (0.5, 0.5) and (0.8, 0.2): each is pulled by 1.3 and 0.7."""
    logits, features = torch.tensor([[0.5, 0.5], [0.8, 0.2]]).log(), torch.ones(2, 3)
    found = lame_logits(logits, features, iterations=1)
    first = math.exp(0.6) / (1 + math.exp(0.6))
    assert found.exp()[0, 0].item() == pytest.approx(first, rel=1e-5)
    assert found.exp()[1, 0].item() == pytest.approx(4 * math.exp(0.6) / (1 + 4 * math.exp(0.6)), rel=1e-5)


def test_without_strength_it_is_the_softmax():
    logits, features = drawn()
    torch.testing.assert_close(lame_logits(logits, features, strength=0.0), logits.log_softmax(1))
    assert not LAME(strength=0.0).active(step=0)


@pytest.mark.parametrize("affinity", ["knn", "linear", "rbf"])
def test_autocast_does_not_round(affinity):
    """The test step of a mixed precision runs in autocast, which would compute products in bfloat16."""
    logits, features = (values.float() for values in drawn())
    plain = feature_affinity(features, affinity=affinity), lame_logits(logits, features, affinity=affinity)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = feature_affinity(features, affinity=affinity), lame_logits(logits, features, affinity=affinity)
    torch.testing.assert_close(rounded, plain, rtol=0, atol=0)


def test_one_sample_and_none():
    logits, features = drawn(rows=1)
    assert lame_logits(logits, features).isfinite().all()
    assert lame_logits(logits[:0], features[:0]).shape == (0, 3)
    assert lame_logits(logits[:0], features[:0], affinity="knn").shape == (0, 3)


def test_a_sample_is_not_its_own_neighbor_where_another_is_equal():
    assert feature_affinity(torch.ones(2, 3), affinity="knn", neighbors=1).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"affinity": "cosine"}, "'rbf', 'knn' or 'linear'"),
        ({"neighbors": 0}, "neighbors=0 must be >= 1"),
        ({"strength": -1.0}, r"strength=-1\.0"),
        ({"iterations": 0}, "iterations=0"),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "make", [LAME, lambda **settings: lame_logits(*drawn(), **settings)], ids=["class", "function"]
)
def test_bad_settings_are_refused(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)
