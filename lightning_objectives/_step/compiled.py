"""Tells whether a module is compiled, because hooks and patches may not run inside compiled code."""

from torch import nn


def is_compiled(module: nn.Module) -> bool:
    """Whether this very module is compiled: by ``torch.compile``, in place, or by Lightning.

    >>> import torch
    >>> is_compiled(nn.Linear(2, 3)), is_compiled(torch.compile(nn.Linear(2, 3)))
    (False, True)
    """
    in_place = getattr(module, "_compiled_call_impl", None) is not None
    return in_place or hasattr(module, "_orig_mod") or getattr(module, "_compiler_ctx", None) is not None


def lies_in_compiled(module: nn.Module, path: str) -> bool:
    """Whether the child at ``path``, or any module that contains it, is compiled.

    >>> inner = nn.Sequential(nn.Linear(2, 3))
    >>> inner.compile()
    >>> lies_in_compiled(nn.Sequential(inner, nn.ReLU()), "0.0"), lies_in_compiled(nn.Sequential(inner, nn.ReLU()), "1")
    (True, False)
    """
    parts = path.split(".") if path else []
    return any(is_compiled(module.get_submodule(".".join(parts[:count]))) for count in range(len(parts) + 1))
