"""What a teacher said, kept on disk."""

import copy

import pytest
import torch
from helpers import Net, data, equal, fit
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_objectives._files.logit_cache import LogitCache, checksums, fingerprint
from lightning_objectives.callbacks import AddRegularizer, Distill
from lightning_objectives.data import with_index
from lightning_objectives.distillation import DualHead, VanillaKD


class Counted(nn.Linear):
    """It knows how many samples it was asked for."""

    asked = 0

    def forward(self, x):
        Counted.asked += len(x)
        return super().forward(x)


def teacher(seed=3):
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return Counted(4, 3)


def batches(**kwargs):
    return DataLoader(with_index(data()), batch_size=8, shuffle=True, **kwargs)


def run(directory, seed=3, train=None, **settings):
    Counted.asked = 0
    cache = None if directory is None else str(directory)
    distill = Distill(VanillaKD(), teacher=teacher(seed), cache=cache, **settings)
    net, _ = fit(distill, train=batches() if train is None else train, max_epochs=3)
    return net, Counted.asked


def test_each_sample_is_asked_once_and_the_training_is_the_same(tmp_path):
    plain, often = run(None)
    first, once = run(tmp_path / "new" / "cache")
    again, never = run(tmp_path / "new" / "cache")
    assert (often, once, never) == (72, 24, 0)
    assert equal(plain, first)
    assert equal(plain, again)
    assert [file.name for file in (tmp_path / "new" / "cache").iterdir()] == ["logits-0.safetensors"]


class Augmented(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        x, y = data()[index]
        return x + torch.rand(4), y


def test_random_augmentation_is_found_out(tmp_path):
    with pytest.raises(ValueError, match="either they are augmented at random, or mixed"):
        run(tmp_path, train=DataLoader(with_index(Augmented()), batch_size=8))


def test_a_sample_twice_in_a_batch_with_other_inputs_is_found_out(tmp_path):
    cache = LogitCache(str(tmp_path), top_k=None, teacher="a")
    with pytest.raises(ValueError, match="The inputs of the sample 2 are not those"):
        cache(torch.tensor([2, 2]), torch.tensor([[1.0], [2.0]]), lambda rows: torch.ones(2, 1)[rows])
    same = cache(torch.tensor([5, 5]), torch.tensor([[1.0], [1.0]]), lambda rows: torch.ones(2, 1)[rows])
    assert same.tolist() == [[1.0], [1.0]]


def test_the_top_k_by_hand(tmp_path):
    """Shares 8, 4, 2, 1, 1 of 16: kept are 8 and 4; the others are 4/3 each."""
    shares = torch.tensor([[2.0, 8.0, 1.0, 4.0, 1.0]])
    cache = LogitCache(str(tmp_path), top_k=2, teacher="a")
    for _ in range(2):
        found = cache(torch.tensor([40]), torch.ones(1, 2), lambda x: shares.log())
        torch.testing.assert_close(found.exp(), torch.tensor([[4 / 3, 8.0, 4 / 3, 4.0, 4 / 3]]))
    cache.save()
    loaded = LogitCache(str(tmp_path), top_k=2, teacher="a")
    assert torch.equal(loaded(torch.tensor([40]), torch.ones(1, 2), None), found)


def test_a_training_on_the_top_k(tmp_path):
    net, once = run(tmp_path, cache_top_k=2)
    assert once == 24
    plain, _ = run(None)
    for key, value in plain.state_dict().items():  # the third of three classes is what is left: exact
        torch.testing.assert_close(net.state_dict()[key], value, rtol=0, atol=1e-5)


def test_the_ranks_read_each_others_files(tmp_path):
    first, second = (LogitCache(str(tmp_path), top_k=None, teacher="a", rank=rank) for rank in (0, 1))
    x = torch.arange(6.0)[:, None]
    first(torch.arange(3), x[:3], lambda rows: -x[:3][rows])
    second(torch.arange(3, 6), x[3:], lambda rows: -x[3:][rows])
    for cache in (first, second):
        cache.save()
    first.load()
    assert torch.equal(first(torch.arange(6), x, None), -x)


def test_whole_numbers_of_any_type_and_every_batch():
    for dtype in (torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.int64):
        x = torch.arange(24).reshape(4, 2, 3).to(dtype)
        together, alone = checksums(x), torch.cat([checksums(row[None]) for row in x])
        assert torch.equal(together, alone)
        assert len({*together.tolist(), *checksums(x.flip(2)).tolist()}) == 8
    large = torch.randn(2, 3, 100, 100)
    assert not torch.equal(checksums(large), checksums(large + 1e-3))


def test_what_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(ValueError, match="was written with another teacher"):
        run(tmp_path, seed=4)
    with pytest.raises(ValueError, match="was written with another top_k"):
        run(tmp_path, cache_top_k=1)
    with pytest.raises(ValueError, match="was written with another teacher"):
        run(tmp_path, data_normalization=([0.0] * 4, [1.0] * 4), teacher_normalization=([0.0] * 4, [2.0] * 4))
    with pytest.raises(ValueError, match="asks for the signal 'index'"):
        run(tmp_path, train=DataLoader(data(), batch_size=8))
    with pytest.raises(ValueError, match="must be below the 3 classes"):
        run(tmp_path / "b", cache_top_k=3)
    with pytest.raises(ValueError, match="cache_top_k=2 must be at least 1, and needs a directory"):
        run(None, cache_top_k=2)
    with pytest.raises(ValueError, match="keeps logits only, but a method asks for teacher_features"):
        fit(
            AddRegularizer(lambda teacher_features: teacher_features),
            Distill(VanillaKD(), teacher=teacher(), cache=str(tmp_path)),
            train=batches(),
        )
    with pytest.raises(ValueError, match="one row of logits a sample"):
        LogitCache(str(tmp_path / "c"), top_k=None, teacher="a")(
            torch.tensor([1]), torch.ones(1, 2), lambda rows: torch.ones(1, 1, 2)
        )
    file = tmp_path / "logits-0.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is damaged"):
        run(tmp_path)
    save_file({"known": torch.ones(1)}, file)
    with pytest.raises(ValueError, match="another teacher"):
        run(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    run(tmp_path)
    before = (tmp_path / "logits-0.safetensors").read_bytes()
    cache = LogitCache(str(tmp_path), top_k=None, teacher=fingerprint(teacher(), None, None))
    cache(torch.tensor([99]), torch.ones(1, 4), lambda x: torch.ones(1, 3))

    def broken(path, *rest):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_objectives._files.logit_cache.write_safetensors", broken)
    with pytest.raises(KeyboardInterrupt):
        cache.save()
    assert (tmp_path / "logits-0.safetensors").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["logits-0.safetensors"]
    monkeypatch.undo()
    run(tmp_path)


def test_with_the_dual_head_and_a_copy(tmp_path):
    distill = Distill(DualHead(), teacher=teacher(), cache=str(tmp_path))
    net, _ = fit(copy.deepcopy(distill), train=batches())
    assert equal(fit(distill, train=batches())[0], net)
    assert list(net.state_dict()) == list(Net().state_dict())


def test_a_cache_that_is_opened_while_the_trainer_makes_modules_on_a_gpu_stays_on_the_cpu(tmp_path):
    """`configure_model` runs with the strategy's device as torch's default one; "meta" stands for a GPU here."""
    index, inputs = torch.arange(3), torch.rand(3, 2)
    with torch.device("meta"):
        first = LogitCache(str(tmp_path), top_k=None, teacher="one")
    logits = first(index, inputs, lambda rows: inputs[rows] * 2)
    first.save()
    with torch.device("meta"):
        again = LogitCache(str(tmp_path), top_k=None, teacher="one")
    assert torch.equal(again(index, inputs, lambda rows: pytest.fail("asked again")), logits)
