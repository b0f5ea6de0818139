import torch

from lightning_objectives.regularizers import LogPartitionPenalty, log_partition_penalty


def test_by_hand():
    """log(e^1 + e^2 + e^3)² = 3.4076060² = 11.6117785, and log(3)² = 1.2069490."""
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(log_partition_penalty(logits), torch.tensor([11.6117785, 1.2069490]))


def test_its_gradient_is_twice_log_z_times_softmax():
    logits = torch.randn(4, 3, requires_grad=True)
    log_partition_penalty(logits).sum().backward()
    expected = 2 * logits.exp().sum(1, keepdim=True).log() * logits.softmax(1)
    torch.testing.assert_close(logits.grad, expected.detach())


def test_it_is_nothing_where_softmax_needs_no_normaliser():
    normal = torch.randn(4, 3).log_softmax(1)
    torch.testing.assert_close(LogPartitionPenalty()(normal), torch.zeros(4), rtol=0, atol=1e-10)
    torch.testing.assert_close(log_partition_penalty(normal + 2), torch.full((4,), 4.0))
