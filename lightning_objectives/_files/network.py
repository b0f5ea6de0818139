"""Builds a trained network from a module, a name or a class, and a file of weights that is read as data."""

import copy
import inspect
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_objectives._files.intact import check_permission, check_sums, hint
from lightning_objectives._files.source import is_plain, number_kind


def load_network(network: str | nn.Module, weights: str | Path | None = None) -> nn.Module:
    """Build a trained network that shares nothing with what you pass.

    Args:
        network: a module, which is copied; a timm model's name, ``"timm:resnet18"`` or ``"resnet18"``; or the path of a
            class, ``"package.module.Net"``, which is built with the hyperparameters in the file.
        weights: a file of weights (``.safetensors``, ``.pt``, or a Lightning checkpoint), of all the network's keys,
            possibly behind a common prefix. Without a file, timm's pretrained weights are used. A file is read as
            data: one that would run code is refused.

    Raises:
        ValueError: the name is unknown, the weights would be random, or the file cannot be read, does not fit, or
            holds NaN or infinite parameters.
    """
    contents = None if weights is None else read_weights(weights)
    state = None if contents is None else _state_dict(contents, weights)
    if isinstance(network, nn.Module):
        trained = copy.deepcopy(network)
    elif _names_timm_model(network):
        from lightning_objectives._files.timm_models import load_timm_model

        trained = load_timm_model(network.removeprefix("timm:"), state)
    else:
        trained = _from_class(network, contents, weights)
    if state is not None:
        _load(trained, state, weights)
    return trained


def read_weights(file: str | Path) -> dict[str, Any]:
    """Read a file of weights without running anything that lies in it.

    Raises:
        ValueError: it is missing or damaged, holds objects that would run code, or is no dictionary.
    """
    path = Path(file)
    if not path.is_file():
        reason = "is a directory: give a file in it" if path.is_dir() else "does not exist: give another path"
        raise ValueError(f"The file of weights {str(file)!r} {reason}.")
    try:
        check_permission(path)
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        check_sums(path)
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own ways to say that a file is bad
        raise ValueError(
            f"The file of weights {str(file)!r} cannot be read: it is damaged, or holds objects, which would run code "
            f"when loaded. Save a plain state dict, or safetensors.{hint(path)} "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from error
    if not isinstance(contents, dict):
        raise ValueError(
            f"The file of weights {str(file)!r} holds a {type(contents).__name__}, not a state dict. Save "
            "module.state_dict()."
        )
    return contents


def _state_dict(contents: dict[str, Any], file: Any) -> dict[str, Tensor]:
    parts = (contents[key] for key in ("state_dict", "model") if isinstance(contents.get(key), Mapping))
    state = next(parts, contents)
    if not state:
        raise ValueError(f"The file of weights {str(file)!r} is no state dict: it is empty. Give the trained weights.")
    odd = [k for k, v in state.items() if not (isinstance(k, str) and isinstance(v, Tensor) and is_plain(v))]
    if odd:
        raise ValueError(
            f"The file of weights {str(file)!r} is no state dict: {odd[:3]} are no tensors with names and values "
            "(sparse, quantized and meta tensors do not count). Save module.state_dict()."
        )
    return dict(state)


def _names_timm_model(network: str) -> bool:
    """Tell a name of timm, such as ``resnet18.a1_in1k``, from the path of a class."""
    if network.startswith("timm:") or "." not in network:
        return True
    import timm  # Not above, because it takes most of a second, and only a name of this form needs it.

    return timm.is_model(network)


def _from_class(path: str, contents: dict[str, Any] | None, file: Any) -> nn.Module:
    if contents is None:
        raise ValueError(f"{path!r} would have random weights, which teach nothing: give a file of weights.")
    cls = _imported(path)
    settings = _hyperparameters(path, contents, file)
    parameters = inspect.signature(cls).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        return cls(**{k: v for k, v in settings.items() if k in parameters or (takes_all and k[0] != "_")})
    except Exception as error:  # the constructor is the user's
        raise ValueError(
            f"{path} could not be built with the hyperparameters {sorted(settings)} of {str(file)!r} "
            f"({type(error).__name__}: {error}). Build it yourself, and give the module with this file."
        ) from error


def _imported(path: str) -> type[nn.Module]:
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{path!r} is neither a timm model nor the path of a class: {error}. Give 'timm:name' or "
            "'package.module.Net'."
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ValueError(f"{path!r} is no class of modules: give the path of a subclass of torch.nn.Module.")
    return cls


def _hyperparameters(path: str, contents: dict[str, Any], file: Any) -> Mapping[str, Any]:
    settings = contents.get("hyper_parameters", {})
    if contents.get("hparams_name") not in (None, "kwargs"):
        settings = {str(contents["hparams_name"]): settings}
    if not isinstance(settings, Mapping) or not all(isinstance(k, str) for k in settings):
        raise ValueError(
            f"The hyper_parameters of {str(file)!r} are {settings!r:.200}, but must be settings by name. Build "
            f"{path} yourself, and give the module with this file."
        )
    return settings


def _load(network: nn.Module, state: dict[str, Tensor], file: Any) -> None:
    own = network.state_dict()
    state, prefixes = _without_prefix(state, own)
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shared = {k: v for k, v in state.items() if k in own}
    shapes = [f"{k} {tuple(v.shape)}" for k, v in shared.items() if v.shape != own[k].shape]
    types = [f"{k} {v.dtype}" for k, v in shared.items() if number_kind(v.dtype) != number_kind(own[k].dtype)]
    if missing or unexpected or shapes or types:
        raise ValueError(
            f"The file of weights {str(file)!r} does not fit {type(network).__name__}: {len(missing)} keys are missing "
            f"{missing[:3]}, {len(unexpected)} are unexpected {unexpected[:3]}, {len(shapes)} have another shape "
            f"{shapes[:3]}, {len(types)} another type {types[:3]}."
            + (f" Several prefixes fit: {prefixes}." if len(prefixes) > 1 else "")
            + " Give the weights of this network."
        )
    _check_numbers(network, state, file)
    network.load_state_dict(state)


def _without_prefix(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return the entries behind the prefix that gives the network's own keys, and all prefixes that give them."""
    first = next(iter(own), "")
    prefixes = {key.removesuffix(first) for key in state if key.endswith(first)} - {""}
    fitting = sorted(p for p in prefixes if {k for k in state if k.startswith(p)} == {p + k for k in own})
    if state.keys() != own.keys() and len(fitting) == 1:
        state = {key: state[fitting[0] + key] for key in own}
    return state, fitting


def _check_numbers(network: nn.Module, state: dict[str, Tensor], file: Any) -> None:
    learnt = dict(network.named_parameters(remove_duplicate=False))
    numbers = {k: v.float() if v.dtype.itemsize == 1 else v for k, v in state.items()}  # isnan is missing for float8
    # An infinite buffer is allowed because it may be a mask.
    bad = [k for k, v in numbers.items() if v.isnan().any() or (k in learnt and not v.isfinite().all())]
    if bad:
        raise ValueError(
            f"The file of weights {str(file)!r} holds NaN or infinite weights, in {bad[:3]}: that training had failed "
            "by then. Give an earlier checkpoint of it."
        )
