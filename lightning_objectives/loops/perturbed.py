"""Takes the gradient of a loss at moved weights, in a loop of your own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_objectives._files.names import plainly_named
from lightning_objectives._step.compiled import is_compiled
from lightning_objectives._step.passes import MovedWeights, Surroundings, versions
from lightning_objectives._trainer.ranks import averaged_over_ranks
from lightning_objectives.kinds import Perturbation


def perturbed_backward(
    perturbation: Perturbation,
    network: nn.Module,
    closure: Callable[[], Tensor],
    *,
    backward: Callable[[Tensor], object] | None = None,
    scaler: Any = None,
    across_ranks: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Do what ``loss.backward()`` does, but take the gradient where a perturbation moves the weights.

    It is the engine of ``PerturbWeights``, and gives the same numbers to the bit. A method that uses gradients calls
    ``closure`` twice: at the weights as they are, to know where to move, and at the moved ones, for the gradient. Both
    calls find the same random streams and buffers, and BatchNorm's statistics and metrics of the first are those that
    stay. The gradient is added to ``.grad``, as ever, so call ``optimizer.zero_grad()`` before. The weights then come
    back to the bit, also after an exception.

    Args:
        perturbation: the method, such as ``SAM()``.
        network: the network itself, not what DDP or Fabric wraps it in; ``closure`` calls the wrapper.
        closure: computes the loss of the batch, a scalar; it must not call ``backward``, nor change the batch in place.
        backward: in place of ``loss.backward()``, as ``fabric.backward``.
        scaler: the gradient scaler of a training in half precision; the loss is scaled for you.
        across_ranks: move the weights of all processes alike, by the mean of their gradients. By default each process
            moves its weights by the gradient of its own rows, as the papers' code does.
        generator: what a method draws from; the global random stream by default. If several processes train, seed it
            alike on all of them.

    Returns:
        the loss at the weights as they are, without a graph.

    Raises:
        ValueError: the loss is no scalar that needs a gradient, or ``closure`` changes parameters in place.

    Example:
        >>> from lightning_objectives.perturbations import SAM
        >>> network = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.ones_(network.weight)
        >>> loss = perturbed_backward(SAM(rho=0.5), network, lambda: network(torch.ones(1, 1)).square().sum())
        >>> loss.item(), network.weight.item(), round(network.weight.grad.item(), 4)  # 2 w at w = 1 + 0.5
        (1.0, 1.0, 3.0)
    """
    run_backward = _backward(backward, scaler)
    if not perturbation.active(step=0):
        loss = _checked(closure())
        run_backward(loss)
        return loss.detach()
    params = {name: p for name, p in plainly_named(network.named_parameters()) if p.requires_grad}
    device = next(iter(params.values())).device if params else torch.device("cpu")
    in_place = any(map(is_compiled, network.modules()))
    if not perturbation.uses_gradients:
        return _at_moved_weights(perturbation, params, {}, closure, run_backward, generator, in_place)
    before, counts = Surroundings([network], device), versions(params.values())
    loss = _checked(closure())
    if versions(params.values()) != counts:
        raise ValueError(
            "closure() changes parameters in place, so a second call would not be the same step again. Change them "
            "after perturbed_backward."
        )
    gradients = _gradients(loss, params, scaler)
    if across_ranks:
        gradients = averaged_over_ranks(gradients, params)
    after = Surroundings([network], device)
    before.restore()
    try:
        _at_moved_weights(perturbation, params, gradients, closure, run_backward, generator, in_place)
    finally:
        after.restore()
    return loss.detach()


def _backward(backward: Callable[[Tensor], object] | None, scaler: Any) -> Callable[[Tensor], object]:
    if backward is not None and scaler is not None:
        raise ValueError("backward= and scaler= are both given, but each scales the loss: use one of them.")
    if scaler is not None:
        return lambda loss: scaler.scale(loss).backward()
    return backward or torch.Tensor.backward


def _checked(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        what = f"a tensor of the shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"closure() returned {what}, but must return the loss: one number that needs a gradient. Return it before "
            "backward()."
        )
    return loss


def _gradients(loss: Tensor, params: Mapping[str, Tensor], scaler: Any) -> dict[str, Tensor]:
    """The gradient of a loss for each parameter that it depends on, unscaled."""
    scaled = loss if scaler is None else scaler.scale(loss)
    with torch.autocast(loss.device.type, enabled=False):
        found = torch.autograd.grad(scaled, list(params.values()), allow_unused=True)
    gradients = {name: gradient for name, gradient in zip(params, found) if gradient is not None}
    if scaler is None:
        return gradients
    return {name: gradient / scaler.get_scale() for name, gradient in gradients.items()}


def _at_moved_weights(
    perturbation: Perturbation,
    params: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    closure: Callable[[], Tensor],
    run_backward: Callable[[Tensor], object],
    generator: torch.Generator | None,
    in_place: bool,
) -> Tensor:
    with torch.no_grad():
        offsets = perturbation.offsets(gradients, params, generator=generator)
        moved = MovedWeights(params, offsets, in_place=in_place)
    try:
        loss = _checked(closure())
        run_backward(loss)
    finally:
        moved.restore()
    return loss.detach()
