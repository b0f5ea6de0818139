"""Runs a survey over a loader, without a Trainer."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lightning_objectives._files.writing import write_tensors
from lightning_objectives._step.batch import unwrap
from lightning_objectives._step.evaluation import Where
from lightning_objectives._step.surveyed import SurveyPass
from lightning_objectives._trainer.loaders import OnePass, own_draws
from lightning_objectives.kinds import Survey


def survey_data(
    survey: Survey,
    network: nn.Module,
    loader: Iterable[Any],
    *,
    step: Callable[[Any], Any] | None = None,
    path: str | Path | None = None,
    max_batches: int | None = None,
    criterion: str | None = None,
    which: int | None = None,
    head: str | None = None,
    input: str | int | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    verbose: bool = False,
) -> dict[str, Tensor]:
    """Measure something of a network and its data, in one pass over a loader, as ``SurveyData`` does in a training.

    Each sample of the data set counts once, whatever the order of the loader. If several processes run, all of them
    must call this, and all get the same result: each reads its share if the loader has a ``DistributedSampler``, and
    the samples that the sampler repeats count once. Any other loader is read by each process as it is.

    The network is in evaluation mode meanwhile; its modes, buffers, metrics and public attributes, and the random
    streams, are as before.

    Args:
        survey: the method.
        network: the network, on its device.
        loader: gives the batches, on any device.
        step: computes the loss of a batch, ``step(batch)``, so that its criterion shows the logits and the targets. By
            default the cross entropy of ``network(inputs)`` and ``target``, for batches of ``(inputs, target)``.
        path: a safetensors file for the result, written by the first process.
        max_batches: the most batches of each process; None for all.
        criterion: path of the criterion in the network (``"loss_fn"``), if it is none of torch's functional losses.
        which: number of the criterion's call, from 0, if a step makes several.
        head: path of the network's head, if it is needed and not found.
        input: path of the inputs in the batch (``"x"``), if they are not its first element.
        device: where the batches go; by default where the network's first parameter is.
        seed: the seed of what the data set draws meanwhile, such as random crops.
        verbose: show a progress bar in the first process.

    Returns:
        the result of the survey: tensors by name.

    Raises:
        ValueError: ``max_batches`` below 1, no criterion was seen, or the survey is for another problem.
        RuntimeError: another process has failed.

    Example:
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from lightning_objectives.surveys import ClassCounts
        >>> data = TensorDataset(torch.randn(5, 4), torch.tensor([0, 1, 1, 2, 1]))
        >>> survey_data(ClassCounts(), nn.Linear(4, 3), DataLoader(data, batch_size=2, shuffle=True))["counts"]
        tensor([1., 3., 1.], dtype=torch.float64)
    """
    if max_batches is not None and max_batches < 1:
        raise ValueError(f"max_batches={max_batches} must be >= 1, or None for all.")
    if path is not None and Path(path).suffix != ".safetensors":
        raise ValueError(f"path={str(path)!r} must end in .safetensors.")
    place = torch.device(device) if device is not None else _device_of(network)
    run = step or (lambda batch: _cross_entropy(network, batch))
    where = Where(criterion=criterion, which=which, head=head)
    surveying = SurveyPass(
        survey, network, lambda batch, _: run(batch), where, networks=[network], input=input, owner="survey_data"
    )
    first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    with own_draws(loader, seed, place):
        batches = _OnDevice(OnePass(loader), place)
        result = surveying.run(batches, max_batches=max_batches, device=place, visible=verbose and first)
    if path is not None and first:
        write_tensors(Path(path), result)
    return result


class _OnDevice:
    """The batches of a loader on a device."""

    def __init__(self, loader: OnePass, device: torch.device) -> None:
        self.loader, self.device = loader, device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return (tree_map(self._moved, batch) for batch in self.loader)

    def _moved(self, leaf: Any) -> Any:
        return leaf.to(self.device) if hasattr(leaf, "to") else leaf


def _device_of(network: nn.Module) -> torch.device:
    return next((p.device for p in network.parameters()), torch.device("cpu"))


def _cross_entropy(network: nn.Module, batch: Any) -> Tensor:
    batch, _ = unwrap(batch)
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        what = f"a {type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
        raise ValueError(
            f"survey_data computes the cross entropy of network(inputs) for batches of (inputs, target), but the batch "
            f"is {what}. Say step=, a function that computes the loss of a batch."
        )
    inputs, target = batch
    return F.cross_entropy(network(inputs), target)
