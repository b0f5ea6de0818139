"""neuralforecast: models that take the callbacks as settings of their Trainer, and make it anew in each fit."""

from pathlib import Path
from typing import Any

from thirdparty.case import Case

REQUIREMENTS = ("neuralforecast==3.3.0",)
TITLE = "neuralforecast"
DISTRIBUTIONS = ("neuralforecast", "torch", "pytorch-lightning")
NOTE = (
    "The models take the callbacks as settings. Their losses define `__call__` themselves, where no criterion is seen."
)


def _train(name: str) -> Any:
    def train(callbacks: list[Any], options: dict[str, Any]) -> Any:
        import neuralforecast.models
        import numpy as np
        import pandas as pd
        from neuralforecast import NeuralForecast
        from neuralforecast.losses.pytorch import MAE, MQLoss

        times = pd.date_range("2020-01-01", periods=30, freq="D")
        frame = pd.concat(
            pd.DataFrame({"unique_id": str(i), "ds": times, "y": np.sin(np.arange(30) / 3 + i)}) for i in range(4)
        )
        del options["max_epochs"]
        sizes = {"NHITS": {"mlp_units": 3 * [[8, 8]]}, "LSTM": {"encoder_hidden_size": 8, "decoder_hidden_size": 8}}
        model = getattr(neuralforecast.models, name)(
            h=2,
            input_size=6,
            max_steps=6,
            val_check_steps=3,
            batch_size=4,
            windows_batch_size=8,
            random_seed=0,
            scaler_type="standard",
            loss=MAE() if name == "NHITS" else MQLoss(level=[80]),
            callbacks=callbacks,
            **sizes[name],
            **options,
        )
        forecast = NeuralForecast(models=[model], freq="D")
        forecast.fit(frame, val_size=4)
        forecast.save(str(Path(options["default_root_dir"]) / "saved"), overwrite=True)
        return forecast.models[0]

    return train


def _reopen(folder: str) -> Any:
    from neuralforecast import NeuralForecast

    return NeuralForecast.load(folder)


CASES = (
    Case(
        name="NHITS",
        about="a forecast with the mean absolute error; windows are drawn within the step",
        lightning="pytorch_lightning",
        train=_train("NHITS"),
        reopen=_reopen,
        settings={"criterion": "loss", "TransformBatch": {"criterion": "loss", "input": "temporal"}},
        classifies=False,
    ),
    Case(
        name="LSTM",
        about="a recurrent forecast of quantiles",
        lightning="pytorch_lightning",
        train=_train("LSTM"),
        reopen=_reopen,
        settings={"criterion": "loss", "TransformBatch": {"criterion": "loss", "input": "temporal"}},
        classifies=False,
    ),
)
