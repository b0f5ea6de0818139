import math

import pytest
import torch
import torch.nn.functional as F

from lightning_objectives.losses import ClassBalancedLoss, class_balanced_loss, class_balanced_weights

COUNTS = (100, 10, 1)


def weights(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def test_weights_by_hand():
    """1 / (1 - 0.99^100) = 1.577361, 1 / (1 - 0.99^10) = 10.458289, 1 / 0.01 = 100; times 3 / 112.035650."""
    expected = weights(0.042237, 0.280044, 2.677719)
    torch.testing.assert_close(class_balanced_weights(COUNTS, beta=0.99), expected, rtol=0, atol=1e-6)


def test_the_ends_are_equal_weights_and_inverse_counts():
    assert class_balanced_weights(COUNTS, beta=0.0).tolist() == [1, 1, 1]
    inverse = weights(0.01, 0.1, 1) * 3 / 1.11
    torch.testing.assert_close(class_balanced_weights(COUNTS, beta=1.0), inverse)
    torch.testing.assert_close(class_balanced_weights(COUNTS, beta=1 - 1e-9), inverse, rtol=1e-6, atol=0)
    torch.testing.assert_close(class_balanced_weights((5, 5), beta=0.999), weights(1, 1))


@pytest.mark.parametrize("base", ["softmax", "sigmoid", "focal"])
def test_equals_a_plain_loop(base):
    """The weight of the sample's class multiplies the terms of all classes."""
    logits, target = torch.randn(4, 3), [0, 1, 2, 2]
    of_class = [0.042237, 0.280044, 2.677719]
    expected = []
    for row, y in zip(logits.tolist(), target):
        if base == "softmax":
            loss = math.log(sum(map(math.exp, row))) - row[y]
        else:
            right = [1 / (1 + math.exp(-z if k == y else z)) for k, z in enumerate(row)]
            loss = sum(-((1 - p) ** (1.5 if base == "focal" else 0)) * math.log(p) for p in right)
        expected.append(of_class[y] * loss)
    losses = class_balanced_loss(logits, torch.tensor(target), counts=COUNTS, beta=0.99, base=base, gamma=1.5)
    torch.testing.assert_close(losses, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_equal_counts_are_cross_entropy():
    logits, target = torch.randn(6, 3), torch.arange(6) % 3
    expected = F.cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(class_balanced_loss(logits, target, counts=(4, 4, 4)), expected)


def test_a_target_of_probabilities_has_the_expected_weight():
    logits, soft = torch.tensor([[2.0, 1.0, 0.1]]), torch.tensor([[0.7, 0.3, 0.0]])
    weight = 0.7 * 0.042237 + 0.3 * 0.280044
    expected = weight * F.cross_entropy(logits, soft, reduction="none")
    losses = class_balanced_loss(logits, soft, counts=COUNTS, beta=0.99)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_of_one_class_is_weighted_too():
    """A criterion with `weight=` divides by the sum of the weights, so that nothing would be left of them."""
    loss = class_balanced_loss(torch.zeros(2, 3), torch.tensor([2, 2]), counts=COUNTS, beta=0.99).mean()
    torch.testing.assert_close(loss, torch.tensor(2.677719 * math.log(3)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 1.1}, r"beta=1\.1 must be in \[0, 1\]"),
        ({"base": "hinge"}, "base='hinge' must be 'softmax', 'sigmoid' or 'focal'"),
        ({"gamma": -1.0}, r"gamma=-1\.0 must be >= 0"),
        ({"counts": (1, 0)}, r"counts\[1\]=0 must be > 0"),
    ],
)
def test_what_is_refused(settings, message):
    settings = {"counts": COUNTS, **settings}
    for run in (ClassBalancedLoss, lambda **s: class_balanced_loss(torch.zeros(1, 3), torch.tensor([0]), **s)):
        with pytest.raises(ValueError, match=message):
            run(**settings)
