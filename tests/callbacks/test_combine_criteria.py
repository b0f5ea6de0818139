"""The criteria of a step with several tasks as the terms of its loss."""

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from helpers import Net, equal, fit, loader, trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_objectives.callbacks import AddRegularizer, CombineTerms, ReplaceLoss, ReweightSamples
from lightning_objectives.combination import PCGrad, UncertaintyWeighting
from lightning_objectives.losses import FocalLoss

EXACT = {"rtol": 0, "atol": 1e-12}


class Tasks(L.LightningModule):
    """A user's module with two tasks and a term that is no criterion; ``tasks`` says how it adds them."""

    def __init__(self, tasks=lambda a, b, rest: 0.3 * a + 2 * b + rest):
        super().__init__()
        self.body = nn.Linear(4, 8, dtype=torch.float64)
        self.first, self.second = nn.Linear(8, 3, dtype=torch.float64), nn.Linear(8, 1, dtype=torch.float64)
        self.tasks = tasks
        self.backwards = 0
        self.metrics = []

    def terms(self, batch):
        x, y = batch
        hidden = self.body(x).tanh()
        hidden.register_hook(self.count)
        classes = F.cross_entropy(self.first(hidden), y)
        numbers = F.mse_loss(self.second(hidden)[:, 0], x.sum(1))
        return classes, numbers, 0.1 * self.body.weight.square().sum()

    def count(self, gradient):
        self.backwards += 1

    def training_step(self, batch, batch_idx):
        return self.tasks(*self.terms(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def trained(*callbacks, net=Tasks, **kwargs):
    return fit(*callbacks, net=net, train=loader(dtype=torch.float64), **kwargs)[0]


def assert_close(net, other):
    torch.testing.assert_close(net.state_dict(), other.state_dict(), **EXACT)


def ones(terms):
    return torch.ones_like(terms)


def of_gradients(gradients):
    return gradients.new_ones(len(gradients))


@pytest.mark.parametrize("method", [ones, of_gradients])
def test_weights_of_one_are_the_plain_run(method):
    assert_close(trained(CombineTerms(method, criteria=True)), trained())


@pytest.mark.parametrize(
    ("tasks", "weighted"),
    [
        (lambda a, b, rest: 0.3 * a + 2 * b + rest, lambda a, b, rest: 3 * 0.3 * a + 0.5 * 2 * b + rest),
        (lambda a, b, rest: (a + b) / 2, lambda a, b, rest: (3 * a + 0.5 * b) / 2),
        (lambda a, b, rest: a - b + rest, lambda a, b, rest: 3 * a - 0.5 * b + rest),
        (lambda a, b, rest: {"loss": a + b * 1, "a": a.detach()}, lambda a, b, rest: 3 * a + 0.5 * b),
        (lambda a, b, rest: torch.stack([b, a]).sum() + rest, lambda a, b, rest: 3 * a + 0.5 * b + rest),
    ],
)
@pytest.mark.parametrize("of", ["terms", "gradients"])
def test_each_criterion_is_weighted_with_its_factor(tasks, weighted, of):
    weights = torch.tensor([3.0, 0.5], dtype=torch.float64)
    method = {"terms": lambda terms: weights, "gradients": lambda gradients: weights}[of]
    assert_close(
        trained(CombineTerms(method, criteria=True), net=lambda: Tasks(tasks)), trained(net=lambda: Tasks(weighted))
    )


def test_factors_that_are_trained_keep_their_gradient():
    """The user's own uncertainty weighting: the criteria are weighted, and what belongs to the scale stays."""

    class Scaled(Tasks):
        def __init__(self, weights=None):
            super().__init__()
            self.scale, self.weights = nn.Parameter(torch.zeros((), dtype=torch.float64)), weights

        def training_step(self, batch, batch_idx):
            a, b, _ = self.terms(batch)
            factor = (-self.scale).exp()
            if self.weights is None:
                return factor * (a + b) + self.scale
            weighted = self.weights[0] * a + self.weights[1] * b
            return factor.detach() * weighted + factor * (a + b).detach() + self.scale

    callback = CombineTerms(lambda terms: torch.tensor([3.0, 0.5], dtype=torch.float64), criteria=True)
    assert_close(trained(callback, net=Scaled), trained(net=lambda: Scaled((3.0, 0.5))))


def test_pcgrad_is_the_loop_by_hand():
    class ByHand(Tasks):
        def training_step(self, batch, batch_idx):
            a, b, rest = self.terms(batch)
            terms, params = [0.3 * a, 2 * b], list(self.parameters())
            rows = []
            for term in terms:
                parts = torch.autograd.grad(term, params, retain_graph=True, materialize_grads=True)
                rows.append(torch.cat([part.flatten() for part in parts]))
            first, second = rows
            dot = first @ second
            self.metrics.append(float(dot))
            if dot < 0:
                rows = [first - dot / second.square().sum() * second, second - dot / first.square().sum() * first]
            pieces = torch.split(sum(rows), [p.numel() for p in params])
            return rest + sum((p * piece.view_as(p)).sum() for p, piece in zip(params, pieces))

    by_hand = trained(net=ByHand)
    assert min(by_hand.metrics) < 0 < max(by_hand.metrics)
    assert_close(trained(CombineTerms(PCGrad(), criteria=True)), by_hand)


class Uncertain(Tasks):
    """Uncertainty weighting, written into the module."""

    def __init__(self):
        super().__init__()
        self.s = nn.Parameter(torch.zeros(2))

    def training_step(self, batch, batch_idx):
        a, b, rest = self.terms(batch)
        weighted = (-self.s[0]).exp().double() * 0.3 * a + (-self.s[1]).exp().double() / 2 * 2 * b
        return weighted + rest + self.s.double().sum() / 2


def uncertainty():
    return CombineTerms(UncertaintyWeighting(tasks=["classification", "regression"]), criteria=True)


@pytest.mark.parametrize("kwargs", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.05}])
def test_uncertainty_weighting_is_the_one_by_hand(kwargs):
    by_hand, callback = trained(net=Uncertain, **kwargs), uncertainty()
    net = trained(callback, **kwargs)
    torch.testing.assert_close(callback.combination.log_variances.data, by_hand.s.data)
    assert callback.combination.log_variances.abs().min() > 0
    torch.testing.assert_close(
        net.state_dict(), {k: v for k, v in by_hand.state_dict().items() if k != "s"}, rtol=0, atol=1e-7
    )
    assert net.backwards == by_hand.backwards == 6  # One pass through the network, for the rest of the loss too.


def test_a_resumed_training_goes_on_with_the_log_variances(tmp_path):
    def run(ckpt_path=None):
        L.seed_everything(0, verbose=False)
        callback, net, saving = uncertainty(), Tasks(), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        runner = trainer(callback, saving, enable_checkpointing=True)
        runner.fit(net, loader(dtype=torch.float64), ckpt_path=ckpt_path)
        return net, callback.combination.log_variances

    (whole, variances), file = run(), tmp_path / "epoch=0.ckpt"
    assert not [key for key in torch.load(file, weights_only=True)["state_dict"] if "objective" in key]
    resumed, others = run(file)
    assert equal(whole, resumed)
    assert torch.equal(variances, others)


def test_added_terms_come_after_the_criteria():
    def third(network):
        return network.bias.square().sum()

    seen = []

    def weights(terms):
        seen.append(len(terms))
        return torch.tensor([1.0, 1.0, 4.0], dtype=torch.float64)

    net = trained(CombineTerms(weights, criteria=True), AddRegularizer(lambda network: third(network.first)))
    assert set(seen) == {3}

    class Added(Tasks):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + 4 * third(self.first)

    assert_close(net, trained(net=Added))


def doubled(losses):
    """1.5, 0.5, 1.5, 0.5, ..."""
    return 1.5 - torch.arange(len(losses)) % 2 * torch.ones_like(losses)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_beside_weights_of_the_samples(reduction):
    """One criterion is reweighted, then both are combined."""

    class Reduced(Tasks):
        def __init__(self, factors=None):
            super().__init__()
            self.factors = factors

        def training_step(self, batch, batch_idx):
            x, y = batch
            hidden = self.body(x).tanh()
            losses = F.cross_entropy(self.first(hidden), y, reduction=reduction)
            numbers = F.mse_loss(self.second(hidden)[:, 0], x.sum(1))
            if self.factors is None:
                return losses.mean() + numbers
            losses = F.cross_entropy(self.first(hidden), y, reduction="none")
            return 3 * (doubled(losses) * losses).mean() + 0.5 * numbers

    combine = CombineTerms(lambda terms: torch.tensor([3.0, 0.5], dtype=torch.float64), criteria=True)
    net = trained(combine, ReweightSamples(doubled, which=0), net=Reduced)
    assert_close(net, trained(net=lambda: Reduced("by hand")))


def test_a_replaced_loss_that_is_found_in_the_first_step():
    """The first criterion is a metric under a gradient, so the loss is found after the user's code got its value."""

    class Measured(Tasks):
        loss = staticmethod(F.cross_entropy)

        def training_step(self, batch, batch_idx):
            x, y = batch
            hidden = self.body(x).tanh()
            F.mse_loss(self.second(hidden)[:, 0], x.sum(1))
            return 2 * F.cross_entropy(self.first(hidden), y)

    class ByHand(Measured):
        def training_step(self, batch, batch_idx):
            return 3 * 2 * FocalLoss()(self.first(self.body(batch[0]).tanh()), batch[1]).mean()

    combine = CombineTerms(lambda terms: torch.full((1,), 3.0, dtype=torch.float64), criteria=True)
    net = trained(combine, ReplaceLoss(FocalLoss()), net=Measured)
    torch.testing.assert_close(net.state_dict(), trained(net=ByHand).state_dict(), rtol=0, atol=1e-6)


def test_a_module_with_a_compiled_part():
    class Compiled(Tasks):
        def __init__(self):
            super().__init__()
            self.body = torch.compile(self.body, backend="eager")

    net = trained(CombineTerms(ones, criteria=True), net=Compiled)
    assert_close(net, trained(net=Compiled))


def test_a_loss_without_a_criterion_is_refused():
    with pytest.raises(ValueError, match=r"Tasks\.training_step computes its loss from no criterion that is seen"):
        trained(CombineTerms(ones, criteria=True), net=lambda: Tasks(lambda a, b, rest: rest))


def test_criteria_that_change_are_refused_where_they_are_remembered():
    class Alternating(Tasks):
        def training_step(self, batch, batch_idx):
            a, b, _ = self.terms(batch)
            return a + b if batch_idx == 0 else b

    with pytest.raises(
        ValueError, match=r"has the criteria mse_loss, that of the first step had cross_entropy, mse_loss"
    ):
        trained(uncertainty(), net=Alternating)
    trained(CombineTerms(PCGrad(), criteria=True), net=Alternating)


def test_without_a_term_the_way_out_is_named():
    with pytest.raises(ValueError, match="Say criteria=True to combine the criteria of your own step"):
        fit(CombineTerms(PCGrad()))


def test_one_criterion_alone_is_one_term():
    plain, _ = fit(net=lambda: Net(dtype=torch.float64), train=loader(dtype=torch.float64))
    net, _ = fit(
        CombineTerms(PCGrad(), criteria=True), net=lambda: Net(dtype=torch.float64), train=loader(dtype=torch.float64)
    )
    torch.testing.assert_close(net.state_dict(), plain.state_dict(), **EXACT)


def test_masked_infinite_losses_stay_out():
    class Masked(Tasks):
        def training_step(self, batch, batch_idx):
            x, y = batch
            logits = self.first(self.body(x).tanh())
            logits = torch.cat([logits, torch.full_like(logits[:, :1], -torch.inf)], 1)
            losses = F.cross_entropy(logits, torch.where(y == 2, 3, y), reduction="none")
            return torch.where(losses.isfinite(), losses, 0.0).mean()

    net = trained(CombineTerms(ones, criteria=True), net=Masked)
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    assert_close(net, trained(net=Masked))


class Own(Tasks):
    """Two losses of the user's own, a method and a module, and one of torch's outside of them."""

    class Prior(nn.Module):
        def forward(self, hidden):
            return F.mse_loss(hidden, torch.zeros_like(hidden)) + hidden.abs().mean()

    def __init__(self, tasks=lambda margin, prior, classes, rest: 0.3 * margin + 2 * prior + classes + rest):
        super().__init__(tasks)
        self.prior = self.Prior()

    def margin_loss(self, scores, target):
        """It calls one of torch's criteria, which is no term of its own."""
        return {"loss": F.soft_margin_loss(scores, target.sign()) + F.mse_loss(scores, target) / 2, "scores": scores}

    def terms(self, batch):
        x, y = batch
        hidden = self.body(x).tanh()
        margin = self.margin_loss(self.second(hidden)[:, 0], x.sum(1))["loss"]
        return margin, self.prior(hidden), F.cross_entropy(self.first(hidden), y), self.body.bias.square().sum()


NAMES = ["margin_loss", "prior"]


def test_named_criteria_are_terms_beside_those_of_torch():
    seen = []

    def weights(terms):
        seen.append(len(terms))
        return terms.new_tensor([3.0, 0.5, 2.0])

    net = trained(CombineTerms(weights, criteria=NAMES), net=Own)
    assert {*seen} == {3}
    by_hand = lambda margin, prior, classes, rest: 0.9 * margin + prior + 2 * classes + rest  # noqa: E731
    assert_close(net, trained(net=lambda: Own(by_hand)))


def test_weights_of_one_leave_a_training_with_named_criteria_alone():
    assert_close(trained(CombineTerms(ones, criteria=NAMES), net=Own), trained(net=Own))


def test_without_their_names_the_criteria_inside_are_the_terms():
    names = []

    def watch(terms):
        names.append(len(terms))
        return torch.ones_like(terms)

    trained(CombineTerms(watch, criteria=True), net=Own)
    assert {*names} == {3}  # The two MSE and cross entropy. A soft margin loss is not seen.


def test_a_gradient_method_on_named_criteria_is_that_by_hand():
    class ByHand(Own):
        def training_step(self, batch, batch_idx):
            *terms, rest = self.terms(batch)
            terms = [0.3 * terms[0], 2 * terms[1], terms[2]]
            params = [*self.parameters()]
            gradients = [torch.autograd.grad(t, params, retain_graph=True, allow_unused=True) for t in terms]
            rows = torch.stack([flat(of_term, params) for of_term in gradients])
            return sum(w * t for w, t in zip(by_length(rows), terms)) + rest

    def by_length(gradients):
        return 1 / gradients.norm(dim=1)

    def flat(gradients, params):
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(gradients, params)])

    assert_close(trained(CombineTerms(by_length, criteria=NAMES), net=Own), trained(net=ByHand))


def test_another_callback_acts_on_the_criterion_of_torch_outside():
    class ByHand(Own):
        def terms(self, batch):
            margin, prior, _, rest = super().terms(batch)
            hidden = self.body(batch[0]).tanh()
            return margin, prior, FocalLoss()(self.first(hidden), batch[1]).mean(), rest

    net = trained(CombineTerms(ones, criteria=NAMES), ReplaceLoss(FocalLoss()), net=Own)
    torch.testing.assert_close(net.state_dict(), trained(net=ByHand).state_dict(), rtol=0, atol=1e-6)


def test_nothing_stays_patched_and_a_second_fit_is_the_same():
    callback = CombineTerms(ones, criteria=NAMES)
    net = trained(callback, net=Own)
    assert "forward" not in vars(net.prior)
    assert "margin_loss" not in vars(net)
    assert_close(trained(callback, net=Own), trained(net=Own))


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["margin_loss", "lost"], "criterion='lost' names nothing callable on Own"),
        (["prior", "first"], "criteria names first, whose value is not in the loss that Own.training_step returns"),
    ],
)
def test_a_name_that_is_no_term_is_refused(names, why):
    class Aside(Own):
        def first_aside(self):
            """Never in the loss."""

        def training_step(self, batch, batch_idx):
            return self.prior(self.body(batch[0]))

    Aside.__name__ = "Own"
    with pytest.raises(ValueError, match=why):
        trained(CombineTerms(ones, criteria=names), net=Aside)


def test_a_criterion_that_is_named_twice_is_refused():
    both = CombineTerms(ones, criteria=NAMES), ReplaceLoss(FocalLoss(), criterion="margin_loss")
    with pytest.raises(ValueError, match=r"criterion='margin_loss' is a term of the loss already\. Leave it out of"):
        trained(*both, net=Own)


def test_one_path_without_a_list_is_refused():
    with pytest.raises(ValueError, match=r"criteria='prior' must be a list of paths: criteria=\['prior'\]"):
        CombineTerms(ones, criteria="prior")


def test_a_metric_before_the_criterion_of_torch_does_not_shift_the_terms():
    class Measured(Own):
        loss = staticmethod(F.cross_entropy)

        def training_step(self, batch, batch_idx):
            x, y = batch
            hidden = self.body(x).tanh()
            margin = self.margin_loss(self.second(hidden)[:, 0], x.sum(1))["loss"]
            F.mse_loss(self.second(hidden)[:, 0], x.sum(1))
            return margin + 2 * self.loss(self.first(hidden), y)

    class ByHand(Measured):
        @staticmethod
        def loss(logits, target):
            return 5 * FocalLoss()(logits, target).mean()

    combine = CombineTerms(lambda terms: terms.new_tensor([1.0, 5.0]), criteria=["margin_loss"])
    net = trained(combine, ReplaceLoss(FocalLoss()), net=Measured)
    torch.testing.assert_close(net.state_dict(), trained(net=ByHand).state_dict(), rtol=0, atol=1e-6)
