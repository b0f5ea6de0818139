"""Laws of the calibrators."""

import copy
import io
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_objectives.kinds import Calibrator
from lightning_objectives.testing.common import close, require
from lightning_objectives.testing.shapes import refuses_shapes, wrong_signals
from lightning_objectives.testing.signals import example_signals

SCALES = (0.2, 1.0, 5.0)
"""The scales of the logits of a network that is not sure enough, one that is about right, and one too sure."""


def _sample(scale: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw logits, and labels from the softmax of the same logits at scale 1."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(300, 4, generator=generator, dtype=torch.float64)
    target = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return scale * logits, target


def _fitted(method: Calibrator, scale: float) -> Calibrator:
    method = copy.deepcopy(method)
    method.fit(*_sample(scale))
    return method


def the_rows_are_probabilities(method: Calibrator) -> None:
    """Each row has C numbers >= 0 that sum to 1, before and after the fit."""
    for fitted in (method, *(_fitted(method, scale) for scale in SCALES)):
        logits = _sample(1.0, seed=1)[0]
        p = fitted(logits)
        good = p.shape == logits.shape and (p >= 0).all() and close(p.sum(1), torch.ones(len(p)))
        require(good, method, "each row must hold probabilities that sum to 1.")


def the_fitted_set_is_no_worse(method: Calibrator) -> None:
    """The mean negative log-likelihood on the fitted set is at most that of the plain softmax."""
    for scale in SCALES:
        logits, target = _sample(scale)
        plain = F.cross_entropy(logits, target)
        ours = F.nll_loss(_fitted(method, scale)(logits).double().log(), target)
        require(
            ours <= plain + 1e-6, method, f"the NLL of the fitted set must not rise from {plain:.6g} to {ours:.6g}."
        )


def the_top_class_is_kept_where_declared(method: Calibrator) -> None:
    """A calibrator with ``keeps_top_class`` changes no prediction."""
    for scale in SCALES if method.keeps_top_class else ():
        logits = _sample(scale, seed=1)[0]
        kept = (_fitted(method, scale)(logits).argmax(1) == logits.argmax(1)).all()
        require(kept, method, "keeps_top_class is declared, so the most probable class must stay the same.")


def going_on_from_a_file_is_going_on(method: Calibrator) -> None:
    """An instance that loads the saved ``state_dict`` gives the same probabilities, not those of an unfitted one."""
    fitted, other, logits = _fitted(method, 5.0), copy.deepcopy(method), _sample(5.0, seed=1)[0]
    file = io.BytesIO()
    torch.save(fitted.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    same = close(other(logits), fitted(logits), 0) and not close(fitted(logits), method(logits), 0)
    require(same, method, "the state_dict must contain all that the fit changes.")


def a_fit_refuses_signals_of_a_wrong_shape(method: Calibrator) -> None:
    """A fit on logits and targets that are not (N, C) and (N,), or of different lengths, is a ValueError."""

    def fit(signals: dict[str, Any]) -> None:
        copy.deepcopy(method).fit(**signals)

    names = ("logits", "target")
    signals = {name: example_signals()[name] for name in names}
    for name, value in wrong_signals(signals, names):
        refuses_shapes(fit, method, names, {**signals, name: value}, name)
