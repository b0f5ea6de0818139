"""One EMA update of a resnet18's weights.

The lower bound is one in-place lerp over a flat tensor of as many bytes: the same traffic, in one call. The peer is
torch's own ``AveragedModel``.
"""

import timm
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.timing import medians
from lightning_objectives.averaging import EMA


@torch.no_grad()
def run() -> tuple[str, dict[str, float]]:
    network = timm.create_model("resnet18")
    params = [p.detach() for p in network.parameters()]
    ema = EMA(decay=0.999)
    state = ema.init(params)
    flat, average = (torch.cat([p.flatten() for p in params]) for _ in range(2))
    peer = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    ours = "EMA.update"
    return ours, medians(
        {
            ours: lambda: ema.update(state, params, step=1),
            "one lerp_ of as many bytes": lambda: average.lerp_(flat, 0.001),
            "torch.optim.swa_utils.AveragedModel": lambda: peer.update_parameters(network),
        }
    )
