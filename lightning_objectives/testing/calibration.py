"""Laws of the calibrators."""

import copy
import io
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Calibrator, Fitted, SetPredictor
from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.shapes import refuses_shapes, wrong_signals
from lightning_objectives.testing.signals import call, example_signals

SCALES = (0.2, 1.0, 5.0)
"""The scales of the logits of a network that is not sure enough, one that is about right, and one too sure."""


def draw_rows(scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw logits, and labels from the softmax of the same logits at scale 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(300, 4, generator=generator, dtype=torch.float64)
    target = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return scale * logits, target


def fitted_on(method: Fitted, logits: Tensor, target: Tensor) -> Any:
    """A copy that is fitted, with the draws that :func:`call` gives to ``forward``."""
    method = copy.deepcopy(method)
    if isinstance(method, SetPredictor):
        method.fit(logits, target, torch.Generator().manual_seed(0))
    else:
        method.fit(logits, target)
    return method


def the_rows_are_probabilities(method: Calibrator) -> None:
    """Each row has C numbers >= 0 that sum to 1, before and after the fit."""
    for fitted in (method, *(fitted_on(method, *draw_rows(scale)) for scale in SCALES)):
        logits = draw_rows(1.0, seed=1)[0]
        p = fitted(logits)
        good = p.shape == logits.shape and (p >= 0).all() and close(p.sum(1), torch.ones(len(p)))
        require(good, method, "each row must hold probabilities that sum to 1.")


def the_fitted_set_is_no_worse(method: Calibrator) -> None:
    """The mean negative log-likelihood on the fitted set is at most that of the plain softmax."""
    for scale in SCALES:
        logits, target = draw_rows(scale)
        plain = F.cross_entropy(logits, target)
        ours = F.nll_loss(fitted_on(method, *draw_rows(scale))(logits).double().log(), target)
        require(
            ours <= plain + 1e-6, method, f"the NLL of the fitted set must not rise from {plain:.6g} to {ours:.6g}."
        )


def the_top_class_is_kept_where_declared(method: Calibrator) -> None:
    """A calibrator with ``keeps_top_class`` changes no prediction."""
    for scale in SCALES if method.keeps_top_class else ():
        logits = draw_rows(scale, seed=1)[0]
        kept = (fitted_on(method, *draw_rows(scale))(logits).argmax(1) == logits.argmax(1)).all()
        require(kept, method, "keeps_top_class is declared, so the most probable class must stay the same.")


def going_on_from_a_file_is_going_on(method: Fitted) -> None:
    """An instance that loads the saved ``state_dict`` returns the same, and not what an unfitted one returns."""
    fitted, other = fitted_on(method, *draw_rows(5.0)), copy.deepcopy(method)
    file = io.BytesIO()
    torch.save(fitted.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    unfitted, before, after = (call(m, {"logits": draw_rows(5.0, seed=1)[0]}) for m in (method, fitted, other))
    same = close(after, before, 0) and not close(before, unfitted, 0)
    require(same, method, "the state_dict must contain all that the fit changes.")


def a_fit_refuses_signals_of_a_wrong_shape(method: Fitted) -> None:
    """A fit on logits and targets that are not (N, C) and (N,), or of different lengths, is a ValueError."""

    def fit(signals: dict[str, Any]) -> None:
        copy.deepcopy(method).fit(**signals)

    names = ("logits", "target")
    signals = {name: example_signals()[name] for name in names}
    for name, value in wrong_signals(signals, names):
        refuses_shapes(fit, method, names, {**signals, name: value}, name)
