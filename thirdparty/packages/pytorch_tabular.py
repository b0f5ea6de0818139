"""pytorch-tabular: its TabularModel builds the module and the Trainer, for classification and for regression."""

from pathlib import Path
from typing import Any

from thirdparty.case import Case

REQUIREMENTS = ("pytorch-tabular==1.2.0", "omegaconf==2.4.0", "pandas==2.3.3", "torchmetrics==1.8.2")
TITLE = "pytorch-tabular"
DISTRIBUTIONS = ("pytorch-tabular", "torch", "pytorch-lightning", "torchmetrics")
NOTE = "`TabularModel` makes the module and the Trainer. Its batches and the input of its networks are dictionaries."


def _frame(task: str) -> Any:
    import numpy as np
    import pandas as pd

    draws = np.random.default_rng(0)
    frame = pd.DataFrame(draws.normal(size=(20, 3)).astype("float32"), columns=["a", "b", "c"])
    frame["kind"] = draws.integers(0, 3, 20).astype(str)
    frame["y"] = draws.integers(0, 3, 20) if task == "classification" else draws.normal(size=20).astype("float32")
    return frame


def _train(task: str) -> Any:
    def train(callbacks: list[Any], options: dict[str, Any]) -> Any:
        from pytorch_tabular import TabularModel
        from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
        from pytorch_tabular.models import CategoryEmbeddingModelConfig

        own = {name: options.pop(name) for name in ("accelerator", "max_epochs")}
        progress = options.pop("enable_progress_bar")
        del options["logger"], options["enable_checkpointing"], options["enable_model_summary"]
        model = TabularModel(
            data_config=DataConfig(
                target=["y"], continuous_cols=["a", "b", "c"], categorical_cols=["kind"], dataloader_kwargs={}
            ),
            model_config=CategoryEmbeddingModelConfig(task=task, layers="8", head="LinearHead"),
            optimizer_config=OptimizerConfig(),
            trainer_config=TrainerConfig(
                batch_size=4,
                checkpoints=None,
                early_stopping=None,
                load_best=False,
                progress_bar="simple" if progress else "none",
                trainer_kwargs={"num_sanity_val_steps": options.pop("num_sanity_val_steps"), **options},
                **own,
            ),
            verbose=False,
        )
        frame = _frame(task)
        model.fit(train=frame[:14], validation=frame[14:18], callbacks=callbacks, seed=0)
        model.save_model(str(Path(options["default_root_dir"]) / "saved"))
        return model.model

    return train


def _reopen(folder: str) -> Any:
    from pytorch_tabular import TabularModel

    return TabularModel.load_model(folder)


CASES = (
    Case(
        name="CategoryEmbeddingModel, classes",
        about="an embedding and a small network; batches are dictionaries",
        lightning="pytorch_lightning",
        train=_train("classification"),
        samples=4,
        reopen=_reopen,
        settings={"criterion": "loss", "input": "continuous"},
    ),
    Case(
        name="CategoryEmbeddingModel, regression",
        about="the same for a real target",
        lightning="pytorch_lightning",
        train=_train("regression"),
        samples=4,
        reopen=_reopen,
        settings={"criterion": "loss", "input": "continuous"},
        classifies=False,
    ),
)
