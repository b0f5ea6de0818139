"""What a method keeps in buffers; that they lie where the module lies, the conditions of a GPU show."""

import torch
from helpers import Net, fit, loader, trainer

from lightning_objectives.callbacks import AddRegularizer
from lightning_objectives.kinds import Regularizer


class Centred(Regularizer):
    """Keeps the mean of the logits so far."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, logits):
        self.mean.lerp_(logits.detach().mean(0), 0.5)
        return 0 * logits.sum(1)


def test_buffers_come_back_and_keep_their_values():
    method, other = Centred(), Centred()
    fit(AddRegularizer(method))
    assert str(method.mean.device) == "cpu"
    assert method.mean.abs().sum() > 0
    assert "mean" not in "".join(fit(AddRegularizer(other))[0].state_dict())
    assert torch.equal(method.mean, other.mean)


def test_a_saved_buffer_is_loaded(tmp_path):
    whole, first, second = Centred(), Centred(), Centred()
    fit(AddRegularizer(whole))
    _, runner = fit(AddRegularizer(first), max_epochs=1)
    runner.save_checkpoint(tmp_path / "one.ckpt")
    trainer(AddRegularizer(second)).fit(Net(), loader(), ckpt_path=tmp_path / "one.ckpt")
    assert torch.equal(whole.mean, second.mean)
