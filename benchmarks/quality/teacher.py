"""The large teacher: trained once on all training images, kept outside of the repository, its accuracy recorded."""

import json
import os
import time
from pathlib import Path

import lightning as L
import torch

from benchmarks.quality.data import Fashion, eval_loader, train_loader
from benchmarks.quality.nets import Module, Recipe, resnet8

WIDTH, EPOCHS, BATCH = 24, 10, 128
RECORD = Path(__file__).parent / "teacher.json"


def folder() -> Path:
    """Where trained teachers and their answers are kept."""
    return Path(os.environ.get("QUALITY_CACHE", Path.home() / ".cache" / "lightning_objectives_quality"))


def network() -> torch.nn.Module:
    """The trained teacher."""
    made = resnet8(WIDTH, pool=False)
    made.load_state_dict(torch.load(folder() / "teacher.pt", weights_only=True))
    return made.eval()


class Mirrored(torch.utils.data.Dataset):
    """Batches of images of which every second is mirrored, by chance."""

    def __init__(self, data: torch.utils.data.Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: list[int]) -> tuple[torch.Tensor, ...]:
        images, target = self.data[rows]
        return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images), target


def train(*, epochs: int = EPOCHS) -> None:
    """Train it unless it is there."""
    file = folder() / "teacher.pt"
    if file.exists():
        return
    L.seed_everything(12345, verbose=False)
    data = Fashion(size=54_000).splits(12345)
    loader = train_loader(Mirrored(data.train), batch_size=BATCH, seed=12345)
    module = Module(resnet8(WIDTH, pool=False), Recipe(lr=0.1), steps=epochs * len(loader))
    began = time.process_time()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(module, loader)
    seconds = time.process_time() - began
    right = {name: accuracy(module, part) for name, part in (("val", data.val), ("test", data.test))}
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(module.network.state_dict(), file)
    record = {"width": WIDTH, "epochs": epochs, "cpu_seconds": round(seconds, 1), **right}
    RECORD.write_text(json.dumps(record) + "\n")


@torch.no_grad()
def accuracy(module: torch.nn.Module, data: torch.utils.data.Dataset) -> float:
    module.eval()
    right = [(module(images).argmax(1) == target).float() for images, target in eval_loader(data)]
    return round(torch.cat(right).mean().item(), 4)
