"""Each merge beside mergekit's, tensor by tensor. A test says how they differ, and the docstring who is right."""

import math

import pytest
import torch
from mergekit.merge_methods import merge_state_dicts

from lightning_objectives._files.in_memory import InMemory
from lightning_objectives._files.network_merge import NetworkMerge
from lightning_objectives.merging import (
    DARE,
    DELLA,
    SLERP,
    TIES,
    ModelStock,
    TaskArithmetic,
    UniformSoup,
    WeightedAverage,
)

SHAPES = {"layer.weight": (40, 25), "conv.weight": (6, 5, 3, 3), "layer.bias": (40,), "one": (1,), "unchanged": (8,)}
COUNTS = [2, 3, 5]


def networks(count, seed=0):
    """A base and some networks that were fine-tuned from it, in float32."""
    generator = torch.Generator().manual_seed(seed)
    base = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    shared = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    tuned = []
    for _ in range(count):
        own = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
        tuned.append({name: base[name] + 0.1 * shared[name] + 0.1 * own[name] for name in SHAPES})
        tuned[-1]["unchanged"] = base["unchanged"].clone()
    return base, tuned


def ours(method, tuned, base=None):
    sources = [InMemory(state, f"{place}") for place, state in enumerate(tuned)]
    merge = NetworkMerge(method, sources, range(len(tuned)), base=None if base is None else InMemory(base, "base"))
    return merge.merged()


def theirs(method, tuned, base=None, **parameters):
    models = {f"{place}": state for place, state in enumerate(tuned)}
    if base is None:
        return merge_state_dicts(models, method, parameters=parameters)
    return merge_state_dicts({"base": base, **models}, method, parameters=parameters, base="base")


def assert_same(found, expected, names=SHAPES, atol=2e-6):
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("count", COUNTS)
def test_linear(count):
    _, tuned = networks(count)
    assert_same(ours(UniformSoup(), tuned), theirs("linear", tuned, weight=1.0))
    shares = [0.5 + place for place in range(count)]
    weights = {f"{place}": share for place, share in enumerate(shares)}
    assert_same(ours(WeightedAverage(shares=shares), tuned), theirs("linear", tuned, weight=weights))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_slerp(share, seed):
    """The first network is mergekit's base. Numbers of one element are parallel or opposite."""
    _, (first, second) = networks(2, seed)
    second["layer.bias"] = -first["layer.bias"]
    second["layer.weight"] = torch.randn(40, 25)
    assert_same(ours(SLERP(share=share), [first, second]), theirs("slerp", [second], first, t=share))


def test_slerp_of_a_tensor_that_is_zero_differs():
    """mergekit takes a right angle to a vector without direction, and so gives sin 45° of the other at half the way."""
    first, second = {"w": torch.zeros(4)}, {"w": torch.ones(4)}
    torch.testing.assert_close(ours(SLERP(share=0.5), [first, second])["w"], torch.full((4,), 0.5))
    torch.testing.assert_close(theirs("slerp", [second], first, t=0.5)["w"], torch.full((4,), math.sqrt(0.5)))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("scale", [1.0, 0.4, -1.0])
def test_task_arithmetic(count, scale):
    base, tuned = networks(count)
    expected = theirs("task_arithmetic", tuned, base, weight=1.0, **{"lambda": scale})
    assert_same(ours(TaskArithmetic(scale=scale), tuned, base), expected)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(("density", "scale"), [(1.0, 1.0), (0.2, 1.0), (0.44, 0.7)])
def test_ties(count, density, scale):
    """A network of one tensor, because mergekit trims each by itself; of 1000 elements, so that no part is rounded."""
    base, tuned = networks(count)
    base = {"layer.weight": base["layer.weight"]}
    tuned = [{"layer.weight": state["layer.weight"]} for state in tuned]
    expected = theirs("ties", tuned, base, weight=1.0, density=density, **{"lambda": scale})
    assert_same(ours(TIES(density=density, scale=scale), tuned, base), expected, names=["layer.weight"])


def test_ties_of_several_tensors_differ_by_the_trim():
    """Ours keeps the largest changes of the whole network; a tensor of small changes loses all of them."""
    base = {"large": torch.zeros(100), "small": torch.zeros(100)}
    tuned = [{"large": torch.rand(100) + 1, "small": torch.rand(100) / 10} for _ in range(2)]
    found = ours(TIES(density=0.5), tuned, base)
    expected = theirs("ties", tuned, base, weight=1.0, density=0.5)
    assert found["small"].count_nonzero() == 0
    assert expected["small"].count_nonzero() >= 50
    assert found["large"].count_nonzero() == 100 > expected["large"].count_nonzero()


def test_ties_of_a_draw_of_signs_differ():
    """Changes of +1 and -1 elect no sign: the paper's formula leaves the base, mergekit takes plus."""
    base, tuned = {"w": torch.zeros(1)}, [{"w": torch.ones(1)}, {"w": -torch.ones(1)}]
    assert ours(TIES(density=1.0), tuned, base)["w"] == 0
    assert theirs("ties", tuned, base, weight=1.0, density=1.0)["w"] == 1


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("elect_signs", [False, True])
@pytest.mark.parametrize("name", ["dare", "della"])
def test_dare_and_della_without_a_drop(count, elect_signs, name):
    base, tuned = networks(count)
    settings = {"drop": 0.0, "scale": 0.6, "elect_signs": elect_signs}
    method = DARE(**settings) if name == "dare" else DELLA(window=0.0, **settings)
    theirs_name = {"dare": ("dare_linear", "dare_ties"), "della": ("della_linear", "della")}[name][elect_signs]
    normalize = {"normalize": True} if elect_signs else {"normalize": False}
    expected = theirs(theirs_name, tuned, base, weight=1.0, density=1.0, **{"lambda": 0.6}, **normalize)
    assert_same(ours(method, tuned, base), expected)


def mean_and_error(draw, times=1500):
    draws = torch.stack([draw() for _ in range(times)]).double()
    return draws.mean(0), draws.std(0) / math.sqrt(times)


@pytest.mark.parametrize("name", ["dare", "della"])
def test_the_expectation_of_a_drop_is_the_change_in_ours_alone(name):
    """One change in ten is ten times as large as the others. mergekit keeps the sum of the magnitudes as it was, with
    one factor for all that is left, which is the larger the more large changes were dropped: so large ones come out
    too small with a uniform drop (DARE), and too large where they are dropped less often (DELLA)."""
    change = torch.full((1, 20), 0.1)
    change[0, :2] = 1.0
    change += torch.arange(20) / 1e4
    base, tuned = {"w": torch.zeros(1, 20)}, [{"w": change}]
    method = DARE(drop=0.5) if name == "dare" else DELLA(drop=0.5, window=0.6, elect_signs=False)
    generator = torch.Generator().manual_seed(1)
    mean, error = mean_and_error(lambda: method.tensor([change], base=base["w"], generator=generator))
    assert ((mean - change).abs() < 5 * error).all()
    torch.manual_seed(1)
    more = {"epsilon": 0.3} if name == "della" else {}
    mean, error = mean_and_error(lambda: theirs(f"{name}_linear", tuned, base, weight=1.0, density=0.5, **more)["w"])
    off = (mean - change)[0, :2] / error[0, :2]
    assert (off < -5).all() if name == "dare" else (off > 5).all()


@pytest.mark.parametrize("count", COUNTS)
def test_model_stock(count):
    base, tuned = networks(count)
    names = [name for name in SHAPES if name not in ("one", "unchanged")]
    assert_same(ours(ModelStock(), tuned, base), theirs("model_stock", tuned, base), names=names)


def test_model_stock_differs_where_changes_oppose_each_other():
    """cos = -0.8: mergekit's t is 2 · -0.8 / (1 - 0.8) = -8, and it goes away from the mean; ours stays at the base."""
    base = {"w": torch.zeros(2)}
    tuned = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([-0.8, 0.6])}]
    assert ours(ModelStock(), tuned, base)["w"].tolist() == [0.0, 0.0]
    torch.testing.assert_close(theirs("model_stock", tuned, base)["w"], torch.tensor([-0.8, -2.4]), rtol=1e-4, atol=0)


def test_model_stock_differs_for_small_changes():
    """mergekit divides by 1e-6 at least, so that it takes parallel changes of 1e-4 for nearly orthogonal ones."""
    base = {"w": torch.zeros(4)}
    tuned = [{"w": torch.full((4,), 1e-4)}] * 2
    torch.testing.assert_close(ours(ModelStock(), tuned, base)["w"], tuned[0]["w"])
    share = 2 * 0.04 / 1.04
    torch.testing.assert_close(theirs("model_stock", tuned, base)["w"], share * tuned[0]["w"], rtol=1e-3, atol=0)
