import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from lightning_objectives import cli
from lightning_objectives.merging import FrankWolfeMerging, frank_wolfe_coefficients, merge_checkpoints


def quadratic(points, goal):
    """The slopes of |x - goal|² / 2 along each point, and its value."""
    slopes = lambda shares: points @ (shares @ points - goal)  # noqa: E731
    value = lambda shares: float((shares @ points - goal).square().sum() / 2)  # noqa: E731
    return slopes, value


def test_by_hand():
    """Values 0, 3, 6 and the goal 4: at 3 the slopes are 0, -3, -6, then it is at 6; 2/3 of the way to 0; half to 6."""
    points, goal = torch.tensor([[0.0], [3.0], [6.0]]).double(), torch.tensor([4.0]).double()
    slopes, value = quadratic(points, goal)
    expected = [[0, 0, 1], [2 / 3, 0, 1 / 3], [1 / 3, 0, 2 / 3]]
    for iterations, shares in enumerate(expected, start=1):
        found = frank_wolfe_coefficients(slopes, range(3), iterations=iterations)
        torch.testing.assert_close(found, torch.tensor(shares).double())
    assert value(found) < 1e-20
    assert torch.equal(frank_wolfe_coefficients(slopes, range(3), iterations=9), found), "the gap is 0"


def test_a_shorter_step_keeps_a_part_of_the_mean():
    """eta = 1/2: from thirds half of the way to the last, then a third of the way to the first."""
    slopes, _ = quadratic(torch.tensor([[0.0], [3.0], [6.0]]).double(), torch.tensor([4.0]).double())
    one = frank_wolfe_coefficients(slopes, range(3), iterations=1, step_size=0.5)
    torch.testing.assert_close(one, torch.tensor([1 / 6, 1 / 6, 4 / 6]).double())
    two = frank_wolfe_coefficients(slopes, range(3), iterations=2, step_size=0.5)
    torch.testing.assert_close(two, torch.tensor([1 / 6 * 2 / 3 + 1 / 3, 1 / 9, 4 / 9]).double())


@pytest.mark.parametrize("seed", range(3))
def test_the_bound_of_frank_and_wolfe(seed):
    """The loss is at most 2 C / (t + 2) above the best in the hull, C the squared diameter: Jaggi, ICML 2013."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(6, 4, generator=generator).double()
    goal = torch.rand(6, generator=generator).double().softmax(0) @ points  # in the hull: the best loss is 0
    slopes, value = quadratic(points, goal)
    diameter = torch.cdist(points, points).max().square().item()
    for t in (1, 3, 10, 100):
        shares = frank_wolfe_coefficients(slopes, range(6), iterations=t)
        assert (shares >= 0).all()
        assert shares.sum().item() == pytest.approx(1)
        assert value(shares) <= 2 * diameter / (t + 2)


def test_networks_that_do_not_help_get_no_share():
    """The goal lies behind the second network, and 14 others lie in other directions: the best is the second alone."""
    points = torch.zeros(16, 16).double()
    points[0, 0], points[1, 0] = 1.0, 3.0
    points[range(2, 16), range(2, 16)] = 50.0
    goal = torch.zeros(16).double()
    goal[0] = 5.0
    shares = frank_wolfe_coefficients(quadratic(points, goal)[0], range(16), iterations=50)
    assert shares.tolist() == [0, 1, *[0] * 14]


def test_degenerate_cases():
    """One file; equal files, for which no slope differs; a start that is the best already."""
    assert FrankWolfeMerging().search(lambda shares: 1 / 0, [3]).tolist() == [1.0]
    assert FrankWolfeMerging().search(lambda shares: 7 * torch.ones(4), range(4)).tolist() == [0.25] * 4
    slopes, _ = quadratic(torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([0.0]).double())
    assert FrankWolfeMerging().search(slopes, range(2)).tolist() == [0.5, 0.5]


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


def write(folder, count=4):
    paths = [folder / f"{place}.safetensors" for place in range(count)]
    for path in paths:
        save_file(network().state_dict(), path)
    return paths


def test_the_slopes_are_those_of_the_loss_along_each_file(tmp_path):
    """By differences of the loss, through the files; the network's own step is from 1/4 each to one file."""
    paths = write(tmp_path)
    x, y = torch.randn(20, 4), torch.arange(20) % 3
    net = network().eval()

    def loss(state):
        net.load_state_dict(state)
        return F.cross_entropy(net(x), y)

    def gradient(state):
        net.zero_grad()
        loss(state).backward()
        return {name: p.grad for name, p in net.named_parameters()}

    files = [load_file(path) for path in paths]
    mean = {
        name: torch.stack([f[name] for f in files]).mean(0) if files[0][name].is_floating_point() else files[-1][name]
        for name in files[0]
    }
    parameters = {name for name, _ in net.named_parameters()}
    changes = []
    for file in files:
        moved = [
            {n: v + sign * 1e-2 * (file[n] - v) if n in parameters else v for n, v in mean.items()} for sign in (1, -1)
        ]
        changes.append((loss(moved[0]) - loss(moved[1])).item())
    out = merge_checkpoints(paths, FrankWolfeMerging(iterations=1), tmp_path / "o.safetensors", gradient=gradient)
    best = changes.index(min(changes))
    for name, value in load_file(out).items():
        expected = files[best][name] if value.is_floating_point() else files[-1][name]
        assert torch.equal(value, expected), name
    before = loss(load_file(merge_checkpoints(paths[:1], FrankWolfeMerging(), out, gradient=gradient)))
    after = loss(load_file(merge_checkpoints(paths, FrankWolfeMerging(iterations=30), out, gradient=gradient)))
    assert after < before


def test_a_gradient_of_a_part_and_in_half_precision(tmp_path):
    """Only w counts: its slopes -1, 2 choose the first file."""
    for place, value in enumerate((1.0, -2.0)):
        save_file(
            {"w": torch.tensor([value]).half(), "b": torch.tensor([-9.0 * value])}, tmp_path / f"{place}.safetensors"
        )
    paths = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    one, out = FrankWolfeMerging(iterations=1), tmp_path / "out.safetensors"
    found = load_file(merge_checkpoints(paths, one, out, gradient=lambda state: {"w": torch.tensor([-1.0])}))
    assert found["w"].item() == 1.0


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (
            None,
            r"FrankWolfeMerging.* cannot merge without gradient: give gradient=, a function that takes a state dict",
        ),
        (lambda state: {}, r"gradient returned \[\], but .* has \['b', 'w'\]"),
        (lambda state: {"v": torch.ones(2)}, r"gradient returned \['v'\], but .* has \['b', 'w'\]"),
        (lambda state: {"w": torch.ones(3)}, r"The gradient of w is of the shape \(3,\), but must be \(2,\)"),
        (
            lambda state: {"w": torch.full((2,), math.nan)},
            r"The slopes \[nan, nan\] at the shares \[0.5, 0.5\] must be 2",
        ),
    ],
)
def test_a_gradient_that_is_none_is_refused(tmp_path, gradient, message):
    for place in range(2):
        save_file({"w": torch.rand(2), "b": torch.rand(2)}, tmp_path / f"{place}.safetensors")
    paths = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    with pytest.raises(ValueError, match=message):
        merge_checkpoints(paths, FrankWolfeMerging(), tmp_path / "out.safetensors", gradient=gradient)
    assert not (tmp_path / "out.safetensors").exists()


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slope_of_this_test.py").write_text("def gradient(state):\n    return {'w': state['w'] - 2}\n")
    for place, value in enumerate((0.0, 3.0)):
        save_file({"w": torch.tensor([value])}, f"{place}.safetensors")
    words = ["0.safetensors", "1.safetensors", "--method=FrankWolfeMerging", "--iterations=2", "-o", "out.safetensors"]
    cli.main(["merge", *words, "--gradient=slope_of_this_test.gradient"])
    assert load_file("out.safetensors")["w"].item() == pytest.approx(1.0)  # 1.5 -> 3 -> a third of 3
    assert "1.safetensors  coefficient 0.3333" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 0}, "iterations=0 must be >= 1"),
        ({"step_size": 0.0}, r"step_size=0.0 must be in \(0, 1\]"),
        ({"step_size": 1.5}, r"step_size=1.5 must be in \(0, 1\]"),
        ({"step_size": math.nan}, "step_size=nan must be in"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        FrankWolfeMerging(**settings)
    with pytest.raises(ValueError, match=message):
        frank_wolfe_coefficients(torch.neg, [1, 2], **settings)
    with pytest.raises(ValueError, match=r"steps=\[\] must increase"):
        frank_wolfe_coefficients(torch.neg, [])
