"""pytorch-forecasting: a Temporal Fusion Transformer, an N-BEATS and a DeepAR on a few short series."""

from typing import Any

from thirdparty.case import Case

REQUIREMENTS = ("pytorch-forecasting==1.8.0", "pandas==3.0.6")
TITLE = "pytorch-forecasting"
DISTRIBUTIONS = ("pytorch-forecasting", "torch", "lightning")
NOTE = "Batches are nested: `(dict, (target, weight))`. The criterion gets the target and its weight in one tuple."


def _dataset(kind: str) -> Any:
    import numpy as np
    import pandas as pd
    from pytorch_forecasting import TimeSeriesDataSet

    draws = np.random.default_rng(0)
    frames = [
        pd.DataFrame(
            {"series": str(i), "time": range(14), "value": np.sin(np.arange(14) + i) + draws.normal(0, 0.1, 14)}
        )
        for i in range(5)
    ]
    settings: dict[str, Any] = {"time_varying_unknown_reals": ["value"]}
    if kind != "nbeats":
        settings |= {"static_categoricals": ["series"], "time_varying_known_reals": ["time"]}
    return TimeSeriesDataSet(
        pd.concat(frames, ignore_index=True).astype({"value": "float32"}),
        time_idx="time",
        target="value",
        group_ids=["series"],
        min_encoder_length=6,
        max_encoder_length=6,
        min_prediction_length=2,
        max_prediction_length=2,
        **settings,
    )


def _module(kind: str) -> Any:
    from pytorch_forecasting import DeepAR, NBeats, TemporalFusionTransformer
    from pytorch_forecasting.metrics import NormalDistributionLoss, QuantileLoss

    common = {"learning_rate": 0.01, "optimizer": "adam", "log_interval": -1}
    dataset = _dataset(kind)
    if kind == "tft":
        sizes = {"hidden_size": 8, "attention_head_size": 2, "hidden_continuous_size": 4, "dropout": 0.1}
        return TemporalFusionTransformer.from_dataset(dataset, loss=QuantileLoss(), **sizes, **common)
    if kind == "nbeats":
        return NBeats.from_dataset(dataset, widths=[8, 8], backcast_loss_ratio=0.1, **common)
    return DeepAR.from_dataset(dataset, loss=NormalDistributionLoss(), hidden_size=8, rnn_layers=1, **common)


def _data(kind: str) -> tuple[Any, Any]:
    dataset = _dataset(kind)
    return (
        dataset.to_dataloader(train=False, batch_size=12, num_workers=0),
        dataset.to_dataloader(train=False, batch_size=4, num_workers=0),
    )


def _case(kind: str, name: str, about: str, head: str) -> Case:
    return Case(
        name=name,
        about=about,
        module=lambda: _module(kind),
        data=lambda: _data(kind),
        samples=12,
        settings={
            "criterion": "loss",
            "head": head,
            "TransformBatch": {"criterion": "loss", "input": "0.encoder_cont"},
        },
        classifies=False,
        options={"gradient_clip_val": 0.1, "limit_train_batches": 3, "limit_val_batches": 2},
    )


CASES = (
    _case(
        "tft",
        "TemporalFusionTransformer",
        "seven quantiles, QuantileLoss; batches of (dict, (target, weight))",
        "output_layer",
    ),
    _case("nbeats", "NBeats", "MASE of a forecast; the loss is made of two calls", "net_blocks.1.theta_f_fc"),
    _case("deepar", "DeepAR", "the likelihood of a normal distribution", "distribution_projector"),
)
