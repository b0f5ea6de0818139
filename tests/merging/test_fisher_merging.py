import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_objectives.merging import FisherMerging, fisher_merge, merge_checkpoints

WEIGHTS = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, 0.0, 1.0])]
FISHER = [torch.tensor([4.0, 0.0, 3.0]), torch.tensor([1.0, 2.0, 2.0])]


def test_worked_by_hand():
    """Norms 5 and 3: (4/5·1 + 1/3·3) / (4/5 + 1/3), (1e-6/5·2) / (1e-6/5 + 2/3), (3/5·3 + 2/3·1) / (3/5 + 2/3)."""
    merged = fisher_merge(WEIGHTS, importance=FISHER)
    torch.testing.assert_close(merged, torch.tensor([1.588235, 6e-7, 1.947368]), rtol=1e-5, atol=1e-7)
    plain = fisher_merge(WEIGHTS, importance=FISHER, normalize=False)
    torch.testing.assert_close(plain, torch.tensor([1.4, 1e-6, 2.2]), rtol=1e-5, atol=1e-7)
    shared = fisher_merge(WEIGHTS, importance=FISHER, normalize=False, shares=[1.0, 4.0])
    torch.testing.assert_close(shared[[0, 2]], torch.tensor([16 / 8, 17 / 11]))


def test_it_is_the_slow_loop():
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(4, 30, generator=generator, dtype=torch.float64)
    fisher = torch.randn(4, 30, generator=generator, dtype=torch.float64).square()
    shares = [0.1, 2.0, 0.7, 1.0]
    norms = [math.sqrt(math.fsum(f * f for f in row)) for row in fisher.tolist()]
    expected = []
    for column, counts in zip(weights.T.tolist(), fisher.T.tolist()):
        factors = [share / norm * max(f, 1e-6) for share, norm, f in zip(shares, norms, counts)]
        expected.append(math.fsum(a * w for a, w in zip(factors, column)) / math.fsum(factors))
    found = fisher_merge([*weights], importance=[*fisher], shares=shares)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_it_minimises_the_weighted_distance():
    """The merge is where the gradient of Σ F_k (θ - θ_k)² vanishes."""
    merged = fisher_merge(WEIGHTS, importance=FISHER, normalize=False).requires_grad_()
    sum((f.clamp_min(1e-6) * (merged - w) ** 2).sum() for f, w in zip(FISHER, WEIGHTS)).backward()
    torch.testing.assert_close(merged.grad, torch.zeros(3), rtol=0, atol=1e-5)


def test_equal_importance_is_the_mean_and_none_is_too():
    mean = torch.tensor([2.0, 1.0, 2.0])
    torch.testing.assert_close(fisher_merge(WEIGHTS, importance=[FISHER[0] + 1] * 2), mean)
    torch.testing.assert_close(fisher_merge(WEIGHTS, importance=[torch.zeros(3)] * 2, normalize=False), mean)


def test_the_scale_of_an_importance_does_not_matter():
    merged = fisher_merge(WEIGHTS, importance=[FISHER[0] * 1e-18, FISHER[1] * 1e18], floor=1e-30)
    torch.testing.assert_close(merged[[0, 2]], torch.tensor([1.588235, 1.947368]))


def test_a_floor_above_the_importance_is_told():
    """Networks that are trained to the end have gradients of 1e-4 and less: the floor would be all that counts."""
    low = [FISHER[0] * 1e-8, FISHER[1]]
    with pytest.warns(UserWarning, match=r"importance\[0\] is below floor=1e-06 for 100% of the weights"):
        fisher_merge(WEIGHTS, importance=low)
    fisher_merge(WEIGHTS, importance=low, floor=1e-9)


def write(folder, weights, name):
    paths = [folder / f"{name}{place}.safetensors" for place in range(len(weights))]
    for path, tensors in zip(paths, weights):
        save_file(tensors, path)
    return paths


def test_the_norms_are_those_of_the_whole_network(tmp_path):
    files = write(tmp_path, [{"a": w[:1].clone(), "b": w[1:].clone(), "n": torch.tensor(7)} for w in WEIGHTS], "net")
    importance = write(tmp_path, [{"a": f[:1].clone(), "b": f[1:].clone()} for f in FISHER], "fisher")
    merged = load_file(merge_checkpoints(files, FisherMerging(), tmp_path / "o.safetensors", importance=importance))
    torch.testing.assert_close(torch.cat([merged["a"], merged["b"]]), fisher_merge(WEIGHTS, importance=FISHER))
    assert merged["n"] == 7


def test_equal_files_stay_to_the_bit(tmp_path):
    weights = {"w": torch.cat([torch.randn(40_000), torch.tensor([-0.0, 0.0])])}
    importance = write(tmp_path, [{"w": torch.rand(40_002)} for _ in range(3)], "fisher")
    files = write(tmp_path, [weights] * 3, "net")
    merged = load_file(merge_checkpoints(files, FisherMerging(), tmp_path / "o.safetensors", importance=importance))
    assert torch.equal(merged["w"].view(torch.int32), weights["w"].view(torch.int32))


def test_buffers_have_no_importance_and_are_averaged(tmp_path):
    weights = [{"w": w, "running_mean": w + 1} for w in WEIGHTS]
    files, importance = write(tmp_path, weights, "net"), write(tmp_path, [{"w": f} for f in FISHER], "fisher")
    settings = {"importance": importance}
    with pytest.raises(ValueError, match=r"fisher0.* has no importance of \['running_mean'\]: add it, or say that"):
        merge_checkpoints(files, FisherMerging(), tmp_path / "o.safetensors", **settings)
    out = merge_checkpoints(files, FisherMerging(), tmp_path / "o.safetensors", buffers=["running_*"], **settings)
    assert load_file(out)["running_mean"].tolist() == [3.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        ([{"w": FISHER[0]}], "There are 2 files, but 1 files of importance"),
        ([{"w": FISHER[0]}, {"w": torch.ones(2)}], r"The importance of w is torch.float32 \(2,\) in .*fisher1"),
        ([{"w": FISHER[0]}, {"w": torch.ones(3, dtype=torch.long)}], r"The importance of w is torch.int64 \(3,\)"),
        ([{"w": FISHER[0]}, {"w": -FISHER[0]}], r"importance\[1\] holds -4.0"),
        ([{"w": FISHER[0] * math.nan}, {"w": FISHER[0]}], r"importance\[0\] holds nan"),
        ([{"w": FISHER[0]}, {"w": FISHER[1] * math.inf}], r"importance\[1\] holds .* not finite"),
        ([{"w": FISHER[0]}, {"w": torch.zeros(3)}], r"importance\[1\] is 0 everywhere"),
    ],
)
def test_an_importance_that_is_none_is_refused(tmp_path, importance, message):
    files = write(tmp_path, [{"w": w} for w in WEIGHTS], "net")
    paths = write(tmp_path, importance, "fisher")
    with pytest.raises(ValueError, match=message):
        merge_checkpoints(files, FisherMerging(), tmp_path / "o.safetensors", importance=paths)
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shares": [1.0, 0.0]}, r"shares=\[1.0, 0.0\] must be finite and > 0"),
        ({"shares": [1.0, math.inf]}, "must be finite and > 0"),
        ({"floor": 0.0}, r"floor=0\.0 must be finite and > 0"),
        ({"floor": math.nan}, "floor=nan must be"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        FisherMerging(**settings)
    with pytest.raises(ValueError, match=message):
        fisher_merge(WEIGHTS, importance=FISHER, **settings)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"weights=\[\] hold no network"):
        fisher_merge([], importance=[])
    with pytest.raises(ValueError, match=r"shares=\[1.0\] are 1, but there are 2 files"):
        fisher_merge(WEIGHTS, importance=FISHER, shares=[1.0])
    with pytest.raises(ValueError, match="importance of 1 tensors do not fit 2"):
        fisher_merge(WEIGHTS, importance=FISHER[:1])
    with pytest.raises(ValueError, match=r"weights\[1\] of the shape \(2,\)"):
        fisher_merge([WEIGHTS[0], torch.ones(2)], importance=FISHER)
    with pytest.raises(ValueError, match="FisherMerging cannot merge without the importance"):
        FisherMerging().tensor(WEIGHTS)


def test_a_sorted_order_would_mix_up_the_importance(tmp_path):
    files = write(tmp_path, [{"w": w} for w in WEIGHTS], "step=1")
    with pytest.raises(ValueError, match=r"order='step' sorts the files, but not those of importance="):
        merge_checkpoints(files, FisherMerging(), tmp_path / "o.safetensors", importance=files, order="step")
