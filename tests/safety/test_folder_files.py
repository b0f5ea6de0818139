"""Checkpoints in several files: each of them is sound and is what the others say, or there is no output."""

import json
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from corruptions import DRAWN, EXAMPLES, HIDDEN, REPLACED, Runs, contents, drawn, nothing_left, unless_refused
from safetensors.torch import load_file, save_file

from lightning_objectives.merging import WSM, merge_checkpoints

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")


def state(value):
    return {"w": torch.full((2, 3), float(value)), "b": torch.arange(3.0) + value, "n": torch.tensor(int(value))}


def shards(folder, value, suffix):
    folder.mkdir()
    weights, names = state(value), {}
    for i, keys in enumerate((["w"], ["b", "n"])):
        part = {key: weights[key] for key in keys}
        name = f"model-{i}.{suffix}"
        save_file(part, folder / name) if suffix == "safetensors" else torch.save(part, folder / name)
        names |= dict.fromkeys(keys, name)
    index = "model.safetensors.index.json" if suffix == "safetensors" else "pytorch_model.bin.index.json"
    (folder / index).write_text(json.dumps({"weight_map": names}))


def distributed(folder, value, suffix):
    dcp.save({"model": state(value), "optimizer": {"lr": 0.1}}, checkpoint_id=folder, no_dist=True)
    torch.save({"pytorch-lightning_version": "2.6.0", "global_step": value, "state": {}}, folder / "meta.pt")


KINDS = {
    "shards of safetensors": (shards, "safetensors", ["model-0.safetensors", "model.safetensors.index.json"]),
    "shards of torch": (shards, "bin", ["model-1.bin", "pytorch_model.bin.index.json"]),
    "distributed": (distributed, "", [".metadata", "__0_0.distcp", "meta.pt"]),
}
FILES = [(kind, name) for kind, (*_, names) in KINDS.items() for name in names]


def write(root, kind):
    """Two folders, oldest first, of which the first will be damaged."""
    make, suffix, _ = KINDS[kind]
    folders = [root / f"checkpoint-{step}" for step in (1, 2)]
    for step, folder in enumerate(folders, start=1):
        make(folder, step, suffix)
    return folders


def merge(folders):
    return load_file(merge_checkpoints(folders, WSM(shape="linear"), folders[0].parent / "m.safetensors"))


@pytest.mark.parametrize("damage", DRAWN)
@pytest.mark.parametrize(("kind", "name"), FILES)
def test_damage(tmp_path, kind, name, damage):
    folders = write(tmp_path, kind)
    expected = merge(folders)
    (tmp_path / "m.safetensors").unlink()
    path = folders[0] / name
    whole = path.read_bytes()

    def run(draw):
        path.write_bytes(DRAWN[damage](whole, draw))
        before = contents(tmp_path)
        found = unless_refused(lambda: merge(folders), folders[0])
        if found is not None:
            (tmp_path / "m.safetensors").unlink()
            assert {k: (v.dtype, v.shape) for k, v in found.items()} == {
                k: (v.dtype, v.shape) for k, v in expected.items()
            }
            if not name.endswith(".safetensors"):  # which have no checksums
                assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert contents(tmp_path) == before

    drawn(EXAMPLES, run)


@pytest.mark.parametrize("replaced", REPLACED)
@pytest.mark.parametrize(("kind", "name"), FILES)
def test_something_else_in_its_place(tmp_path, kind, name, replaced):
    folders = write(tmp_path, kind)
    REPLACED[replaced](folders[0] / name)
    if kind == "distributed" and name == "meta.pt" and replaced in ("missing", "directory", "endless_link"):
        return  # that is another form of folder, without Lightning's part
    with nothing_left(tmp_path), pytest.raises(ValueError, match="checkpoint-1"):
        merge(folders)


@pytest.mark.parametrize("where", HIDDEN)
def test_code_in_a_shard_and_beside_pieces(tmp_path, where, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, (kind, name) in enumerate((("shards of torch", "model-1.bin"), ("distributed", "meta.pt"))):
        (tmp_path / str(i)).mkdir()
        folders = write(tmp_path / str(i), kind)
        torch.save(HIDDEN[where]({"state_dict": state(1)}), folders[0] / name)
        with nothing_left(tmp_path), pytest.raises(ValueError, match="could run code"):
            merge(folders)


class Calls:
    """What a pickle may hold in place of a plain class: a call of any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


CALLS = {
    "a function": Runs(),
    "eval": Calls(eval, "__import__('os').mkdir('ran')"),
    "getattr": Calls(getattr, "x", "upper"),
    "a class of torch": Calls(torch.nn.Linear, 2, 2),
    "torch.load": Calls(torch.load, "x"),
    "of the module of the right classes": Calls(dcp.FileSystemReader, "x"),
}


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("place", ["as the whole", "in the planner's data", "as a tensor", "in storage_data"])
def test_code_in_the_metadata(tmp_path, kind, place, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = write(tmp_path, "distributed")
    path = folders[0] / ".metadata"
    described = pickle.loads(path.read_bytes())  # our own
    bad = CALLS[kind]
    if place == "in the planner's data":
        described.planner_data["x"] = bad
    elif place == "as a tensor":
        described.state_dict_metadata["x"] = bad
    elif place == "in storage_data":
        described.storage_data["x"] = bad
    path.write_bytes(pickle.dumps(bad if place == "as the whole" else described))
    with nothing_left(tmp_path), pytest.raises(ValueError, match="is no part of such a file, and could run code"):
        merge(folders)


INDICES = {
    "no JSON": "{",
    "a list": "[]",
    "no map": "{}",
    "an empty map": '{"weight_map": {}}',
    "a number for a file": '{"weight_map": {"w": 3}}',
    "a file elsewhere": '{"weight_map": {"w": "../model-0.safetensors"}}',
    "an absolute path": '{"weight_map": {"w": "/etc/passwd"}}',
    "itself": '{"weight_map": {"w": "model.safetensors.index.json"}}',
    "a name less": '{"weight_map": {"w": "model-0.safetensors", "b": "model-1.safetensors"}}',
    "a name more": '{"weight_map": {"w": "model-0.safetensors", "v": "model-0.safetensors"}}',
    "another shard": '{"weight_map": {"w": "model-1.safetensors", "b": "model-1.safetensors"}}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("kind", INDICES)
def test_indices(tmp_path, kind):
    folders = write(tmp_path, "shards of safetensors")
    (folders[0] / "model.safetensors.index.json").write_text(INDICES[kind])
    with nothing_left(tmp_path), pytest.raises(ValueError, match="checkpoint-1"):
        merge(folders)


def test_a_folder_with_two_sets_of_weights_is_refused(tmp_path):
    folders = write(tmp_path, "shards of safetensors")
    torch.save(state(9), folders[0] / "pytorch_model.bin")
    with (
        nothing_left(tmp_path),
        pytest.raises(ValueError, match=r"several files, \['model\.safetensors\.index\.json', 'p"),
    ):
        merge(folders)


def test_a_part_of_shards_is_refused(tmp_path):
    folders = write(tmp_path, "shards of safetensors")
    with pytest.raises(ValueError, match=r"part='ema': .*an index of shards, which have no parts"):
        merge_checkpoints(folders, WSM(), tmp_path / "m.pt", part="ema")
