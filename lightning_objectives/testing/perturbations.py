"""Laws of the perturbations."""

import copy
from functools import partial

import torch
from torch import Tensor

from lightning_objectives._trainer.random import private_stream
from lightning_objectives.kinds import Perturbation
from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.shapes import refuses

SHAPES = {"layer.weight": (3, 2), "layer.bias": (3,), "scale": (), "norm.weight": (4,), "half.weight": (2, 2)}
MISSING = "norm.weight"
"""The parameter without a gradient."""


def _params() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    params = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {**params, "half.weight": params["half.weight"].bfloat16()}


def _gradients(factor: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    gradients = {name: factor * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    gradients["half.weight"] = gradients["half.weight"].bfloat16()
    return {name: gradient for name, gradient in gradients.items() if name != MISSING}


def _offsets(method: Perturbation, gradients: dict[str, Tensor] | None = None, seed: int = 0) -> dict[str, Tensor]:
    if gradients is None:
        gradients = _gradients() if method.uses_gradients else {}
    return method.offsets(gradients, _params(), generator=torch.Generator().manual_seed(seed))


def each_offset_has_the_form_of_its_parameter(method: Perturbation) -> None:
    """There is an offset for each parameter with a gradient, of its shape and type, and none without gradients."""
    params, offsets = _params(), _offsets(method)
    expected = _gradients() if method.uses_gradients else params
    require(list(offsets) == list(expected), method, f"the offsets must be those of {list(expected)}.")
    for name, offset in offsets.items():
        form, wanted = (offset.shape, offset.dtype), (params[name].shape, params[name].dtype)
        require(form == wanted, method, f"the offset of {name} must have the form {wanted}, not {form}.")
        require(not offset.requires_grad, method, f"the offset of {name} must need no gradient.")
    if method.uses_gradients:
        require(_offsets(method, {}) == {}, method, "without a gradient there must be no offset.")


def neither_parameters_nor_gradients_are_written_to(method: Perturbation) -> None:
    """The offsets are new tensors."""
    params, gradients = _params(), _gradients() if method.uses_gradients else {}
    before = copy.deepcopy((params, gradients))
    method.offsets(gradients, params)
    same = close((params, gradients), before, 0)
    require(same, method, "it must not write to the parameters or the gradients.")


def gradients_of_zero_move_nothing(method: Perturbation) -> None:
    """Offsets are 0, and not NaN, where all gradients are 0."""
    if method.uses_gradients:
        offsets = _offsets(method, _gradients(0.0))
        require(all(not offset.any() for offset in offsets.values()), method, "gradients of zero must move nothing.")


def no_offset_points_down_the_gradient(method: Perturbation) -> None:
    """The product of the offsets and the gradients is not negative: the loss grows, or stays."""
    if method.uses_gradients:
        gradients, offsets = _gradients(), _offsets(method)
        rise = sum((offsets[name].double() * gradients[name].double()).sum() for name in offsets)
        require(rise >= 0, method, "the offsets must lead up the loss.")


def without_a_size_it_is_idle(method: Perturbation) -> None:
    """At ``rho=0`` it is never active, and its offsets are 0."""
    if "rho" in method.settings():
        idle = type(method)(**{**method.settings(), "rho": 0.0})
        require(not idle.active(step=0), method, "rho=0 must not be active.")
        require(all(not o.any() for o in _offsets(idle).values()), method, "rho=0 must move nothing.")


def all_draws_come_from_the_generator(method: Perturbation) -> None:
    """The same generator gives the same offsets, whatever the global random state, which stays as it is."""
    results = []
    for seed in range(2):
        with private_stream(seed):
            stream = torch.get_rng_state()
            results.append(_offsets(copy.deepcopy(method)))
            untouched = torch.equal(torch.get_rng_state(), stream)
            require(untouched, method, "it must not draw from the global random stream.")
    require(close(results[0], results[1], 0), method, "the same generator must give the same offsets.")
    if not method.uses_gradients:
        require(not close(results[0], _offsets(method, seed=1), 0), method, "it must draw from the generator.")


def gradients_that_do_not_fit_are_refused(method: Perturbation) -> None:
    """A gradient of another shape than its parameter is a ValueError."""
    if method.uses_gradients:
        bent = {**_gradients(), "layer.bias": torch.ones(2)}
        refuses(partial(_offsets, method, bent), method, "a gradient of another shape", "(2,)")


def offsets_equal_those_of_the_function(method: Perturbation) -> None:
    """The method's function gives the same offsets, and has the same defaults."""
    function = method.function
    if function is not None:
        theirs = function(_gradients(), _params(), **method.settings())
        require(close(_offsets(method), theirs, 0), method, f"it must give what {function.__name__} gives.")
        plain = function(_gradients(), _params())
        require(close(_offsets(type(method)()), plain, 0), method, "the function must have the same defaults.")
