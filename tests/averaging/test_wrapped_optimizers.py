"""Steps of optimizers that wrap others."""

from collections import defaultdict

import pytest
import torch
from timm.optim import Lookahead
from torch import nn

from lightning_objectives._weights.averages import Averages
from lightning_objectives._weights.optimizer_steps import OptimizerSteps
from lightning_objectives.averaging import SWA


class NoOptimizer:
    """Wraps an optimizer and derives from nothing, as ScheduleFreeWrapper of schedulefree does."""

    def __init__(self, base):
        self.base = base
        self.param_groups, self.defaults, self.state = base.param_groups, base.defaults, defaultdict(dict)

    def step(self, closure=None):
        return self.base.step(closure)

    def zero_grad(self):
        self.base.zero_grad()


class Skips(torch.optim.Optimizer):
    """Steps its inner optimizer every second time."""

    def __init__(self, base):
        super().__init__(base.param_groups, base.defaults)
        self.inner, self.calls = base, 0

    def step(self, closure=None):
        self.calls += 1
        if self.calls % 2 == 0:
            self.inner.step()


class Twice(Skips):
    """Steps its inner optimizer twice, and is one step."""

    def step(self, closure=None):
        self.inner.step()
        self.inner.step()


class Several(NoOptimizer):
    """Steps several optimizers, each with a part of the parameters."""

    def __init__(self, base):
        super().__init__(base)
        self.parts = [torch.optim.SGD([p], 0.1) for group in base.param_groups for p in group["params"]]
        del self.base

    def step(self, closure=None):
        for part in self.parts:
            part.step()


class SetsItsStep(torch.optim.SGD):
    """Sets another method in the place of the one that torch has hooked."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.step = lambda closure=None: None


def base(net):
    return torch.optim.SGD(net.parameters(), 0.1)


KINDS = {
    "lookahead": (lambda net: Lookahead(base(net), k=2), 4),
    "no optimizer": (lambda net: NoOptimizer(base(net)), 4),
    "skips": (lambda net: Skips(base(net)), 2),
    "twice": (lambda net: Twice(base(net)), 4),
    "several": (lambda net: Several(base(net)), 4),
    "own step": (lambda net: SetsItsStep(net.parameters(), 0.1), 4),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_steps_of_a_wrapper_count(kind):
    make, expected = KINDS[kind]
    net = nn.Linear(2, 1)
    optimizer = make(net)
    before = vars(optimizer).copy()
    averages = Averages(net, {"swa": SWA()})
    averages.watch([optimizer])
    counts = OptimizerSteps([optimizer], rates=True)
    counted = 0
    for _ in range(4):
        net(torch.randn(3, 2)).sum().backward()
        optimizer.step()
        averages.update()
        counted += counts.take()
    assert averages.steps == averages.updates == counted == expected
    assert counts.rates == {"0.0": [0.1, 0.1]}
    averages.unwatch()
    counts.remove()
    assert vars(optimizer).keys() == before.keys()
    assert vars(optimizer).get("step") is before.get("step")
    optimizer.step()
    averages.update()
    assert averages.steps == expected


def test_a_scheduler_finds_its_mark_on_a_step_that_is_watched():
    net = nn.Linear(2, 1)
    optimizer = Lookahead(base(net))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    steps = OptimizerSteps([optimizer])
    optimizer.step()
    scheduler.step()  # a warning is an error here
    assert steps.take() == 1
