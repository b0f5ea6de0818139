"""The signals logits and target are tables (N, C), whatever shape the criterion compares."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, fit

from lightning_objectives.callbacks import AddRegularizer
from lightning_objectives.regularizers import SpectralDecoupling, spectral_decoupling

SHAPES = {"(N,)": (24,), "(N, 1)": (8, 1), "(N, C)": (8, 3), "(N, C, H, W)": (2, 3, 2, 2), "(N, 1, H, W)": (2, 1, 4, 3)}


def net(criterion, shape, strength=0.0):
    class Own(Net):
        """Compares its 8 by 3 logits in another shape, and adds the term by hand."""

        def training_step(self, batch, batch_idx):
            logits = self(batch[0]).flatten()[: torch.Size(shape).numel()].reshape(shape)
            loss = criterion(logits, (logits.detach() > 0).float())
            table = logits[:, None] if logits.dim() == 1 else logits.movedim(1, -1).reshape(-1, logits.shape[1])
            return loss + strength * table.square().sum(1).mean() / 2

    return Own


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("criterion", [F.binary_cross_entropy_with_logits, F.mse_loss], ids=lambda f: f.__name__)
def test_a_penalty_of_logits_sums_over_classes_and_averages_over_the_rest(criterion, shape):
    ours, _ = fit(AddRegularizer(SpectralDecoupling(), strength=0.5), net=net(criterion, shape), max_epochs=1)
    theirs, _ = fit(net=net(criterion, shape, strength=0.5), max_epochs=1)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_method_sees_tables(shape):
    seen = []

    def look(logits, target):
        seen.append((logits.shape, target.shape))
        return spectral_decoupling(logits)

    fit(AddRegularizer(look), net=net(F.binary_cross_entropy_with_logits, shape), max_epochs=1)
    columns = shape[1] if len(shape) > 1 else 1
    assert set(seen) == {((torch.Size(shape).numel() // columns, columns),) * 2}
