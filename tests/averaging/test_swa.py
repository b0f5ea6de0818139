import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_objectives.averaging import SWA


def test_it_is_the_mean_of_the_path_without_its_beginning():
    path = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    swa = SWA()
    state = swa.init([path[0]])
    for step, weights in enumerate(path[1:], start=1):
        swa.update(state, [weights], step=step)
    assert torch.allclose(swa.read(state, [path[-1]], step=49)[0], path[1:].mean(0), rtol=1e-12)


def test_it_agrees_with_torchs_averaged_model():
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    reference, swa = AveragedModel(net), SWA()
    state = swa.init(list(net.parameters()))
    for step in range(1, 8):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        reference.update_parameters(net)
        swa.update(state, [p.detach() for p in net.parameters()], step=step)
    for mine, theirs in zip(state.slots["average"], reference.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
