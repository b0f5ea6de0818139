"""The gradient at moved weights, in a loop of one's own."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, fit, loader
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

import lightning_objectives as lo
from lightning_objectives.kinds import Perturbation

BATCHES = [*loader()]
"""Made once, because each iteration of a loader draws from the global random stream."""


class Habits(Net):
    """BatchNorm, dropout and a metric."""

    def __init__(self):
        super().__init__(dropout=0.5)
        self.norm, self.mean = nn.BatchNorm1d(6), MeanMetric()

    def forward(self, x):
        return self.fc(self.norm(self.backbone(x)))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.mean(loss.detach())
        return loss


def built(cls=Habits):
    torch.manual_seed(0)
    return cls()


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def train(net, method, epochs=2, **settings):
    optimizer, losses = sgd(net), []
    for number, batch in enumerate(BATCHES * epochs):
        optimizer.zero_grad()
        generator = None if method.uses_gradients else torch.Generator().manual_seed(number)
        step = lambda batch=batch: net.training_step(batch, 0)  # noqa: E731
        losses.append(lo.perturbed_backward(method, net, step, generator=generator, **settings).item())
        optimizer.step()
    return losses


def by_hand(net, rho, epochs=2):
    """The two closures of the paper's code, without a library: its seeds and its statistics kept by hand."""
    optimizer, losses = sgd(net), []
    for x, y in BATCHES * epochs:
        optimizer.zero_grad()
        stream, buffers = torch.get_rng_state(), {k: v.clone() for k, v in net.named_buffers()}
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        end, kept = torch.get_rng_state(), {k: v.clone() for k, v in net.named_buffers()}
        params = [p for p in net.parameters() if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in params]).norm()
        raw = [p.detach().clone() for p in params]
        with torch.no_grad():
            for p in params:
                p += p.grad * (rho / (norm + 1e-12))
            for k, v in net.named_buffers():
                v.copy_(buffers[k])
        torch.set_rng_state(stream)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        with torch.no_grad():
            for p, values in zip(params, raw):
                p.copy_(values)
            for k, v in net.named_buffers():
                v.copy_(kept[k])
        torch.set_rng_state(end)
        optimizer.step()
        losses.append(loss.item())
    return losses


def same(a, b):
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_two_closures_by_hand():
    ours, theirs = built(), built()
    torch.manual_seed(1)
    losses = train(ours, lo.SAM(rho=0.5))
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert losses == by_hand(theirs, 0.5)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(ours, theirs)


@pytest.mark.parametrize(
    "method", [lo.ASAM(rho=0.5), lo.SAM(rho=0.5), lo.SAM(rho=0.0), lo.WeightNoise(rho=0.1)], ids=repr
)
def test_it_is_the_callback_to_the_bit(method):
    class Seeded(Habits):
        def on_train_start(self):
            torch.manual_seed(1)

    own = DataLoader(data(), batch_size=8, generator=torch.Generator())  # No draw from the global stream.
    theirs, _ = fit(lo.PerturbWeights(method), net=lambda: built(Seeded), train=own)
    ours = built()
    torch.manual_seed(1)
    train(ours, method)
    assert same(ours, theirs)
    assert not torch.equal(ours.fc.weight, built().fc.weight)


def test_compiled_code_finds_the_weights_where_they_were():
    net = nn.Linear(6, 3, bias=False)
    net.compile(backend="eager")
    places = []

    def closure():
        places.append(net.weight.data_ptr())
        return net(torch.ones(2, 6)).square().mean()

    lo.perturbed_backward(lo.SAM(rho=0.5), net, closure)
    assert places == [places[0]] * 2


def test_without_strength_it_is_a_plain_backward():
    ours, plain = built(), built()
    torch.manual_seed(1)
    train(ours, lo.SAM(rho=0.0), epochs=1)
    torch.manual_seed(1)
    optimizer = sgd(plain)
    for batch in BATCHES:
        optimizer.zero_grad()
        plain.training_step(batch, 0).backward()
        optimizer.step()
    assert same(ours, plain)


def test_gradients_add_up():
    net = built(Net)
    x, y = next(iter(loader()))
    step = lambda: F.cross_entropy(net(x), y)  # noqa: E731
    lo.perturbed_backward(lo.SAM(), net, step)
    once = net.fc.weight.grad.clone()
    lo.perturbed_backward(lo.SAM(), net, step)
    assert torch.equal(net.fc.weight.grad, 2 * once)


def test_metrics_and_statistics_are_those_of_the_first_pass():
    net, plain = built(), built()
    batch = next(iter(loader()))
    torch.manual_seed(1)
    lo.perturbed_backward(lo.SAM(rho=5.0), net, lambda: net.training_step(batch, 0))
    torch.manual_seed(1)
    plain.training_step(batch, 0)
    assert torch.equal(net.norm.running_var, plain.norm.running_var)
    assert net.norm.num_batches_tracked == 1
    assert torch.equal(net.mean.compute(), plain.mean.compute())


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("method", [lo.SAM(), lo.WeightNoise(rho=0.1)], ids=["SAM", "WeightNoise"])
def test_an_error_leaves_the_weights_as_they_were(method, call):
    net = built()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    calls = []

    def step():
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return net.training_step(next(iter(loader())), 0)

    def twice():
        lo.perturbed_backward(method, net, step)
        lo.perturbed_backward(method, net, step)

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())


def test_a_loss_of_its_own_backward():
    net, plain = built(Net), built(Net)
    x, y = next(iter(loader()))
    seen = []

    def backward(loss):
        seen.append(loss.item())
        (2 * loss).backward()

    loss = lo.perturbed_backward(lo.SAM(rho=0.5), net, lambda: F.cross_entropy(net(x), y), backward=backward)
    lo.perturbed_backward(lo.SAM(rho=0.5), plain, lambda: F.cross_entropy(plain(x), y))
    torch.testing.assert_close(net.fc.weight.grad, 2 * plain.fc.weight.grad)
    assert seen > [loss.item()]  # the loss at the moved weights
    assert not loss.requires_grad


class AsFar(Perturbation):
    """Moves by the gradient itself, of whose length SAM knows nothing."""

    def offsets(self, gradients, params, *, generator=None):
        return {name: gradient.clone() for name, gradient in gradients.items()}


def test_a_gradient_scaler():
    """Scales by powers of two change no bit."""
    net, plain = built(Net), built(Net)
    x, y = next(iter(loader()))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    lo.perturbed_backward(AsFar(), net, lambda: F.cross_entropy(net(x), y), scaler=scaler)
    lo.perturbed_backward(AsFar(), plain, lambda: F.cross_entropy(plain(x), y))
    assert torch.equal(net.fc.weight.grad / 1024, plain.fc.weight.grad)


@pytest.mark.parametrize(
    ("closure", "message"),
    [
        (lambda net, x, y: None, "returned NoneType, but must return the loss"),
        (lambda net, x, y: F.cross_entropy(net(x), y, reduction="none"), r"a tensor of the shape \(8,\)"),
        (lambda net, x, y: F.cross_entropy(net(x), y).detach(), "one number that needs a gradient"),
    ],
)
@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_what_is_no_loss_is_refused(closure, message, rho):
    net = built(Net)
    with pytest.raises(ValueError, match=message):
        lo.perturbed_backward(lo.SAM(rho=rho), net, lambda: closure(net, *next(iter(loader()))))


def test_parameters_that_change_are_refused():
    net = built(Net)

    def step():
        net.fc.bias.data.add_(0)
        with torch.no_grad():
            net.fc.bias.add_(1)
        return net(torch.ones(1, 4)).sum()

    with pytest.raises(ValueError, match="changes parameters in place"):
        lo.perturbed_backward(lo.SAM(), net, step)
    with pytest.raises(ValueError, match="both given"):
        lo.perturbed_backward(lo.SAM(), net, step, backward=print, scaler=torch.amp.GradScaler("cpu"))
