"""Plugs everything into ``model.py``, which is not touched: ``python examples/existing_project/plug_in.py``."""

import argparse

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from model import Digits

from lightning_objectives.averaging import BEMA, EMA
from lightning_objectives.callbacks import (
    AverageWeights,
    LogMetrics,
    LossReweightingCallback,
    MultiSampleDropoutCallback,
    RestoreRandomState,
)
from lightning_objectives.data import DigitsDataModule


def main() -> None:
    """Train, and show what was logged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--directory", default="runs/existing_project")
    args = parser.parse_args()

    L.seed_everything(0, workers=True)
    best = ModelCheckpoint(args.directory, monitor="val/nll", filename="best", enable_version_counter=False)
    trainer = L.Trainer(
        max_epochs=args.epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        callbacks=[
            MultiSampleDropoutCallback(num_samples=8, p=0.3),
            LossReweightingCallback(strategy="lin_upper", temperature=1.0),
            AverageWeights([EMA(decay=0.99, warmup=True), BEMA()]),
            LogMetrics(weights=["raw", "average"]),
            RestoreRandomState(),
            best,
        ],
    )
    trainer.fit(Digits(), datamodule=DigitsDataModule())
    for key, value in sorted(trainer.callback_metrics.items()):
        print(f"{key:28} {value.item():.4f}")

    # the file holds the average under the plain module's own keys, and opens without any plug-in
    Digits.load_from_checkpoint(best.best_model_path, strict=True)
    print(f"\nThe average with the best val/nll ({best.best_model_score:.4f}): {best.best_model_path}")


if __name__ == "__main__":
    main()
