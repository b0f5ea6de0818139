"""What the ranks share, as one process sees it."""

from types import SimpleNamespace

import pytest
import torch

from lightning_objectives._trainer.ranks import gather_rows, on_rank_zero


def test_a_process_alone_keeps_its_rows():
    rows = torch.arange(3.0, requires_grad=True)
    (gathered,), own = gather_rows([rows])
    assert torch.equal(gathered[own], rows)
    assert len(gathered) == 3
    assert not gathered.requires_grad


def failing():
    raise OSError("the disk is full")


def test_an_error_of_rank_zero_is_raised_on_every_rank():
    sent = []

    def first(message):
        sent.append(message)
        return message

    zero = SimpleNamespace(is_global_zero=True, strategy=SimpleNamespace(broadcast=first))
    other = SimpleNamespace(is_global_zero=False, strategy=SimpleNamespace(broadcast=lambda message: sent[-1]))
    assert on_rank_zero(zero, lambda: 3) == 3
    assert on_rank_zero(other, failing) == 3, "only rank 0 works"
    with pytest.raises(OSError, match="the disk is full"):
        on_rank_zero(zero, failing)
    with pytest.raises(RuntimeError, match="The process of rank 0 failed: the disk is full"):
        on_rank_zero(other, lambda: 3)
