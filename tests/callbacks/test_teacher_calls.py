"""How a teacher is called, and which of its logits belong to which row."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, fit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives.callbacks import Distill, WrapHead
from lightning_objectives.data import with_index
from lightning_objectives.distillation import BinaryKL, DualHead, VanillaKD, binary_kl, vanilla_kd


class Pooled(nn.Module):
    """Padded sequences: without its mask it says something else."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, ids, mask=None):
        mask = torch.ones_like(ids) if mask is None else mask
        return self.out((self.embedding(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


def padded():
    generator = torch.Generator().manual_seed(0)
    ids, lengths = torch.randint(20, (8, 6), generator=generator), torch.tensor([2, 6, 3, 1, 4, 5, 2, 6])
    return [{"ids": i, "mask": (torch.arange(6) < n).long(), "y": n % 3} for i, n in zip(ids, lengths)]


CALLS = {
    "positions": lambda net, b: net(b["ids"], b["mask"]),
    "keywords": lambda net, b: net(ids=b["ids"], mask=b["mask"]),
    "a dictionary": lambda net, b: net(**{key: b[key] for key in ("ids", "mask")}),
}


def distance(module, teacher, batches, method=None, **settings):
    """The term of the first step."""
    callback = Distill(VanillaKD() if method is None else method, teacher=teacher, **settings)
    _, runner = fit(callback, net=module, train=batches, max_steps=1, log_every_n_steps=1)
    return runner.callback_metrics[f"train/{type(callback.method).__name__.lower()}"].item()


@pytest.mark.parametrize("name", CALLS)
def test_a_copy_of_the_student_is_called_as_the_student_is(name):
    net = Pooled()

    class Own(Net):
        def __init__(self):
            super().__init__()
            self.net = net

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(CALLS[name](self.net, batch), batch["y"])

    batches = DataLoader(padded(), batch_size=8)
    assert distance(Own(), copy.deepcopy(net), batches, head="net.out") == pytest.approx(0, abs=1e-6)
    other = Pooled()
    batch = next(iter(batches))
    expected = vanilla_kd(net(batch["ids"], batch["mask"]), other(batch["ids"], batch["mask"])).mean().item()
    assert distance(Own(), other, batches, head="net.out") == pytest.approx(expected, rel=1e-5)
    alone = vanilla_kd(net(batch["ids"], batch["mask"]), other(batch["ids"])).mean().item()
    told = distance(Own(), other, batches, head="net.out", teacher_call=lambda teacher, batch: teacher(batch["ids"]))
    assert told == pytest.approx(alone, rel=1e-5)
    assert told != pytest.approx(expected, rel=1e-2)


def test_a_network_that_takes_the_whole_batch():
    class Whole(Pooled):
        def forward(self, batch):
            return super().forward(batch["ids"], batch["mask"])

    class Own(Net):
        def __init__(self):
            super().__init__()
            self.net = Whole()

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch), batch["y"])

    net = Own()
    assert distance(net, copy.deepcopy(net.net), DataLoader(padded(), batch_size=8), head="net.out", input="ids") == (
        pytest.approx(0, abs=1e-6)
    )


def test_features_are_no_inputs():
    """The part with the head gets features from another part: a teacher must not get them in place of the inputs."""

    class Split(Net):
        def __init__(self):
            super().__init__()
            self.backbone, self.tail = nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 3))
            del self.fc

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.tail(self.backbone(batch[0])), batch[1])

    net, teacher = Split(), nn.Linear(4, 3)
    x, _ = data()[:8]
    expected = vanilla_kd(net.tail(net.backbone(x)), teacher(x)).mean().item()
    batches = DataLoader(data(), batch_size=8)
    assert distance(net, teacher, batches) == pytest.approx(expected, rel=1e-5)


def test_inputs_that_the_step_prepares_are_those_of_the_teacher():
    class Prepares(Net):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0] / 3), batch[1])

    net, teacher = Prepares(), nn.Linear(4, 3)
    x, _ = data()[:8]
    expected = vanilla_kd(net(x / 3), teacher(x / 3)).mean().item()
    assert distance(net, teacher, DataLoader(data(), batch_size=8)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("length", [7, 9])
def test_the_dimension_of_the_classes_is_that_of_the_criterion(length):
    """Nine tags, and sequences of nine tokens too."""

    class Tags(Net):
        def __init__(self):
            super().__init__(classes=9)

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0])[:, 1:].flatten(0, 1), batch[1][:, 1:].flatten())

    x, y = torch.randn(2, length, 4), torch.randint(9, (2, length))
    net, teacher = Tags(), nn.Linear(4, 9)
    expected = vanilla_kd(net(x)[:, 1:].flatten(0, 1), teacher(x)[:, 1:].flatten(0, 1)).mean().item()
    assert distance(net, teacher, DataLoader([(x, y)], batch_size=None)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("side", [6, 8])
@pytest.mark.parametrize("resized", [False, True])
def test_maps_of_classes(side, resized):
    """As wide as there are classes, and resized on the way to the criterion."""

    def resize(z):
        return F.interpolate(z, scale_factor=2) if resized else z

    class Pixels(Net):
        def __init__(self):
            super().__init__()
            self.fc = nn.Conv2d(3, 8, 1)
            del self.backbone

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(resize(self.fc(batch[0])), batch[1])

    size = 2 * side if resized else side
    x, y = torch.randn(2, 3, side, side), torch.randint(8, (2, size, size))
    net, teacher = Pixels(), nn.Conv2d(3, 8, 1)
    logits, taught = (resize(part(x)).movedim(1, -1).flatten(0, 2) for part in (net.fc, teacher))
    expected = vanilla_kd(logits, taught).mean().item()
    assert distance(net, teacher, DataLoader([(x, y)], batch_size=None)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("squeezed", [True, False])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("method", [BinaryKL(), VanillaKD()], ids=lambda m: type(m).__name__)
def test_one_logit_for_two_classes(squeezed, flat, method):
    class Binary(Net):
        def __init__(self):
            super().__init__(classes=1)

        def training_step(self, batch, batch_idx):
            z, y = self(batch[0]), (batch[1] > 0).float()
            if squeezed:
                return F.binary_cross_entropy_with_logits(z.squeeze(1), y)
            return F.binary_cross_entropy_with_logits(z, y[:, None])

    column, net = nn.Linear(4, 1), Binary()
    teacher = nn.Sequential(column, nn.Flatten(0)) if flat else column
    x, _ = data()[:8]
    z, t = net(x), column(x)
    both = [torch.cat([torch.zeros_like(v), v], 1) for v in (z, t)]
    expected = binary_kl(z, t) if isinstance(method, BinaryKL) else vanilla_kd(*both)
    found = distance(net, teacher, DataLoader(data(), batch_size=8), method)
    assert found == pytest.approx(expected.mean().item(), rel=1e-5)
    assert found > 1e-4


class Bytes(Net):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(48, 3)
        del self.backbone

    def forward(self, x):
        return self.fc((x.float() / 255).flatten(1))


def images():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (8, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return TensorDataset(x, torch.randint(3, (8,), generator=generator))


def test_bytes_are_scaled_for_the_teacher_or_left_to_it():
    net, teacher, x = Bytes(), nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), images()[:][0]
    right = vanilla_kd(net(x), teacher(x.float() / 255)).mean().item()
    batches = DataLoader(images(), batch_size=8)
    scaled = {"data_normalization": ([0.0] * 3, [1 / 255] * 3), "teacher_normalization": ([0.0] * 3, [1.0] * 3)}
    assert distance(copy.deepcopy(net), teacher, batches, **scaled) == pytest.approx(right, rel=1e-4)

    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = teacher

        def forward(self, x):
            return self.net(x.float() / 255)

    assert distance(copy.deepcopy(net), Scales(), batches) == pytest.approx(right, rel=1e-4)
    with pytest.raises(ValueError, match=r"called with torch.uint8 inputs .* give data_normalization="):
        distance(net, teacher, batches)


def test_a_teacher_that_takes_something_else_is_a_sentence():
    class Needs(nn.Module):
        def forward(self, x, *, lengths):
            return x

    with pytest.raises(ValueError, match=r"The teacher Needs failed .* missing 1 required .*teacher_call=lambda"):
        distance(Net(), Needs(), DataLoader(data(), batch_size=8))
    with pytest.raises(ValueError, match="teacher_call= gives the teacher what you choose"):
        Distill(VanillaKD(), teacher=nn.Linear(4, 3), teacher_call=lambda t, b: t(b[0]), cache="there")


def test_a_cache_takes_the_rows_of_every_tensor(tmp_path):
    net = Pooled()
    asked = []

    class Asked(Pooled):
        def forward(self, ids, mask=None):
            asked.append((len(ids), len(mask)))
            return super().forward(ids, mask)

    class Own(Net):
        def __init__(self):
            super().__init__()
            self.net = net

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.net(batch["ids"], batch["mask"]), batch["y"])

    teacher = Asked()
    teacher.load_state_dict(net.state_dict())
    batches = DataLoader(with_index(padded()), batch_size=4)
    settings = {"head": "net.out", "cache": str(tmp_path), "input": "ids"}
    assert distance(Own(), teacher, batches, **settings) == pytest.approx(0, abs=1e-6)
    assert asked == [(4, 4)]


@pytest.mark.parametrize("kind", ["convolution", "wrapped", "matrix"])
def test_an_auxiliary_head_beside_heads_of_every_form(kind):
    """On the features of the network's head, with a row for each point."""

    class Matrix(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 6))

        def forward(self, x):
            return F.normalize(x, dim=1) @ F.normalize(self.weight, dim=1).T

    dense = kind == "convolution"

    class Own(Net):
        def __init__(self):
            super().__init__()
            heads = {
                "convolution": nn.Conv2d(6, 3, 1),
                "wrapped": nn.Sequential(nn.ReLU(), nn.Linear(6, 3)),
                "matrix": Matrix(),
            }
            self.fc = heads[kind]

        def training_step(self, batch, batch_idx):
            features = self.backbone(batch[0])
            if dense:
                features = features.view(2, 2, 2, 6).movedim(-1, 1)
            z = self.fc(features)
            return F.cross_entropy(z.movedim(1, -1).flatten(0, 2) if dense else z, batch[1])

    seen = []
    forward = DualHead.forward

    class Look(DualHead):
        def forward(self, logits, teacher_logits):
            seen.append((logits.shape, type(self.auxiliary_head), self.auxiliary_head.in_features))
            return forward(self, logits, teacher_logits)

    callback = Distill(Look(), teacher=nn.Linear(4, 3), head="fc")
    fit(callback, net=Own, max_steps=1)
    assert seen == [((8, 3), nn.Linear, 6)]


def test_a_head_inside_a_checkpoint_is_computed_again_as_it_was():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Net):
        def __init__(self, reentrant=False):
            super().__init__()
            self.reentrant = reentrant

        def forward(self, x):
            return checkpoint(self.fc, self.backbone(x), use_reentrant=self.reentrant)

    def dropped(features, head):
        return torch.stack([head(F.dropout(features, 0.5)) for _ in range(3)])

    saved, _ = fit(WrapHead(dropped, head="fc"), net=Checkpointed)
    plain, _ = fit(WrapHead(dropped, head="fc"))
    for a, b in zip(saved.parameters(), plain.parameters()):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match=r"calls it without gradients, as checkpoint\(..., use_reentrant=True\) does"):
        fit(WrapHead(dropped, head="fc"), net=lambda: Checkpointed(reentrant=True))
