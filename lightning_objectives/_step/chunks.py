"""Computes what acts row by row on large (N, C) logits in chunks of rows, so that no matrix of their size is made.

A loss of whole samples is computed in chunks of samples: its rows are the samples, with all of their positions.

Values and gradients of a chunk are computed together, in the forward pass, while its numbers are in the cache. What
stays for the backward pass is one matrix: the gradient.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_objectives._step.calls import Call, TorchCall
from lightning_objectives.kinds import Method
from lightning_objectives.signals import BY_ROW, signals_of

LARGE = 2**22
"""From how many logits on it is worth it: 4,194,304, in float32 16 MiB."""
CHUNK = {"cpu": 2**18}
"""How many logits a chunk has, by the type of the device: on a CPU those of one chunk should stay in its cache."""
_OTHERWISE = 2**25


def by_rows(
    method: Callable[..., Any], rows: Mapping[str, Tensor], others: Mapping[str, Any], kept: Tensor | None = None
) -> Tensor:
    """What a method returns, ``method(**rows, **others)``; in chunks where that is known to be the same.

    Args:
        method: the method.
        rows: signals with a row for each value, ``logits`` among them; only the logits may need a gradient.
        others: the other signals.
        kept: the numbers of the rows that count; None for all.
    """
    logits = rows.get("logits")
    if logits is None or not _splits(method, logits, rows, others):
        return method(**(rows if kept is None else {name: value[kept] for name, value in rows.items()}), **others)  # type: ignore[no-any-return]  # of a method

    def run(part: Any, logits: Tensor) -> Tensor:
        signals = {name: value[part] for name, value in rows.items() if name != "logits"}
        values: Tensor = method(logits=logits, **signals, **others)
        return values

    values: Tensor = _InChunks.apply(logits, method, run, kept)
    return values


def value_beside(methods: Iterable[Callable[..., Any]], call: Call, plan: Any) -> Tensor:
    """The criterion's own value; that of a cross entropy in chunks too, if a method beside it reads large logits so.

    Torch's own keeps the log-probabilities for the backward pass and makes two gradients of their size there; in chunks
    one gradient is all, which makes room for that of the method.

    Args:
        methods: the methods that act beside it.
        call: the call of the criterion.
        plan: the plan of the fit, which remembers that it is so.
    """
    method = next((method for method in methods if acts_by_rows(method) and "logits" in signals_of(method)), None)
    is_cross_entropy = isinstance(call, TorchCall) and call.criterion.function is F.cross_entropy
    if method is None or not is_cross_entropy or plan.is_partly_compiled or not _is_worth_it(method, call.input):
        return call.value()
    plan.chunks_criterion = True
    options: dict[str, Any] = call.options  # type: ignore[attr-defined]  # of torch's

    def run(part: Any, logits: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return F.cross_entropy(logits, call.target[part], reduction="none", **options)

    losses: Tensor = _InChunks.apply(call.input, method, run, None)
    if not call.is_reduced:
        return losses
    if not call.divides:
        return losses.sum()
    # The call's own divisor would count its elements, and compute them as a whole for it.
    return losses.sum() / (losses.numel() if call.parts is None else call.divisor)


def acts_by_rows(method: Any) -> bool:
    """Whether a method says that it computes each row from itself alone."""
    return isinstance(method, Method) and isinstance(method, nn.Module) and not method.coupled


def _is_worth_it(method: Any, logits: Tensor) -> bool:
    by_row = logits.dim() == 2 or getattr(method, "unit", "row") == "sample"
    return by_row and logits.numel() >= LARGE and logits.requires_grad and torch.is_grad_enabled()


def _splits(method: Any, logits: Tensor, rows: Mapping[str, Tensor], others: Mapping[str, Any]) -> bool:
    """Whether the method is one that computes each row from itself, without draws and without a memory."""
    return (
        acts_by_rows(method)
        and _is_worth_it(method, logits)
        and others.keys().isdisjoint({"generator", "again", "memory", "memory_bank", *BY_ROW})
        and not any(value.requires_grad for name, value in rows.items() if name != "logits")
        and all(name.startswith("auxiliary_head.") for name, _ in method.named_parameters())  # It made the logits.
    )


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, method: Any, run: Callable[[Any, Tensor], Tensor], kept: Tensor | None
    ) -> Tensor:
        count = len(logits) if kept is None else len(kept)
        size = max(1, CHUNK.get(logits.device.type, _OTHERWISE) // max(1, logits[0].numel()))
        gradient = torch.empty_like(logits) if kept is None else torch.zeros_like(logits)
        values = []
        for start in range(0, count, size):
            part = slice(start, start + size) if kept is None else kept[start : start + size]
            with torch.enable_grad():
                chunk = logits[part].detach().requires_grad_()
                of_chunk = run(part, chunk)
                (slopes,) = torch.autograd.grad(of_chunk.sum(), chunk)
            values.append(of_chunk.detach())
            gradient[part] = slopes
        ctx.save_for_backward(gradient)
        ctx.kept, ctx.method = kept, method
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"{ctx.method} on {tuple(grad.shape)} rows of logits is computed in chunks, whose gradient has no "
                "gradient itself, but create_graph=True asks for one. Pass a function in place of the method, which "
                f"is computed as a whole: lambda {', '.join(signals_of(ctx.method))}: ..."
            )
        (gradient,) = ctx.saved_tensors
        factors = grad.to(gradient.dtype)
        if ctx.kept is not None:
            factors = factors.new_zeros(len(gradient)).index_copy(0, ctx.kept, factors)
        # A graph that is kept may be gone through again.
        is_last = not torch._C._autograd._get_current_graph_task_keep_graph()
        multiply = gradient.mul_ if is_last else gradient.mul
        return multiply(factors.view(-1, *[1] * (gradient.dim() - 1))), None, None, None
