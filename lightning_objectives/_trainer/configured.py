"""Tells what a configuration builds from what a program builds."""

import sys
from typing import Any

from torch import nn


def is_built_from_config(instance: Any) -> bool:
    """Tell whether jsonargparse, the parser of Lightning's command line, is constructing an object at this moment.

    Call it in ``__init__`` or ``__post_init__``. It looks at who called the constructor, so an object that your own
    program builds does not count, even if jsonargparse called your program.
    """
    frame = sys._getframe()
    while frame.f_back is not None and (frame.f_globals is globals() or frame.f_locals.get("self") is instance):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "jsonargparse"


def check_trained(instance: Any, option: str) -> None:
    """Refuse a network with random weights. Call it in ``__post_init__``, as :func:`is_built_from_config`.

    Args:
        instance: the object that is being constructed.
        option: the name of its attribute that holds the network; beside it lies ``<option>_weights``.

    Raises:
        ValueError: a network that a configuration builds, without a file of its weights, or something else than a
            network.
    """
    network = getattr(instance, option)
    if network is not None and not isinstance(network, (str, nn.Module)):
        raise ValueError(
            f"{option}={network!r} must be a trained module, a timm name, or the path of a class or of a function."
        )
    if (
        isinstance(network, nn.Module)
        and getattr(instance, f"{option}_weights") is None
        and is_built_from_config(instance)
    ):
        raise ValueError(
            f"The {option} {type(network).__name__} of the configuration has random weights, which say nothing: give a "
            f"file of its weights, {option}_weights=, or for {option}= the path of a function that returns the trained "
            "network."
        )
