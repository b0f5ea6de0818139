"""Laws of the set predictors."""

import copy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_objectives.kinds import SetPredictor
from lightning_objectives.testing.calibration import SCALES, draw_rows, fitted_on
from lightning_objectives.testing.common import require
from lightning_objectives.testing.signals import call

ALPHAS = (0.05, 0.1, 0.3, 0.7)


def _with(method: SetPredictor, alpha: float) -> SetPredictor:
    """A new method with another alpha."""
    changed: SetPredictor = type(method)(**{**method.settings(), "alpha": alpha})
    return changed


def _sets(method: SetPredictor, logits: Tensor) -> Tensor:
    """The sets, with the draws of the fit if the rows are the same."""
    sets: Tensor = call(method, {"logits": logits})
    return sets


def each_row_has_a_set(method: SetPredictor) -> None:
    """The sets are (N, C) bool; before the fit they hold all classes."""
    logits, target = draw_rows(1.0, seed=1)
    for fitted in (method, fitted_on(method, logits, target)):
        sets = _sets(fitted, logits)
        good = sets.shape == logits.shape and sets.dtype == torch.bool and (fitted is not method or sets.all())
        require(good, method, "the sets must be (N, C) bool, and hold all classes before the fit.")


def the_fitted_rows_are_covered(method: SetPredictor) -> None:
    """At least ``(n + 1)(1 - alpha)`` of n fitted rows have the target in their set, with the draws of the fit.

    This is a little more than ``1 - alpha``, so that the next row is covered with this probability.
    """
    for alpha in ALPHAS:
        for scale in SCALES:
            logits, target = draw_rows(scale)
            sets = _sets(fitted_on(_with(method, alpha), logits, target), logits)
            covered, least = int(sets.gather(1, target[:, None]).sum()), (len(target) + 1) * (1 - alpha)
            sentence = f"{covered} of {len(target)} fitted rows have the target in their set: must be >= {least:.6g}."
            require(covered >= least - 1e-9, method, sentence)


def a_larger_alpha_gives_subsets(method: SetPredictor) -> None:
    """A class that is in a set is in it for every smaller ``alpha`` too."""
    logits, target = draw_rows(1.0)
    sets = [_sets(fitted_on(_with(method, alpha), logits, target), logits) for alpha in ALPHAS]
    nested = all(bool((small <= large).all()) for large, small in pairwise(sets))
    require(
        nested and not sets[0].equal(sets[-1]), method, "the sets must shrink as alpha grows, and lose classes only."
    )


def the_order_of_the_classes_means_nothing(method: SetPredictor) -> None:
    """A permutation of the classes permutes the sets."""
    (logits, target), order = draw_rows(1.0), torch.tensor([2, 0, 3, 1])
    sets = _sets(fitted_on(method, logits, target), logits)
    turned = fitted_on(method, logits[:, order], order.argsort()[target])
    require(_sets(turned, logits[:, order]).equal(sets[:, order]), method, "permuted classes must permute the sets.")


def the_order_of_the_fitted_rows_means_nothing(method: SetPredictor) -> None:
    """If the method draws nothing, a permutation of the rows permutes the sets."""
    generator = torch.Generator().manual_seed(0)
    (logits, target), before = draw_rows(1.0), generator.get_state()
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(1))
    fitted = copy.deepcopy(method)
    fitted.fit(logits, target, generator)
    if not generator.get_state().equal(before):
        return  # Another row gets another draw.
    turned = _sets(fitted_on(method, logits[order], target[order]), logits[order])
    require(turned.equal(_sets(fitted, logits)[order]), method, "permuted rows must permute the sets.")


def few_rows_give_every_class(method: SetPredictor) -> None:
    """Without rows, and with fewer than ``1 / alpha - 1``, there is no threshold, so each set holds all classes."""
    logits, target = draw_rows(1.0)
    for rows in (0, 8):
        sets = _sets(fitted_on(_with(method, 0.1), logits[:rows], target[:rows]), logits)
        require(sets.all(), method, f"{rows} rows are too few for alpha=0.1, so each set must hold all classes.")


def all_draws_come_from_the_generator(method: SetPredictor) -> None:
    """Fit and sets leave the global random stream alone, and equal generators give equal sets."""
    (logits, target), stream = draw_rows(1.0), torch.get_rng_state()
    results: list[Any] = []
    for seed in (0, 0):
        fitted, generator = copy.deepcopy(method), torch.Generator().manual_seed(seed)
        fitted.fit(logits, target, generator)
        results.append(fitted(logits, generator))
    same = results[0].equal(results[1]) and torch.equal(torch.get_rng_state(), stream)
    require(same, method, "all draws, of the fit and of the sets, must come from the generator.")
