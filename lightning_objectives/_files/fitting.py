"""Finds the weights of a network in a file that may hold other things, under other names."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from lightning_objectives._files.names import plain_name
from lightning_objectives._files.parts import WEIGHT_KEYS, holds_tensors
from lightning_objectives._files.source import first_names, is_plain, number_kind


class Weights:
    """Lists the sets of weights in a file, to find the one that belongs to a network.

    Args:
        contents: what the file holds: a state dict, or a dictionary with state dicts in it.
        file: its path, for messages.
        prefix: what the names of the right tensors begin with, if the user chooses it. The entry of the checkpoint
            belongs to it, as in ``"model_ema.module."``; that which is read without a prefix may be left out.
        options: what the name of the user's option for the prefix begins with, for messages.

    Raises:
        ValueError: the file holds no tensors by name, or none with this prefix.
    """

    def __init__(
        self, contents: Mapping[str, Any], file: Any, prefix: str | None = None, *, options: str = "teacher_"
    ) -> None:
        self._file, self._options = file, options
        self._is_chosen = prefix is not None
        parts = _parts(contents) if prefix is None else self._chosen(contents, plain_name(prefix))
        if not any(parts.values()):
            raise ValueError(
                f"The file of weights {str(file)!r} is no state dict: it is empty. Give the trained weights."
            )
        entries = [entry for state in parts.values() for entry in state.items()]
        odd = [k for k, v in entries if not (isinstance(k, str) and isinstance(v, Tensor) and is_plain(v))]
        if odd:
            raise ValueError(
                f"The file of weights {str(file)!r} is no state dict: {odd[:3]} are no tensors with names and values "
                "(sparse, quantized and meta tensors do not count). Save module.state_dict()."
            )
        self._states = {name: _plainly_named(state, file) for name, state in parts.items()}

    def _chosen(self, contents: Mapping[str, Any], prefix: str) -> dict[str, dict[str, Any]]:
        """The entries whose names begin with the prefix, without it."""
        inner = {f"{key}.": value for key, value in contents.items() if holds_tensors(value)}
        usual = list(_parts(contents).values())
        parts = {"": usual[0] if len(usual) == 1 else contents, **inner}
        known: set[str] = set()
        for part, state in parts.items():
            names = {part + plain_name(key): value for key, value in state.items() if isinstance(value, Tensor)}
            chosen = {name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)}
            if chosen:
                return {prefix: chosen}
            known |= names.keys()
        raise ValueError(
            f"{self._options}prefix={prefix!r}: no tensor of {str(self._file)!r} has a name that begins with it. There "
            f"are {first_names(known)}."
        )

    @property
    def all(self) -> dict[str, Tensor]:
        """All tensors that may be meant, by their names in the file."""
        return {part + key: value for part, state in self._states.items() for key, value in state.items()}

    def of(self, network: nn.Module) -> dict[str, Tensor]:
        """Return the weights of the network under its own names.

        Raises:
            ValueError: no set of weights in the file fits the network, or several do.
        """
        own = {plain_name(key): key for key in network.state_dict()}
        criteria = tuple(f"{path}." for path, module in network.named_modules() if isinstance(module, _Loss) and path)
        fitting = [
            (name, prefix) for name, state in self._states.items() for prefix in _prefixes(state, own.keys(), criteria)
        ]
        if self._is_chosen:
            fitting = [(name, prefix) for name, prefix in fitting if not prefix] or fitting
        name, prefix = fitting[0] if fitting else (next(iter(self._states)), "")
        state = self._states[name]
        if len(fitting) > 1:
            choices = [name + prefix for name, prefix in fitting]
            raise ValueError(
                f"The file of weights {str(self._file)!r} holds more than one network of the form of "
                f"{type(network).__name__}. Several prefixes fit: {choices}. Choose one, for example with "
                f"{self._options}prefix={choices[-1]!r}."
            )
        if fitting:
            state = {key: state[prefix + key] for key in own}
        self._check_fit(network, {own.get(key, key): value for key, value in state.items()})
        return {own[key]: value for key, value in state.items()}

    def _check_fit(self, network: nn.Module, state: Mapping[str, Tensor]) -> None:
        own = network.state_dict()
        missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
        shared = {k: v for k, v in state.items() if k in own}
        shapes = [f"{k} {tuple(v.shape)}" for k, v in shared.items() if v.shape != own[k].shape]
        types = [f"{k} {v.dtype}" for k, v in shared.items() if number_kind(v.dtype) != number_kind(own[k].dtype)]
        if missing or unexpected or shapes or types:
            raise ValueError(
                f"The file of weights {str(self._file)!r} does not fit {type(network).__name__}: {len(missing)} keys "
                f"are missing {missing[:3]}, {len(unexpected)} are unexpected {unexpected[:3]}, {len(shapes)} have "
                f"another shape {shapes[:3]}, {len(types)} another type {types[:3]}. Give the weights of this network."
            )


def _parts(contents: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The state dicts in a file that may be meant, by what stands before their names."""
    if isinstance(contents.get("state_dict"), Mapping):
        return {"": contents["state_dict"]}
    inner = {key: value for key, value in contents.items() if holds_tensors(value)}
    usual = {key: inner[key] for key in WEIGHT_KEYS if key in inner}
    return {f"{key}.": value for key, value in (usual or inner).items()} or {"": contents}


def _plainly_named(state: Mapping[str, Tensor], file: Any) -> dict[str, Tensor]:
    plain = {plain_name(key): value for key, value in state.items()}
    if len(plain) < len(state):
        twice = sorted(key for key in state if plain_name(key) != key and plain_name(key) in state)
        raise ValueError(
            f"The file of weights {str(file)!r} has {twice[:3]} with and without what torch.compile puts into names, "
            "so it is not clear which are meant. Save the weights of one network."
        )
    return plain


def _prefixes(state: Mapping[str, Tensor], own: Any, criteria: tuple[str, ...]) -> Iterator[str]:
    """The prefixes behind which a state dict has all of a network's names and no others.

    What lies in a criterion of the network does not count, as it has no part in the answers. A network that holds
    another one of its own form, such as an average of itself, counts too.
    """
    first = next(iter(own), "")
    prefixes = {key.removesuffix(first) for key in state if key.endswith(first)} | {""}
    behind = {prefix: _behind(state, prefix, own, criteria) for prefix in sorted(prefixes)}
    exact = [prefix for prefix, names in behind.items() if names == own]
    for prefix, names in behind.items():
        holds_another = any(other.startswith(prefix) for other in exact)
        if names == own or (own <= names and holds_another):
            yield prefix


def _behind(state: Mapping[str, Tensor], prefix: str, own: Any, criteria: tuple[str, ...]) -> set[str]:
    names = {key.removeprefix(prefix) for key in state if key.startswith(prefix)}
    return {name for name in names if name in own or not name.startswith(criteria)}
