"""Checkpoints that are folders, or several files with an index: merged as the same weights in one file are."""

import json
import pickle

import lightning as L
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint import filesystem, metadata

from lightning_objectives import cli
from lightning_objectives._files.reading import open_source
from lightning_objectives.merging import WSM, merge_checkpoints


def net(seed=0):
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Linear(3, 2).bfloat16())
    made[0].to(memory_format=torch.channels_last)
    made[1].num_batches_tracked.fill_(seed)
    return made


def state(seed):
    return {key: value.detach() for key, value in net(seed).state_dict().items()}


def merged_of(files, out, **settings):
    path = merge_checkpoints(files, WSM(), out, **settings)
    read = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return next((read[key] for key in ("state_dict", "model") if key in read), read)


@pytest.fixture
def expected(tmp_path):
    """The merge of plain files of the same weights."""
    for seed in (1, 2, 3):
        torch.save(state(seed), tmp_path / f"plain-step={seed}.pt")
    return merged_of(tmp_path.glob("plain-*"), tmp_path / "expected.pt")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# Hugging Face


def save_whole(folder, weights, suffix):
    contiguous = {key: value.contiguous() for key, value in weights.items()}
    if suffix == "safetensors":
        save_file(contiguous, folder / "model.safetensors", {"format": "pt"})
    else:
        torch.save(weights, folder / "pytorch_model.bin")


def save_shards(folder, weights, suffix, count=3):
    names, keys = {}, list(weights)
    for i in range(count):
        part = {key: weights[key].contiguous() for key in keys[i::count]}
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        name = f"{stem}-{i + 1:05}-of-{count:05}.{suffix}"
        save_file(part, folder / name, {"format": "pt"}) if suffix == "safetensors" else torch.save(part, folder / name)
        names |= dict.fromkeys(part, name)
    index = folder / ("model.safetensors.index.json" if suffix == "safetensors" else "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    return index


def hugging_face(root, seed, save, suffix, name="checkpoint-{}"):
    folder = root / name.format(100 * seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save(folder, state(seed), suffix)
    return folder


@pytest.mark.parametrize("save", [save_whole, save_shards], ids=lambda save: save.__name__)
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("out", ["m.safetensors", "m.pt"])
def test_hugging_face(tmp_path, expected, save, suffix, out):
    folders = [hugging_face(tmp_path / "hf", seed, save, suffix) for seed in (3, 1, 2)]
    assert equal(merged_of(folders, tmp_path / out), expected)
    if out.endswith("safetensors"):
        with safe_open(tmp_path / out, framework="pt") as file:
            assert file.metadata()["format"] == "pt"
            assert file.metadata()["steps"] == "[100, 200, 300]"


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_an_index(tmp_path, expected, suffix):
    files = []
    for seed in (1, 2, 3):
        (tmp_path / str(seed)).mkdir()
        files.append(save_shards(tmp_path / str(seed), state(seed), suffix))
    assert equal(merged_of(files, tmp_path / "m.pt", order="given"), expected)
    with pytest.raises(ValueError, match="No step is known"):
        merge_checkpoints(files, WSM(), tmp_path / "n.pt")


def test_the_step_of_hugging_faces_trainer(tmp_path):
    folder = hugging_face(tmp_path, 1, save_whole, "safetensors", name="run-{}")
    assert open_source(folder).step is None
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 7, "epoch": 1.5}))
    assert open_source(folder).step == 7
    (folder / "trainer_state.json").write_text("{")
    assert open_source(folder).step is None
    assert open_source(hugging_face(tmp_path, 2, save_shards, "bin")).step == 200


def test_an_output_inside_an_input_replaces_nothing(tmp_path):
    folders = [hugging_face(tmp_path, seed, save_shards, "safetensors") for seed in (1, 2)]
    shard = next(folders[0].glob("*-00001-*"))
    before = shard.read_bytes()
    for inputs in (folders, [folder / "model.safetensors.index.json" for folder in folders]):
        with pytest.raises(ValueError, match="is an input, or lies in the folder of one"):
            merge_checkpoints(inputs, WSM(), shard)
    assert shard.read_bytes() == before
    assert merge_checkpoints(folders, WSM(), folders[0] / "new.safetensors").exists()


# torch.distributed.checkpoint


def optimizer(seed):
    return {"state": {"0": {"momentum_buffer": torch.full((2,), float(seed))}}, "param_groups": [{"lr": 0.1}]}


def distributed(folder, contents, meta=None):
    dcp.save(contents, checkpoint_id=folder, no_dist=True)
    if meta is not None:
        torch.save(meta, folder / "meta.pt")
    return folder


def frame(seed, **more):
    return {"pytorch-lightning_version": L.__version__, "global_step": seed, "epoch": 0, "loops": {}, **more}


SAVED = {
    "a state dict": lambda seed: (state(seed), None),
    "of FSDP2": lambda seed: ({"state_dict": state(seed), "optimizer_0": optimizer(seed)}, frame(seed)),
    "of FSDP": lambda seed: ({"model": state(seed), "optimizer_0": optimizer(seed)}, frame(seed)),
    "of Fabric": lambda seed: ({"model": state(seed), "optimizer": optimizer(seed)}, {"step": seed}),
    "of a tutorial": lambda seed: ({"model": state(seed), "optim": optimizer(seed), "epoch": seed}, None),
}


@pytest.mark.filterwarnings("ignore:torch.distributed is")
@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("out", ["m.safetensors", "m.pt"])
def test_distributed(tmp_path, expected, kind, out):
    folders = [distributed(tmp_path / f"step={seed}.ckpt", *SAVED[kind](seed)) for seed in (1, 2, 3)]
    assert equal(merged_of(folders, tmp_path / out), expected)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_a_lightning_checkpoint_in_shards_becomes_a_plain_one(tmp_path, expected):
    meta = [frame(seed, hyper_parameters={"width": 3}, callbacks={"a": 1}, mine=[1]) for seed in (1, 2, 3)]
    folders = [distributed(tmp_path / str(m["global_step"]), {"model": state(m["global_step"])}, m) for m in meta]
    merged = torch.load(merge_checkpoints(folders, WSM(), tmp_path / "m.ckpt"), weights_only=True)
    assert merged.keys() == frame(3).keys() - {"loops"} | {"hyper_parameters", "mine", "state_dict"}
    assert merged["global_step"] == 3
    assert equal(merged["state_dict"], expected)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_an_average_in_shards_is_exported(tmp_path):
    raw = {"callbacks": {"AverageWeights": {"averages": {}, "raw": {"w": torch.zeros(3)}}}}
    folder = distributed(tmp_path / "a.ckpt", {"state_dict": {"w": torch.ones(3)}}, frame(1, **raw))
    for weights, value in (("raw", 0), ("average", 1)):
        cli.main(["export", str(folder), "--weights", weights, "-o", str(tmp_path / f"{weights}.ckpt")])
        assert torch.load(tmp_path / f"{weights}.ckpt")["state_dict"]["w"].tolist() == [value] * 3


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_parts_of_a_distributed_folder(tmp_path):
    contents = {"app": {"model": state(1), "ema": state(2)}, "n": 3}
    folder = distributed(tmp_path / "a", contents)
    with pytest.raises(ValueError, match=r"tensors in the parts \['app.ema', 'app.model'\].*part='app.ema'"):
        open_source(folder)
    assert equal({name: open_source(folder, "app.ema").tensor(name) for name in state(2)}, state(2))
    with pytest.raises(ValueError, match=r"part='app': .*no such part"):
        open_source(folder, "app")
    with pytest.raises(ValueError, match=r"entries that are no tensors: \['n'\]"):
        open_source(distributed(tmp_path / "b", {**state(1), "n": 3}))
    extra = distributed(tmp_path / "c", {"model": {**state(1), "norm._extra_state": 2}})
    assert open_source(extra).extra_entries == {"norm._extra_state": 2}
    with pytest.raises(ValueError, match=r"more in 'model' than tensors by name: \['model.norm._extra_state.scale'\]"):
        open_source(distributed(tmp_path / "d", {"model": {**state(1), "norm._extra_state": {"scale": 2}}}))


def in_pieces(folder, tensor, places, **changes):
    """Write a folder with one tensor in pieces, as ranks with a shard each write it; ``changes`` are lies about it."""
    folder.mkdir()
    chunks, storage = [], {}
    for i, place in enumerate(places):
        piece = tensor[place].clone()
        offsets = torch.Size(part.start or 0 for part in place)
        torch.save(piece, folder / f"__{i}_0.distcp")
        length = (folder / f"__{i}_0.distcp").stat().st_size
        chunks.append(metadata.ChunkStorageMetadata(offsets, piece.shape))
        index = metadata.MetadataIndex("model.w", offsets)
        storage[index] = filesystem._StorageInfo(
            changes.get("name", f"__{i}_0.distcp"), 0, changes.get("length", length)
        )
    properties = metadata.TensorProperties(dtype=changes.get("dtype", tensor.dtype))
    form = metadata.TensorStorageMetadata(properties, changes.get("shape", tensor.shape), chunks)
    described = metadata.Metadata({"model.w": form}, planner_data={"model.w": ("model", "w")}, storage_data=storage)
    with (folder / ".metadata").open("wb") as file:
        pickle.dump(changes.get("described", described), file)
    return folder


WHOLE = torch.arange(35.0).reshape(5, 7)
PLACES = {
    "rows": [(slice(0, 3), slice(0, 7)), (slice(3, 5), slice(0, 7))],
    "blocks": [
        (slice(0, 2), slice(0, 3)), (slice(0, 2), slice(3, 7)), (slice(2, 5), slice(0, 3)), (slice(2, 5), slice(3, 7)),
    ],
    "an empty one": [(slice(0, 5), slice(0, 7)), (slice(5, 5), slice(0, 7))],
    "one": [(slice(0, 5), slice(0, 7))],
}  # fmt: skip


@pytest.mark.parametrize("kind", PLACES)
def test_pieces_are_put_together(tmp_path, kind):
    source = open_source(in_pieces(tmp_path / "a", WHOLE, PLACES[kind]))
    assert torch.equal(source.tensor("w"), WHOLE)
    assert source.form("w") == (torch.float32, (5, 7))


LIES = {
    "a piece is missing": ({}, PLACES["rows"][:1]),
    "two overlap": ({}, [(slice(0, 3), slice(0, 7)), (slice(2, 4), slice(0, 7))]),
    "beyond the end": ({"shape": torch.Size([4, 7])}, PLACES["rows"]),
    "longer than the file": ({"length": 10**6}, PLACES["rows"]),
    "of another folder": ({"name": "../secret"}, PLACES["one"]),
    "a file that is not there": ({"name": "gone.distcp"}, PLACES["one"]),
    "a gigantic shape": ({"shape": torch.Size([2**40, 7])}, PLACES["one"]),
}


@pytest.mark.parametrize("kind", LIES)
def test_pieces_that_are_not_the_whole_are_refused(tmp_path, kind):
    changes, places = LIES[kind]
    (tmp_path / "secret").write_bytes(b"x" * 4000)
    folder = in_pieces(tmp_path / "a", WHOLE, places, **changes)
    with pytest.raises(ValueError, match=f"{folder} cannot be read as a folder of torch.distributed.checkpoint"):
        open_source(folder)


def test_a_piece_of_another_type(tmp_path):
    folder = in_pieces(tmp_path / "a", WHOLE, PLACES["rows"], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"holds torch.float32 \(3, 7\) as a piece of w, but .* says torch.float64"):
        open_source(folder).tensor("w")
