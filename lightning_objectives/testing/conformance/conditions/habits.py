"""Hooks, files and habits of the module's user."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_objectives.testing.conformance.check import Trial
from lightning_objectives.testing.conformance.variants import Make, variant

EPOCHS = 2
"""Those of each training, unless a condition says another number."""


def hooks_of_the_user(trial: Trial) -> None:
    """Hooks on the module and on its linear layers: they see what they see without the plug-in, and stay."""
    calls: list[str] = []

    def hook(module: Any) -> None:
        parts = [module, *(part for part in module.modules() if isinstance(part, nn.Linear))]
        for number, part in enumerate(parts):
            part.register_forward_pre_hook(lambda *_, n=number: calls.append(f"before {n}"))
            part.register_forward_hook(lambda *_, n=number: calls.append(f"after {n}"))
        if len(parts) > 2:  # the loss need not pass through the output of the last one, a head that is wrapped
            parts[1].register_full_backward_pre_hook(lambda *_: calls.append("backward"))

    module = variant(trial.case.module, prepare=hook)
    counts: list[dict[str, int]] = []
    for callbacks in ([], trial.make()):
        calls.clear()
        trial.fit(callbacks, module=module, val=[])
        counts.append({call: calls.count(call) for call in sorted(set(calls))})
    # a gradient that is asked for in between goes through backward hooks too
    fewer = {call: n for call, n in counts[0].items() if counts[1].get(call, 0) < n}
    trial.require(not fewer, f"the user's hooks must be called {fewer} times, but are {counts[1]}.")
    passes = max(callback.passes for callback in trial.make())
    before = sum(callback.passes_before for callback in trial.make())
    forward = [
        {call: n * times // EPOCHS for call, n in count.items() if call != "backward"}
        for count, times in zip(counts, (passes * EPOCHS + before, EPOCHS))
    ]
    trial.require(forward[0] == forward[1], f"forward hooks must be called {forward[0]} times, not {forward[1]}.")
    trial.holds(module=module)


def a_state_dict_that_drops_keys(trial: Trial) -> None:
    """A module that leaves out a part of its state, with ``strict_loading=False``: files are its own, and resume."""

    def methods(user: Any) -> dict[str, Any]:
        def state_dict(self: Any, *args: Any, **kwargs: Any) -> Any:
            state = user.state_dict(self, *args, **kwargs)
            for key in list(state)[: len(state) // 2]:
                del state[key]
            return state

        return {"state_dict": state_dict, "strict_loading": False}

    module = variant(trial.case.module, methods)
    trial.holds(module=module)
    keys = list(module().state_dict())
    for checkpoint in _saved_and_resumed(trial, module):
        saved = list(checkpoint["state_dict"])
        trial.require(saved == keys, f"a checkpoint must have the keys {keys}, not {saved}.")


def train_in_a_hook(trial: Trial) -> None:
    """``self.train()`` in a hook changes nothing; networks that are given stay in eval mode, their statistics too."""

    def methods(user: Any) -> dict[str, Any]:
        def on_train_batch_start(self: Any, batch: Any, batch_idx: int) -> None:
            self.train()

        def on_train_epoch_start(self: Any) -> None:
            self.train()

        return {"on_train_batch_start": on_train_batch_start, "on_train_epoch_start": on_train_epoch_start}

    seen = _Seen()

    def watched(make: Callable[[], Any]) -> Callable[[], Any]:
        made = make()
        return (lambda: _Watched(make(), seen)) if isinstance(made, nn.Module) else make

    settings = {name: watched(make) for name, make in trial.case.settings.items()}
    watching = replace(trial, case=replace(trial.case, settings=settings))
    usual, run = watching.fit(), watching.fit(module=variant(trial.case.module, methods))
    trial.require_same(usual, run, "a module that is in training mode already is not changed by train().")
    trial.require(not any(mode for mode, *_ in seen), "a network that is given must be in eval mode when it is asked.")
    still = all(torch.equal(mean, torch.zeros_like(mean)) and not count for _, mean, count in seen)
    trial.require(still, "the statistics of a network that is given must stay as they are.")


def an_on_save_checkpoint_of_the_user(trial: Trial) -> None:
    """``on_save_checkpoint`` and ``on_load_checkpoint`` of the user: what they add and take away is so in the file."""
    loaded: list[Any] = []

    def methods(user: Any) -> dict[str, Any]:
        def on_save_checkpoint(self: Any, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = list(checkpoint["state_dict"])
            checkpoint["state_dict"]["added"] = torch.ones(2)

        def on_load_checkpoint(self: Any, checkpoint: dict[str, Any]) -> None:
            loaded.append(checkpoint.get("mine"))
            checkpoint["state_dict"].pop("added", None)

        return {"on_save_checkpoint": on_save_checkpoint, "on_load_checkpoint": on_load_checkpoint}

    module = variant(trial.case.module, methods)
    keys = list(trial.case.module().state_dict())
    for checkpoint in _saved_and_resumed(trial, module):
        trial.require(checkpoint.get("mine") == keys, f"the user's hook must see {keys}, not {checkpoint.get('mine')}.")
        kept = checkpoint["state_dict"].keys() == {*keys, "added"}
        trial.require(kept, f"the file must have what the user added, but holds {list(checkpoint['state_dict'])}.")
    trial.require(loaded == [keys, keys], "the user's hook must be called when a training goes on.")


# -- how


def _saved_and_resumed(trial: Trial, module: Make) -> list[dict[str, Any]]:
    """The checkpoints that are written during a training of an epoch and after it; a training goes on from each."""
    keeps = ModelCheckpoint(save_last=True, save_top_k=0)
    run = trial.fit([*trial.make(), keeps], module=module, max_epochs=1, enable_checkpointing=True)
    after = Path(run.trainer.default_root_dir) / "after.ckpt"
    run.trainer.save_checkpoint(after)
    for path in (keeps.last_model_path, after):
        resumed = trial.fit(module=module, ckpt_path=path)
        batches, before = len(resumed.losses), len(run.losses)
        trial.require(batches == before, f"it must go on after {before} batches for as many, not train {batches}.")
    return [torch.load(path, weights_only=True) for path in (keeps.last_model_path, after)]


class _Seen(list[Any]):
    """One list for all copies."""

    def __deepcopy__(self, memo: Any) -> "_Seen":
        return self


class _Watched(nn.Module):
    """A network that tells, each time it is asked, its mode and the statistics of a BatchNorm on its inputs."""

    def __init__(self, network: nn.Module, seen: _Seen) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)
        self.network = network
        self.seen = seen

    def forward(self, inputs: Tensor) -> Any:
        """The network's answer."""
        self.norm(inputs.flatten()[:, None])
        self.seen.append((self.training, self.norm.running_mean, self.norm.num_batches_tracked))
        return self.network(inputs)
