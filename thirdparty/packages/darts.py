"""darts: models that build their module and a Trainer from ``pl_trainer_kwargs``."""

from pathlib import Path
from typing import Any

from thirdparty.case import Case

REQUIREMENTS = ("darts==0.48.1",)
TITLE = "darts"
DISTRIBUTIONS = ("darts", "torch", "pytorch-lightning")
NOTE = (
    "The models take the callbacks in `pl_trainer_kwargs`. Their batches are objects with attributes. A model that was "
    "saved with callbacks, of any package, must be loaded with `trusted=True`."
)


def _train(name: str) -> Any:
    def train(callbacks: list[Any], options: dict[str, Any]) -> Any:
        import darts.models
        import numpy as np
        from darts import TimeSeries

        series = TimeSeries.from_values(np.sin(np.arange(24) / 3).astype("float32"))
        validation = TimeSeries.from_values(np.cos(np.arange(12) / 3).astype("float32"))
        sizes: dict[str, Any] = {
            "NBEATSModel": {"num_stacks": 1, "num_blocks": 1, "num_layers": 1, "layer_widths": 8},
            "RNNModel": {"model": "LSTM", "hidden_dim": 8, "training_length": 8},
        }
        own = {"n_epochs": options.pop("max_epochs"), "work_dir": options["default_root_dir"]}
        if name != "RNNModel":
            own["output_chunk_length"] = 2
        trainer = {**options, "callbacks": callbacks}
        model = getattr(darts.models, name)(
            input_chunk_length=6, batch_size=6, random_state=0, pl_trainer_kwargs=trainer, **sizes[name], **own
        )
        model.fit(series, val_series=validation)
        folder = Path(options["default_root_dir"]) / "saved"
        folder.mkdir()
        model.save(str(folder / "model.pt"))
        return model.model

    return train


def _reopen(name: str) -> Any:
    def reopen(folder: str) -> Any:
        import darts.models

        return getattr(darts.models, name).load(f"{folder}/model.pt", trusted=True)

    return reopen


def _case(name: str, about: str) -> Case:
    return Case(
        name=name,
        about=about,
        lightning="pytorch_lightning",
        train=_train(name),
        reopen=_reopen(name),
        samples=6,
        settings={"TransformBatch": {"input": "past_target"}},
        classifies=False,
    )


CASES = (
    _case("NBEATSModel", "N-BEATS with the mean squared error; batches are tuples with None in them"),
    _case("RNNModel", "an LSTM with the mean squared error"),
)
