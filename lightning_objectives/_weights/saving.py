"""Saves averages and loads them again, also into the state dict of a network and from another library's average."""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_objectives._files.names import plain_name, plainly_named
from lightning_objectives._weights.shadows import Shadows
from lightning_objectives._weights.shards import like, local, place, reshard, shard_of, whole
from lightning_objectives._weights.swap import Swap
from lightning_objectives.kinds import AverageState


def state_of(shadows: Shadows, swap: Swap, *, raw: bool) -> dict[str, Any]:
    """Put all that a training needs to go on into numbers and tensors by name, with whole tensors for sharded ones.

    Args:
        shadows: the averages.
        swap: holds the statistics.
        raw: whether the raw weights are needed too.
    """
    shadows.follow()
    sources = shadows.tensors.sources()
    masks = shadows.tensors.masks()

    def by_name(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        values = dict(zip(shadows.tensors.names, tensors))
        # A file that makes a pruning permanent has pruned weights under the names that they had before.
        values |= {name: values[name] * mask.to(values[name].device) for name, mask in masks.items()}
        return {name: whole(tensor, sources[name]) for name, tensor in values.items()}

    raw_tensors: dict[str, Tensor] = {}
    if raw and shadows.updates:
        raw_tensors = by_name(shadows.raw())
        raw_tensors |= {name: shadows.journal.held.get(name, b) for name, b in swap.norm_buffers().items()}
    waiting = {id(parameter) for parameter in shadows.tensors.waiting}
    return {
        "frozen": [name for name, p in plainly_named(shadows.network.named_parameters()) if id(p) in waiting],
        "raw": raw_tensors,
        "statistics": dict(swap.statistics),
        "statistics_step": swap.statistics_step,
        "averages": {
            name: {"updates": s.updates, "slots": {slot: by_name(tensors) for slot, tensors in s.slots.items()}}
            for name, s in shadows.states.items()
        },
    }


def load_state(shadows: Shadows, swap: Swap, state: Mapping[str, Any]) -> None:
    """Go on from what :func:`state_of` gave.

    Raises:
        ValueError: the state is of other rules or of another network.
    """
    averages = state["averages"]
    if averages and list(averages) != list(shadows.rules):
        raise ValueError(
            f"The state holds the averages {list(averages)}, but the rules are {list(shadows.rules)}. Use the rules "
            "that were saved, in their order."
        )
    restore(shadows.network, state["raw"])
    swap.statistics, swap.statistics_step = dict(state["statistics"]), state["statistics_step"]
    shadows.states = {}
    if not averages:
        return
    names = set(next(iter(averages.values()))["slots"]["average"])
    sources = _sources(shadows, names, state["frozen"])
    shadows.order = list(sources)
    with torch.inference_mode(False):
        for name, rule in shadows.rules.items():
            slots, expected = averages[name]["slots"], set(rule.init([torch.zeros(1)]).slots)
            if set(slots) != expected:
                raise ValueError(f"The state of {rule} has the slots {sorted(slots)}, not {sorted(expected)}.")
            shadows.states[name] = AverageState(
                {
                    slot: [_fitting(tensors[key], source, key).clone() for key, source in sources.items()]
                    for slot, tensors in slots.items()
                },
                int(averages[name]["updates"]),
            )
    shadows.collect()


def _sources(shadows: Shadows, names: set[str], frozen: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of the network that a state holds averages of; the others join again when the network is walked."""
    tensors = shadows.tensors
    for name, parameter in plainly_named(shadows.network.named_parameters()):
        if name in names and not any(parameter is p for p in tensors.parameters.values()):
            tensors.parameters[name] = parameter  # It was trained when the state was saved, and is frozen now.
    sources = tensors.sources()
    new = set(sources) - names
    if names - set(sources) or new - set(frozen):
        raise ValueError(
            "The state of the averages does not match the network: "
            f"missing in the network {sorted(names - set(sources))}, "
            f"missing in the state {sorted(new - set(frozen))}. "
            "Resume with the network that was saved, or without this callback's state."
        )
    # The slots are in the order of the names, and parameters that join come last.
    tensors.parameters = {name: p for name, p in tensors.parameters.items() if name not in new}
    return {name: tensor for name, tensor in sources.items() if name in names}


@torch.no_grad()
def adopt(shadows: Shadows, average: Mapping[str, Tensor], *, updates: int) -> list[str]:
    """Go on from a plain average that another library made.

    Returns:
        The names of the rules that need more than that, and begin anew.
    """
    average = {plain_name(name): tensor for name, tensor in average.items()}
    sources = shadows.tensors.sources()
    others = []
    for name, state in shadows.states.items():
        if set(state.slots) == {"average"}:
            for key, tensor in zip(shadows.tensors.names, state.slots["average"]):
                tensor.copy_(_fitting(average[key], sources[key], key))
            state.updates = updates
        else:
            others.append(name)
    return others


def fill(
    state_dict: MutableMapping[str, Any],
    network: nn.Module,
    values: Mapping[str, Tensor],
    sources: Mapping[str, Tensor],
) -> None:
    """Replace entries in a state dict of the network by the values of its tensors; keys and types stay.

    A tensor finds its entry by their memory, so that renamed keys are found too. Entries that are joined from shards
    are found by their name.

    Args:
        state_dict: the state dict.
        network: the network that the state dict is of.
        values: by the name of a parameter or a buffer; of a DTensor this rank's shard.
        sources: the parameters and buffers themselves, at least those of ``values``.
    """
    by_place = {place(sources[name]): name for name in values}
    first_names = {id(sources[name]): name for name in values}
    aliases = plainly_named([*network.named_parameters(remove_duplicate=False), *network.named_buffers()])
    by_name = {alias: first_names[id(tensor)] for alias, tensor in aliases if id(tensor) in first_names}
    sharded = [name for name in values if hasattr(sources[name], "to_local")]
    wholes: dict[str, Tensor] = {}
    if sharded and not any(hasattr(entry, "to_local") for entry in state_dict.values()):
        # Joining shards is collective, so every rank does it, even one whose state dict is empty.
        wholes = {name: whole(values[name], sources[name]) for name in sharded}
    for key, entry in list(state_dict.items()):
        if not isinstance(entry, Tensor):
            continue
        name = by_place.get(place(entry)) or (by_name.get(plain_name(key)) if sharded else None)
        if name is not None:
            value = wholes.get(name, values[name])
            state_dict[key] = like(value.to(local(entry).device, entry.dtype), entry)


def is_plain(state_dict: Any, network: nn.Module) -> bool:
    """Whether a state dict holds the very tensors of the network, or joins its shards, so that it can be filled."""
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    if any(hasattr(tensor, "to_local") for _, tensor in named):
        return True
    own = {place(tensor) for _, tensor in named if not is_lazy(tensor)}
    entries = state_dict.values() if isinstance(state_dict, Mapping) else [{}]
    return all(
        not isinstance(entry, (Mapping, list, tuple, Tensor))
        or (isinstance(entry, Tensor) and (is_lazy(entry) or not entry.numel() or place(entry) in own))
        for entry in entries
    )


def restore_raw(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Write the raw weights of a state of the averages into the network; the averages themselves are not loaded.

    Raises:
        ValueError: the state has averages of weights without the raw ones, or is of another network.
    """
    averaged = {name for average in state["averages"].values() for name in average["slots"]["average"]}
    if state["raw"] and averaged - state["raw"].keys():
        raise ValueError(f"there are averages of {sorted(averaged - state['raw'].keys())}, but no raw weights")
    restore(network, state["raw"])


@torch.no_grad()
def restore(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors into the parameters and buffers of a network, by name, in place.

    Raises:
        ValueError: a name that the network does not have, or another shape.
    """
    targets = dict(plainly_named([*network.named_parameters(), *network.named_buffers()]))
    missing = sorted(set(tensors) - set(targets))
    if missing:
        raise ValueError(
            f"The checkpoint holds raw weights that the network does not have: {missing}. Resume with the network that "
            "was saved."
        )
    reshard(network)
    for name, tensor in tensors.items():
        local(targets[name]).copy_(_fitting(tensor, targets[name], name))


def _fitting(tensor: Tensor, of: Tensor, name: str) -> Tensor:
    """This rank's part of a tensor from a checkpoint, which must have the shape of the network's tensor."""
    if tensor.shape != of.shape:
        raise ValueError(f"{name} is {tuple(tensor.shape)} in the checkpoint, but {tuple(of.shape)} in the network.")
    return shard_of(tensor, of)
