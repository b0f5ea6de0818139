"""Makes a resumed training with shuffling and dropout equal to an uninterrupted one."""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from lightning_objectives._trainer.callback import StatefulCallback
from lightning_objectives._trainer.checkpoints import taking
from lightning_objectives._trainer.lightning import rank_zero_warn
from lightning_objectives._trainer.random import random_state, set_random_state


@dataclass(eq=False)
class RestoreRandomState(StatefulCallback):
    """Saves the random states with each checkpoint, so that resuming at the end of an epoch changes no bit.

    Every full checkpoint holds the states of torch (CPU and CUDA), NumPy and Python, of each process. When a resumed
    training starts, the callback restores them, and creates the iterator over the training data again.

    When to use: if a run may be interrupted and its result must be reproducible. Cost: 8 KB per process and checkpoint,
    and one gather if there are several processes. Interactions: resuming is exact from a checkpoint of the end of an
    epoch, after its validation. It is not exact from a checkpoint of ``every_n_train_steps``, even at the last step of
    an epoch, because Lightning does not repeat the validation. From the middle of an epoch the random states go on too,
    but a plain ``DataLoader`` begins its epoch again. You must restore generators of your own, and whatever your hooks
    draw at the start of an epoch.

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
        """Forget a state that was loaded for another run."""
        super().setup(trainer, pl_module, stage)
        self.pending = None
        self._alone = False
        self._resumed = False

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop waiting for the other processes, which may not save a checkpoint after this exception."""
        self._alone = True
        super().on_exception(trainer, pl_module, exception)

    def state_dict(self) -> dict[str, Any]:
        """The random states of all processes, in the order of the ranks."""
        mine = random_state()
        if self._alone or not (dist.is_available() and dist.is_initialized()):
            return {"ranks": [mine]}
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, mine)
        return {"ranks": ranks}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Restore the states."""
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
                f"The checkpoint holds the random states of {len(states)} processes, but this training has "
                f"{trainer.world_size}. The states are not restored, and this run will differ from an uninterrupted "
                f"one. Resume with {len(states)} processes to repeat it exactly."
            )
            return
        self._resumed = True

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Draw the data of the epoch from the restored states."""
        loop = trainer.fit_loop
        # Lightning has already created this epoch's iterator, from other states; an uninterrupted run creates it now.
        # From some checkpoints Lightning first ends the epoch before, and then creates a new iterator itself.
        if self._resumed and (getattr(loop, "is_resuming", False) or loop.epoch_loop.restarting):
            iter(loop._data_fetcher)
        self._resumed = False

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Keep the iterator for the rest of the epoch."""
        self._resumed = False
