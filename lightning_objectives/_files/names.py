"""The names of tensors, the same whether a network was compiled or not."""

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def plain_name(name: str) -> str:
    """Remove what ``torch.compile`` puts into the name of a tensor or a module.

    >>> plain_name("backbone._orig_mod.fc.weight")
    'backbone.fc.weight'
    """
    return name.replace("_orig_mod.", "")


def plainly_named(tensors: Iterable[tuple[str, T]]) -> list[tuple[str, T]]:
    """Replace each name by its :func:`plain_name`, in pairs as ``named_parameters`` and ``named_buffers`` give them.

    >>> plainly_named([("_orig_mod.weight", 1), ("bias", 2)])
    [('weight', 1), ('bias', 2)]
    """
    return [(plain_name(name), tensor) for name, tensor in tensors]
