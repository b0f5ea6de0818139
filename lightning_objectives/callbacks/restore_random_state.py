"""Exact resume with shuffling and dropout."""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from lightning_objectives._trainer.callback import StatefulCallback
from lightning_objectives._trainer.checkpoints import taking
from lightning_objectives._trainer.lightning import rank_zero_warn
from lightning_objectives._trainer.random import random_state, set_random_state


@dataclass(eq=False)
class RestoreRandomState(StatefulCallback):
    """Keep the random states in the checkpoint, so that resuming from the end of an epoch is bit for bit the whole run.

    The states of torch (CPU and CUDA), numpy and Python, of each process, are saved with every full checkpoint and put
    back when a resumed training starts, with the iterator over the training data made anew from them.

    When to use: wherever a run may be interrupted and its result is to be reproducible. Cost: 8 KB and, with several
    processes, one gather per checkpoint. Interactions: it is exact for checkpoints of an epoch's end, after its
    validation (not those of ``every_n_train_steps``, though the step be an epoch's last: the validation is not
    repeated). From the middle of an epoch the random states go on too, but a plain ``DataLoader`` begins its epoch
    anew. Generators of your own, and what your hooks draw when an epoch starts, are yours to care for.

    Example:
        >>> state = RestoreRandomState().state_dict()
        >>> sorted(state["ranks"][0])
        ['cuda', 'numpy', 'python', 'torch']
    """

    leaves_training_alone = True

    def __post_init__(self) -> None:
        self._alone = False
        self._resumed = False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Forget what was loaded for another run."""
        super().setup(trainer, pl_module, stage)
        self.pending = None
        self._alone = False
        self._resumed = False

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """The other processes may not come to a checkpoint that is saved now: do not wait for them."""
        self._alone = True
        super().on_exception(trainer, pl_module, exception)

    def state_dict(self) -> dict[str, Any]:
        """The random states of all processes, by rank."""
        mine = random_state()
        if self._alone or not (dist.is_available() and dist.is_initialized()):
            return {"ranks": [mine]}
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, mine)
        return {"ranks": ranks}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Put the states back, and let the data be drawn from them."""
        loaded = self.take_pending()
        if loaded is None:
            return
        with taking(self.state_key, trainer):
            states = loaded["ranks"]
            fits = len(states) == trainer.world_size
            if fits:
                set_random_state(states[trainer.global_rank])
        if not fits:
            rank_zero_warn(
                f"The checkpoint holds the random states of {len(states)} processes, but there are "
                f"{trainer.world_size}: they are not restored, and this run will differ from an uninterrupted one."
            )
            return
        self._resumed = True

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Let the epoch's data be drawn from the states that were put back."""
        loop = trainer.fit_loop
        # Lightning has already made this epoch's iterator, from other states; an uninterrupted run makes it now. From
        # some checkpoints it runs through the end of the epoch before, and makes a new one by itself.
        if self._resumed and (getattr(loop, "is_resuming", False) or loop.epoch_loop.restarting):
            iter(loop._data_fetcher)
        self._resumed = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """In the middle of an epoch its iterator stays."""
        self._resumed = False
