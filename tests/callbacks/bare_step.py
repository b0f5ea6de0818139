"""One training step without a Trainer: fast enough for tests that draw hundreds of them."""

from types import SimpleNamespace

import lightning as L
import torch
from torch import nn

from lightning_objectives._step.plan import Plan


class Module(L.LightningModule):
    """Computes its logits by a head that changes nothing, from features that a test can differentiate."""

    def __init__(self, compute, criterion=None):
        super().__init__()
        self.head = nn.Identity()
        self.compute = compute
        self.loss_fn = criterion

    objective_head = "head"

    def objective_index(self, batch):
        return torch.arange(len(batch[0]))

    def training_step(self, batch, batch_idx):
        inputs, *rest = batch
        return self.compute(self, self.head(inputs), *rest)


def trainer(**settings):
    """What a plan asks of a Trainer."""
    fixed = {"training": True, "global_step": 0, "current_epoch": 0, "global_rank": 0, "barebones": True}
    others = {"callbacks": [], "train_dataloader": None, "log_every_n_steps": 1}
    others["strategy"] = SimpleNamespace(batch_to_device=None)
    return SimpleNamespace(fit_loop=SimpleNamespace(total_batch_idx=0), **fixed | others | settings)


def loss_and_gradient(compute, batch, *callbacks, criterion=None, steps=1, **settings):
    """The loss of a step, and its gradient at the features, which are the batch's first tensor."""
    module = Module(compute, criterion)
    runner = trainer(**settings)
    features = batch[0].detach().requires_grad_()
    plan = None
    if callbacks:
        module._trainer = runner
        plan = Plan.of(runner, module)
        for callback in callbacks:
            plan.add(callback)
        module.configure_model()
    try:
        for _ in range(steps):
            loss = module.training_step((features, *batch[1:]), 0)
    finally:
        Plan.detach_from(module)
    (gradient,) = torch.autograd.grad(loss, features)
    return loss.detach(), gradient
