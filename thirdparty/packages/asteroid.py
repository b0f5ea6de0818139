"""asteroid: its System trains a separator of voices with a loss that looks for the best order of the speakers."""

from typing import Any

from thirdparty.case import Case

REQUIREMENTS = ("asteroid==0.7.0",)
TITLE = "asteroid"
DISTRIBUTIONS = ("asteroid", "torch", "pytorch-lightning", "torchmetrics")
NOTE = (
    "asteroid 0.7 asks for torchmetrics 0.11 or older, with which Lightning cannot be imported. It runs with "
    "the version above. Its `System` needs a logger."
)
WITHOUT = ("torchmetrics",)
"""What pip brings along and the run cannot use: the main environment has a newer one."""


def system() -> Any:
    """A ConvTasNet in asteroid's System, as its recipes do it."""
    import torch
    from asteroid.engine.system import System
    from asteroid.losses import PITLossWrapper, pairwise_neg_sisdr
    from asteroid.models import ConvTasNet

    network = ConvTasNet(
        n_src=2, n_filters=8, kernel_size=8, stride=4, n_blocks=1, n_repeats=1, bn_chan=4, hid_chan=8, skip_chan=4
    )
    train, validation = _data()
    return System(
        network,
        torch.optim.Adam(network.parameters(), lr=1e-3),
        PITLossWrapper(pairwise_neg_sisdr, pit_from="pw_mtx"),
        train,
        validation,
    )


def _data() -> tuple[Any, Any]:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    sources = torch.randn(10, 2, 64, generator=torch.Generator().manual_seed(1))
    mixtures = sources.sum(1)
    train, first = TensorDataset(mixtures, sources), TensorDataset(mixtures[:4], sources[:4])
    return DataLoader(train, batch_size=4), DataLoader(first, batch_size=4)


CASES = (
    Case(
        name="ConvTasNet",
        about="System with a ConvTasNet and PITLossWrapper",
        lightning="pytorch_lightning",
        module=system,
        data=lambda: (None, None),
        samples=4,
        options={"logger": True},  # its System logs without asking whether there is a logger
        settings={"criterion": "loss_func"},
        classifies=False,
        teacher=lambda module: module.model,
    ),
)
