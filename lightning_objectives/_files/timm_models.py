"""Builds networks of timm, whose import takes most of a second: import this file only where you need it."""

from difflib import get_close_matches
from typing import Any

import timm
from torch import Tensor, nn


def load_timm_model(name: str, state: dict[str, Tensor] | None) -> nn.Module:
    """Build a timm model with timm's own pretrained weights, or with the sizes of ``state``, which is not loaded.

    Raises:
        ValueError: the name is unknown, there are no pretrained weights to use, or the sizes fit no such model.
    """
    if not timm.is_model(name) and ":" not in name:
        close = get_close_matches(name, timm.list_models(), n=3)
        raise ValueError(f"{name!r} is no timm model (close: {close}), and no path of a class, 'package.module.Net'.")
    return _pretrained(name) if state is None else _with_sizes_of(name, state)


def _with_sizes_of(name: str, state: dict[str, Tensor]) -> nn.Module:
    """Build a timm model whose inputs and classes are those of a file of its weights."""
    sizes = _sizes(name, state)
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, **sizes)
    except Exception as error:  # a size that no network has fails in many ways
        raise ValueError(
            f"timm's {name!r} could not be built with the sizes of the file, {sizes} ({type(error).__name__}: "
            f"{error}): it holds the weights of something else. Give those of this network."
        ) from error
    return network


def _pretrained(name: str) -> nn.Module:
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is not None and not config.has_weights:
        raise ValueError(
            f"timm has no pretrained weights for {name!r}, and random ones teach nothing: give a file of weights."
        )
    try:
        network: nn.Module = timm.create_model(name, pretrained=True)
    except Exception as error:  # the hub's, the network's and the file system's errors have no common class
        raise ValueError(
            f"The pretrained weights of timm's {name!r} could not be loaded ({type(error).__name__}: {error}). Without "
            "access to the internet, give a file of weights."
        ) from error
    return network


def _sizes(name: str, state: dict[str, Tensor]) -> dict[str, Any]:
    """Read the numbers of classes and of input channels of a timm model from a file of its weights."""
    config = timm.get_pretrained_cfg(name)
    sizes: dict[str, Any] = {}
    for setting, entry, dimension in (("num_classes", "classifier", 0), ("in_chans", "first_conv", 1)):
        layer = getattr(config, entry, None)
        layer = layer[0] if isinstance(layer, (tuple, list)) else layer
        weights = [v for k, v in state.items() if k == f"{layer}.weight" or k.endswith(f".{layer}.weight")]
        # A tensor that is not contiguous may claim sizes that it does not hold.
        known = {v.shape[dimension] for v in weights if v.dim() > dimension and v.is_contiguous()}
        if len(known) == 1:
            sizes[setting] = known.pop()
    return sizes
