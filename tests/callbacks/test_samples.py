"""Which losses belong to one sample: proved by the paths of target and logits, told by the user, or refused."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from bare_step import loss_and_gradient
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_objectives._step.samples import loader_sizes
from lightning_objectives.callbacks import AddRegularizer, ReweightSamples

B, T, C = 4, 6, 3


def tensors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape, seed=0):
    return torch.randint(C, shape, generator=torch.Generator().manual_seed(seed))


def flat(module, z, y):
    """Language models: all positions of all samples are rows."""
    return F.cross_entropy(z.flatten(0, 1), y.flatten())


def shifted(module, z, y):
    """Next tokens."""
    return F.cross_entropy(z[:, :-1].reshape(-1, C), y[:, 1:].reshape(-1))


def time_first(module, z, y):
    """The user turns the batch around before the rows are joined."""
    return F.cross_entropy(z.transpose(0, 1).reshape(-1, C), y.t().reshape(-1))


def classes_second(module, z, y):
    return F.cross_entropy(z.movedim(-1, 1), y)


def masked(module, z, y):
    """Positions that do not count are dropped before the criterion."""
    keep = (torch.arange(T) < torch.tensor([1, 6, 3, 2])[:, None]).flatten()
    return F.cross_entropy(z.view(-1, C)[keep], y.view(-1)[keep])


def packed(module, z, y):
    """Another order of the rows."""
    order = torch.randperm(B * T, generator=torch.Generator().manual_seed(3))
    return F.cross_entropy(z.flatten(0, 1)[order], y.flatten().index_select(0, order))


def masked_after(module, z, y):
    """The mask comes after the criterion."""
    mask = (torch.arange(T) < torch.tensor([1, 6, 3, 2])[:, None]).float()
    losses = F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction="none").view(B, T)
    return (losses * mask).sum() / mask.sum()


LENGTHS = torch.tensor([1, 6, 3, 2])
MASK = (torch.arange(T) < LENGTHS[:, None]).float()
TABLE = F.cross_entropy(tensors(B, T, C).movedim(-1, 1), labels(B, T), reduction="none")
MASKED = (TABLE * MASK).sum(1) / MASK.sum(1)
NEXT = F.cross_entropy(tensors(B, T, C)[:, :-1].movedim(-1, 1), labels(B, T)[:, 1:], reduction="none")
CASES = {
    "flat": (flat, TABLE.mean(1)),
    "shifted": (shifted, NEXT.mean(1)),
    "time first": (time_first, TABLE.mean(1)),
    "classes second": (classes_second, TABLE.mean(1)),
    "masked": (masked, MASKED),
    "packed": (packed, TABLE.mean(1)),
    "masked after": (masked_after, MASKED),
}


def seen_by(compute, batch, loader=None, steps=1, **settings):
    """The losses that a weighting sees."""
    seen = []

    def spy(losses):
        seen.append(losses)
        return torch.ones_like(losses)

    loss_and_gradient(compute, batch, ReweightSamples(spy, **settings), train_dataloader=loader, steps=steps)
    return seen[-1]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("steps", [1, 2])
def test_the_loss_of_a_sample_is_the_mean_of_its_elements_that_count(name, steps):
    compute, expected = CASES[name]
    batch = tensors(B, T, C), labels(B, T)
    torch.testing.assert_close(seen_by(compute, batch, steps=steps), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_weights_by_sample_reach_their_rows(name):
    """Whatever the order of the rows: the gradient of sample n is w_n times what it is in the plain run."""
    compute, _ = CASES[name]
    batch, weights = (tensors(B, T, C), labels(B, T)), torch.tensor([2.0, 0.0, 0.5, 1.5])
    _, plain = loss_and_gradient(compute, batch)
    _, weighted = loss_and_gradient(compute, batch, ReweightSamples(lambda losses: weights))
    torch.testing.assert_close(weighted, weights[:, None, None] * plain)


def test_only_the_logits_show_it():
    """The target is made in the step, so its way from the batch says nothing."""

    def compute(module, z):
        return F.cross_entropy(z.flatten(0, 1), torch.zeros(B * T, dtype=torch.long))

    z = tensors(B, T, C)
    expected = F.cross_entropy(z.movedim(-1, 1), torch.zeros(B, T, dtype=torch.long), reduction="none").mean(1)
    torch.testing.assert_close(seen_by(compute, (z,)), expected)


def test_two_views_of_a_sample_are_one_sample():
    def compute(module, z, y):
        return F.cross_entropy(torch.cat([z, -z]), y.repeat(2))

    z, y = tensors(B, C), labels(B)
    both = torch.stack([F.cross_entropy(s * z, y, reduction="none") for s in (1, -1)])
    torch.testing.assert_close(seen_by(compute, (z, y)), both.mean(0))


def test_time_major_batches_under_a_data_loader():
    """The data loader says that there are B samples; the first dimension counts the positions."""

    def compute(module, z, y):
        return F.cross_entropy(z.flatten(0, 1), y.flatten())

    loader = DataLoader(range(2 * B), batch_size=B)
    batch = tensors(B, T, C).transpose(0, 1), labels(B, T).t()
    torch.testing.assert_close(seen_by(compute, batch, loader), TABLE.mean(1))
    batch = tensors(B, B, C).transpose(0, 1), labels(B, B).t()
    with pytest.warns(UserWarning, match="The first is taken to count the samples"):
        seen_by(compute, batch, loader)


def test_what_the_first_batch_proves_settles_a_shorter_last_one():
    seen = []

    def spy(losses):
        seen.append(losses)
        return torch.ones_like(losses)

    def compute(module, z, y):
        batch = next(rest)
        return F.cross_entropy(z[:, batch].flatten(0, 1), y[:, batch].flatten())

    rest = iter([slice(None), slice(0, 2)])
    batch = tensors(B, T, C).transpose(0, 1), labels(B, T).t()
    loader = DataLoader(range(B + 2), batch_size=B)
    loss_and_gradient(compute, batch, ReweightSamples(spy), train_dataloader=loader, steps=2)
    torch.testing.assert_close(seen[0], TABLE.mean(1))
    torch.testing.assert_close(seen[1], TABLE[:2].mean(1))


@dataclasses.dataclass
class Batch:
    x: Tensor
    y: Tensor

    def __getitem__(self, i):
        return [self.x, self.y][i]


def test_graphs_dataclasses_and_lists_of_images():
    z, y = tensors(8, C), labels(8)
    edges = torch.zeros(2, 20, dtype=torch.long)
    nodes = seen_by(lambda module, z, edges, y: F.cross_entropy(z, y), (z, edges, y))
    torch.testing.assert_close(nodes, F.cross_entropy(z, y, reduction="none"))
    # Six proposals of four images, whose labels are computed in the step.
    owners = torch.tensor([0, 0, 1, 2, 3, 3])

    def proposals(module, z, images):
        return F.cross_entropy(z[owners], torch.arange(6) % C)

    z = tensors(4, C)
    losses = F.cross_entropy(z[owners], torch.arange(6) % C, reduction="none")
    expected = torch.stack([losses[owners == n].mean() for n in range(4)])
    images = [torch.zeros(3, 8, 8) for _ in range(4)]
    found = seen_by(proposals, (z, images), DataLoader(range(8), batch_size=4))
    torch.testing.assert_close(found, expected)


def test_a_class_table_beside_the_inputs():
    z, y, table = tensors(8, C), labels(8), tensors(C, 5)
    found = seen_by(lambda module, z, table, y: F.cross_entropy(z, y), (z, table, y))
    assert len(found) == 8


@pytest.mark.parametrize("settings", [{"batch_size": B}, {"batch_size": "2.count"}, {"sample_dim": 0}])
def test_what_the_user_says(settings):
    """Nothing shows to which sample a row belongs, so the user says it."""

    def compute(module, z, y, more):
        return F.cross_entropy(z.sin(), y)

    batch = tensors(B, C, T), labels(B, T), {"count": torch.tensor(B)}
    torch.testing.assert_close(
        seen_by(compute, batch, **settings),
        F.cross_entropy(batch[0].sin(), batch[1], reduction="none").mean(1),
    )


def test_another_dimension_of_the_samples():
    def compute(module, z, y):
        return F.cross_entropy(z, y)

    z, y = tensors(T, C, B), labels(T, B)
    expected = F.cross_entropy(z, y, reduction="none").mean(0)
    torch.testing.assert_close(seen_by(compute, (z, y), sample_dim=2), expected)
    torch.testing.assert_close(seen_by(compute, (z, y), batch_size=B), expected)


def nothing(module, z, y):
    """Neither way shows it: sines of the logits, and a target from nowhere."""
    return F.cross_entropy(z.sin().flatten(0, 1), torch.zeros(B * T, dtype=torch.long))


@pytest.mark.parametrize(
    ("compute", "settings", "message"),
    [
        (
            nothing,
            {},
            r"\(24,\) belong to one sample: .* 24 rows, and .* lengths \[4\]\..*because your code applies 'sin'",
        ),
        (nothing, {"batch_size": 5}, "you say that the batch has 5 samples"),
        (flat, {"batch_size": 5}, "you say that the batch has 5 samples"),
        (flat, {"batch_size": "2.count"}, "batch_size='2.count' names no number"),
        (flat, {"sample_dim": 3}, r"sample_dim=3 does not fit: the criterion's losses have the shape \(24,\)"),
    ],
)
def test_what_is_unknown_is_refused(compute, settings, message):
    with pytest.raises(ValueError, match=message) as error:
        seen_by(compute, (tensors(B, T, C), labels(B, T)), **settings)
    assert "sample_dim=" in str(error.value) or "batch_size=" in str(error.value)


def test_elements_need_no_samples():
    batch = tensors(B, T, C), labels(B, T)
    assert len(seen_by(nothing, batch, unit="element")) == B * T


def test_the_losses_of_a_term_are_those_of_the_samples():
    seen = []

    def term(losses):
        seen.append(losses)
        return losses

    loss_and_gradient(time_first, (tensors(B, T, C), labels(B, T)), AddRegularizer(term))
    torch.testing.assert_close(seen[0], TABLE.mean(1))


def test_the_sizes_of_a_data_loader():
    assert loader_sizes(DataLoader(range(10), batch_size=4)) == {4, 2}
    assert loader_sizes(DataLoader(range(10), batch_size=4, drop_last=True)) == {4}
    assert loader_sizes(DataLoader(range(3), batch_size=4)) == {3}
    assert loader_sizes(DataLoader(range(3), batch_size=None)) == set()
    assert loader_sizes([DataLoader(range(8), batch_size=4), {"a": DataLoader(range(9), batch_size=3)}]) == {3, 4}
    assert loader_sizes(SimpleNamespace(batch_size=7)) == {7}
    assert loader_sizes(None) == set()


def test_a_metric_in_inference_mode_is_not_followed():
    def compute(module, z, y):
        with torch.inference_mode():
            (z.argmax(-1) == y).float().mean()
            z.flatten(0, 1).float()
        return flat(module, z, y)

    torch.testing.assert_close(seen_by(compute, (tensors(B, T, C), labels(B, T))), TABLE.mean(1))


def test_a_table_that_is_indexed_by_labels_is_no_list_of_samples():
    """Coarse labels of fine ones: the numbers of the samples must not be taken for labels."""
    coarse = torch.tensor([2, 0, 1])

    def compute(module, z, y):
        return F.cross_entropy(z.flatten(0, 1), coarse[y].flatten())

    z, y = tensors(B, T, C), labels(B, T)
    expected = F.cross_entropy(z.movedim(-1, 1), coarse[y], reduction="none").mean(1)
    torch.testing.assert_close(seen_by(compute, (z, y)), expected)


def test_rows_that_the_labels_themselves_select():
    def compute(module, z, y):
        return F.cross_entropy(z[y], y[y])

    z, y = tensors(C, C), torch.tensor([1, 2, 2])
    losses = F.cross_entropy(z[y], y[y], reduction="none")
    torch.testing.assert_close(seen_by(compute, (z, y)), torch.stack([losses[0], losses[1:].mean()]))


def twice(module, z, y):
    """Two calls of the head, and a target from nowhere."""
    return F.cross_entropy(torch.cat([module.head(z.sin()), z]), torch.zeros(2 * B, dtype=torch.long))


def with_others(module, z, y):
    """Rows that no sample of the batch has, such as those of a memory."""
    return F.cross_entropy(torch.cat([z, 2 * torch.ones(B, C)]), torch.zeros(2 * B, dtype=torch.long))


@pytest.mark.parametrize("compute", [twice, with_others])
def test_rows_of_no_sample_are_not_left_out_without_a_word(compute):
    with pytest.raises(ValueError, match="It is unknown which of the criterion's losses"):
        seen_by(compute, (tensors(B, C), labels(B)))


def test_rows_that_an_index_of_the_batch_selects():
    """Another index in each batch: what one batch has shown is not kept for the next."""
    orders = iter([torch.arange(B * T), torch.arange(B * T).flip(0)])

    def compute(module, z, y, order):
        order.copy_(next(orders))
        return F.cross_entropy(z.flatten(0, 1)[order], y.flatten()[order])

    batch = tensors(B, T, C), labels(B, T), torch.zeros(B * T, dtype=torch.long)
    torch.testing.assert_close(seen_by(compute, batch, steps=2, batch_size=B), TABLE.mean(1))
