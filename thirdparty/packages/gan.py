"""A GAN with two optimizers and manual optimization, as Lightning's documentation writes it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from thirdparty.case import Case

REQUIREMENTS: tuple[str, ...] = ()
TITLE = "Manual optimization"
DISTRIBUTIONS = ("torch", "lightning")
NOTE = "The module of Lightning's documentation. Callbacks of the training step need automatic optimization."


def gan() -> Any:
    """The module of the documentation, on vectors."""
    import lightning as L

    class GAN(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.generator = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.LeakyReLU(0.2), nn.Linear(16, 8))
            self.discriminator = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))

        def forward(self, z: Tensor) -> Any:
            return self.generator(z)

        def adversarial_loss(self, y_hat: Tensor, y: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(y_hat, y)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            (real,) = batch
            optimizer_g, optimizer_d = self.optimizers()
            valid, fake = torch.ones(len(real), 1), torch.zeros(len(real), 1)
            z = torch.randn(len(real), 4)

            self.toggle_optimizer(optimizer_g)
            g_loss = self.adversarial_loss(self.discriminator(self(z)), valid)
            self.log("g_loss", g_loss)
            self.manual_backward(g_loss)
            optimizer_g.step()
            optimizer_g.zero_grad()
            self.untoggle_optimizer(optimizer_g)

            self.toggle_optimizer(optimizer_d)
            real_loss = self.adversarial_loss(self.discriminator(real), valid)
            fake_loss = self.adversarial_loss(self.discriminator(self(z).detach()), fake)
            d_loss = (real_loss + fake_loss) / 2
            self.log("d_loss", d_loss)
            self.manual_backward(d_loss)
            optimizer_d.step()
            optimizer_d.zero_grad()
            self.untoggle_optimizer(optimizer_d)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            (real,) = batch
            self.log("val_mean", self(torch.zeros(len(real), 4)).mean())

        def configure_optimizers(self) -> Any:
            g = torch.optim.Adam(self.generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
            d = torch.optim.Adam(self.discriminator.parameters(), lr=2e-3, betas=(0.5, 0.999))
            return [g, d], []

    return GAN()


def _data() -> tuple[Any, Any]:
    real = torch.randn(10, 8, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(real), batch_size=4), DataLoader(TensorDataset(real[:4]), batch_size=4)


CASES = (
    Case(
        name="GAN",
        about="two optimizers that step in each batch, `automatic_optimization = False`",
        module=gan,
        data=_data,
        classifies=False,
        manual=True,
        teacher=lambda module: module.generator,
    ),
)
