"""A trained network from a module, a name or a class, and a file of weights that is never run."""

import copy
import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_objectives._files.intact import check_sums, hint
from lightning_objectives._files.reading import is_plain


def load_network(network: str | nn.Module, weights: str | Path | None = None) -> nn.Module:
    """A network of one's own.

    Args:
        network: a module, which is copied; a timm model's name, ``"timm:resnet18"`` or ``"resnet18"``; or the path of a
            class, ``"package.module.Net"``, which is built with the hyperparameters in the file.
        weights: a file of weights (``.safetensors``, ``.pt``, or a Lightning checkpoint), of all the network's keys,
            possibly behind a common prefix. Without it timm's pretrained weights are used. A file is read as data:
            what would run code is refused.

    Raises:
        ValueError: the name is unknown, the weights would be random, or the file cannot be read, does not fit, or
            holds NaN or infinite parameters.
    """
    file = None if weights is None else read(weights)
    state = None if file is None else _state_of(file, weights)
    if isinstance(network, nn.Module):
        built = copy.deepcopy(network)
    elif network.startswith("timm:") or "." not in network or timm.is_model(network):
        built = _from_timm(network.removeprefix("timm:"), state)
    else:
        built = _from_class(network, file, weights)
    if state is not None:
        _load(built, state, weights)
    return built


def read(file: str | Path) -> dict[str, Any]:
    """The contents of a file of weights, without running anything that lies in it.

    Raises:
        ValueError: it is missing, damaged, holds something else than data, or is no dictionary.
    """
    path = Path(file)
    if not path.is_file():
        why = "is a directory: give a file in it" if path.is_dir() else "does not exist"
        raise ValueError(f"The file of weights {str(file)!r} {why}.")
    try:
        path.open("rb").close()  # of what may not be opened safetensors says that it is missing
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        check_sums(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own ways to say that a file is bad
        raise ValueError(
            f"The file of weights {str(file)!r} cannot be read: it is damaged, or holds objects, which would run code "
            f"when loaded. Save a plain state dict, or safetensors.{hint(path)} "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"The file of weights {str(file)!r} holds a {type(found).__name__}, not a state dict.")
    return found


def _state_of(file: dict[str, Any], name: Any) -> dict[str, Tensor]:
    state = next((file[key] for key in ("state_dict", "model") if isinstance(file.get(key), Mapping)), file)
    if not state:
        raise ValueError(f"The file of weights {str(name)!r} is no state dict: it is empty. Give the trained weights.")
    strangers = [k for k, v in state.items() if not (isinstance(k, str) and isinstance(v, Tensor) and is_plain(v))]
    if strangers:
        raise ValueError(
            f"The file of weights {str(name)!r} is no state dict: {strangers[:3]} are no tensors with names and values "
            "(sparse, quantized and meta tensors are none either). Save module.state_dict()."
        )
    return dict(state)


def _from_timm(name: str, state: dict[str, Tensor] | None) -> nn.Module:
    if not timm.is_model(name) and ":" not in name:
        close = get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"{name!r} is no timm model (close: {close}), and no path of a class, 'package.module.Net'.")
    if state is not None:
        sizes = _sizes(name, state)
        try:
            network: nn.Module = timm.create_model(name, pretrained=False, **sizes)
        except Exception as error:  # whatever a size leads to that no network has
            raise ValueError(
                f"timm's {name!r} could not be built with the sizes of the file, {sizes} ({type(error).__name__}: "
                f"{error}): it holds the weights of something else. Give those of this network."
            ) from error
        return network
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is not None and not config.has_weights:
        raise ValueError(
            f"timm has no pretrained weights for {name!r}, and random ones teach nothing: give a file of weights."
        )
    try:
        network = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's, the network's and the file system's are all different
        raise ValueError(
            f"The pretrained weights of timm's {name!r} could not be had ({type(error).__name__}: {error}). Without a "
            "network, give a file of weights."
        ) from error
    return network


def _sizes(name: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """The numbers of classes and of input channels of a timm model, as they are in a file of its weights."""
    config = timm.get_pretrained_cfg(name)
    sizes: dict[str, Any] = {}
    for setting, entry, dimension in (("num_classes", "classifier", 0), ("in_chans", "first_conv", 1)):
        layer = getattr(config, entry, None)
        layer = layer[0] if isinstance(layer, (tuple, list)) else layer
        found = [v for k, v in state.items() if k == f"{layer}.weight" or k.endswith(f".{layer}.weight")]
        if len(found) == 1 and found[0].dim() > dimension and found[0].is_contiguous():  # what it says, it holds
            sizes[setting] = found[0].shape[dimension]
    return sizes


def _from_class(path: str, file: dict[str, Any] | None, weights: Any) -> nn.Module:
    if file is None:
        raise ValueError(f"{path!r} would have random weights, which teach nothing: give a file of weights.")
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{path!r} is neither a timm model nor the path of a class: {error}.") from error
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ValueError(f"{path!r} is no class of modules.")
    settings = file.get("hyper_parameters", {})
    if file.get("hparams_name") not in (None, "kwargs"):
        settings = {str(file["hparams_name"]): settings}
    if not isinstance(settings, Mapping) or not all(isinstance(k, str) for k in settings):
        raise ValueError(
            f"The hyper_parameters of {str(weights)!r} are {settings!r:.200}, but must be settings by name. Build "
            f"{path} yourself, and give the module with this file."
        )
    parameters = inspect.signature(cls).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        return cls(**{k: v for k, v in settings.items() if k in parameters or (takes_all and k[0] != "_")})
    except Exception as error:  # the constructor is the user's
        raise ValueError(
            f"{path} could not be built with the hyperparameters {sorted(settings)} of {str(weights)!r} "
            f"({type(error).__name__}: {error}). Build it yourself, and give the module with this file."
        ) from error


def _load(network: nn.Module, state: dict[str, Tensor], file: Any) -> None:
    own = network.state_dict()
    first = next(iter(own), "")
    prefixes = {key.removesuffix(first) for key in state if key.endswith(first)} - {""}
    fitting = [p for p in prefixes if {k for k in state if k.startswith(p)} == {p + k for k in own}]
    if state.keys() != own.keys() and len(fitting) == 1:
        state = {key: state[fitting[0] + key] for key in own}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    both = [(k, v, own[k]) for k, v in state.items() if k in own]
    shapes = [f"{k} {tuple(v.shape)}" for k, v, mine in both if mine.shape != v.shape]
    types = [f"{k} {v.dtype}" for k, v, mine in both if _kind(mine) != _kind(v)]
    if missing or unexpected or shapes or types:
        raise ValueError(
            f"The file of weights {str(file)!r} does not fit {type(network).__name__}: {len(missing)} keys are missing "
            f"{missing[:3]}, {len(unexpected)} are unexpected {unexpected[:3]}, {len(shapes)} have another shape "
            f"{shapes[:3]}, {len(types)} another type {types[:3]}."
            + (f" Several prefixes fit: {sorted(fitting)}." if len(fitting) > 1 else "")
            + " Give the weights of this network."
        )
    learnt = dict(network.named_parameters(remove_duplicate=False))
    numbers = {k: v.float() if v.dtype.itemsize == 1 else v for k, v in state.items()}  # float8 cannot be asked
    bad = [k for k, v in numbers.items() if v.isnan().any() or (k in learnt and not v.isfinite().all())]
    if bad:  # an infinite buffer may be a mask
        raise ValueError(
            f"The file of weights {str(file)!r} holds NaN or infinite weights, in {bad[:3]}: that training had come to "
            "nothing. Give an earlier checkpoint of it."
        )
    network.load_state_dict(state)


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()
