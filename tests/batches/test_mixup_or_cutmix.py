from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, fit
from torch.utils.data import DataLoader, TensorDataset

from lightning_objectives._trainer.random import batch_seed
from lightning_objectives.batches import MixupOrCutMix
from lightning_objectives.callbacks import TransformBatch


@pytest.mark.parametrize("switch_prob", [0.0, 0.3, 1.0])
def test_switch_prob_is_the_share_of_cutmix(switch_prob):
    """Of images full of one number each, CutMix leaves whole numbers only."""
    inputs = torch.arange(4.0)[:, None, None, None].expand(4, 1, 16, 16)
    generator = torch.Generator().manual_seed(0)
    method = MixupOrCutMix(mixup_alpha=1.0, switch_prob=switch_prob)
    cut = sum(bool((method(inputs, generator)[0] % 1 == 0).all()) for _ in range(200))
    # a permutation that moves nothing (1 of 24) looks like CutMix
    assert cut / 200 == pytest.approx(switch_prob + (1 - switch_prob) / 24, abs=0.09)


def test_in_a_training_the_targets_are_mixed_too():
    """All that the step compares is what a loop by hand compares, with the same draws."""
    seen = []

    class Images(Net):
        def forward(self, x):
            return super().forward(x.flatten(1))

        def training_step(self, batch, batch_idx):
            x, y = batch
            seen.append((x, y))
            return F.cross_entropy(self(x), y)

    x, y = data().tensors
    batches = DataLoader(TensorDataset(x.view(-1, 1, 2, 2), y), batch_size=8)
    method = MixupOrCutMix()
    net, _ = fit(TransformBatch(method, seed=7), net=Images, train=batches, max_steps=1)
    first = SimpleNamespace(global_rank=0, fit_loop=SimpleNamespace(total_batch_idx=0))
    mixed, index, weight = method(x[:8].view(-1, 1, 2, 2), torch.Generator().manual_seed(batch_seed(7, first)))
    assert torch.equal(seen[0][0], mixed)
    assert torch.equal(seen[0][1], y[:8]), "the step sees its own targets"
    plain, _ = fit(net=Images, train=batches, max_steps=0)
    labels = torch.einsum("nk,nkc->nc", weight, torch.eye(3)[y[:8]][index])
    F.cross_entropy(plain(mixed), labels).backward()
    for p, q in zip(plain.parameters(), net.parameters()):
        torch.testing.assert_close(p - 0.1 * p.grad, q)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"switch_prob=2 must be in \[0, 1\]"):
        MixupOrCutMix(switch_prob=2)
    with pytest.raises(ValueError, match="prob=-1 must be"):
        MixupOrCutMix(prob=-1)
