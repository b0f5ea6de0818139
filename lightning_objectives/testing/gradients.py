"""Laws of the gradient transforms."""

import copy
import io
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_objectives._trainer.random import private_stream
from lightning_objectives.kinds import GradientTransform
from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.shapes import refuses

STEPS = 6
SHAPES: tuple[tuple[int, ...], ...] = ((3, 2), (4,), (), (2, 3), (2, 2))
MISSING = 3
"""The position of the parameter without a gradient."""


def _draw(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    tensors = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [*tensors[:-1], tensors[-1].bfloat16()]


def _gradients(step: int) -> list[Tensor | None]:
    return [None if place == MISSING else tensor for place, tensor in enumerate(_draw(step))]


def _updates(method: GradientTransform, state: dict[str, Any], steps: range) -> list[list[Tensor | None]]:
    return [method.update(_gradients(step), _draw(-1 - step), state) for step in steps]


def the_gradients_keep_their_form(method: GradientTransform) -> None:
    """There is one gradient for each parameter, of its shape and type."""
    for new in _updates(method, method.init(_draw(0)), range(STEPS)):
        form = [(g.shape, g.dtype) for g in new if g is not None]
        expected = [(g.shape, g.dtype) for g in _gradients(0) if g is not None]
        require(len(new) == len(SHAPES) and form == expected, method, "gradients must keep their shapes and types.")


def a_missing_gradient_stays_missing(method: GradientTransform) -> None:
    """The result is None where the gradient is None, and only there, also if all of them are."""
    state = method.init(_draw(0))
    for new in _updates(method, state, range(STEPS)):
        missing = [place for place, g in enumerate(new) if g is None]
        require(
            missing == [MISSING], method, f"the gradients at {[MISSING]} are missing, but {missing} came back None."
        )
    nothing: list[Tensor | None] = [None] * len(SHAPES)
    require(method.update(nothing, _draw(0), state) == nothing, method, "no gradients must give no gradients.")


def nothing_but_the_state_is_written_to(method: GradientTransform) -> None:
    """The transform leaves the gradients and the weights of the model as they are."""
    params, gradients = _draw(0), _gradients(1)
    before = copy.deepcopy((params, gradients))
    state = method.init(params)
    for _ in range(2):
        method.update(gradients, params, state)
        require(close((params, gradients), before, 0), method, "it must not write to the gradients or the weights.")


def all_ranks_get_the_same(method: GradientTransform) -> None:
    """Equal gradients give equal results, whatever the global random state of a rank, which stays as it is."""
    results = []
    for rank in range(2):
        with private_stream(rank):
            stream = torch.get_rng_state()
            results.append(_updates(copy.deepcopy(method), method.init(_draw(0)), range(STEPS)))
            untouched = torch.equal(torch.get_rng_state(), stream)
            require(untouched, method, "it must not draw from the global random stream.")
    require(close(results[0], results[1], 0), method, "equal gradients must give equal results on every rank.")


def going_on_from_a_file_is_going_on(method: GradientTransform) -> None:
    """Saving the state, and going on with another instance, gives the same bits."""
    other, state = copy.deepcopy(method), method.init(_draw(0))
    _updates(method, state, range(STEPS))
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    steps = range(STEPS, 2 * STEPS)
    same = close(_updates(other, loaded, steps), _updates(method, state, steps), 0)
    require(same, method, "stopping, saving and going on must equal going on: keep all memory in the state.")


def gradients_that_do_not_fit_are_refused(method: GradientTransform) -> None:
    """A gradient too few, and a gradient of another shape than its parameter, are a ValueError."""
    params, gradients = _draw(0), _gradients(1)
    few, bent = gradients[:-1], [torch.ones(2, 2, 1), *gradients[1:]]
    for wrong, what, said in (
        (few, "a gradient too few", "do not fit"),
        (bent, "a gradient of another shape", "gradients[0]"),
    ):
        refuses(partial(method.update, wrong, params, method.init(params)), method, what, said)
