"""Power-function averages of any width, put together after the training from snapshots of two."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_objectives._files.export import parameters_replaced, states_of_averages
from lightning_objectives._files.reading import open_source
from lightning_objectives._files.source import Source
from lightning_objectives._files.training_state import entries_beside_weights
from lightning_objectives._files.writing import refuse_inputs, write_like
from lightning_objectives.averaging.power_ema import power_ema_exponent

_RULE = re.compile(r"\b([A-Z]\w*)\(([^()]*)\)")
_WIDTH = re.compile(r"sigma_rel=([0-9.e+-]+)")


class PostHocProfile(NamedTuple):
    """How snapshots are added up, and how near they come to the average that is asked for."""

    coefficients: list[float]
    """One for each snapshot; their sum is 1, and some are negative."""
    error: float
    r"""The distance between the profiles, :math:`\lVert \sum_i x_i p_i - p \rVert / \lVert p \rVert`."""


def post_hoc_ema_coefficients(
    snapshots: Sequence[tuple[float, float]], *, sigma_rel: float, updates: float | None = None
) -> PostHocProfile:
    r"""Compute the shares of snapshots of power-function averages that come nearest to an average of another width.

    The snapshot i is an average after :math:`T_i` updates, with the exponent :math:`\gamma_i` of its width, so that it
    has the profile :math:`p_i(t) = (\gamma_i + 1) t^{\gamma_i} / T_i^{\gamma_i + 1}`. The shares x solve

    .. math::
        \langle p_i, p_j \rangle \, x_j = \langle p_i, p \rangle, \qquad
        \langle p_a, p_b \rangle = \frac{(\gamma_a + 1)(\gamma_b + 1)}{(\gamma_a + \gamma_b + 1) \max(T_a, T_b)}
        \left(\frac{\min(T_a, T_b)}{\max(T_a, T_b)}\right)^{\gamma \text{ of the later}}

    in float64, and are divided by their sum.

    Args:
        snapshots: for each, the number of its updates and its relative width (``PowerEMA.sigma_rel``).
        sigma_rel: the relative width that is asked for, in (0, 0.2886].
        updates: the time at which it is asked for; by default that of the latest snapshot. Later ones get the share 0.

    Returns:
        the shares, and the error of the profile that they give.

    Raises:
        ValueError: no snapshot, one without updates, a time after the latest snapshot or before the first, or a width
            out of range.

    Example:
        >>> snapshots = [(updates, width) for updates in range(10, 101, 10) for width in (0.05, 0.1)]
        >>> profile = post_hoc_ema_coefficients(snapshots, sigma_rel=0.075)
        >>> round(sum(profile.coefficients), 6), profile.error < 0.01
        (1.0, True)

    Paper: Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, CVPR 2024, algorithm 3 and
    equation 151, https://arxiv.org/abs/2312.02696; checked against the authors' code.
    """
    if not snapshots or any(time <= 0 for time, _ in snapshots):
        raise ValueError(f"snapshots={snapshots!r} must hold one average at least, each with an update at least.")
    latest = max(time for time, _ in snapshots)
    end = latest if updates is None else updates
    used = [place for place, (time, _) in enumerate(snapshots) if time <= end]
    if not used or end > latest:
        raise ValueError(f"updates={updates} must lie between the first snapshot and the latest, {latest}.")
    times = np.array([snapshots[place][0] for place in used] + [end], dtype=np.float64)
    exponents = np.array([power_ema_exponent(snapshots[place][1]) for place in used] + [power_ema_exponent(sigma_rel)])
    products = _products(times, exponents)
    shares = np.linalg.lstsq(products[:-1, :-1], products[:-1, -1], rcond=None)[0]
    shares = shares / shares.sum()
    distance = np.append(shares, -1.0)
    error = float(np.sqrt(max(0.0, distance @ products @ distance) / products[-1, -1]))
    coefficients = [0.0] * len(snapshots)
    for place, share in zip(used, shares.tolist()):
        coefficients[place] = share
    return PostHocProfile(coefficients, error)


def _products(times: Any, exponents: Any) -> Any:
    """The inner products of all pairs of profiles."""
    one, other = np.meshgrid(times, times, indexing="ij")
    own, theirs = np.meshgrid(exponents, exponents, indexing="ij")
    later = np.where(one < other, theirs, own)
    ratio = (np.minimum(one, other) / np.maximum(one, other)) ** later
    return (own + 1) * (theirs + 1) * ratio / ((own + theirs + 1) * np.maximum(one, other))


def post_hoc_ema(
    files: Iterable[str | Path],
    out: str | Path,
    *,
    sigma_rel: float,
    max_error: float = 0.05,
    dry_run: bool = False,
    force: bool = False,
    verbose: bool = False,
) -> PostHocProfile:
    """Write the power-function average of any width at the end of a training that kept two of them.

    Train with ``AverageWeights([PowerEMA(sigma_rel=0.05), PowerEMA(sigma_rel=0.1)])`` and keep several checkpoints, as
    ``ModelCheckpoint(every_n_train_steps=1000, save_top_k=-1)`` does. Each file holds both averages as they were then.

    Args:
        files: full checkpoints of one training, in any order; the latest gives the time, the buffers and all else.
        out: the file to write, a checkpoint of Lightning, a file of torch or a ``.safetensors`` file.
        sigma_rel: the relative width of the average, in (0, 0.2886].
        max_error: the largest error of the profile that is written, see :class:`PostHocProfile`.
        dry_run: write nothing.
        force: also write over a file that is an input.
        verbose: print each snapshot with its share, and the error.

    Returns:
        the shares, in the order of time, and the error.

    Raises:
        ValueError: a file holds no :class:`PowerEMA`, the averages began or counted differently, ``out`` is an input,
            or the error is above ``max_error``; nothing is written then.

    Memory: one copy of the averaged weights; the files are read one by one.

    Example:
        >>> post_hoc_ema(["missing.ckpt"], "wide.ckpt", sigma_rel=0.1)
        Traceback (most recent call last):
            ...
        ValueError: missing.ckpt does not exist: give a file of weights.
    """
    out, paths = Path(out), [Path(file) for file in files]
    if not force:
        refuse_inputs(out, paths)
    snapshots = sorted(
        (snapshot for path in paths for snapshot in _snapshots(path)), key=lambda s: (s.updates, s.width)
    )
    counting = sorted({snapshot.counting for snapshot in snapshots})
    if len(counting) > 1:
        raise ValueError(
            f"The averages count their updates differently ({'; '.join(counting)}), so that their times cannot be "
            "compared. Give files of one training, with one start_step and one every_n_steps."
        )
    profile = post_hoc_ema_coefficients([(s.updates, s.width) for s in snapshots], sigma_rel=sigma_rel)
    if verbose:
        for snapshot, share in zip(snapshots, profile.coefficients):
            print(f"{snapshot.path}  updates {snapshot.updates}  width {snapshot.width}  share {share:+.4f}")
        print(f"width {sigma_rel} after {snapshots[-1].updates} updates: the profile is off by {profile.error:.2%}")
    check_error(profile, sigma_rel=sigma_rel, max_error=max_error)
    if not dry_run:
        _write(snapshots, profile, out)
    return profile


def check_error(profile: PostHocProfile, *, sigma_rel: float, max_error: float) -> None:
    """Refuse a profile that is too far from that of the width.

    Raises:
        ValueError: with the error.
    """
    if profile.error > max_error:
        raise ValueError(
            f"{len(profile.coefficients)} snapshots give the profile of the width {sigma_rel} only to within "
            f"{profile.error:.1%}, and max_error={max_error} is less. Give more snapshots, choose a width nearer to "
            "theirs, or raise max_error."
        )


def add_snapshot(
    total: dict[str, Tensor],
    newest: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    *,
    share: float,
    where: object,
) -> None:
    """Add the share of one snapshot, as its difference to the newest: what is equal in all stays equal to the bit.

    Raises:
        ValueError: it has other weights than the newest.
    """
    if tensors.keys() != newest.keys() or any(tensors[name].shape != newest[name].shape for name in newest):
        raise ValueError(f"{where} has averages of other weights than the newest: give those of one training.")
    for name, tensor in tensors.items():
        total[name].add_(tensor.to(total[name]) - newest[name], alpha=share)


class _Snapshot(NamedTuple):
    """One average in one file."""

    path: Path
    state: str
    """The key of the callback's state."""
    name: str
    updates: int
    width: float
    counting: str
    """When the average began and how it counts, in words."""

    def tensors(self, source: Source) -> Mapping[str, Tensor]:
        slots: Mapping[str, Mapping[str, Tensor]] = states_of_averages(source)[self.state]["averages"][self.name][
            "slots"
        ]
        return slots["average"]


def _snapshots(path: Path) -> list[_Snapshot]:
    """The power-function averages in a checkpoint."""
    found = []
    for key, state in states_of_averages(open_source(path)).items():
        rules = [(name, settings) for name, settings in _RULE.findall(key) if name != "AverageWeights"]
        if len(rules) != len(state["averages"]):
            continue
        counting = (
            ", ".join(part for part in re.findall(r"'(?:start|every)_\w+': [^,}]+", key))
            + f", from step {state['start']}"
        )
        for (_, settings), (name, average) in zip(rules, state["averages"].items()):
            width = _WIDTH.fullmatch(settings)
            if width is not None and average["updates"]:
                found.append(_Snapshot(path, key, name, average["updates"], float(width[1]), counting))
    if not found:
        raise ValueError(
            f"{path} holds no PowerEMA with an update: give full checkpoints of a training with "
            "AverageWeights([PowerEMA(sigma_rel=0.05), PowerEMA(sigma_rel=0.1)])."
        )
    return found


def _write(snapshots: Sequence[_Snapshot], profile: PostHocProfile, out: Path) -> None:
    latest = open_source(snapshots[-1].path)
    newest = {name: tensor.float() for name, tensor in snapshots[-1].tensors(latest).items()}
    total = {name: tensor.clone() for name, tensor in newest.items()}
    for path, group in groupby(zip(snapshots, profile.coefficients), key=lambda pair: pair[0].path):
        source = latest if path == snapshots[-1].path else open_source(path)
        for snapshot, share in group:
            add_snapshot(total, newest, snapshot.tensors(source), share=share, where=path)
    weights = {name: tensor.to(latest.form(name)[0]) for name, tensor in total.items()}
    odd = next((name for name, tensor in weights.items() if not torch.isfinite(tensor).all()), None)
    if odd is not None:
        raise ValueError(
            f"{odd} would not be finite, as in one of the snapshots: leave out the files after it diverged."
        )
    tensors = parameters_replaced(latest, weights)
    beside, _ = entries_beside_weights(latest)
    write_like(latest, out, tensors.__getitem__, storage_key=latest.storage_key, beside=beside)
