"""Builds a trained network from a module, a name or a class, and a file of weights that is read as data."""

import copy
import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_objectives._files.fitting import Weights
from lightning_objectives._files.intact import check_permission, check_sums, hint


def load_network(
    network: str | nn.Module,
    weights: str | Path | None = None,
    *,
    prefix: str | None = None,
    options: str = "teacher_",
) -> nn.Module:
    """Build a trained network that shares nothing with what you pass.

    Args:
        network: a module, which is copied; a timm model's name, ``"timm:resnet18"`` or ``"resnet18"``; the path of a
            class, ``"package.module.Net"``, which is built with the hyperparameters in the file; or the path of a
            function that returns a trained module.
        weights: a file of weights (``.safetensors``, ``.pt``, or a Lightning checkpoint), of all the network's keys,
            possibly behind a common prefix, or under ``state_dict``, ``model``, ``net`` and the like. Without a file,
            timm's pretrained weights are used. A file is read as data: one that would run code is refused.
        prefix: what the names of the weights in the file begin with, if several networks in it fit.
        options: what the names of the user's options for the weights and the prefix begin with, for messages.

    Raises:
        ValueError: the name is unknown, the weights would be random, or the file cannot be read, does not fit, or
            holds NaN or infinite parameters.
    """
    contents = None if weights is None else read_weights(weights)
    of_file = None if contents is None else Weights(contents, weights, prefix, options=options)
    if prefix is not None and contents is None:
        raise ValueError(f"{options}prefix={prefix!r} chooses among the weights of a file: give {options}weights= too.")
    if isinstance(network, nn.Module):
        trained = copy.deepcopy(network)
    elif _names_timm_model(network):
        from lightning_objectives._files.timm_models import load_timm_model

        trained = load_timm_model(network.removeprefix("timm:"), None if of_file is None else of_file.all)
    else:
        trained = _from_path(network, contents, weights)
    if of_file is not None:
        state = of_file.of(trained)
        _check_numbers(trained, state, weights)
        trained.load_state_dict(state)
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


def _names_timm_model(network: str) -> bool:
    """Tell a name of timm, such as ``resnet18.a1_in1k``, from the path of a class."""
    if network.startswith("timm:") or "." not in network:
        return True
    import timm  # Not above, because it takes most of a second, and only a name of this form needs it.

    return timm.is_model(network)


def _from_path(path: str, contents: dict[str, Any] | None, file: Any) -> nn.Module:
    target = _imported(path)
    if not isinstance(target, type):
        return copy.deepcopy(_returned(path, target))  # the function may return the same module again
    if contents is None:
        raise ValueError(
            f"{path!r} would have random weights, which teach nothing: give a file of weights, or the path of a "
            "function that returns the trained network."
        )
    settings = _hyperparameters(path, contents, file)
    parameters = inspect.signature(target).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        network: nn.Module = target(
            **{k: v for k, v in settings.items() if k in parameters or (takes_all and k[0] != "_")}
        )
    except Exception as error:  # the constructor is the user's
        raise ValueError(
            f"{path} could not be built with the hyperparameters {sorted(settings)} of {str(file)!r} "
            f"({type(error).__name__}: {error}). Build it yourself, and give the module with this file."
        ) from error
    return network


def _imported(path: str) -> type[nn.Module] | Callable[[], Any]:
    module, _, name = path.rpartition(".")
    try:
        target = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"{path!r} is neither a timm model nor the path of a class: {error}. Give 'timm:name' or "
            "'package.module.Net'."
        ) from error
    if not (issubclass(target, nn.Module) if isinstance(target, type) else callable(target)):
        raise ValueError(
            f"{path!r} is no class of modules: give the path of a subclass of torch.nn.Module, or of a function that "
            "returns a trained module."
        )
    return target  # type: ignore[no-any-return]


def _returned(path: str, function: Callable[[], Any]) -> nn.Module:
    network = function()
    if not isinstance(network, nn.Module):
        raise ValueError(f"{path}() returned a {type(network).__name__}, but must return a trained torch.nn.Module.")
    return network


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
