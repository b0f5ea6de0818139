"""Laws of the averaging rules."""

import copy
import io
from functools import partial

import torch
from torch import Tensor

from lightning_objectives.kinds import AverageState, Rule
from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.shapes import refuses

STEPS = 12
STARTS = (0, 7)
"""An average may begin at the first step or later."""


def _weights(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator) for shape in ((3, 2), (4,), ())]


def _update(rule: Rule, state: AverageState, steps: range, start: int) -> None:
    for step in steps:
        rule.update(state, _weights(step), step=step, start=start)


def the_average_has_the_form_of_the_weights(rule: Rule) -> None:
    """The average has one float32 tensor for each parameter, at any time, and the rule counts each update."""
    weights = _weights(0)
    state = rule.init(weights)
    for step in range(1, 4):
        average = rule.read(state, weights, step=step - 1)
        form = [(a.shape, a.dtype) for a in average] == [(w.shape, w.dtype) for w in weights]
        require(form, rule, "the average must have the shapes of the weights, in float32.")
        rule.update(state, weights, step=step)
        require(state.updates == step, rule, f"state.updates must be {step} after {step} updates, not {state.updates}.")


def constant_weights_stay(rule: Rule) -> None:
    """Weights that never move are their own average."""
    weights = _weights(0)
    for start in STARTS:
        state = rule.init(weights)
        for step in range(start + 1, start + STEPS):
            rule.update(state, weights, step=step, start=start)
            same = close(rule.read(state, weights, step=step), weights)
            require(same, rule, f"weights that never moved must be their own average; not so at step {step}.")


def going_on_from_a_file_is_going_on(rule: Rule) -> None:
    """Saving the slots and the number of updates, and going on with another instance, gives the same bits."""
    for start in STARTS:
        half, end = start + STEPS // 2, start + STEPS
        other = copy.deepcopy(rule)
        state = rule.init(_weights(start))
        _update(rule, state, range(start + 1, half), start)
        file = io.BytesIO()
        torch.save({"slots": state.slots, "updates": state.updates}, file)
        file.seek(0)
        loaded = AverageState(**torch.load(file, weights_only=True))
        _update(rule, state, range(half, end), start)
        _update(other, loaded, range(half, end), start)
        live = _weights(end - 1)
        same = close(other.read(loaded, live, step=end - 1), rule.read(state, live, step=end - 1), 0)
        require(same, rule, "stopping, saving and going on must equal going on: keep all memory in the state's slots.")


def parts_of_the_weights_make_no_difference(rule: Rule) -> None:
    """A rule with ``by_tensor`` gives the same bits if it gets one tensor after the other."""
    if not rule.by_tensor:
        return
    whole, parts = rule.init(_weights(0)), rule.init(_weights(0))
    for step in range(1, STEPS):
        weights = _weights(step)
        rule.update(whole, weights, step=step)
        for at in range(len(weights)):
            rule.update(_part(parts, at), weights[at : at + 1], step=step)
        parts.updates += 1
    same = all(close(whole.slots[slot], parts.slots[slot], 0) for slot in whole.slots)
    require(same, rule, "by_tensor: update must write each tensor in place, and read no other.")
    live = _weights(STEPS)
    pieces = [rule.read(_part(parts, at), live[at : at + 1], step=STEPS)[0] for at in range(len(live))]
    require(
        close(pieces, rule.read(whole, live, step=STEPS), 0),
        rule,
        "by_tensor: read must compute each tensor from its own slots and weights.",
    )


def _part(state: AverageState, at: int) -> AverageState:
    return AverageState({slot: tensors[at : at + 1] for slot, tensors in state.slots.items()}, state.updates)


def reading_changes_nothing(rule: Rule) -> None:
    """Reading an average in between does not change where it ends."""
    quiet, watched = rule.init(_weights(0)), rule.init(_weights(0))
    for step in range(1, STEPS):
        _update(rule, quiet, range(step, step + 1), 0)
        _update(rule, watched, range(step, step + 1), 0)
        rule.read(watched, _weights(step), step=step)
    live = _weights(STEPS)
    same = close(rule.read(watched, live, step=STEPS), rule.read(quiet, live, step=STEPS), 0)
    require(same, rule, "reading the average must not change it.")


def the_live_weights_are_neither_changed_nor_aliased(rule: Rule) -> None:
    """The rule writes to its own tensors only, and returns no tensor that the optimizer writes to."""
    live = _weights(0)
    before = copy.deepcopy(live)
    state = rule.init(live)
    for step in range(1, 4):
        rule.update(state, live, step=step)
        outputs = [tensor for slot in state.slots.values() for tensor in slot] + rule.read(state, live, step=step)
        require(close(live, before, 0), rule, "the live weights must never be written to.")
        storages = {tensor.untyped_storage().data_ptr() for tensor in live}
        aliased = any(tensor.untyped_storage().data_ptr() in storages for tensor in outputs)
        require(not aliased, rule, "the average must not share memory with the live weights.")


def weights_that_do_not_fit_are_refused(rule: Rule) -> None:
    """A tensor too few, and one of another shape than at the start, are a ValueError in ``update``."""
    weights = _weights(0)
    few, bent = weights[:-1], [weights[0], weights[1][:1], weights[2]]  # one element would be broadcast
    for wrong, what, said in (
        (few, "a tensor too few", "do not fit"),
        (bent, "weights of another shape", "[1] of the"),
    ):
        refuses(partial(rule.update, rule.init(weights), wrong, step=1), rule, what, said)
