"""The signal `generator`: a stream of its own for each callback and batch."""

import pytest
import torch
from helpers import Net, equal, fit, loader, trainer
from torch.utils.checkpoint import checkpoint

from lightning_objectives.callbacks import (
    AddRegularizer,
    CombineTerms,
    Distill,
    ReplaceLoss,
    ReweightSamples,
    TransformBatch,
    WrapHead,
)


class Draws:
    """Methods of all kinds that keep what they draw, and change nothing."""

    def __init__(self):
        self.drawn = []

    def draw(self, generator):
        self.drawn.append(float(torch.rand(1, generator=generator, dtype=torch.float64)))

    def loss(self, logits, target, generator):
        self.draw(generator)
        return torch.nn.functional.cross_entropy(logits, target, reduction="none")

    def weights(self, losses, generator):
        self.draw(generator)
        return torch.ones_like(losses)

    def term(self, logits, generator):
        self.draw(generator)
        return 0 * logits.sum()

    def distance(self, logits, teacher_logits, generator):
        self.draw(generator)
        return 0 * logits.sum(1)

    def stacks(self, features, head, generator):
        self.draw(generator)
        return head(features)[None]

    def shares(self, gradients, generator):
        self.draw(generator)
        return torch.ones(len(gradients))

    def mixed(self, inputs, generator):
        self.draw(generator)
        return inputs, torch.arange(len(inputs))[:, None], torch.ones(len(inputs), 1)


PLACED = {
    "combination": lambda draws, **s: CombineTerms(draws.shares, **s),
    "distance": lambda draws, **s: Distill(draws.distance, teacher=Net(), **s),
    "loss": lambda draws, **s: ReplaceLoss(draws.loss, **s),
    "term": lambda draws, **s: AddRegularizer(draws.term, **s),
    "transform": lambda draws, **s: TransformBatch(draws.mixed, **s),
    "weighting": lambda draws, **s: ReweightSamples(draws.weights, **s),
    "wrapper": lambda draws, **s: WrapHead(draws.stacks, **s),
}


def drawn(place, **settings):
    draws = Draws()
    beside = [AddRegularizer(lambda logits: 0 * logits.sum())] if place == "combination" else []
    net, _ = fit(PLACED[place](draws, **settings), *beside)
    return draws.drawn, net


@pytest.mark.parametrize("place", sorted(PLACED))
def test_each_batch_draws_anew_and_a_seed_decides(place):
    first, net = drawn(place)
    assert first == drawn(place)[0]
    assert len(first) == len(set(first)) == 6
    assert not set(first) & set(drawn(place, seed=1)[0])
    assert equal(net, fit()[0])


def test_callbacks_share_no_stream():
    draws = {place: Draws() for place in PLACED}
    callbacks = [PLACED[place](own) for place, own in draws.items()]
    another = Draws()
    fit(*callbacks, AddRegularizer(another.term, strength=0.5))
    every = [number for own in (*draws.values(), another) for number in own.drawn]
    assert len(every) == len(set(every)) == 8 * 6


def test_a_resumed_training_draws_what_it_would_have_drawn(tmp_path):
    whole, stopped, resumed = Draws(), Draws(), Draws()
    fit(AddRegularizer(whole.term))
    _, runner = fit(AddRegularizer(stopped.term), max_epochs=1)
    runner.save_checkpoint(tmp_path / "one.ckpt")
    runner = trainer(AddRegularizer(resumed.term))
    runner.fit(Net(), loader(), ckpt_path=tmp_path / "one.ckpt")
    assert stopped.drawn + resumed.drawn == whole.drawn


def test_a_recomputed_head_draws_the_same():
    class Checkpointed(Net):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    draws = Draws()
    fit(WrapHead(draws.stacks), net=Checkpointed, max_epochs=1)
    assert draws.drawn[::2] == draws.drawn[1::2]
    assert len(set(draws.drawn)) == 3
