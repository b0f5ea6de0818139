import torch
from helpers import Net, fit

from lightning_objectives.callbacks import AddRegularizer
from lightning_objectives.regularizers import SpectralDecoupling, spectral_decoupling


def test_by_hand():
    """(1 + 4 + 9) / 2 and 0."""
    logits = torch.tensor([[1.0, -2.0, 3.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(spectral_decoupling(logits), torch.tensor([7.0, 0.0]))


def test_its_gradient_is_the_logits():
    logits = torch.randn(4, 3, requires_grad=True)
    spectral_decoupling(logits).sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach())


def test_in_a_training_it_is_the_term_written_by_hand():
    class ByHand(Net):
        def training_step(self, batch, batch_idx):
            logits = self(batch[0])
            return self.criterion(logits, batch[1]) + 0.1 * (logits**2).sum(1).mean() / 2

    ours, runner = fit(AddRegularizer(SpectralDecoupling(), strength=0.1))
    theirs, _ = fit(net=ByHand)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert runner.callback_metrics["train/spectraldecoupling"] > 0
