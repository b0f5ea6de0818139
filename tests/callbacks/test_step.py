"""The engine of the step: what is touched, in which order, what is refused, and that all is given back."""

import copy
import gc
import operator
import pickle

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, data, equal, fit, loader, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils.data import DataLoader

from lightning_objectives._step.plan import Plan
from lightning_objectives._step.step import Step
from lightning_objectives.batches import Mixup
from lightning_objectives.callbacks.add_regularizer import AddRegularizer
from lightning_objectives.callbacks.distill import Distill
from lightning_objectives.callbacks.replace_loss import ReplaceLoss
from lightning_objectives.callbacks.reweight_samples import ReweightSamples
from lightning_objectives.callbacks.transform_batch import TransformBatch
from lightning_objectives.callbacks.wrap_head import WrapHead
from lightning_objectives.data.with_index import with_index
from lightning_objectives.distillation import DualHead
from lightning_objectives.heads import MultiSampleDropout
from lightning_objectives.kinds import Regularizer
from lightning_objectives.losses import LDRLoss
from lightning_objectives.regularizers import LogPartitionPenalty
from lightning_objectives.weighting import LossBasedReweighting

pytestmark = pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # torch's compiler looks


def ones(losses: Tensor) -> Tensor:
    return torch.ones_like(losses)


class Probe(L.Callback):
    """Keeps the plan of the fit, which is gone afterwards."""

    def on_train_start(self, trainer, pl_module):
        self.plan = Plan.of(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *args):
        assert not [step for step in gc.get_objects() if type(step) is Step and step.plan is self.plan], (
            "a step dies with its step"
        )
        assert self.plan.capture.trace.output is None
        assert not self.plan.capture.trace._nodes
        assert not self.plan.capture.network_calls


# -- zero strength -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "callback",
    [
        lambda: ReweightSamples(LossBasedReweighting(temperature=float("inf"))),
        lambda: ReweightSamples(LossBasedReweighting(warmup_steps=10**6)),
        lambda: WrapHead(MultiSampleDropout(p=0.0)),
        lambda: AddRegularizer(lambda logits: logits.square(), strength=0.0),
        lambda: AddRegularizer(lambda features: features.square(), strength=0.0),
    ],
)
def test_zero_strength_is_the_untouched_run_bit_for_bit(callback):
    plain, _ = fit(net=lambda: Net(dropout=0.5))
    probe = Probe()
    touched, _ = fit(callback(), probe, net=lambda: Net(dropout=0.5))
    assert probe.plan.steps == 6
    assert probe.plan.caught_calls == 1  # the first, by which the plan is proved
    assert equal(plain, touched)
    assert plain.losses == touched.losses


# -- the order of the list, and fit after fit ------------------------------------------------------------------------


def test_the_order_of_the_callbacks_does_not_matter():
    def callbacks():
        return [
            WrapHead(MultiSampleDropout(num_samples=2)),
            ReweightSamples(LossBasedReweighting()),
            AddRegularizer(lambda logits: 0.1 * logits.square().mean(1)),
        ]

    first, _ = fit(*callbacks())
    second, _ = fit(*reversed(callbacks()))
    assert equal(first, second)
    for left_out in range(3):
        assert not equal(first, fit(*(callback for i, callback in enumerate(callbacks()) if i != left_out))[0])


def test_fit_twice_is_fit_twice():
    callback = ReweightSamples(LossBasedReweighting())
    net, _ = fit(callback)
    trainer(callback).fit(net, loader())
    other, _ = fit(ReweightSamples(LossBasedReweighting()))
    trainer(ReweightSamples(LossBasedReweighting())).fit(other, loader())
    assert equal(net, other)
    once, _ = fit(ReweightSamples(LossBasedReweighting()))
    trainer().fit(once, loader())
    assert not equal(net, once), "the second fit is weighted too"


# -- giving back -----------------------------------------------------------------------------------------------------


class Raise(L.Callback):
    """Stops a fit, and keeps what there was to give back then: the patch, and the caught calls of the criterion."""

    def __init__(self, hook, error=RuntimeError):
        setattr(self, hook, self._raise)
        self.error = error

    def _raise(self, trainer, pl_module, *args, **kwargs):
        self.patched = "training_step" in vars(pl_module)
        self.caught_calls = Plan.of(trainer, pl_module).caught_calls
        raise self.error("planned")


HOOKS = {  # and how often the criterion is called before
    "setup": 0,
    "on_fit_start": 0,
    "on_sanity_check_start": 0,
    "on_validation_batch_start": 0,
    "on_train_start": 0,
    "on_train_batch_start": 0,
    "on_before_backward": 1,
    "on_train_batch_end": 1,
    "on_train_epoch_end": 3,
    "on_train_end": 6,
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode")  # as the stopped validation left them
def test_an_exception_leaves_nothing_behind(hook):
    net, stop = Net(), Raise(hook)
    before, head, children = set(vars(net)), set(vars(net.fc)), dict(net.named_children())
    callbacks = [ReweightSamples(ones), WrapHead(MultiSampleDropout()), AddRegularizer(Learned()), stop]
    with pytest.raises(RuntimeError, match="planned"):
        fit(*callbacks, net=net, val=loader())
    assert stop.patched
    assert stop.caught_calls == HOOKS[hook]
    assert set(vars(net)) - before <= {"_trainer", "_hparams"}
    assert set(vars(net.fc)) == head
    assert dict(net.named_children()) == children
    assert not net.fc._forward_hooks
    plain, _ = fit(net=net)
    assert plain is net


def test_an_interrupt_leaves_nothing_behind():
    net, stop = Net(), Raise("on_train_batch_end", KeyboardInterrupt)
    with pytest.raises(SystemExit):
        fit(ReweightSamples(ones), stop, net=net)
    assert stop.patched
    assert stop.caught_calls == 1
    assert "training_step" not in vars(net)


def test_copies_made_during_a_fit_are_plain():
    class Copy(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            trainer_, pl_module.trainer = pl_module.trainer, None
            self.copies = [copy.deepcopy(pl_module), pickle.loads(pickle.dumps(pl_module))]
            pl_module.trainer = trainer_

    probe = Copy()
    net, _ = fit(ReweightSamples(ones), WrapHead(MultiSampleDropout()), probe)
    assert net.losses[0] != fit()[0].losses[0], "the module itself is not plain during the fit"
    for other in probe.copies:
        batch = next(iter(loader()))
        expected = F.cross_entropy(other(batch[0]), batch[1])
        assert torch.equal(other.training_step(batch, 0), expected)


# -- multi-sample dropout through the user's own code ----------------------------------------------------------------


class Fixed(MultiSampleDropout):
    """Three stacks with known masks, so that the loss can be worked out by hand."""

    def forward(self, features, head):
        rows = torch.stack([features * m for m in MASKS])
        return head(rows.flatten(0, 1)).unflatten(0, (len(MASKS), len(features)))


MASKS = torch.tensor([[1.0, 0, 1, 1, 0, 1], [0, 1, 1, 0, 2, 1], [1, 1, 0, 0, 1, 3]])
TAILS = {
    "plain": lambda z, y: F.cross_entropy(z, y),
    "temperature": lambda z, y: F.cross_entropy(z / 2.5, y),
    "float": lambda z, y: F.cross_entropy(z.float(), y),
    "double": lambda z, y: F.cross_entropy(z.double(), y),
    "log_softmax, nll": lambda z, y: F.nll_loss(F.log_softmax(z, dim=-1), y),
    "method log_softmax": lambda z, y: F.nll_loss(z.log_softmax(-1), y),
    "view": lambda z, y: F.cross_entropy(z.view(-1, 3), y.view(-1)),
    "shift": lambda z, y: F.cross_entropy(z[:-1] + 0.5, y[1:]),
    "row mask": lambda z, y: F.cross_entropy(z[y > 0], y[y > 0]),
    "none": lambda z, y: F.cross_entropy(z, y, reduction="none").mean(),
    "none with weights": lambda z, y: (F.cross_entropy(z, y, reduction="none") * (y + 1)).sum() / (y + 1).sum(),
    "class weights": lambda z, y: F.cross_entropy(z, y, weight=torch.tensor([1.0, 2, 3])),
    "sigmoid": lambda z, y: F.binary_cross_entropy(torch.sigmoid(z), F.one_hot(y, 3).float()),
    "soft cap": lambda z, y: F.cross_entropy(3 * torch.tanh(z / 3), y),
    "in place": lambda z, y: F.cross_entropy(torch.add(z, 0).div_(2.5), y),
    "in-place operator": lambda z, y: F.cross_entropy(operator.itruediv(z, 2.5), y),
    "masked classes": lambda z, y: F.cross_entropy(
        z.masked_fill(torch.tensor([False, False, True]), -9.0), y.clamp(max=1)
    ),
    "where": lambda z, y: F.cross_entropy(torch.where(torch.tensor([True, True, False]), z, -9.0), y.clamp(max=1)),
    "normalize": lambda z, y: F.cross_entropy(5 * F.normalize(z, dim=-1), y),
    "interpolate": lambda z, y: F.cross_entropy(
        F.interpolate(z[:, :, None, None], scale_factor=2), y[:, None, None].expand(-1, 2, 2)
    ),
    "one more class": lambda z, y: F.cross_entropy(torch.cat([z, torch.zeros(len(z), 1)], 1), y),
    "gathered rows": lambda z, y: F.cross_entropy(z.index_select(0, y), y[y]),
    "chunk": lambda z, y: F.cross_entropy(z.chunk(2)[1], y[4:]),
    "an unused metric": lambda z, y: (F.cross_entropy(z, y), z.detach().argmax(1).eq(y))[0],
}


@pytest.mark.parametrize("name", TAILS)
def test_the_loss_is_the_mean_of_the_losses_of_the_stacks(name):
    class Own(Net):
        def criterion(self, logits, y):
            return TAILS[name](logits, y)

    net, _ = fit(WrapHead(Fixed()), net=Own, max_steps=1)
    start = Own()
    L.seed_everything(0, verbose=False)
    start = Own()
    x, y = next(iter(loader()))
    expected = torch.stack([TAILS[name](start.fc(start.backbone(x) * m), y) for m in MASKS]).mean()
    torch.testing.assert_close(torch.tensor(net.losses[0]), expected.float())
    expected.backward()
    torch.testing.assert_close(net.fc.weight, start.fc.weight - 0.1 * start.fc.weight.grad)
    torch.testing.assert_close(net.backbone[0].weight, start.backbone[0].weight - 0.1 * start.backbone[0].weight.grad)


def test_nothing_is_held_between_the_steps():
    probe = Probe()
    fit(WrapHead(MultiSampleDropout()), probe)
    assert probe.plan.steps == 6


def test_one_sample_is_ordinary_dropout_bit_for_bit():
    class Dropout(Net):
        def forward(self, x):
            return self.fc(F.dropout(self.backbone(x), 0.3, self.training))

    plain, _ = fit(net=Dropout)
    single, _ = fit(WrapHead(MultiSampleDropout(num_samples=1, p=0.3)))
    assert equal(plain, single)


def test_weights_are_those_of_the_mean_losses_of_the_stacks():
    seen = []

    def weighting(losses):
        seen.append(losses)
        return torch.ones_like(losses)

    L.seed_everything(0, verbose=False)
    start = Net()
    fit(WrapHead(Fixed()), ReweightSamples(weighting), max_steps=1)
    x, y = next(iter(loader()))
    stacks = [F.cross_entropy(start.fc(start.backbone(x) * m), y, reduction="none") for m in MASKS]
    torch.testing.assert_close(seen[0], torch.stack(stacks).mean(0).detach())


def test_evaluation_is_the_plain_model():
    class Record(Net):
        def validation_step(self, batch, batch_idx):
            self.seen = self(batch[0])

    net, _ = fit(WrapHead(MultiSampleDropout(p=0.9)), net=Record, val=loader(batch_size=24))
    x, _ = next(iter(loader(batch_size=24)))
    net.eval()
    assert torch.equal(net.seen, net(x))
    assert not equal(net, fit(net=Record)[0]), "the training is not"


# -- what is refused, and how ----------------------------------------------------------------------------------------


def own(body):
    class Own(Net):
        def training_step(self, batch, batch_idx):
            return body(self, *batch)

    return Own


def focal(self, x, y):
    losses = F.cross_entropy(self(x), y, reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


def several(self, x, y):
    return F.cross_entropy(self(x), y) + F.mse_loss(self(x), torch.zeros(len(x), 3))


def inplace_on_a_view(self, x, y):
    logits = self(x)
    logits.view(-1).mul_(2)
    return F.cross_entropy(logits, y)


def inplace_on_a_view_before_more(self, x, y):
    logits = self(x)
    logits.view(-1).mul_(2)
    return F.cross_entropy(logits * 1.0, y)


def functional_head(self, x, y):
    return F.cross_entropy(F.linear(self.backbone(x), self.fc.weight, self.fc.bias), y)


def twice(self, x, y):
    return F.cross_entropy(self(x) + self.fc(self.backbone(-x)), y)


def short(losses):
    return losses.new_ones(3)


REFUSED = {
    "no criterion": (lambda self, x, y: self(x).logsumexp(1).mean(), ReweightSamples(ones), "No criterion was seen"),
    "no criterion, head": (lambda self, x, y: self(x).square().mean(), WrapHead(MultiSampleDropout()), "No criterion"),
    "focal": (focal, ReweightSamples(ones), "only a part of it"),
    "several": (several, ReweightSamples(ones), r"0: cross_entropy of \(8, 3\), 1: mse_loss .* say which=0, 1"),
    "which": (several, ReweightSamples(ones, which=2), "which=2, but"),
    "unused": (
        lambda self, x, y: (F.cross_entropy(self(x), y), self(x).square().mean())[1],
        ReweightSamples(ones),
        "not in it",
    ),
    "in place, on a view": (inplace_on_a_view, WrapHead(MultiSampleDropout()), "in-place change"),
    "in place, further back": (inplace_on_a_view_before_more, WrapHead(MultiSampleDropout()), "in-place change"),
    "exp": (lambda self, x, y: F.mse_loss(self(x).exp(), F.one_hot(y, 3).float()), WrapHead(Fixed()), "'exp'"),
    "dropout": (lambda self, x, y: F.cross_entropy(F.dropout(self(x)), y), WrapHead(Fixed()), "'dropout'"),
    "property": (lambda self, x, y: F.cross_entropy(self(x).T.T, y), WrapHead(Fixed()), "cannot be repeated"),
    "functional head": (functional_head, WrapHead(Fixed()), "does not come from the head 'fc'"),
    "called twice": (twice, WrapHead(Fixed()), "called several times"),
    "no index": (None, ReweightSamples(lambda losses, index: ones(losses)), "with_index"),
    "no group": (None, ReweightSamples(lambda losses, group: ones(losses)), "'group'"),
    "no teacher": (None, AddRegularizer(lambda teacher_logits: teacher_logits), "'teacher_logits' is not available"),
    "unknown head": (None, WrapHead(Fixed(), head="model.head"), r"head='model.head' does not exist .* backbone.0, fc"),
    "wrong head": (None, WrapHead(MultiSampleDropout(), head="backbone.0"), "'relu' *, which cannot be repeated"),
    "wrong head, features": (None, AddRegularizer(lambda features: features, head="backbone.0"), "does not come from"),
    "unknown criterion": (None, ReweightSamples(ones, criterion="loss"), "criterion='loss' names nothing callable"),
    "bad shape": (None, ReweightSamples(short), r"shape \(3,\) for 8 losses(?!.*which=)"),
    "bad shape of the call that is named": (
        None,
        ReweightSamples(short, which=0),
        r"shape \(3,\) for 8 losses(?!.*another criterion)",
    ),
    "no batch dimension": (
        lambda self, x, y: F.cross_entropy(self(x)[0], y[0]),
        ReweightSamples(ones),
        "one sample without a batch dimension",
    ),
    "other rows": (
        lambda self, x, y: F.cross_entropy(torch.stack([self(x), self(-x)], 2), torch.stack([y, y], 1)),
        ReweightSamples(lambda losses, inputs: ones(losses), unit="element"),
        "'inputs' has 8 rows, but there are 16 losses",
    ),
    "losses before the criterion": (
        None,
        ReplaceLoss(lambda logits, target, losses: losses),
        "asks for the signal 'losses' before the step has called its criterion",
    ),
    "input": (None, AddRegularizer(lambda inputs: inputs, input="image"), "input='image'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_in_a_sentence(name):
    body, callback, message = REFUSED[name]
    net = own(body)() if body else Net()
    before, head = set(vars(net)), set(vars(net.fc))
    with pytest.raises(ValueError, match=message):
        fit(callback, net=net)
    assert set(vars(net)) - before <= {"_trainer", "_hparams"}
    assert set(vars(net.fc)) == head


def test_a_module_without_a_head_is_refused():
    class Convolution(Net):
        def __init__(self):
            super().__init__()
            self.backbone, self.fc = nn.Identity(), nn.Conv1d(1, 3, 4)

        def forward(self, x):
            return self.fc(x[:, None])[:, :, 0]

    with pytest.raises(ValueError, match="no Linear layer that could be its head"):
        fit(WrapHead(MultiSampleDropout()), net=Convolution)
    named, _ = fit(WrapHead(MultiSampleDropout(p=0.5), head="fc"), net=Convolution)
    assert not equal(named, fit(net=Convolution)[0])


def test_a_head_that_is_no_part_of_the_module_is_refused():
    class Foreign(Net):
        @property
        def objective_head(self):
            return nn.Linear(6, 3)

    with pytest.raises(ValueError, match="The head Linear is no part of Foreign"):
        fit(WrapHead(Fixed()), net=Foreign)


def test_a_head_with_batch_norm_is_refused():
    class Normed(Net):
        def __init__(self):
            super().__init__()
            self.fc = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))

    with pytest.raises(ValueError, match="BatchNorm"):
        fit(WrapHead(MultiSampleDropout(), head="fc"), net=Normed)


def test_manual_optimization_is_refused():
    net = Net()
    net.automatic_optimization = False
    with pytest.raises(ValueError, match="because it sets `automatic_optimization = False`"):
        fit(ReweightSamples(ones), net=net)


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_a_step_that_draws_its_batches_itself_is_refused():
    class Draws(Net):
        def training_step(self, dataloader_iter):
            return super().training_step(next(dataloader_iter)[0], 0)

    with pytest.raises(ValueError, match="ReweightSamples needs the batch of a step, but Draws's has none"):
        fit(ReweightSamples(ones), net=Draws)


def test_progress_of_a_training_without_an_end_is_refused():
    with pytest.raises(ValueError, match="length of the training is unknown, so 'progress' is too"):
        fit(AddRegularizer(lambda progress: progress), max_epochs=-1)


def test_one_place_one_callback_and_options_agree():
    with pytest.raises(ValueError, match="both take the place 'loss'"):
        fit(ReplaceLoss(LDRLoss()), ReplaceLoss(LDRLoss(temperature=2.0)))
    with pytest.raises(ValueError, match="agree on 'head'"):
        fit(AddRegularizer(lambda features: features, head="fc"), WrapHead(Fixed(), head="backbone.0"))


# -- signals ---------------------------------------------------------------------------------------------------------


def test_every_signal_has_what_it_says():
    seen = {}

    def look(logits, target, features, inputs, index, head, step, epoch, progress):
        seen.update(locals())
        return logits.sum() * 0

    probe = Probe()
    fit(AddRegularizer(look), probe, train=DataLoader(with_index(data()), batch_size=8, shuffle=True), net=Net)
    everything = data()
    x, y = (torch.stack(list(column)) for column in zip(*[everything[int(i)] for i in seen["index"]]))
    assert torch.equal(seen["inputs"], x)
    assert torch.equal(seen["target"], y)
    assert seen["logits"].shape == (8, 3)
    assert torch.allclose(seen["head"](seen["features"]), seen["logits"], atol=0.2)  # one step later
    assert (seen["step"], seen["epoch"]) == (5, 1)
    assert seen["progress"] == pytest.approx(5 / 6)
    assert probe.plan.steps == 6


@pytest.mark.parametrize("soft", [False, True])
def test_dense_predictions_have_one_row_for_each_comparison(soft):
    """Two positions a sample, the classes along dimension 1."""
    seen = {}

    def body(self, x, y):
        self.logits, self.target = torch.stack([self(x), self(-x)], 2), torch.stack([y, 2 - y], 1)
        if soft:
            self.target = F.one_hot(self.target, 3).movedim(2, 1).float()
        return F.cross_entropy(self.logits, self.target)

    def look(logits, target):
        seen.update(logits=logits, target=target)
        return logits.sum() * 0

    net, _ = fit(AddRegularizer(look), net=own(body), max_steps=1)
    assert torch.equal(seen["logits"], net.logits.movedim(1, 2).reshape(16, 3))
    assert torch.equal(seen["target"], net.target.movedim(1, 2).reshape(16, 3) if soft else net.target.reshape(16))


def test_the_logits_of_probabilities():
    seen = []

    def body(self, x, y):
        self.logits = self(x)
        return F.binary_cross_entropy(self.logits.sigmoid(), F.one_hot(y, 3).float())

    net, _ = fit(AddRegularizer(lambda logits: (seen.append(logits), logits.sum() * 0)[1]), net=own(body), max_steps=1)
    torch.testing.assert_close(seen[0], net.logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_term_may_ask_for_the_losses(wrapped):
    class Reference(Net):
        def criterion(self, logits, y):
            return F.cross_entropy(logits, y) + 0.5 * F.cross_entropy(logits, y, reduction="none").square().mean()

    head = [WrapHead(Fixed())] if wrapped else []
    net, _ = fit(AddRegularizer(lambda losses: losses.square(), strength=0.5), *head)
    if wrapped:
        assert not equal(net, fit(*head)[0])
    else:
        for a, b in zip(net.parameters(), fit(net=Reference)[0].parameters()):
            torch.testing.assert_close(a, b)


def test_a_criterion_chosen_by_its_number():
    seen = []

    def weighting(losses):
        seen.append(losses)
        return torch.zeros_like(losses)

    net, _ = fit(ReweightSamples(weighting, which=1), net=own(several), max_steps=1)
    x, y = next(iter(loader()))
    L.seed_everything(0, verbose=False)
    start = Net()
    torch.testing.assert_close(seen[0], start(x).square().mean(1).detach())
    F.cross_entropy(start(x), y).backward()  # the weighted one is gone
    torch.testing.assert_close(net.fc.weight, start.fc.weight - 0.1 * start.fc.weight.grad)


def test_calls_without_gradient_are_metrics():
    def body(self, x, y):
        logits = self(x)
        with torch.no_grad():
            self.metric = F.cross_entropy(logits, y)
        self.log("train_ce", F.cross_entropy(logits.detach(), y))
        return F.cross_entropy(logits, y)

    plain, _ = fit(net=own(body))
    probe = Probe()
    weighted, _ = fit(ReweightSamples(ones), probe, net=own(body))
    assert equal(plain, weighted)
    assert probe.plan.caught_calls == 6


@pytest.mark.parametrize(
    ("form", "calls"), [("tensor", 6), ("dict", 6), ("none on odd", 4), ("batch only", 6), ("kwargs", 6)]
)
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_what_a_step_may_look_like(form, calls):
    class Own(Net):
        if form == "batch only":

            def training_step(self, batch):
                return super().training_step(batch, 0)

        elif form == "kwargs":

            def training_step(self, batch, batch_idx, *args, **kwargs):
                return super().training_step(batch, batch_idx)

        else:

            def training_step(self, batch, batch_idx):
                if form == "none on odd" and batch_idx % 2:
                    return None
                loss = super().training_step(batch, batch_idx)
                return {"loss": loss, "extra": 1} if form == "dict" else loss

    class Reference(Own):
        def criterion(self, logits, y):
            return super().criterion(logits, y) + 0.1 * logits.square().mean()

    plain, _ = fit(net=Own)
    probe = Probe()
    touched, _ = fit(ReweightSamples(ones), probe, net=Own)
    assert equal(plain, touched)
    assert probe.plan.caught_calls == calls
    added, _ = fit(AddRegularizer(lambda logits: logits.square(), strength=0.1), net=Own)
    reference, _ = fit(net=Reference)
    for a, b in zip(added.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_step_that_forgets_its_loss_is_lightnings_error_as_without_callbacks():
    with pytest.raises(MisconfigurationException, match="the 'loss' key needs to be present"):
        fit(ReweightSamples(ones), net=own(lambda self, x, y: {"logits": self(x)}))


def test_token_losses_fold_into_sequences():
    tokens = torch.randint(3, (4, 5), generator=torch.Generator().manual_seed(0))
    tokens[0, 3:] = -100
    seen = {}

    class Tokens(Net):
        def training_step(self, batch, batch_idx):
            logits = self(batch)  # (B, T, C)
            self.value = F.cross_entropy(logits.view(-1, 3), tokens.view(-1))
            return self.value

    def weighting(losses):
        seen["losses"] = losses
        return torch.tensor([2.0, 1.0, 0.5, 0.5])

    x = torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(1))
    batches = DataLoader([*x], batch_size=4)
    net, _ = fit(ReweightSamples(weighting), net=Tokens, train=batches, max_steps=1)
    L.seed_everything(0, verbose=False)
    start = Tokens()
    table = F.cross_entropy(start(x).view(-1, 3), tokens.view(-1), reduction="none").view(4, 5)
    means = torch.stack([row[t != -100].mean() for row, t in zip(table, tokens)])
    torch.testing.assert_close(seen["losses"], means.detach())
    expected = (table * torch.tensor([2.0, 1.0, 0.5, 0.5])[:, None]).sum() / 18
    torch.testing.assert_close(net.value, expected)

    element = lambda losses: seen.update(n=len(losses)) or torch.ones_like(losses)  # noqa: E731
    fit(ReweightSamples(element, unit="element"), net=Tokens, train=batches, max_steps=1)
    assert seen["n"] == 18

    class Masked(Tokens):
        def training_step(self, batch, batch_idx):
            keep = tokens.view(-1) != -100
            return F.cross_entropy(self(batch).view(-1, 3)[keep], tokens.view(-1)[keep])

    fit(ReweightSamples(weighting), net=Masked, train=batches, max_steps=1)
    torch.testing.assert_close(seen["losses"], means.detach())


def test_the_rows_of_a_signal_under_a_criterion_that_ignores_nothing():
    seen = []

    def weighting(losses, inputs):
        seen.append(inputs)
        return ones(losses)

    body = own(lambda self, x, y: F.mse_loss(self(x), F.one_hot(y, 3).float()))
    fit(ReweightSamples(weighting), net=body, max_steps=1)
    assert torch.equal(seen[0], next(iter(loader()))[0])


def test_another_unit_is_refused():
    with pytest.raises(ValueError, match="unit='token' must be 'sample' or 'element'"):
        ReweightSamples(ones, unit="token")


def test_a_sequence_without_a_token_that_counts_is_no_sample():
    tokens = torch.randint(3, (4, 5), generator=torch.Generator().manual_seed(0))
    tokens[1] = -100
    seen = {}

    class Tokens(Net):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch).movedim(-1, 1), tokens)

    def weighting(losses, index):
        seen.update(losses=losses, index=index)
        return torch.ones_like(losses)

    class Batches(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return torch.full((5, 4), float(i))

    batches = DataLoader(with_index(Batches()), batch_size=4)
    plain, _ = fit(net=Tokens, train=DataLoader(Batches(), batch_size=4), max_steps=1)
    touched, _ = fit(ReweightSamples(weighting), net=Tokens, train=batches, max_steps=1)
    assert seen["losses"].isfinite().all()
    assert seen["index"].tolist() == [0, 2, 3]
    for a, b in zip(plain.parameters(), touched.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_loss_that_is_not_finite_is_dropped_and_spoils_no_weight():
    class Infinite(Net):
        def criterion(self, logits, y):
            bias = torch.zeros_like(logits)
            bias[0, y[0]] = -torch.inf
            return F.cross_entropy(logits + bias, y)

    seen = {}

    class Spy(LossBasedReweighting):
        def forward(self, losses):
            seen["weights"] = super().forward(losses)
            return seen["weights"]

    net, _ = fit(ReweightSamples(Spy()), net=Infinite, max_steps=1)
    assert seen["weights"][0] == 0
    assert seen["weights"][1:].mean() == pytest.approx(1)  # among themselves
    assert torch.tensor(net.losses).isfinite().all()


# -- replaced losses, added terms, mixed batches ---------------------------------------------------------------------


def test_a_replaced_loss_keeps_what_is_ignored_and_the_reduction():
    def poly(logits, target):
        losses = F.cross_entropy(logits, target, reduction="none")
        return losses + (1 - (-losses).exp())

    def ignoring(z, y):
        return F.cross_entropy(z, torch.where(torch.arange(len(y)) < 2, -100, y), weight=torch.tensor([1.0, 5, 9]))

    class Own(Net):
        def criterion(self, logits, y):
            return ignoring(logits, y)

    class Reference(Net):
        def criterion(self, logits, y):
            return poly(logits[2:], y[2:]).mean()

    replaced, _ = fit(ReplaceLoss(poly), net=Own)
    reference, _ = fit(net=Reference)
    for a, b in zip(replaced.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_replacing_a_loss_of_class_probabilities():
    class Own(Net):
        def criterion(self, logits, y):
            return F.binary_cross_entropy_with_logits(logits, F.one_hot(y, 3).float())

    replaced, _ = fit(ReplaceLoss(lambda logits, target: -(target * logits.log_softmax(-1)).sum(-1)), net=Own)
    plain, _ = fit()
    for a, b in zip(replaced.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_term_is_added_once_and_logged():
    class Reference(Net):
        def training_step(self, batch, batch_idx):
            logits = self(batch[0])
            return F.cross_entropy(logits, batch[1]) + 0.3 * logits.square().mean()

    class LogitPenalty(Regularizer):
        def forward(self, logits):
            return logits.square().mean(1)

    reference, _ = fit(net=Reference)
    added, runner = fit(AddRegularizer(LogitPenalty(), strength=0.3))
    for a, b in zip(added.parameters(), reference.parameters()):
        torch.testing.assert_close(a, b)
    assert "train/logitpenalty" in runner.callback_metrics


def test_a_mixed_batch_and_its_target():
    index, share = torch.tensor([[0, 1], [1, 0], *[[i, i] for i in range(2, 8)]]), 0.25

    def mix(inputs, generator):
        weight = torch.tensor([[1 - share, share]]).expand(8, 2)
        inputs.mul_(1 - share)  # a copy: it may be changed
        return inputs + share / (1 - share) * inputs[index[:, 1]], index, weight

    class Own(Net):
        def training_step(self, batch, batch_idx):
            self.mine = batch[1]
            return super().training_step(batch, batch_idx)

    class Reference(Net):
        def training_step(self, batch, batch_idx):
            x, y = batch
            mixed = (1 - share) * x + share * x[index[:, 1]]
            target = (1 - share) * F.one_hot(y, 3) + share * F.one_hot(y[index[:, 1]], 3)
            return F.cross_entropy(self(mixed), target)

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert torch.equal(batch[0], before[8 * batch_idx : 8 * batch_idx + 8])

    batches = loader()
    before = batches.dataset.tensors[0].clone()
    mixed, _ = fit(TransformBatch(mix), Look(), net=Own, train=batches)
    reference, _ = fit(net=Reference)
    for a, b in zip(mixed.parameters(), reference.parameters()):
        torch.testing.assert_close(a, b)
    assert mixed.mine.dtype == torch.int64
    assert torch.equal(before, batches.dataset.tensors[0])

    class Elsewhere(Net):
        def criterion(self, logits, y):
            return F.cross_entropy(logits[2:], y[2:])

    with pytest.raises(ValueError, match="mixed 8 rows"):
        fit(TransformBatch(mix), net=Elsewhere)


# -- modules that a method brings ------------------------------------------------------------------------------------


class Learned(Regularizer):
    """A method with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, logits):
        return (self.scale - logits).square().mean(1)


def momentum(net):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def by_groups(net):
    groups = [{"params": list(net.fc.parameters()), "lr": 0.2}, {"params": list(net.backbone.parameters())}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.2, 0.1], total_steps=20)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}


@pytest.mark.parametrize("configure", [momentum, by_groups])
def test_a_methods_parameters_are_trained_and_leave_no_trace(configure, tmp_path):
    class Own(Net):
        def configure_optimizers(self):
            return configure(self)

    method = Learned()
    net, _ = fit(AddRegularizer(method), net=Own, max_epochs=1)
    assert method.scale != 1.0
    assert "objective_modules" not in dict(net.named_children())
    assert net.state_dict().keys() == Own().state_dict().keys()


@pytest.mark.parametrize("configure", [momentum, by_groups])
def test_resuming_with_without_and_with_a_newly_added_plug_in(configure, tmp_path):
    class Own(Net):
        def configure_optimizers(self):
            return configure(self)

    class Save(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / f"{self.name}-{trainer.current_epoch}.ckpt")

    def run(name, *callbacks, epochs=2, ckpt=None):
        save = Save()
        save.name = name
        L.seed_everything(0, verbose=False)
        net = Own()
        trainer(*callbacks, save, max_epochs=epochs).fit(net, loader(), ckpt_path=ckpt)
        return net

    whole_method, resumed_method = Learned(), Learned()
    whole = run("whole", AddRegularizer(whole_method))
    resumed = run("again", AddRegularizer(resumed_method), ckpt=tmp_path / "whole-0.ckpt")
    assert equal(whole, resumed)
    assert whole_method.scale == resumed_method.scale

    file = torch.load(tmp_path / "whole-0.ckpt", weights_only=True)
    plain = run("plain")
    assert file["state_dict"].keys() == plain.state_dict().keys()
    sizes = [len(group["params"]) for group in file["optimizer_states"][0]["param_groups"]]
    assert sizes == ([4] if configure is momentum else [2, 2])
    run("without", ckpt=tmp_path / "whole-0.ckpt")

    added = Learned()
    run("added", AddRegularizer(added), ckpt=tmp_path / "plain-0.ckpt")
    assert added.scale != 1.0

    file["objective_modules"] = [dict.fromkeys(file["objective_modules"][0], 3)]
    torch.save(file, tmp_path / "damaged.ckpt")
    with pytest.raises(ValueError, match="has the state 3, which is no state of an optimizer"):
        run("damaged", AddRegularizer(Learned()), ckpt=tmp_path / "damaged.ckpt")


def test_an_inactive_methods_parameters_stay_exactly():
    class Idle(Learned):
        def active(self, *, step):
            return step < 2

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            self.values.append(method.scale.item())

        values = []  # noqa: RUF012

    class Plain(Net):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    method = Idle()
    fit(AddRegularizer(method), Keep(), net=Plain)
    assert len(set(Keep.values[1:])) == 1
    assert Keep.values[0] != Keep.values[1]


def test_an_optimizers_state_goes_through_a_plain_one_and_back():
    class Again(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            optimizer = trainer.optimizers[0]
            state = copy.deepcopy(optimizer.state_dict())
            assert len(state["param_groups"][0]["params"]) == 4
            optimizer.load_state_dict(state)

    first, second = Learned(), Learned()
    plain, _ = fit(AddRegularizer(first))
    again, _ = fit(AddRegularizer(second), Again())
    assert equal(plain, again)
    assert first.scale == second.scale != 1.0


def test_the_users_own_draws_are_not_moved_by_extra_modules():
    plain, _ = fit(net=lambda: Net(dropout=0.5))
    probe = Probe()
    touched, _ = fit(AddRegularizer(Learned(), strength=0.0), probe, net=lambda: Net(dropout=0.5))
    assert equal(plain, touched)
    assert probe.plan.steps == 6


def test_nets_built_in_configure_model_are_found():
    class Late(Net):
        def __init__(self):
            super().__init__()
            self.late = self.fc
            del self.fc

        def configure_model(self):
            if not hasattr(self, "fc"):
                self.fc = self.late

    wrapped, _ = fit(WrapHead(MultiSampleDropout()), net=Late)
    assert not equal(wrapped, fit(net=Late)[0])


def test_a_training_step_that_validation_calls_is_the_users_own():
    class Shared(Net):
        def validation_step(self, batch, batch_idx):
            self.log("val_loss", self.training_step(batch, batch_idx))

    callbacks = [ReweightSamples(LossBasedReweighting()), WrapHead(MultiSampleDropout(p=0.5))]
    shared, runner = fit(*callbacks, net=Shared, val=loader())
    assert equal(shared, fit(*callbacks, net=Net, val=loader())[0])
    assert not equal(shared, fit(net=Net, val=loader())[0])
    with torch.no_grad():
        expected = F.cross_entropy(shared(data()[:][0]), data()[:][1])
    torch.testing.assert_close(runner.callback_metrics["val_loss"], expected)


def test_both_names_of_lightning():
    import pytorch_lightning

    callback = ReweightSamples(LossBasedReweighting())
    assert isinstance(callback, (L.Callback, pytorch_lightning.Callback))

    class Other(pytorch_lightning.LightningModule):
        __init__ = Net.__init__
        forward, criterion, training_step = Net.forward, Net.criterion, Net.training_step
        configure_optimizers = Net.configure_optimizers

    Other.__init__ = lambda self: (
        pytorch_lightning.LightningModule.__init__(self),
        setattr(self, "losses", []),
        setattr(self, "backbone", nn.Sequential(nn.Linear(4, 6), nn.ReLU())),
        setattr(self, "fc", nn.Linear(6, 3)),
    )[0]
    runner = pytorch_lightning.Trainer(
        callbacks=[callback, WrapHead(MultiSampleDropout())], max_epochs=1, logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    runner.fit(Other(), loader())
    assert runner.callback_metrics["train/max_weight"] >= 1


class Quiet(Net):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])


def compiled(where, counter):
    def build():
        net = Quiet()
        if where == "a part":
            net.backbone = torch.compile(net.backbone, backend=counter, fullgraph=True)
        elif where == "a part, in place":
            net.backbone.compile(backend=counter, fullgraph=True)
        else:
            net = torch.compile(net, backend=counter)
        return net

    return build


@pytest.mark.parametrize("where", ["a part", "a part, in place", "the module"])
def test_compiled_modules_are_compiled_once(where):
    eager, _ = fit(ReweightSamples(LossBasedReweighting(warmup_steps=2)), net=Quiet)
    torch._dynamo.reset()
    counter = CompileCounter()
    build = compiled(where, counter)
    L.seed_everything(0, verbose=False)
    net, probe = build(), Probe()
    trainer(ReweightSamples(LossBasedReweighting(warmup_steps=2)), probe).fit(net, loader())
    # No break in the network's graph, no recompilation; a whole step has another graph for its idle second step.
    assert counter.frame_count == (2 if where == "the module" else 1)
    assert probe.plan.caught_calls == 6
    for a, b in zip(eager.parameters(), net.parameters()):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("callback", "taken"),
    [
        (lambda: AddRegularizer(lambda losses, logits: losses + logits.square().mean(1)), 6),
        (
            lambda: ReweightSamples(LossBasedReweighting(warmup_steps=5)),
            2,
        ),  # not compiled: in the first step, and the last
        (lambda: ReweightSamples(LossBasedReweighting()), 6),
        (lambda: ReplaceLoss(LDRLoss(temperature=0.5)), 6),  # at 1 it has the gradient of the cross entropy
        (lambda: TransformBatch(Mixup()), 6),
    ],
)
def test_a_compiled_step_is_broken_in_its_first_step_alone(callback, taken):
    class Look(L.Callback):
        """The graph breaks so far, and the graphs, after each step."""

        def on_train_start(self, trainer, pl_module):
            self.found = []

        def on_train_batch_end(self, trainer, pl_module, *args):
            found = torch._dynamo.utils.counters
            self.found.append((sum(found["graph_break"].values()), counter.frame_count))

    def run(build):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        L.seed_everything(0, verbose=False)
        net, probe, look = build(), Probe(), Look()
        trainer(callback(), probe, look).fit(net, loader())
        return net, look, probe.plan.caught_calls

    counter = CompileCounter()
    net, look, calls = run(compiled("the module", counter))
    assert calls == 6
    (breaks, _), second, *later = look.found
    assert second == (breaks, 2)  # the first step is proved, and broken for it
    assert set(later) == {second}
    eager, _, calls = run(Quiet)
    assert calls == taken
    for a, b in zip(eager.parameters(), net.parameters()):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "callback",
    [
        lambda: WrapHead(MultiSampleDropout(num_samples=2)),
        lambda: ReweightSamples(LossBasedReweighting()),
        lambda: AddRegularizer(lambda features: features.square().mean(1)),
    ],
)
def test_a_compiled_function_of_the_step_is_not_compiled_again_and_again(callback):
    class Compiled(Net):
        def __init__(self):
            super().__init__()
            self.graphs = []

        def on_fit_start(self):
            self.compute = torch.compile(self._compute, backend=counter)

        def _compute(self, x, y):
            return 0.5 * F.cross_entropy(2 * self(x).float(), y)

        def training_step(self, batch, batch_idx):
            loss = self.compute(*batch)
            self.graphs.append(counter.frame_count)
            return loss

    class Eager(Compiled):
        def on_fit_start(self):
            self.compute = self._compute

    torch._dynamo.reset()
    counter = CompileCounter()
    net, _ = fit(callback(), net=Compiled)
    assert net.graphs[2] == net.graphs[-1] > 0
    assert equal(net, fit(callback(), net=Eager)[0])
    assert not equal(net, fit(net=Eager)[0])


def test_a_compiled_step_that_no_longer_returns_the_criterions_value_is_refused():
    class Fickle(Net):
        def on_fit_start(self):
            self.compute = torch.compile(self._compute, backend=CompileCounter())

        def _compute(self, x, y, factor):
            value = F.cross_entropy(self(x), y)
            return value if factor is None else factor * value

        def training_step(self, batch, batch_idx):
            return self.compute(*batch, None if batch_idx == 0 else 2.0)

    torch._dynamo.reset()
    with pytest.raises(ValueError, match="returned the criterion's value so far, and now something else"):
        fit(ReweightSamples(LossBasedReweighting()), net=Fickle)


def test_a_head_in_a_compiled_module_is_refused():
    torch._dynamo.reset()
    with pytest.raises(ValueError, match="lies in a compiled module"):
        fit(WrapHead(MultiSampleDropout()), net=compiled("the module", CompileCounter()))
    wrapped, _ = fit(WrapHead(MultiSampleDropout()), net=compiled("a part", CompileCounter()))
    assert not equal(wrapped, fit(net=compiled("a part", CompileCounter()))[0])


# -- what the Trainer does ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16-mixed"},
        {"precision": "bf16-true"},
        {"precision": "64-true"},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.1},
        {"detect_anomaly": True},
        {"deterministic": True},
        {"overfit_batches": 1},
        {"barebones": True},
        {"fast_dev_run": 2},
        {"max_steps": 4, "max_epochs": -1},
    ],
    ids=str,
)
def test_weights_of_one_under_what_the_trainer_does(settings):
    everything = [ReweightSamples(LossBasedReweighting()), WrapHead(MultiSampleDropout(num_samples=2))]
    plain, _ = fit(net=Quiet, **settings)
    probe = Probe()
    touched, _ = fit(ReweightSamples(ones), probe, net=Quiet, **settings)
    assert probe.plan.caught_calls > 0
    if settings.get("precision") == "bf16-true":  # the weighted sum is taken in float32
        assert all(torch.allclose(a, b, atol=0.05) for a, b in zip(plain.parameters(), touched.parameters()))
    else:
        assert equal(plain, touched)
    changed, _ = fit(*everything, net=Quiet, **settings)
    assert all(p.isfinite().all() for p in changed.parameters())
    assert not equal(plain, changed)


def test_lbfgs_calls_the_step_many_times():
    class Second(Quiet):
        def configure_optimizers(self):
            return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)

    plain, _ = fit(net=Second, max_epochs=1)
    probe = Probe()
    touched, _ = fit(ReweightSamples(ones), probe, net=Second, max_epochs=1)
    assert equal(plain, touched)
    assert probe.plan.caught_calls == 3 * 3, "three batches, each with up to three calls"


def test_the_learning_rate_is_found_with_the_objective():
    class Rated(Quiet):
        def __init__(self):
            super().__init__()
            self.lr = 0.1

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    calls = []

    def weighting(losses):
        calls.append(len(losses))
        return torch.ones_like(losses)

    net = Rated()
    runner = trainer(ReweightSamples(weighting), max_epochs=1)
    finder = L.pytorch.tuner.Tuner(runner).lr_find(net, loader(), num_training=4, update_attr=False)
    assert len(finder.results["loss"]) > 0
    assert len(calls) >= 3
    assert "training_step" not in vars(net)


@pytest.mark.parametrize("front", [True, False])
def test_a_callback_beside_them_does_not_rename_extra_modules(front):
    names = []

    class Names(L.Callback):
        def on_train_start(self, trainer, module):
            names.append(sorted(module.objective_modules.keys()))

    def own_head():
        return Distill(DualHead(), teacher=nn.Linear(4, 3))

    fit(own_head(), Names())
    beside = [WrapHead(MultiSampleDropout()), AddRegularizer(LogPartitionPenalty())]
    fit(*([*beside, own_head()] if front else [own_head(), *beside]), Names())
    assert names[0] == names[1] != []


def test_terms_of_one_name_are_logged_apart():
    def square(logits):
        return logits.square().mean(1)

    terms = [AddRegularizer(square), *(AddRegularizer(LogPartitionPenalty(), strength=s) for s in (1.0, 2.0))]
    terms[2].__dict__["state_key"] = "another"  # of two alike, which Lightning refuses
    _, runner = fit(*terms)
    logged = runner.callback_metrics
    assert {"train/square", "train/logpartitionpenalty", "train/logpartitionpenalty_2"} <= set(logged)
    assert logged["train/logpartitionpenalty"] == logged["train/logpartitionpenalty_2"] > 0
