import pytest
import torch

from lightning_objectives.losses import LovaszSoftmaxLoss, lovasz_loss


def slow(logits, target, mask, absent):
    """One image in plain Python: the sum over the sorted errors of what they add to one minus the overlap."""
    places = [i for i in range(logits.shape[1]) if mask[i]]
    if logits.shape[0] == 1:
        classes = {1: [max(0.0, 1 - logits[0, i].item() * (2 * target[i].item() - 1)) for i in places]}
    else:
        p = logits.softmax(0)
        classes = {c: [abs(float(target[i] == c) - p[c, i].item()) for i in places] for c in range(len(p))}
    losses = []
    for c, errors in classes.items():
        region = {n for n, i in enumerate(places) if target[i] == c}
        if logits.shape[0] > 1 and not region and not absent:
            continue
        order = sorted(range(len(places)), key=lambda n: -errors[n])
        before = loss = 0.0
        for count in range(1, len(order) + 1):
            first = set(order[:count])
            now = 1 - len(region - first) / len(region | first)
            loss += errors[order[count - 1]] * (now - before)
            before = now
        losses.append(loss)
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 4])
def test_equals_a_slow_loop(classes, absent):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(5, classes, 3, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(max(2, classes - 1), (5, 3, 4), generator=generator)
    target[0] = 1
    mask = torch.rand(5, 3, 4, generator=generator) < 0.7
    mask[4] = False
    expected = [slow(z.flatten(1), t.flatten(), m.flatten(), absent) for z, t, m in zip(logits, target, mask)]
    losses = lovasz_loss(logits, target, mask, absent=absent)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))


def test_by_hand():
    """The errors are 0.4, 0.2, 0.1 at the positions 1, 2, 0; the positions 0 and 1 are those of class 0.

    Class 0 loses 1/2 of its union with the first, 2/3 with the second and all with the third:
    0.4 / 2 + 0.2 / 6 + 0.1 / 3 = 0.266667. Class 1 has the second alone: 0.4 / 2 + 0.2 / 2 = 0.3, and then the union
    has three positions already, all lost: 1/2, 1, 1.
    """
    p = torch.tensor([[[0.9, 0.6, 0.2], [0.1, 0.4, 0.8]]])
    loss = lovasz_loss(p.log(), torch.tensor([[0, 0, 1]]))
    torch.testing.assert_close(loss, torch.tensor([(0.266667 + 0.3) / 2]), rtol=1e-4, atol=0)


def test_hard_predictions_give_one_minus_the_overlap():
    """Predicted {0, 1}, true {1, 2}: an overlap of 1/3; the rest has 4 of 6 positions in common with its own."""
    predicted, target = torch.tensor([[1, 1, 0, 0, 0, 0]]), torch.tensor([[0, 1, 1, 0, 0, 0]])
    logits = 100.0 * torch.nn.functional.one_hot(predicted, 2).movedim(-1, 1).float()
    torch.testing.assert_close(lovasz_loss(logits, target), torch.tensor([1 - (1 / 3 + 3 / 5) / 2]))


def test_the_whole_batch_is_one_image():
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(3, 2, 5, generator=generator), torch.randint(2, (3, 5), generator=generator)
    joined = lovasz_loss(logits.movedim(0, 1).flatten(1)[None], target.flatten()[None])
    torch.testing.assert_close(lovasz_loss(logits, target, whole_batch=True), joined.expand(3))


def test_an_image_without_positions_costs_nothing_and_keeps_the_graph():
    logits = torch.randn(2, 3, 4, requires_grad=True)
    losses = lovasz_loss(logits, torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.bool))
    losses.sum().backward()
    assert not losses.any()
    assert not logits.grad.any()


def test_ties_make_no_difference():
    logits = torch.zeros(1, 2, 6)
    target = torch.tensor([[0, 1, 0, 1, 1, 0]])
    turned = lovasz_loss(logits, target[:, torch.tensor([3, 1, 5, 0, 2, 4])])
    torch.testing.assert_close(lovasz_loss(logits, target), turned)


def test_shares_of_classes_by_hand_and_at_the_least():
    """Class 0 of t = (0.8, 0.4) and p = (0.5, 0.5): errors 0.3 and 0.1, and the region has the size 1.2.

    The first position takes 1 - 0.4 / 1.4 of the union, the second the rest: 0.3 · 0.714286 + 0.1 · 0.285714. Class 1
    has 0.2 and 0.6: the first takes 1 - 0.6 / 1.6.
    """
    target = torch.tensor([[[0.8, 0.4], [0.2, 0.6]]])
    loss = lovasz_loss(torch.zeros(1, 2, 2), target)
    expected = (0.3 * 0.714286 + 0.1 * 0.285714 + 0.3 * 0.625 + 0.1 * 0.375) / 2
    torch.testing.assert_close(loss, torch.tensor([expected]), rtol=1e-5, atol=0)
    torch.testing.assert_close(lovasz_loss(target.log(), target), torch.zeros(1), rtol=0, atol=1e-6)
    assert LovaszSoftmaxLoss().problems == ("classes", "binary")
