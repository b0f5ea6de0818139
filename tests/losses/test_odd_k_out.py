import itertools

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import OddKOutLoss, odd_k_out_loss

TARGET = torch.tensor([0, 2, 0, 1, 1, 0, 3, 1])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def expectation(logits, target, odd):
    """(N,) the mean loss over all sets that a sample may begin, each with its probability; by plain loops."""
    n, labels = len(target), target.tolist()
    counts = {c: labels.count(c) for c in labels}
    paired = sum(count > 1 for count in counts.values())
    result = []
    for i, y in enumerate(labels):
        partners = [j for j in range(n) if labels[j] == y and j != i]
        chosen = list(itertools.combinations([c for c in counts if c != y], odd))
        total = 0.0
        for j, classes in itertools.product(partners, chosen):
            members = list(itertools.product(*([m for m in range(n) if labels[m] == c] for c in classes)))
            for odd_ones in members:
                z = logits[[i, j, *odd_ones]].sum(0)
                total += F.cross_entropy(z[None], target[i, None]).item() / (len(partners) * len(chosen) * len(members))
        result.append(total * n / (paired * counts[y]))
    return torch.tensor(result)


@pytest.mark.parametrize("odd", [0, 1, 2, 3])
def test_the_mean_over_draws_is_that_of_all_sets(odd):
    """Every set has its probability: within 0.02 after 8000 draws."""
    logits, g = torch.randn(8, 4, generator=generator(1)), generator()
    found = torch.stack([odd_k_out_loss(logits, TARGET, g, odd=odd) for _ in range(8000)]).mean(0)
    torch.testing.assert_close(found, expectation(logits, TARGET, odd), rtol=0.02, atol=0.02)


def test_the_members_of_a_set_are_two_of_a_class_and_k_of_others():
    """The logits are one-hot in the number of the sample, so the loss of a large factor shows who is in the set."""
    logits = torch.eye(8, requires_grad=True)
    for seed in range(20):
        losses = odd_k_out_loss(logits, TARGET, generator(seed), odd=2)
        for i in (0, 2, 3, 4, 5, 7):
            (gradient,) = torch.autograd.grad(losses[i], logits, retain_graph=True)
            used = gradient.abs().sum(1).nonzero()[:, 0].tolist()
            labels = TARGET[used].tolist()
            assert i in used
            assert len(used) == 4
            assert labels.count(TARGET[i]) == 2
            assert len(set(labels)) == 3
            torch.testing.assert_close(gradient[used], gradient[i].expand(4, -1))  # every member gets the same


def test_classes_with_a_pair_count_the_same():
    """With equal logits a set has the loss log 4; class 0 and 1 have pairs, 2 and 3 do not."""
    losses = odd_k_out_loss(torch.zeros(8, 4), TARGET, generator())
    assert losses[[1, 6]].tolist() == [0, 0]
    sums = torch.zeros(4).index_add(0, TARGET, losses)
    torch.testing.assert_close(sums / 8, torch.tensor([0.5, 0.5, 0, 0]) * torch.log(torch.tensor(4.0)))
    torch.testing.assert_close(losses.mean(), torch.log(torch.tensor(4.0)))


def test_a_batch_without_pairs_teaches_nothing_and_one_of_one_class_has_no_odd_ones():
    logits = torch.randn(3, 4, requires_grad=True)
    losses = odd_k_out_loss(logits, torch.tensor([0, 2, 3]), generator())
    assert losses.tolist() == [0, 0, 0]
    assert torch.autograd.grad(losses.sum(), logits)[0].abs().sum() == 0
    two = odd_k_out_loss(logits[:2], torch.tensor([1, 1]), generator(), odd=2)
    torch.testing.assert_close(
        two, F.cross_entropy(logits[:2].sum(0).expand(2, 4), torch.tensor([1, 1]), reduction="none")
    )


def test_what_is_refused():
    with pytest.raises(ValueError, match="odd=-1 must be >= 0"):
        OddKOutLoss(odd=-1)


def test_probabilities_give_the_expectation_over_the_first_sample_of_a_set():
    """The most likely classes are those of TARGET, so the sets are the same."""
    logits = torch.randn(8, 4, generator=generator(1))
    soft = 0.7 * torch.eye(4)[TARGET] + 0.3 * torch.eye(4)[3]
    found = odd_k_out_loss(logits, soft, generator())
    hard = odd_k_out_loss(logits, TARGET, generator())
    sets = logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(odd_k_out_loss(sets, TARGET, generator())[0], sets)
    z = logits[gradient.abs().sum(1) > 0].sum(
        0
    )  # the set of the first sample, whose class has 3 of 8 samples of 2 pairs
    expected = 8 / (2 * 3) * -(0.7 * z.log_softmax(0)[0] + 0.3 * z.log_softmax(0)[3])
    torch.testing.assert_close(found[0], expected)
    torch.testing.assert_close(hard[0], 8 / (2 * 3) * -z.log_softmax(0)[0])
