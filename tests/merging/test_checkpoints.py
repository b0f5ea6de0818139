import json
import os
import pickle
import struct
import subprocess
import sys
import textwrap

import lightning as L
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from lightning_objectives._files.writing import write_safetensors
from lightning_objectives.kinds import Merge
from lightning_objectives.merging import WSM, merge_checkpoints


class Net(L.LightningModule):
    """Tied weights, channels_last, half precision, counters."""

    def __init__(self, width=3, seed=0):
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(2, width, 2).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm2d(width)
        self.norm.num_batches_tracked.fill_(10 * seed)
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, width)
        self.last.weight = self.first.weight
        self.half = nn.Linear(3, 1).bfloat16()
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))


def checkpoint(net, step):
    return {
        "state_dict": net.state_dict(),
        "global_step": step,
        "epoch": 1,
        "pytorch-lightning_version": L.__version__,
        "hparams_name": "kwargs",
        "hyper_parameters": dict(net.hparams),
        "optimizer_states": [{"state": {}}],
        "callbacks": {"Mine": {}},
        "loops": {},
        "mine": [1, 2],
    }


def save(folder, suffix, steps=(10, 20, 30, 40), **settings):
    """The files of some nets in the wrong order, and the nets in the right one."""
    nets, files = [], []
    for seed, step in enumerate(steps, start=1):
        net, path = Net(seed=seed, **settings), folder / f"net-step={step}{suffix}"
        nets.append(net)
        files.insert(0, path)
        if suffix == ".ckpt":
            torch.save(checkpoint(net, step), path)
        elif suffix == ".pt":
            torch.save(net.state_dict(), path)
        else:
            save_file({k: v.clone().contiguous() for k, v in net.state_dict().items()}, path)
    return files, nets


def reference(nets, shares):
    """A slow merge in float64."""
    merged = dict(nets[-1].state_dict())
    for key, newest in merged.items():
        if newest.is_floating_point() and key != "mask":
            merged[key] = sum(c * net.state_dict()[key].double() for c, net in zip(shares, nets))
    return merged


SQRT = [0.5, 0.2071067811865475, 0.15891862259789, 0.1339745962155614]


@pytest.mark.parametrize("source", [".ckpt", ".pt", ".safetensors"])
@pytest.mark.parametrize("out", [".ckpt", ".pt", ".safetensors"])
def test_it_is_the_slow_merge(tmp_path, source, out):
    files, nets = save(tmp_path, source)
    if out == ".ckpt" and source != ".ckpt":
        with pytest.raises(ValueError, match="is no Lightning checkpoint"):
            merge_checkpoints(files, WSM(), tmp_path / f"merged{out}")
        assert not list(tmp_path.glob("*merged*"))
        return
    path = merge_checkpoints(files, WSM(), tmp_path / "new" / f"merged{out}")
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing temporary is left"
    merged = load_file(path) if out == ".safetensors" else torch.load(path, weights_only=True)
    merged = merged.get("state_dict", merged)
    expected = reference(nets, SQRT)
    assert merged.keys() == expected.keys()
    assert list(merged) == list(expected) or ".safetensors" in (source, out)  # whose order is lost
    for key, value in nets[-1].state_dict().items():
        assert (merged[key].dtype, merged[key].shape) == (value.dtype, value.shape)
        tolerance = 1e-2 if value.dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(merged[key].double(), expected[key].double(), rtol=tolerance, atol=tolerance)
    assert merged["norm.num_batches_tracked"] == 40
    assert not torch.equal(merged["first.weight"], nets[-1].first.weight)
    torch.testing.assert_close(merged["first.weight"], merged["last.weight"], rtol=0, atol=0)
    Net().load_state_dict(merged)


def test_a_merged_checkpoint_is_a_plain_one(tmp_path):
    files, nets = save(tmp_path, ".ckpt", width=5)
    path = merge_checkpoints(files, WSM(shape="linear"), tmp_path / "merged.ckpt")
    frame = torch.load(path, weights_only=True)
    assert frame.keys() == checkpoint(nets[0], 0).keys() - {"optimizer_states", "callbacks", "loops"}
    assert (frame["global_step"], frame["mine"], frame["hyper_parameters"]["width"]) == (40, [1, 2], 5)
    weight, tied = frame["state_dict"]["first.weight"], frame["state_dict"]["last.weight"]
    assert weight.data_ptr() == tied.data_ptr(), "tied once"
    net = Net.load_from_checkpoint(path, map_location="cpu")
    mean = torch.stack([n.conv.weight for n in nets]).mean(0)
    torch.testing.assert_close(net.conv.weight, mean)


def test_bfloat16_is_added_up_in_float32(tmp_path):
    """By bfloat16 additions 1 + 64 times 1/256 would stay 1."""
    for i in range(65):
        torch.save({"w": torch.tensor([256.0 if i < 64 else 512.0]).bfloat16()}, tmp_path / f"step={i}.pt")
    merge_checkpoints(tmp_path.glob("*.pt"), WSM(shape="linear"), tmp_path / "merged.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")["w"]
    assert merged == torch.tensor((64 * 256 + 512) / 65).bfloat16()


def test_what_is_equal_stays_to_the_bit(tmp_path):
    net = Net(seed=3)
    for step in range(7):
        torch.save(net.state_dict(), tmp_path / f"step={step}.pt")
    merge_checkpoints(tmp_path.glob("*.pt"), WSM(), tmp_path / "merged.pt")
    merged = torch.load(tmp_path / "merged.pt", weights_only=True)
    assert all(torch.equal(value, merged[key]) for key, value in net.state_dict().items())


def test_tied_in_one_file_only_is_not_tied(tmp_path):
    one = torch.tensor([1.0])
    torch.save({"a": one, "b": torch.tensor([3.0])}, tmp_path / "step=1.pt")
    torch.save({"a": one, "b": one}, tmp_path / "step=2.pt")
    merge_checkpoints(tmp_path.glob("*.pt"), WSM(shape="linear"), tmp_path / "m.pt")
    assert torch.load(tmp_path / "m.pt") == {"a": torch.tensor([1.0]), "b": torch.tensor([2.0])}


def test_names_of_a_compiled_network_match(tmp_path):
    torch.save({"_orig_mod.w": torch.tensor([0.0])}, tmp_path / "step=1.pt")
    torch.save({"w": torch.tensor([1.0])}, tmp_path / "step=2.pt")
    merge_checkpoints(tmp_path.glob("*.pt"), WSM(shape="linear"), tmp_path / "m.pt")
    assert torch.load(tmp_path / "m.pt") == {"w": torch.tensor([0.5])}


def test_old_files_of_torch_and_empty_tensors(tmp_path):
    for step in (1, 3):
        state = {"w": torch.tensor(float(step)), "none": torch.zeros(0, 2), "flag": torch.tensor([True])}
        torch.save(state, tmp_path / f"step={step}.pt", _use_new_zipfile_serialization=False)
    merge_checkpoints(tmp_path.glob("*.pt"), WSM(shape="linear"), tmp_path / "m.safetensors")
    merged = load_file(tmp_path / "m.safetensors")
    assert (merged["w"], merged["none"].shape, merged["flag"].item()) == (torch.tensor(2.0), (0, 2), True)


# The order


class Newest(Merge):
    def coefficients(self, steps):
        self.seen = list(steps)
        return torch.tensor([0.0] * (len(steps) - 1) + [1.0])


def test_the_step_is_that_of_the_checkpoint_then_of_the_metadata_then_of_the_name(tmp_path):
    for name, step in (("a.ckpt", 9), ("step=1.ckpt", 12)):
        torch.save({"state_dict": {"w": torch.tensor([float(step)])}, "global_step": step}, tmp_path / name)
    save_file({"w": torch.tensor([10.0])}, tmp_path / "step=99.safetensors", {"global_step": "10"})
    save_file({"w": torch.tensor([5.0])}, tmp_path / "b.safetensors", {"step": "5"})
    torch.save({"w": torch.tensor([11.0])}, tmp_path / "epoch=3-step=11.pt")
    method = Newest()
    merge_checkpoints(tmp_path.iterdir(), method, tmp_path / "m.pt")
    assert method.seen == [5, 9, 10, 11, 12]
    assert torch.load(tmp_path / "m.pt")["state_dict"]["w"] == 12


def test_an_unknown_order_is_refused_unless_given(tmp_path):
    for name, value in (("z.pt", 1.0), ("a.pt", 2.0), ("m.pt", 4.0)):
        torch.save({"w": torch.tensor([value])}, tmp_path / name)
    files = [tmp_path / "z.pt", tmp_path / "a.pt", tmp_path / "m.pt"]
    with pytest.raises(ValueError, match=r"No step is known of .*--order given"):
        merge_checkpoints(files, WSM(), tmp_path / "out.pt")
    merge_checkpoints(files, WSM(shape="square"), tmp_path / "out.pt", order="given")
    torch.testing.assert_close(torch.load(tmp_path / "out.pt")["w"], torch.tensor([(1 * 1 + 3 * 2 + 5 * 4) / 9]))
    with pytest.raises(ValueError, match="order='name' must be"):
        merge_checkpoints(files, WSM(), tmp_path / "out.pt", order="name")


def test_the_same_step_twice_is_refused(tmp_path):
    for name in ("a-step=1.pt", "b-step=1.pt"):
        torch.save({"w": torch.zeros(1)}, tmp_path / name)
    with pytest.raises(ValueError, match=r"of the same steps, \[1\]"):
        merge_checkpoints(tmp_path.iterdir(), WSM(), tmp_path / "m.pt")


# What is wrong


def other_keys(path):
    torch.save({"v": torch.zeros(2), "w": torch.zeros(2)}, path)


def fewer_keys(path):
    torch.save({"v": torch.zeros(2)}, path)


def other_shape(path):
    torch.save({"w": torch.zeros(3)}, path)


def integers(path):
    torch.save({"w": torch.zeros(2, dtype=torch.long)}, path)


def a_list(path):
    torch.save([torch.zeros(2)], path)


def no_tensors(path):
    torch.save({"state_dict": {}}, path)


def things_beside_tensors(path):
    torch.save({"w": torch.zeros(2), "args": {"lr": 1}}, path)


def truncated(path):
    torch.save({"w": torch.zeros(2)}, path)
    path.write_bytes(path.read_bytes()[:-40])


def empty(path):
    path.touch()


def text(path):
    path.write_text("no checkpoint")


class Evil:
    def __reduce__(self):
        return os.system, ("touch was-run",)


def evil(path):
    torch.save({"state_dict": {"w": torch.zeros(2)}, "x": Evil()}, path)


def evil_pickle(path):
    path.write_bytes(pickle.dumps(Evil()))


WRONG = {
    other_keys: r"lacks \[\] and has besides \['v'\]", fewer_keys: r"lacks \['w'\] and has besides \['v'\]",
    other_shape: r"w is torch.float32 \(3,\) in", integers: r"w is torch.int64 \(2,\) in",
    a_list: "holds a list, but must", no_tensors: "holds no tensors", things_beside_tensors: r"no tensors: \['args'\]",
    truncated: "truncated", empty: "truncated", text: "truncated",
    evil: "could run code", evil_pickle: "could run code",
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=lambda f: f.__name__)
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")  # torch, of the file that could run code
def test_a_wrong_file_gives_an_error_and_no_output(tmp_path, monkeypatch, wrong, old):
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(2)}, tmp_path / "step=2.pt")
    wrong(tmp_path / "step=1.pt")
    out = tmp_path / "m.pt"
    if old:
        out.write_text("there before")
    with pytest.raises(ValueError, match=WRONG[wrong]):
        merge_checkpoints([tmp_path / "step=1.pt", tmp_path / "step=2.pt"], WSM(), out)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"step=1.pt", "step=2.pt", *(["m.pt"] if old else [])}
    assert not old or out.read_text() == "there before"


@pytest.mark.parametrize(
    ("files", "out", "message"),
    [
        ([], "m.pt", "no files to merge"),
        (["none.pt"], "m.pt", "none.pt does not exist"),
        (["step=1.pt"], "m.txt", "must end in one of .safetensors, .ckpt"),
        (["step=1.pt"], "m", "must end in one of"),
        (["x.h5"], "m.pt", "has the suffix '.h5'"),
    ],
)
def test_wrong_paths(tmp_path, files, out, message):
    torch.save({"w": torch.ones(2)}, tmp_path / "step=1.pt")
    (tmp_path / "x.h5").touch()
    with pytest.raises(ValueError, match=message):
        merge_checkpoints([tmp_path / file for file in files], WSM(), tmp_path / out)
    assert not (tmp_path / out).exists()


def test_entries_that_are_no_tensors_go_along_in_files_of_torch_only(tmp_path):
    for step in (1, 2):
        state = {"w": torch.tensor([float(step)]), "norm._extra_state": {"scale": step}}
        torch.save({"state_dict": state, "global_step": step}, tmp_path / f"{step}.pt")
    files = [tmp_path / "1.pt", tmp_path / "2.pt"]
    merge_checkpoints(files, WSM(), tmp_path / "m.pt")
    assert torch.load(tmp_path / "m.pt")["state_dict"]["norm._extra_state"] == {"scale": 2}
    with pytest.raises(ValueError, match=r"\['norm._extra_state'\] are no tensors"):
        merge_checkpoints(files, WSM(), tmp_path / "m.safetensors")


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 10_000), noise=st.binary(max_size=12), suffix=st.sampled_from([".pt", ".safetensors"]))
def test_spoilt_files_never_give_an_output(tmp_path_factory, cut, noise, suffix):
    folder = tmp_path_factory.mktemp("spoilt")
    save_ = torch.save if suffix == ".pt" else save_file
    for step in (1, 2):
        save_({"w": torch.full((5,), float(step))}, folder / f"step={step}{suffix}")
    path = folder / f"step=1{suffix}"
    whole = path.read_bytes()
    path.write_bytes(whole[: cut % len(whole)] + noise)
    try:
        merge_checkpoints(folder.glob("step=*"), WSM(shape="linear"), folder / "m.pt")
    except ValueError:
        assert {p.name for p in folder.iterdir()} == {f"step=1{suffix}", f"step=2{suffix}"}
    else:  # the end alone was replaced, by as many or by what does not matter
        assert torch.load(folder / "m.pt")["w"].shape == (5,)


def test_a_header_that_lies_is_refused(tmp_path):
    for step in (1, 2):
        save_file({"w": torch.ones(2)}, tmp_path / f"step={step}.safetensors")
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "step=1.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        merge_checkpoints(tmp_path.iterdir(), WSM(), tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("count", "named"),
    [
        (5, r"\['k0', 'k1', 'k2', 'k3', 'k4'\]\."),
        (6, r"\['k0', 'k1', 'k2', 'k3', 'k4'\] and 1 more\."),
        (17, r"\['k0', 'k1', 'k10', 'k11', 'k12'\] and 12 more\."),
    ],
)
def test_of_many_names_five_are_said(tmp_path, count, named):
    torch.save({"w": torch.ones(1), **{f"k{i}": torch.ones(1) for i in range(count)}}, tmp_path / "step=1.pt")
    torch.save({"w": torch.ones(1)}, tmp_path / "step=2.pt")
    with pytest.raises(ValueError, match=rf"lacks \[\] and has besides {named}"):
        merge_checkpoints(tmp_path.iterdir(), WSM(), tmp_path / "m.pt")


def test_an_error_on_the_way_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="complex128, which safetensors files do not have"):
        write_safetensors(tmp_path / "x", {"w": (torch.complex128, (1,), "w")}, {}.get, {})
    files, _ = save(tmp_path, ".pt")

    class Breaks(Merge):
        def coefficients(self, steps):
            return torch.tensor(["x"])

    before = set(tmp_path.iterdir())
    with pytest.raises((ValueError, TypeError)):
        merge_checkpoints(files, Breaks(), tmp_path / "m.pt")
    assert set(tmp_path.iterdir()) == before


def test_our_writer_agrees_with_safetensors(tmp_path):
    tensors = {"b": torch.randn(3, 2), "a": torch.arange(3), "c": torch.randn(5).bfloat16(), "s": torch.tensor(True)}
    entries = {name: (t.dtype, tuple(t.shape), name) for name, t in tensors.items()}
    write_safetensors(tmp_path / "x.safetensors", entries, tensors.__getitem__, {"step": "3"})
    again = load_file(tmp_path / "x.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


@pytest.mark.processes
def test_a_merge_opens_where_this_package_is_not(tmp_path):
    files, nets = save(tmp_path, ".ckpt")
    merge_checkpoints(files, WSM(), tmp_path / "m.ckpt")
    code = textwrap.dedent(
        """
        import sys
        sys.modules["lightning_objectives"] = None
        import test_checkpoints_net as net
        print(net.Net.load_from_checkpoint("m.ckpt", map_location="cpu").norm.num_batches_tracked.item())
        """
    )
    source = open(__file__).read().split("def checkpoint")[0]  # noqa: PTH123, SIM115  # the net alone
    kept = [line for line in source.splitlines() if not line.startswith(("from lightning_obj", "from hypo"))]
    (tmp_path / "test_checkpoints_net.py").write_text("\n".join(kept))
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip().endswith("40"), run.stderr
    assert nets


def test_pieces_make_no_difference(tmp_path, monkeypatch):
    """Ten elements in pieces of three: one with an infinity in all files, one laid out otherwise in a file of torch."""
    draw = torch.Generator().manual_seed(0)
    files = [tmp_path / f"step={step}.pt" for step in range(3)]
    states = [{"w": torch.randn(10, generator=draw), "c": torch.randn(1, 3, 2, 2, generator=draw)} for _ in files]
    for state, file in zip(states, files):
        state["w"][4] = torch.inf
        torch.save({**state, "c": state["c"].to(memory_format=torch.channels_last)}, file)
    whole = torch.load(merge_checkpoints(files, WSM(), tmp_path / "whole.pt"))
    monkeypatch.setattr("lightning_objectives._files.linear_merge._PIECE", 3)
    pieces = torch.load(merge_checkpoints(files, WSM(), tmp_path / "pieces.pt"))
    shares = WSM().coefficients([0, 1, 2]).tolist()
    for key in ("w", "c"):
        torch.testing.assert_close(pieces[key], whole[key], rtol=0, atol=0)
        slow = sum(share * state[key].double() for share, state in zip(shares, states))
        torch.testing.assert_close(pieces[key].double(), slow, rtol=0, atol=1e-6)
