"""Trains a small network on the digits with Lightning Fabric, in two processes on the CPU and without a Trainer.

The loop takes the gradient at moved weights (SAM), averages the weights (EMA), counts the classes for its loss, and
goes on exactly from the file of its last epoch::

    python examples/plain_loop/fabric_digits.py --epochs 4
    python examples/plain_loop/fabric_digits.py --epochs 6  # two more
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

import lightning_objectives as lo


def network() -> nn.Module:
    """A small network for images of 8 x 8 points."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10))


def accuracy(net: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]]) -> float:
    """The share of a loader's images that the network knows."""
    net.eval()
    with torch.no_grad():
        right = [(net(x).argmax(1) == y).float() for x, y in loader]
    net.train()
    return torch.cat(right).mean().item()


def train(fabric: Fabric, epochs: int, file: Path) -> dict[str, dict[str, Tensor]]:
    """Train up to an epoch, going on from the file if it is there; return the weights and their average."""
    digits = lo.DigitsDataModule()
    digits.setup()
    sampler: DistributedSampler[Tensor] = DistributedSampler(digits.train, fabric.world_size, fabric.global_rank)
    loader = DataLoader(digits.train, batch_size=64 // fabric.world_size, sampler=sampler)

    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    average = lo.Average(net, lo.EMA(decay=0.98), optimizer)
    loss_of = lo.BalancedSoftmaxLoss(counts=lo.survey_data(lo.ClassCounts(), net, loader)["counts"])
    parts = {"network": net, "optimizer": optimizer, "average": average}
    first = 0
    if file.exists():
        saved = torch.load(file, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first = saved["epoch"] + 1
    model, wrapped = fabric.setup(net, optimizer)

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return loss_of(model(x), y).mean()  # type: ignore[no-any-return]  # a module

    for epoch in range(first, epochs):
        torch.manual_seed(epoch)  # A resumed epoch draws the same dropout masks.
        sampler.set_epoch(epoch)  # A loader of Fabric's would count from 0 again after a resume.
        for x, y in map(fabric.to_device, loader):
            wrapped.zero_grad()
            lo.perturbed_backward(lo.SAM(rho=0.05), net, partial(loss, x, y), backward=fabric.backward)
            wrapped.step()
            average.update()
        raw = accuracy(net, digits.val_dataloader())
        with average.applied():
            averaged = accuracy(net, digits.val_dataloader())
        fabric.print(f"epoch {epoch}: validation accuracy {raw:.3f}, of the average {averaged:.3f}")
        states = {name: part.state_dict() for name, part in parts.items()}
        if fabric.is_global_zero:
            torch.save({**states, "epoch": epoch}, file)
        fabric.barrier()
    return {"raw": net.state_dict(), "average": average.averaged_state_dict()}


def main() -> None:
    """Train, and write what each process holds at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("plain_loop"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    fabric = Fabric(accelerator="cpu", devices=args.processes, strategy="ddp" if args.processes > 1 else "auto")
    fabric.launch()
    weights = train(fabric, args.epochs, args.folder / "last.pt")
    torch.save(weights, args.folder / f"rank{fabric.global_rank}.pt")


if __name__ == "__main__":
    main()
