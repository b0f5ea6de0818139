"""Merges of one's own: what the engine gives them, and what it refuses."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_objectives._files import network_merge
from lightning_objectives.kinds import Merge
from lightning_objectives.merging import TIES, WSM, FisherMerging, GreedySoup, merge_checkpoints


class Median(Merge):
    """Not linear, asks for nothing, sees whole tensors."""

    linear = False

    def tensor(self, weights, *, base=None, importance=None, generator=None, statistics=None):
        return torch.stack([*weights]).median(0).values


class Noisy(Median):
    def tensor(self, weights, *, generator, **rest):
        return weights[0] + torch.rand(weights[0].shape, generator=generator)


def write(folder, *states):
    paths = [folder / f"net{place}.safetensors" for place in range(len(states))]
    for path, state in zip(paths, states):
        save_file(state, path)
    return paths


def merged(folder, method, states, **settings):
    out = folder / "out.safetensors"
    return load_file(merge_checkpoints(write(folder, *states), method, out, force=True, **settings))


def test_a_merge_of_whole_tensors(tmp_path):
    shape = (300, 200)  # more than a piece
    states = [{"w": torch.randn(shape), "h": torch.randn(5).bfloat16(), "n": torch.tensor(i)} for i in range(3)]
    found = merged(tmp_path, Median(), states)
    assert torch.equal(found["w"], torch.stack([s["w"] for s in states]).median(0).values)
    assert torch.equal(found["h"], torch.stack([s["h"] for s in states]).median(0).values)
    assert found["n"] == 2


def test_halves_are_widened_when_they_are_asked_for(tmp_path):
    seen = []

    class Sees(Median):
        def tensor(self, weights, **rest):
            seen.append((len(weights), weights[0].dtype, weights[-1].dtype, len(weights[1:]), weights[1:][0].dtype))
            return weights[0]

    merged(tmp_path, Sees(), [{"w": torch.ones(2).half()}, {"w": torch.ones(2)}])
    assert seen == [(2, torch.float32, torch.float32, 1, torch.float32)]


def test_the_draws_depend_on_the_seed_and_the_name_alone(tmp_path):
    states = [{"a": torch.zeros(4), "b": torch.zeros(4)}]
    one, again = (merged(tmp_path, Noisy(), states) for _ in range(2))
    other = merged(tmp_path, Noisy(), states, seed=1)
    alone = merged(tmp_path, Noisy(), [{"b": torch.zeros(4)}])
    assert torch.equal(one["a"], again["a"])
    assert not torch.equal(one["a"], one["b"])
    assert not torch.equal(one["a"], other["a"])
    assert torch.equal(one["b"], alone["b"])


def test_the_pieces_of_a_tensor_have_draws_of_their_own(tmp_path, monkeypatch):
    class InPieces(Noisy):
        by_element = True

    monkeypatch.setattr(network_merge, "_PIECE", 3)
    found = merged(tmp_path, InPieces(), [{"a": torch.zeros(7)}])["a"]
    assert len(set(found.tolist())) == 7


def test_a_merge_by_rows_gets_whole_rows(tmp_path, monkeypatch):
    seen = []

    class ByRow(Median):
        by_row = True

        def tensor(self, weights, **rest):
            seen.append(tuple(weights[0].shape))
            return weights[0] - weights[0].mean(-1, keepdim=True)

    monkeypatch.setattr(network_merge, "_PIECE", 7)
    state = {"a": torch.rand(2, 3, 3), "b": torch.rand(9), "c": torch.rand(()), "d": torch.rand(0, 4)}
    found = merged(tmp_path, ByRow(), [state])
    assert seen == [(2, 3), (2, 3), (2, 3), (1, 9), (1, 1), (0, 4)]
    torch.testing.assert_close(found["a"], state["a"] - state["a"].mean(-1, keepdim=True))
    torch.testing.assert_close(found["b"], state["b"] - state["b"].mean())
    assert found["c"] == 0


def test_another_shape_is_refused(tmp_path):
    class Sum(Median):
        def tensor(self, weights, **rest):
            return weights[0].sum()

    with pytest.raises(ValueError, match=r"Sum\(\) merged w of the shape \(2,\) into \(\)"):
        merged(tmp_path, Sum(), [{"w": torch.ones(2)}])


@pytest.mark.parametrize("weight", [torch.full((2,), 100.0).half(), torch.full((2,), 1e36)])
def test_a_merge_that_is_too_large_for_its_type_is_refused(tmp_path, weight):
    class Large(Median):
        def tensor(self, weights, **rest):
            return weights[0] * 1e4

    with pytest.raises(ValueError, match=r"w of .* has no finite merge"):
        merged(tmp_path, Large(), [{"w": weight}])


def test_shared_infinities_stay_and_others_are_refused(tmp_path):
    mask = torch.tensor([0.0, -math.inf])
    assert torch.equal(merged(tmp_path, TIES(), [{"m": mask}] * 2, base=write(tmp_path, {"m": mask})[0])["m"], mask)
    with pytest.raises(ValueError, match=r"m is NaN or infinite in .*net1"):
        merged(tmp_path, Median(), [{"m": torch.zeros(2)}, {"m": mask}])


def test_the_order_of_files_of_different_trainings_need_not_be_known(tmp_path):
    """No step is known of these files: linear merges of steps refuse them, others do not need it."""
    states = [{"w": torch.ones(2)}, {"w": torch.zeros(2)}, {"w": torch.full((2,), 5.0)}]
    assert merged(tmp_path, Median(), states)["w"].tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="No step is known"):
        merged(tmp_path, WSM(), states)
    with pytest.raises(ValueError, match="No step is known"):
        merged(tmp_path, Median(), states, order="step")


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        (TIES(), {}, "TIES.* cannot merge without base: give base=, the file"),
        (FisherMerging(), {}, "FisherMerging.* cannot merge without importance: give importance=, a file"),
        (GreedySoup(), {}, "GreedySoup.* cannot merge without evaluate: give evaluate=, a function"),
        (WSM(), {"base": "net0.safetensors", "order": "given"}, "WSM.* does not use base, so it would change nothing"),
        (Median(), {"importance": ["net0.safetensors"]}, r"Median\(\) does not use importance"),
        (TIES(), {"base": "net0.safetensors", "evaluate": len}, "TIES.* does not use evaluate"),
        (TIES(), {"base": "other.safetensors"}, r"other\.safetensors does not match .*it lacks \['w'\]"),
        (TIES(), {"base": "none.safetensors"}, r"none\.safetensors does not exist"),
    ],
)
def test_what_is_missing_or_too_much_is_refused(tmp_path, monkeypatch, method, given, message):
    monkeypatch.chdir(tmp_path)
    save_file({"v": torch.ones(2)}, "other.safetensors")
    with pytest.raises(ValueError, match=message):
        merged(tmp_path, method, [{"w": torch.ones(2)}], **given)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("which", ["base", "importance"])
def test_an_input_beside_the_files_is_not_written_over(tmp_path, which):
    (path,) = write(tmp_path, {"w": torch.ones(2)})
    extra = tmp_path / "extra.safetensors"
    save_file({"w": torch.ones(2)}, extra)
    method, given = (TIES(), extra) if which == "base" else (FisherMerging(), [extra])
    with pytest.raises(ValueError, match="is an input"):
        merge_checkpoints([path], method, extra, **{which: given})


def test_buffers_by_pattern(tmp_path):
    states = [{"a.mean": torch.tensor([math.nan]), "b.mean": torch.tensor([1.0]), "w": torch.ones(1)}] * 2
    with pytest.warns(UserWarning, match=r"The merge has \['a.mean'\] of the newest"):
        found = merged(tmp_path, WSM(), states, buffers=["*.mean"], order="given")
    assert found["a.mean"].isnan()
    with pytest.raises(ValueError, match=r"buffers=\['\*.var'\] are no tensors of"):
        merged(tmp_path, WSM(), states, buffers=["*.mean", "*.var"], order="given")


def test_a_name_with_the_marks_of_a_pattern_is_a_name(tmp_path):
    states = [{"a[0]": torch.tensor([math.nan]), "a0": torch.ones(1)}] * 2
    with pytest.warns(UserWarning, match=r"\['a\[0\]'\] of the newest"):
        merged(tmp_path, WSM(), states, buffers=["a[0]"], order="given")


@pytest.mark.parametrize("shape", ["1-sqrt", "linear", "cosine"])
def test_a_linear_merge_keeps_the_sign_of_a_zero_beside_what_differs(tmp_path, shape):
    """-0 + 0 is +0, so that adding a difference of 0 would change what is equal in all files."""
    states = [{"w": torch.tensor([-0.0, 0.0, float(place)])} for place in range(4)]
    found = merged(tmp_path, WSM(shape=shape), states, order="given")["w"]
    assert found.signbit().tolist()[:2] == [True, False]


def test_negative_shares_keep_it_too(tmp_path):
    class Beyond(Merge):
        def coefficients(self, steps):
            return torch.tensor([-0.5, 1.5])

    states = [{"w": torch.tensor([-0.0, 0.0, float(place)])} for place in range(2)]
    found = merged(tmp_path, Beyond(), states, order="given")["w"]
    assert found.tolist()[2] == 1.5
    assert found.signbit().tolist()[:2] == [True, False]


def test_a_class_that_contradicts_itself_is_an_error_when_it_is_made():
    with pytest.raises(TypeError, match="Forgot is linear, and uses no tensor, base or importance"):

        class Forgot(Merge):
            def tensor(self, weights, **rest):
                return weights[0]

    with pytest.raises(TypeError, match="Asks is linear, and uses no tensor, base"):

        class Asks(Merge):
            asks = ("base",)

    with pytest.raises(
        TypeError, match=r"Typo.asks=\('bases',\): 'bases' must be base, importance, evaluate or gradient"
    ):

        class Typo(Merge):
            asks = ("bases",)

    with pytest.raises(TypeError, match="Both is not linear, but only the shares of a linear merge"):

        class Both(Median):
            asks = ("evaluate",)


@pytest.mark.parametrize("shares", [[1.0], [0.5, 0.25, 0.25], [0.0, 0.0]])
@pytest.mark.parametrize("searched", [False, True])
def test_shares_that_are_not_one_for_each_file_are_refused(tmp_path, shares, searched):
    class Short(Merge):
        asks = ("evaluate",) if searched else ()

        def coefficients(self, steps):
            return torch.tensor(shares)

        def search(self, evaluate, steps):
            return torch.tensor(shares)

    given = {"evaluate": len} if searched else {"order": "given"}
    with pytest.raises(ValueError, match=r"Short\(\) gave the shares .* for 2 files: it must give one for each"):
        merged(tmp_path, Short(), [{"w": torch.ones(1)}] * 2, **given)


def test_what_is_not_defined_says_so(tmp_path):
    class Empty(Merge):
        linear = False

    class Searches(Merge):
        asks = ("evaluate",)

    with pytest.raises(NotImplementedError, match=r"Empty defines no tensor\(weights, ...\)"):
        merged(tmp_path, Empty(), [{"w": torch.ones(1)}])
    with pytest.raises(NotImplementedError, match=r"Searches defines no search\(evaluate, steps\)"):
        merged(tmp_path, Searches(), [{"w": torch.ones(1)}], evaluate=len)


def test_the_bar_of_the_statistics(tmp_path, capsys):
    states = [{"w": torch.ones(2)}] * 2
    merged(tmp_path, TIES(), states, base=write(tmp_path, *states)[0], verbose=True)
    printed = capsys.readouterr()
    assert "coefficient" not in printed.out
    assert "measuring: 100%" in printed.err
