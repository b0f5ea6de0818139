import math

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, fit
from torch.utils.data import DataLoader

from lightning_objectives.callbacks import AddRegularizer
from lightning_objectives.regularizers import ConditionalMutualInformation, divergence_from_centroids

P = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4], [0.1, 0.8, 0.1]])
TARGET = torch.tensor([0, 0, 1])


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)


def test_by_hand():
    """KL of (0.8, 0.2) from (0.5, 0.5): log 2 - H = 0.693147 - 0.500402; from (0.25, 0.75) 0.666169."""
    logits, centroids = torch.tensor([[0.8, 0.2]] * 2).log(), torch.tensor([[0.5, 0.5], [0.25, 0.75]])
    found = divergence_from_centroids(logits, torch.tensor([0, 1]), centroids)
    torch.testing.assert_close(found, torch.tensor([0.192745, 0.666169]), rtol=1e-5, atol=0)


def test_torchs_divergence_is_the_peer():
    """As the authors' code calls it: kl_div(log Q, log p)."""
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    centroids = torch.rand(4, 4, generator=torch.Generator().manual_seed(1)).softmax(1)
    target = torch.tensor([0, 3, 1, 1, 2, 0])
    peer = F.kl_div(centroids[target].log(), logits.log_softmax(1), reduction="batchmean", log_target=True)
    torch.testing.assert_close(divergence_from_centroids(logits, target, centroids).mean(), peer)


def test_a_slow_loop_over_steps():
    method, decay = ConditionalMutualInformation(classes=3, momentum=0.9), 0.9
    sums, counts = [[0.0] * 3 for _ in range(3)], [0.0] * 3
    for p, target in ((P, TARGET), (P.flip(0), torch.tensor([0, 1, 1])), (P.roll(1, 1), torch.tensor([0, 0, 0]))):
        sums, counts = [[decay * v for v in row] for row in sums], [decay * n for n in counts]
        for row, y in zip(p.tolist(), target.tolist()):
            sums[y], counts[y] = [a + b for a, b in zip(sums[y], row)], counts[y] + 1
        slow = [-kl(row, [v / counts[y] for v in sums[y]]) for row, y in zip(p.tolist(), target.tolist())]
        torch.testing.assert_close(method(p.log(), target), torch.tensor(slow), rtol=1e-4, atol=1e-6)


def test_predictions_that_are_alike_give_nothing():
    logits = torch.tensor([[1.0, 0.0, -1.0]]).expand(4, 3)
    terms = ConditionalMutualInformation(classes=3)(logits, torch.tensor([0, 0, 2, 2]))
    torch.testing.assert_close(terms, torch.zeros(4))


def test_it_is_the_mutual_information_of_a_class():
    """The mean divergence from the mean is the entropy of the mean minus the mean entropy."""
    terms = ConditionalMutualInformation(classes=3, maximize=False)(P.log(), torch.zeros(3, dtype=torch.long))
    mean = P.mean(0)
    information = (P * P.log()).sum(1).mean() - (mean * mean.log()).sum()
    torch.testing.assert_close(terms.mean(), information)


@pytest.mark.parametrize("maximize", [True, False])
def test_descending_it_moves_the_predictions_of_a_class_apart_or_together(maximize):
    logits = P.log().requires_grad_()
    method = ConditionalMutualInformation(classes=3, maximize=maximize)
    target = torch.zeros(3, dtype=torch.long)
    (slope,) = torch.autograd.grad(method(logits, target).mean(), logits)
    before, after = (
        ConditionalMutualInformation(classes=3, maximize=False)(z, target).mean()
        for z in (logits.detach(), logits.detach() - 0.1 * slope)
    )
    assert (after > before) == maximize


def test_the_gradient_is_that_with_constant_centroids():
    logits = P.double().log().requires_grad_()
    method = ConditionalMutualInformation(classes=3).double()
    (slope,) = torch.autograd.grad(method(logits, TARGET).sum(), logits)
    mean = P[:2].double().mean(0)
    assert not method.sums.requires_grad  # or the graph of each step would live on
    by_hand = [-kl_gradient(p, mean) for p in P[:2].double()]
    torch.testing.assert_close(slope, torch.stack([*by_hand, torch.zeros(3, dtype=torch.float64)]))


def kl_gradient(p, q):
    """Of KL(softmax(z) || q) by z: p_k (log p_k / q_k - KL)."""
    ratio = (p / q).log()
    return p * (ratio - (p * ratio).sum())


def test_class_probabilities_are_the_expectation():
    method, hard = (ConditionalMutualInformation(classes=3) for _ in range(2))
    one_hot = F.one_hot(TARGET, 3).float()
    torch.testing.assert_close(method(P.log(), one_hot), hard(P.log(), TARGET))
    mixed = torch.tensor([[0.25, 0.75, 0.0]])
    centroids = torch.rand(3, 3, generator=torch.Generator().manual_seed(0)).softmax(1)
    parts = [divergence_from_centroids(P[:1].log(), torch.tensor([y]), centroids) for y in (0, 1)]
    found = divergence_from_centroids(P[:1].log(), mixed, centroids)
    torch.testing.assert_close(found, 0.25 * parts[0] + 0.75 * parts[1])


def test_ignored_targets_leave_no_trace():
    method, plain = (ConditionalMutualInformation(classes=3) for _ in range(2))
    terms = method(torch.cat([P, P[:1].flip(1)]).log(), torch.tensor([0, 0, 1, -100]))
    torch.testing.assert_close(terms, torch.cat([plain(P.log(), TARGET), torch.zeros(1)]))
    torch.testing.assert_close(method.sums, plain.sums)


def test_it_is_the_authors_loop_with_centroids_of_the_batches():
    callback = AddRegularizer(ConditionalMutualInformation(classes=3, momentum=0.9), strength=0.3)
    ours, _ = fit(callback, train=DataLoader(data(), batch_size=8), max_epochs=2)
    by_hand, _ = fit(net=ByHand, train=DataLoader(data(), batch_size=8), max_epochs=2)
    torch.testing.assert_close(ours.state_dict(), by_hand.state_dict())
    torch.testing.assert_close(callback.state_dict()["counts"], by_hand.counts)


class ByHand(Net):
    def __init__(self):
        super().__init__()
        self.sums, self.counts = torch.zeros(3, 3), torch.zeros(3)

    def training_step(self, batch, batch_idx):
        x, y = batch
        logits = self(x)
        self.sums, self.counts = 0.9 * self.sums, 0.9 * self.counts
        for p, label in zip(logits.detach().softmax(1), y.tolist()):
            self.sums[label] += p
            self.counts[label] += 1
        centroids = (self.sums / self.counts[:, None])[y]
        term = F.kl_div(centroids.log(), logits.log_softmax(1), reduction="batchmean", log_target=True)
        return F.cross_entropy(logits, y) - 0.3 * term


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": 1}, "classes=1 must be >= 2"),
        ({"classes": 3, "momentum": 1.0}, r"momentum=1\.0 must be in \[0, 1\)"),
        ({"classes": 3, "momentum": float("nan")}, r"momentum=nan must be in \[0, 1\)"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ConditionalMutualInformation(**settings)


def test_a_class_that_is_impossible_everywhere_counts_nothing():
    logits = torch.tensor([[1.0, 0.0, -torch.inf], [0.0, 1.0, -torch.inf]], requires_grad=True)
    terms = ConditionalMutualInformation(classes=3, maximize=False)(logits, torch.tensor([0, 0]))
    two = ConditionalMutualInformation(classes=2, maximize=False)(logits[:, :2], torch.tensor([0, 0]))
    torch.testing.assert_close(terms, two)
    (slope,) = torch.autograd.grad(terms.sum(), logits)
    assert slope.isfinite().all()


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"logits of the shape \(3, 3\) must have 4 columns: set classes=3"):
        ConditionalMutualInformation(classes=4)(P, TARGET)
    with pytest.raises(ValueError, match=r"centroids .*\(2, 2\)"):
        divergence_from_centroids(P, TARGET, torch.zeros(2, 2))
