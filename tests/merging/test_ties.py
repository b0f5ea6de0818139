import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_objectives.kinds import MergePiece
from lightning_objectives.merging import TIES, merge_checkpoints, ties, ties_merge

TAU = torch.tensor(
    [
        [0.9, -0.1, 0.3, -0.4, 0.05, 0.2],
        [-0.5, 0.6, 0.1, 0.35, -0.02, 0.25],
        [0.2, -0.7, -0.15, 0.1, 0.4, -0.45],
    ]
)


def slow_ties(changes, density, scale):
    """Section 3 of the paper, a number at a time: trim each network, elect a sign, average those of that sign."""
    trimmed = []
    for change in changes:
        keep = max(1, round(density * len(change)))
        least = sorted((abs(value) for value in change), reverse=True)[keep - 1]
        trimmed.append([value if abs(value) >= least else 0.0 for value in change])
    merged = []
    for values in zip(*trimmed):
        mass = math.fsum(values)
        agreeing = [value for value in values if value != 0 and (value > 0) == (mass > 0)] if mass else []
        merged.append(scale * math.fsum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


def test_worked_by_hand():
    """Three of six are kept: [.9, 0, .3, -.4, 0, 0], [-.5, .6, 0, .35, 0, 0] and [0, -.7, 0, 0, .4, -.45]."""
    merged = ties_merge([*TAU], base=torch.zeros(6), density=0.5, scale=0.4)
    torch.testing.assert_close(merged, torch.tensor([0.36, -0.28, 0.12, -0.16, 0.16, -0.18]))


@pytest.mark.parametrize("density", [0.03, 0.2, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_is_the_slow_loop_of_the_paper(density, count):
    generator = torch.Generator().manual_seed(count)
    base = torch.randn(501, generator=generator, dtype=torch.float64)
    changes = torch.randn(count, 501, generator=generator, dtype=torch.float64)
    merged = ties_merge([*(base + changes)], base=base, density=density, scale=0.7)
    expected = base + torch.tensor(slow_ties(changes.tolist(), density, 0.7), dtype=torch.float64)
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-12)


def test_one_network_of_which_all_is_kept_is_that_network():
    base, weight = torch.randn(2, 50)
    torch.testing.assert_close(ties_merge([weight], base=base, density=1.0), weight)
    torch.testing.assert_close(ties_merge([weight] * 3, base=base, density=1.0), weight)
    torch.testing.assert_close(ties_merge([weight], base=base, density=1.0, scale=0.3), base + 0.3 * (weight - base))


def test_a_tie_of_the_signs_leaves_the_base():
    merged = ties_merge([torch.tensor([3.0, 2.0]), torch.tensor([-1.0, 2.0])], base=torch.ones(2), density=1.0)
    assert merged.tolist() == [1.0, 2.0]


def test_equal_magnitudes_are_kept_together():
    base, weight = torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, 0.5])
    assert ties_merge([weight], base=base, density=0.5).tolist() == [1.0, -1.0, 1.0, 0.0]
    assert ties_merge([weight], base=base, density=1e-9).tolist() == [1.0, -1.0, 1.0, 0.0], "one is kept at least"


def test_complex_weights_are_pairs():
    base, weights = torch.zeros(3, dtype=torch.complex64), torch.view_as_complex(TAU.view(3, 3, 2))
    merged = ties_merge([*weights], base=base, density=0.5, scale=0.4)
    expected = ties_merge([*TAU], base=torch.zeros(6), density=0.5, scale=0.4)
    assert torch.equal(torch.view_as_real(merged).flatten(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_merged_in_float32(dtype):
    base, *weights = torch.randn(4, 100).to(dtype)
    merged = ties_merge(weights, base=base, density=0.3)
    assert merged.dtype == torch.float32
    assert torch.equal(merged, ties_merge([w.float() for w in weights], base=base.float(), density=0.3))


# -- the threshold -----------------------------------------------------------------------------------------------------


def pieces(weights, base, size=100):
    return [MergePiece(w, b) for w, b in zip(zip(*(weight.split(size) for weight in weights)), base.split(size))]


CHANGES = {
    "normal": lambda g: torch.randn(20_000, generator=g),
    "over many orders of magnitude": lambda g: (
        torch.randn(20_000, generator=g) * 10 ** (20 * torch.rand(20_000, generator=g) - 10)
    ),
    "of few values": lambda g: torch.randint(-3, 4, (20_000,), generator=g).float(),
    "mostly none": lambda g: torch.randn(20_000, generator=g) * (torch.rand(20_000, generator=g) < 0.05),
    "equal": lambda g: torch.full((20_000,), 0.1),
    "denormal": lambda g: torch.randn(20_000, generator=g) * 1e-42,
    "large at the end": lambda g: torch.randn(20_000, generator=g) * (1 + 1e3 * (torch.arange(20_000) > 19_500)),
    "falling": lambda g: torch.randn(20_000, generator=g) / (1 + torch.arange(20_000)),
}


@pytest.mark.parametrize("density", [0.0001, 0.02, 0.2, 0.5, 0.999])
@pytest.mark.parametrize("kind", CHANGES)
def test_the_threshold_is_exact(kind, density):
    """By a sort of all magnitudes, for a network in many pieces."""
    change = CHANGES[kind](torch.Generator().manual_seed(0))
    expected = change.abs().sort(descending=True).values[max(1, round(density * len(change))) - 1]
    found = TIES(density=density).statistics(pieces([change, -2 * change], torch.zeros_like(change)))[0]
    assert found == [expected.item(), 2 * expected.item()]


def test_without_a_trim_nothing_is_read_before_the_merge():
    def network():
        pytest.fail("read")
        yield

    assert TIES(density=1.0).statistics(network())[0] == []


def test_a_wrong_guess_is_mended(monkeypatch):
    """The sample says 1, but the threshold is near 1000: the histogram is then made of everything."""
    read = []
    coarse = ties._coarse_counts
    monkeypatch.setattr(ties, "_coarse_counts", lambda *args: read.append(args[1]) or coarse(*args))
    change = torch.ones(20_000)
    change[16 * 100 : 32 * 100] = torch.linspace(900, 1100, 1600)  # between the first pieces and the next of the sample
    found = TIES(density=0.04).statistics(pieces([change], torch.zeros(20_000)))[0]
    assert read == [16, 1]
    assert found == [change.sort(descending=True).values[799].item()]


def test_the_trim_is_over_the_whole_network(tmp_path):
    """All that is kept lies in one tensor: a trim of each tensor by itself would keep some of the other."""
    save_file({"a": torch.zeros(4), "b": torch.zeros(4)}, tmp_path / "base.safetensors")
    save_file({"a": torch.tensor([1.0, 2, 3, 4]), "b": torch.full((4,), 0.5)}, tmp_path / "one.safetensors")
    settings = {"base": tmp_path / "base.safetensors"}
    out = merge_checkpoints([tmp_path / "one.safetensors"], TIES(density=0.5), tmp_path / "o.safetensors", **settings)
    merged = load_file(out)
    assert merged["a"].tolist() == [1, 2, 3, 4]
    assert merged["b"].tolist() == [0, 0, 0, 0]


# -- files -------------------------------------------------------------------------------------------------------------


def write(folder, count, **types):
    """Networks of several tensors and types, longer than a piece; the base first."""
    generator = torch.Generator().manual_seed(3)
    states = [
        {
            "w": torch.randn(40_000, generator=generator),
            "h": torch.randn(7, 11, generator=generator).bfloat16(),
            "s": torch.randn((), generator=generator),
            "norm.running_var": torch.rand(3, generator=generator) * 100,
            "n": torch.tensor(step),
        }
        for step in range(count + 1)
    ]
    paths = [folder / f"step={step}.safetensors" for step in range(count + 1)]
    for path, state in zip(paths, states):
        save_file(state, path)
    return paths[0], paths[1:], states[0], states[1:]


def test_files_are_merged_as_one_vector(tmp_path):
    """Equals a slow loop over all floating parameters as one vector; of the buffers it takes the mean."""
    base, files, first, states = write(tmp_path, 3)
    out = merge_checkpoints(
        files, TIES(density=0.3, scale=0.5), tmp_path / "out.safetensors", base=base, buffers=["*.running_*"]
    )
    merged, names = load_file(out), ["h", "s", "w"]
    vectors = [torch.cat([state[name].double().flatten() for name in names]) for state in (first, *states)]
    changes = [[np.float32(a) - np.float32(b) for a, b in zip(v.tolist(), vectors[0].tolist())] for v in vectors[1:]]
    expected = vectors[0] + torch.tensor(slow_ties([list(map(float, c)) for c in changes], 0.3, 0.5)).double()
    found = torch.cat([merged[name].double().flatten() for name in names])
    torch.testing.assert_close(found[77:], expected[77:], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[:77], expected[:77], rtol=2**-8, atol=1e-6)  # bfloat16
    mean = torch.stack([state["norm.running_var"] for state in states]).mean(0)
    torch.testing.assert_close(merged["norm.running_var"], mean)
    assert merged["n"] == 3


def test_equal_files_give_the_base_back_to_the_bit(tmp_path):
    base, _, first, _ = write(tmp_path, 1)
    first["w"][:100] = -0.0
    save_file(first, base)
    for name in ("a", "b"):
        save_file(first, tmp_path / f"{name}.safetensors")
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    merged = load_file(merge_checkpoints(files, TIES(), tmp_path / "out.safetensors", base=base))
    for name, value in first.items():
        assert merged[name].view(-1).view(torch.uint8).equal(value.view(-1).view(torch.uint8)), name


def test_an_infinity_that_all_files_share_stays_and_takes_no_place(tmp_path):
    mask = torch.tensor([-math.inf] * 6)
    save_file({"mask": mask, "w": torch.zeros(4)}, tmp_path / "base.safetensors")
    save_file({"mask": mask, "w": torch.tensor([1.0, 2, 3, 4])}, tmp_path / "one.safetensors")
    settings = {"base": tmp_path / "base.safetensors"}
    out = merge_checkpoints([tmp_path / "one.safetensors"], TIES(density=0.2), tmp_path / "o.safetensors", **settings)
    merged = load_file(out)
    assert torch.equal(merged["mask"], mask)
    assert merged["w"].tolist() == [0, 0, 3, 4], "2 of 10"


@pytest.mark.parametrize("where", ["base", "one"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_refused_with_its_file(tmp_path, where, value):
    for name in ("base", "one"):
        save_file({"w": torch.tensor([1.0, value if name == where else 2.0])}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=rf"w is NaN or infinite in .*{where}\.safetensors"):
        merge_checkpoints(
            [tmp_path / "one.safetensors"], TIES(), tmp_path / "o.safetensors", base=tmp_path / "base.safetensors"
        )
    assert not (tmp_path / "o.safetensors").exists()


def test_names_that_are_tied_count_once(tmp_path):
    """Four of 4 + 4 weights are kept; six of 4 + 4 + 4 would be all but the 1."""
    tied = torch.tensor([1.0, 2, 3, 4])
    zeros = torch.zeros(4)
    torch.save({"a": zeros, "b": zeros, "c": torch.zeros(4)}, tmp_path / "base.pt")
    torch.save({"a": tied, "b": tied, "c": torch.full((4,), 0.5)}, tmp_path / "one.pt")
    out = merge_checkpoints([tmp_path / "one.pt"], TIES(density=0.5), tmp_path / "o.pt", base=tmp_path / "base.pt")
    assert torch.load(out)["a"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, math.nan])
def test_a_density_out_of_range_is_refused(density):
    with pytest.raises(ValueError, match=r"density=.* must be in \(0, 1\]"):
        TIES(density=density)
    with pytest.raises(ValueError, match=r"density=.* must be in \(0, 1\]"):
        ties_merge([torch.ones(1)], base=torch.ones(1), density=density)


def test_no_network_is_refused():
    with pytest.raises(ValueError, match=r"weights=\[\] hold no network"):
        ties_merge([], base=torch.ones(2))


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"weights\[1\] of the shape \(3,\)"):
        ties_merge([torch.ones(2), torch.ones(3)], base=torch.ones(2))


def test_without_the_base_it_is_refused(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match=r"TIES.* cannot merge without base: give base="):
        merge_checkpoints([tmp_path / "one.safetensors"], TIES(), tmp_path / "o.safetensors")
    with pytest.raises(ValueError, match="TIES cannot merge without the base"):
        TIES().tensor([torch.ones(1)])
