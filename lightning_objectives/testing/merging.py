"""Laws of the merges."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_objectives._files.in_memory import InMemory
from lightning_objectives._files.network_merge import NetworkMerge
from lightning_objectives.kinds import Merge, MergePiece
from lightning_objectives.testing.common import close, function_of, require
from lightning_objectives.testing.shapes import refuses

STEPS = ([5], [10, 20], [100, 200, 300, 400], [1, 2, 4, 8, 16], list(range(0, 160, 10)))
"""Few and many checkpoints, evenly and unevenly spaced."""
Weights = dict[str, Tensor]


def example_weights(seed: int) -> Weights:
    """Make up the weights of a small network, in several types, with a zero of either sign.

    >>> example_weights(0)["layer.bias"].shape
    torch.Size([7])
    """
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layer.weight": (7, 5), "layer.bias": (7,), "scale": (), "half": (3, 4), "double": (6,)}
    types = {"half": torch.bfloat16, "double": torch.float64}
    weights = {name: torch.randn(shape, generator=generator).to(types.get(name)) for name, shape in shapes.items()}
    weights["layer.bias"][:2] = torch.tensor([0.0, -0.0])
    return weights


def merged(merge: Merge, files: Sequence[Weights], base: Weights, importance: Sequence[Weights]) -> Weights:
    """Merge weights in memory, as files are merged; what the merge does not ask for is not used.

    >>> from lightning_objectives.merging import WSM
    >>> files = [{"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}]
    >>> merged(WSM(shape="linear"), files, files[0], files)
    {'w': tensor([2.])}
    """
    given: dict[str, Any] = {
        "base": InMemory(base, "base"),
        "importance": [InMemory(weights, "importance") for weights in importance],
        "evaluate": _score,
        "gradient": _gradient,
    }
    sources = [InMemory(weights, f"file {place}") for place, weights in enumerate(files)]
    steps = range(len(files))
    return NetworkMerge(merge, sources, steps, **{name: given[name] for name in merge.asks}).merged()


def _score(weights: Weights) -> float:
    """The nearer to some network, the better."""
    others = example_weights(99)
    return -sum((weights[name] - others[name]).double().square().sum().item() for name in others)


def _gradient(weights: Weights) -> Weights:
    """That of the opposite of the score."""
    others = example_weights(99)
    return {name: 2 * (weights[name] - others[name]) for name in others}


def _importances(merge: Merge, count: int) -> list[Weights]:
    """One for each file: positive numbers, or Gram matrices where the merge takes no number for each weight."""
    found = []
    for place in range(count):
        weights = example_weights(50 + place)
        shapes = {name: merge.importance_shape(value.shape) for name, value in weights.items()}
        found.append(
            {
                name: value.abs() if shapes[name] == value.shape else value.T.float() @ value.float()
                for name, value in weights.items()
                if shapes[name] is not None
            }
        )
    return found


def _shares(merge: Merge, steps: Sequence[int]) -> Tensor:
    if "gradient" in merge.asks:
        return merge.search(lambda shares: 2 * (shares - 1 / len(steps)), steps)
    if "evaluate" in merge.asks:
        return merge.search(lambda shares: -float((shares - 1 / len(steps)).square().sum()), steps)
    return merge.coefficients(steps)


def _first_share(shares: Tensor) -> float:
    return float(shares[0])


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same, zeros of either sign too."""
    return torch.equal(one, other) and torch.equal(one.double().signbit(), other.double().signbit())


def one_finite_coefficient_a_checkpoint(merge: Merge) -> None:
    """A linear merge has one finite coefficient for each checkpoint, and 1 for a single one."""
    if not merge.linear:
        return
    for steps in STEPS:
        shares = _shares(merge, steps)
        fits = shares.shape == (len(steps),) and bool(shares.isfinite().all())
        require(fits, merge, f"the checkpoints {steps} must have one finite coefficient each, not {shares}.")
    require(close(_shares(merge, [5]), torch.ones(1)), merge, "one checkpoint must have the coefficient 1.")


def the_coefficients_sum_to_one(merge: Merge) -> None:
    """The coefficients sum to 1, because the merge would otherwise shrink or stretch the weights."""
    if not merge.linear:
        return
    for steps in STEPS:
        total = float(_shares(merge, steps).sum())
        require(abs(total - 1) < 1e-6, merge, f"the coefficients of {steps} must sum to 1, not to {total}.")


def only_the_distances_of_the_steps_matter(merge: Merge) -> None:
    """Checkpoints with the same distances later in a training have the same coefficients."""
    if not merge.linear:
        return
    for steps in STEPS:
        later = _shares(merge, [step + 1000 for step in steps])
        require(close(later, _shares(merge, steps)), merge, f"{steps}, 1000 steps later, must weigh the same.")


def steps_that_do_not_increase_are_refused(merge: Merge) -> None:
    """No steps, steps that repeat or fall, and numbers that are not whole are a ValueError that shows them."""
    if not merge.linear:
        return
    for steps in ([], [10, 10], [20, 10], [0.5, 1.5]):
        refuses(partial(_shares, merge, steps), merge, f"the steps {steps}", f"steps={steps}")  # type: ignore[arg-type]  # numbers that are not whole


def identical_checkpoints_merge_into_themselves(merge: Merge) -> None:
    """The merge of identical checkpoints, which equal the base if there is one, is that checkpoint, to the bit."""
    weights = example_weights(0)
    for count in (1, 2, 3, 7) if merge.files is None else (merge.files,):
        found = merged(merge, [weights] * count, weights, _importances(merge, count))
        other = [name for name in weights if not _same_bits(found[name], weights[name])]
        require(not other, merge, f"{count} identical files must merge into themselves to the bit: not {other}.")


def where_every_file_equals_the_base_it_stays(merge: Merge) -> None:
    """A merge with a base gives each weight of the base back to the bit where every file has it unchanged."""
    if "base" not in merge.asks:
        return
    base = example_weights(0)
    files = [{name: value.clone() for name, value in base.items()} for _ in range(3)]
    for place, file in enumerate(files, start=1):
        file["layer.weight"][3:] += example_weights(place)["layer.weight"][3:]
        file["layer.bias"][4:] += example_weights(place)["layer.bias"][4:]
    found = merged(merge, files, base, _importances(merge, 3))
    for name, rows in (("layer.weight", slice(3)), ("layer.bias", slice(4)), ("half", slice(None))):
        same = _same_bits(found[name][rows], base[name][rows])
        require(same, merge, f"{name} equals the base in every file, so that it must stay as it is to the bit.")


def the_order_of_the_files_means_nothing(merge: Merge) -> None:
    """A permutation of the files changes nothing, if the merge does not use the steps."""
    if merge.uses_steps():
        return
    count = merge.files or 4
    files, importance = [example_weights(place) for place in range(count)], _importances(merge, count)
    found = merged(merge, files, example_weights(9), importance)
    for order in ([*reversed(range(count))], [*range(1, count), 0]):
        other = merged(merge, [files[i] for i in order], example_weights(9), [importance[i] for i in order])
        same = all(close(other[name], found[name], 1e-2 if name == "half" else 1e-5) for name in found)
        require(same, merge, f"the files in the order {order} must merge into the same.")


def a_linear_merge_is_linear(merge: Merge) -> None:
    """The linear merge of a sum is the sum of the merges. Shares that are searched may depend on the files."""
    if not merge.uses_steps():
        return
    some, more = ([example_weights(seed + place) for place in range(3)] for seed in (0, 10))
    both = [{name: 2 * a[name] - 3 * b[name] for name in a} for a, b in zip(some, more)]
    one, two, sum_of_both = (merged(merge, files, files[0], []) for files in (some, more, both))
    for name in ("layer.weight", "layer.bias", "scale", "double"):
        expected = 2 * one[name] - 3 * two[name]
        require(close(sum_of_both[name], expected, 1e-4), merge, "the merge of 2 a - 3 b must be 2 of a less 3 of b.")


def parts_of_a_tensor_make_no_difference(merge: Merge) -> None:
    """A merge by elements, or by rows, gives the same if it gets a part of a tensor at a time."""
    if not (merge.by_element or merge.by_row):
        return
    whole = _piece(merge, slice(None))
    parts = [_piece(merge, slice(0, 3)), _piece(merge, slice(3, 7))]
    found = torch.cat([_tensor(merge, part, merge.statistics(parts)) for part in parts])
    same = close(found, _tensor(merge, whole, merge.statistics([whole])), 1e-6)
    require(same, merge, "parts of the tensors must give the same, because the class says `by_element` or `by_row`.")


def nothing_is_written_to(merge: Merge) -> None:
    """A merge leaves the weights, the base and the importance as they are: they may lie in the files themselves."""
    if merge.linear:
        return
    piece, before = _piece(merge, slice(None)), _piece(merge, slice(None))
    _tensor(merge, piece, merge.statistics([piece]))
    for name, now, then in zip(piece._fields, piece, before):
        require(now is None or close(now, then, 0), merge, f"it must not write to the {name} that it gets.")


def all_draws_come_from_the_generator(merge: Merge) -> None:
    """The same generator gives the same merge, and the global random stream stays as it is."""
    if merge.linear:
        return
    stream, piece = torch.get_rng_state(), _piece(merge, slice(None))
    one, two = (_tensor(merge, piece, merge.statistics([piece])) for _ in range(2))
    require(torch.equal(one, two), merge, "the same generator must give the same merge.")
    untouched = torch.equal(torch.get_rng_state(), stream)
    require(untouched, merge, "it must draw from `generator`, not from the global stream.")


def a_merge_equals_its_function(merge: Merge) -> None:
    """A merge gives what its function gives with the same settings, and their defaults are equal."""
    function = function_of(merge)
    if function is None:
        return
    ours, theirs = inspect.signature(type(merge)).parameters, inspect.signature(function).parameters
    settings = {name: getattr(merge, name) for name in ours.keys() & theirs.keys()}
    for name in sorted(settings):
        a, b = ours[name].default, theirs[name].default
        require(a == b, merge, f"the default {name}={a!r} of the class is {b!r} in {function.__name__}.")
    steps, piece = [10, 20, 40], _piece(merge, slice(None))
    if merge.linear:
        run = merge.search if merge.searches() else merge.coefficients
        asked_for = [_first_share] if "evaluate" in merge.asks else [torch.neg] if merge.searches() else []
        given: list[Any] = [*asked_for, steps]
        found, expected = run(*given), function(*given, **settings)
    else:
        asked = {name: getattr(piece, name) for name in merge.asks}
        found, expected = merge.tensor(piece.weights, **asked), function(piece.weights, **asked, **settings)
    require(close(found, expected, 0), merge, f"it must give what {function.__name__} gives.")


def _piece(merge: Merge, rows: slice) -> MergePiece:
    count = merge.files or 3
    files = [example_weights(place)["layer.weight"][rows] for place in range(count)]
    importances = _importances(merge, count) if "importance" in merge.asks else []
    whole = [weights["layer.weight"] for weights in importances]
    importance = [value[rows] if merge.by_element or merge.by_row else value for value in whole] or None
    return MergePiece(files, example_weights(9)["layer.weight"][rows] if "base" in merge.asks else None, importance)


def _tensor(merge: Merge, piece: MergePiece, statistics: Any) -> Tensor:
    given: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "statistics": statistics}
    return merge.tensor(piece.weights, base=piece.base, importance=piece.importance, **given)
