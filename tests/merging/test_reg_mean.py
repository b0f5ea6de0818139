import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives.loops import survey_data
from lightning_objectives.merging import RegMean, merge_checkpoints, reg_mean_merge
from lightning_objectives.surveys import GramMatrices

WEIGHTS = [torch.eye(2), torch.tensor([[0.0, 2.0], [1.0, -1.0]])]
INPUTS = [torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]]), torch.tensor([[2.0, 1.0], [0.0, 1.0]])]
GRAMS = [x.T @ x for x in INPUTS]


def drawn(count=3, out=4, width=6, rows=20, seed=0):
    """Weights, inputs and their Gram matrices."""
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(out, width, generator=generator) for _ in range(count)]
    inputs = [torch.randn(rows, width, generator=generator) for _ in range(count)]
    return weights, inputs, [x.T @ x / rows for x in inputs]


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(1.0, [[0.818182, 0.363636], [0.181818, 0.636364]]), (0.9, [[0.748199, 0.411409], [0.251801, 0.588591]])],
)
def test_worked_by_hand(alpha, expected):
    """alpha = 1: G1 + G2 = [[6, 3], [3, 7]], and G1 W1' + G2 W2' = [[6, 3], [5, 5]]."""
    torch.testing.assert_close(
        reg_mean_merge(WEIGHTS, importance=GRAMS, alpha=alpha), torch.tensor(expected), rtol=0, atol=1e-6
    )


def test_it_is_least_squares():
    """An independent solver, on the inputs themselves."""
    weights, inputs, _ = drawn()
    grams = [x.T @ x for x in inputs]
    outputs = [x @ w.T for x, w in zip(inputs, weights)]
    expected = torch.linalg.lstsq(torch.cat(inputs).double(), torch.cat(outputs).double()).solution.T.float()
    torch.testing.assert_close(reg_mean_merge(weights, importance=grams, alpha=1.0), expected, rtol=1e-4, atol=1e-5)


def test_by_the_authors_inverse():
    weights, _, grams = drawn()
    scaled = [0.9 * g + 0.1 * torch.diag(torch.diag(g)) for g in grams]
    expected = (torch.inverse(sum(scaled)) @ sum(g @ w.T for g, w in zip(scaled, weights))).T
    torch.testing.assert_close(reg_mean_merge(weights, importance=grams), expected, rtol=1e-4, atol=1e-5)


def test_degenerate_cases():
    weights, _, grams = drawn()
    for alpha in (0.0, 0.9, 1.0):
        same = reg_mean_merge([weights[0]] * 3, importance=grams, alpha=alpha)
        assert torch.equal(same, weights[0]), "equal weights, to the bit"
        mean = reg_mean_merge(weights, importance=[grams[0]] * 3, alpha=alpha)
        torch.testing.assert_close(mean, sum(weights) / 3)
    diagonal = reg_mean_merge(weights, importance=grams, alpha=0.0)
    for column in range(6):
        squares = [float(g[column, column]) for g in grams]
        expected = sum(s * w[:, column] for s, w in zip(squares, weights)) / math.fsum(squares)
        torch.testing.assert_close(diagonal[:, column], expected)
    one = reg_mean_merge(weights[:1], importance=grams[:1])
    assert torch.equal(one, weights[0])


def test_the_scale_of_a_matrix_is_the_say_of_its_network():
    weights, _, grams = drawn()
    grams[1] = 1e9 * grams[1]
    torch.testing.assert_close(reg_mean_merge(weights, importance=grams), weights[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.9, 1.0])
def test_an_input_that_is_always_zero_keeps_the_plain_mean(alpha):
    weights, inputs, _ = drawn()
    for x in inputs:
        x[:, 2] = 0
    grams = [x.T @ x for x in inputs]
    found = reg_mean_merge(weights, importance=grams, alpha=alpha)
    torch.testing.assert_close(found[:, 2], sum(w[:, 2] for w in weights) / 3)
    rest = [0, 1, 3, 4, 5]
    without = reg_mean_merge([w[:, rest] for w in weights], importance=[g[rest][:, rest] for g in grams], alpha=alpha)
    torch.testing.assert_close(found[:, rest], without)
    nothing = reg_mean_merge(weights, importance=[torch.zeros(6, 6)] * 3, alpha=alpha)
    torch.testing.assert_close(nothing, sum(weights) / 3)


def test_fewer_rows_than_inputs():
    """The sum cannot be inverted: the outputs on the data are still the nearest, and the weights do not explode."""
    weights, inputs, _ = drawn(count=2, width=12, rows=3)
    grams = [x.T @ x for x in inputs]
    found = reg_mean_merge(weights, importance=grams, alpha=1.0)
    for x, w in zip(inputs, weights):  # 6 rows, 12 inputs: both can be met
        torch.testing.assert_close(x @ found.T, x @ w.T, rtol=1e-3, atol=1e-3)
    assert found.norm() < 2 * max(w.norm() for w in weights)


def test_halves_are_merged_in_float64():
    weights, _, grams = drawn()
    found = reg_mean_merge([w.bfloat16() for w in weights], importance=grams)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, reg_mean_merge([w.bfloat16().float() for w in weights], importance=grams))


class Net(nn.Module):
    """Two linear layers, and tensors of other kinds."""

    def __init__(self):
        super().__init__()
        self.embedding, self.first = nn.Embedding(5, 4), nn.Linear(4, 3)
        self.norm, self.last = nn.LayerNorm(3), nn.Linear(3, 2, bias=False)

    def forward(self, x):
        return self.last(self.inner(self.embedding(x)).mean(1))

    def inner(self, x):
        hidden = self.first(x).tanh()
        return hidden + self.norm(hidden)


def test_from_the_survey_to_the_file(tmp_path, capsys):
    """Each linear layer solves its own least squares; the rest is the plain mean; the plan says which."""
    nets = [Net().eval() for _ in range(2)]
    files, grams, seen = [], [], []
    for place, net in enumerate(nets):
        data = torch.randint(5, (30, 7))
        loader = DataLoader(TensorDataset(data, torch.zeros(30, dtype=torch.long)), batch_size=8)
        files.append(tmp_path / f"net{place}.safetensors")
        grams.append(tmp_path / f"gram{place}.safetensors")
        save_file(net.state_dict(), files[-1])
        survey_data(GramMatrices(), net, loader, path=grams[-1])
        hidden = net.embedding(data).flatten(0, 1)
        seen.append((hidden, net.inner(hidden).view(30, 7, 3).mean(1)))
    out = tmp_path / "out.safetensors"
    found = load_file(merge_checkpoints(files, RegMean(alpha=1.0), out, importance=grams, verbose=True))
    for at, layer in enumerate(("first", "last")):
        # Divided by the number of rows, so that both networks have the same say.
        x = torch.cat([pair[at] / math.sqrt(len(pair[at])) for pair in seen]).detach().double()
        y = torch.cat(
            [pair[at] @ getattr(net, layer).weight.T / math.sqrt(len(pair[at])) for pair, net in zip(seen, nets)]
        )
        expected = torch.linalg.lstsq(x, y.detach().double()).solution.T.float()
        torch.testing.assert_close(found[f"{layer}.weight"], expected, rtol=1e-3, atol=1e-4)
    means = ["embedding.weight", "first.bias", "norm.bias", "norm.weight"]
    for name in means:
        torch.testing.assert_close(found[name], (nets[0].state_dict()[name] + nets[1].state_dict()[name]) / 2)
    printed = capsys.readouterr().out
    assert f"merged: 2 tensors, 72 B\nplain mean in place of the merge: 4 tensors, 116 B, {means}\n" in printed


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (
            [{"w": GRAMS[0]}, {"w": torch.ones(2)}],
            r"w is torch.float32 \(2,\) in .*, but for \(3, 2\) weights must be ",
        ),
        ([{"w": GRAMS[0]}, {"v": GRAMS[0]}], r"holds the importance of \['v'\], but .* has \['b', 'w'\]"),
        ([{"v": GRAMS[0]}, {"v": GRAMS[0]}], r"holds the importance of \['v'\], but .* has \['b', 'w'\]"),
        ([{"w": GRAMS[0], "b": torch.ones(3)}] * 2, r"importance of b .* must be left out: there is none"),
        ([{"w": GRAMS[0], "b": torch.ones(3)}, {"w": GRAMS[0]}], r"importance of b .* must be left out"),
        ([{"w": GRAMS[0]}, {"w": torch.tensor([[1.0, 2.0], [0.0, 1.0]])}], r"importance\[1\] is no Gram matrix"),
        ([{"w": GRAMS[0]}, {"w": -GRAMS[0]}], r"importance\[1\] is no Gram matrix"),
        ([{"w": GRAMS[0]}, {"w": math.nan * GRAMS[0]}], r"importance\[1\] is no Gram matrix"),
        ([{"w": GRAMS[0]}, {"w": math.inf * GRAMS[0]}], r"importance\[1\] is no Gram matrix"),
        ([{"w": GRAMS[0]}], "There are 2 files, but 1 files of importance"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, importance, message):
    files, grams = [], []
    for place in range(2):
        files.append(tmp_path / f"net{place}.safetensors")
        save_file({"w": torch.rand(3, 2), "b": torch.rand(3)}, files[-1])
    for place, tensors in enumerate(importance):
        grams.append(tmp_path / f"gram{place}.safetensors")
        save_file({name: value.contiguous() for name, value in tensors.items()}, grams[-1])
    with pytest.raises(ValueError, match=message):
        merge_checkpoints(files, RegMean(), tmp_path / "out.safetensors", importance=grams)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_layer_that_one_network_lacks_is_refused(tmp_path):
    for name in ("net0", "net1"):
        save_file({"a": torch.rand(3, 2), "b": torch.rand(3, 2)}, tmp_path / f"{name}.safetensors")
    save_file({"a": GRAMS[0], "b": GRAMS[1]}, tmp_path / "both.safetensors")
    save_file({"a": GRAMS[0]}, tmp_path / "one.safetensors")
    files = [tmp_path / "net0.safetensors", tmp_path / "net1.safetensors"]
    given = [tmp_path / "both.safetensors", tmp_path / "one.safetensors"]
    with pytest.raises(ValueError, match=r"one\.safetensors has no importance of \['b'\]"):
        merge_checkpoints(files, RegMean(), tmp_path / "out.safetensors", importance=given)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match=r"alpha=.* must be in \[0, 1\]"):
        RegMean(alpha=alpha)
    with pytest.raises(ValueError, match=r"alpha=.* must be in \[0, 1\]"):
        reg_mean_merge(WEIGHTS, importance=GRAMS, alpha=alpha)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"weights=\[\] hold no network"):
        reg_mean_merge([], importance=[])
    with pytest.raises(ValueError, match=r"weights\[1\] of the shape \(3, 2\)"):
        reg_mean_merge([WEIGHTS[0], torch.ones(3, 2)], importance=GRAMS)
    with pytest.raises(ValueError, match=r"2 weights .* and 1 Gram matrices"):
        reg_mean_merge(WEIGHTS, importance=GRAMS[:1])
    with pytest.raises(ValueError, match=r"importance\[0\] of the shape \(2,\) is no Gram matrix"):
        reg_mean_merge(WEIGHTS, importance=[torch.ones(2), GRAMS[1]])
    with pytest.raises(ValueError, match="merges real weights"):
        reg_mean_merge([w + 0j for w in WEIGHTS], importance=GRAMS)
    with pytest.raises(ValueError, match=r"2 weights of the shape \(2,\)"):
        reg_mean_merge([torch.ones(2)] * 2, importance=GRAMS)
    with pytest.raises(ValueError, match="RegMean cannot merge without the Gram matrix"):
        RegMean().tensor(WEIGHTS)
