"""The histogram of usual batches against the general way, which tests of the metric hold."""

import pytest
import torch

from lightning_objectives.metrics import CalibrationError, _numpy_cells

DRAW = torch.Generator().manual_seed(0)
LOGITS = torch.randn(300, 7, generator=DRAW).mul(3)
ROWS = LOGITS.softmax(1)
TARGET = torch.randint(7, (300,), generator=DRAW)
TIES = torch.randint(3, (300, 7), generator=DRAW).float()
LARGE = torch.randn(_numpy_cells.MOST // 7 + 1, 7, generator=DRAW)
USUAL = {
    "probabilities": (ROWS, TARGET, False),
    "logits": (LOGITS, TARGET, True),
    "ties": (TIES, TARGET, True),
    "on an edge": (torch.tensor([[0.4, 0.6], [0.2, 0.8]]), torch.tensor([0, 1]), False),
    "half precision": (LOGITS.bfloat16(), TARGET, True),
    "strided": (LOGITS.T.contiguous().T, TARGET.repeat_interleave(2)[::2], True),
    "with a gradient": (LOGITS.clone().requires_grad_(), TARGET, True),
}
UNUSUAL = {
    "float64": (LOGITS.double(), TARGET, True),
    "ignored": (LOGITS, TARGET.where(TARGET > 2, -100), True),
    "soft targets": (LOGITS, ROWS, True),
    "positions": (LOGITS.view(100, 7, 3), TARGET.view(100, 3), True),
    "one column": (LOGITS[:, :1], TARGET % 2, True),
    "int32": (LOGITS, TARGET.int(), True),
    "NaN logits": (LOGITS.where(LOGITS > -3, torch.nan), TARGET, True),
    "infinite logits": (LOGITS.where(LOGITS < 3, torch.inf), TARGET, True),
    "minus zero": (ROWS.where(ROWS > 1e-4, -0.0), TARGET, False),
    "a little negative": (ROWS - 1e-4, TARGET, False),
    "none": (LOGITS[:0], TARGET[:0], True),
    "large": (LARGE, torch.zeros(len(LARGE), dtype=torch.long), True),
}
WRONG = {
    "logits as probabilities": (LOGITS, TARGET, False),
    "a class too many": (LOGITS, TARGET + 1, True),
    "NaN": (ROWS.where(ROWS > 1e-3, torch.nan), TARGET, False),
    "negative NaN": (ROWS.where(ROWS > 1e-3, -torch.tensor(torch.nan)), TARGET, False),
    "negative": (torch.tensor([[1.4, -0.4]]), torch.tensor([0]), False),
    "infinite": (ROWS.where(ROWS < 0.9, torch.inf), TARGET, False),
}


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
@pytest.mark.parametrize("name", [*USUAL, *UNUSUAL, *WRONG])
@pytest.mark.parametrize("ignore_index", [-100, 3, None])
def test_the_way_makes_no_difference(name, binning, ignore_index, monkeypatch):
    preds, target, from_logits = (USUAL | UNUSUAL | WRONG)[name]
    metrics, taken, plainly = [], [], _numpy_cells.numpy_cells
    for way in (lambda *args, **kwargs: taken.append(plainly(*args, **kwargs)) or taken[-1], lambda *_, **__: None):
        monkeypatch.setitem(CalibrationError.update.__globals__, "numpy_cells", way)
        metrics.append(
            CalibrationError(from_logits=from_logits, binning=binning, num_bins=10, ignore_index=ignore_index)
        )
        metrics[-1].update(preds, target)
        metrics[-1].update(preds, target)
    assert (taken[0] is not None) == (name in USUAL and (ignore_index != 3 or preds.shape[1] == 2))
    for state, general in zip(metrics[0].metric_state.values(), metrics[1].metric_state.values()):
        assert state.dtype == general.dtype
        torch.testing.assert_close(state, general, rtol=1e-12, atol=0, equal_nan=True)
