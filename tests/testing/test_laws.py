"""Each law is seen to hold for a sound method and to fail for one with a planted fault."""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric

from lightning_objectives import kinds
from lightning_objectives.shapes import check_shapes, check_steps, check_tensors, forms
from lightning_objectives.testing import assert_laws, build, laws_of
from lightning_objectives.testing.laws import LAWS


# Sound methods, one a kind, that the faults below start from.
class Swap(kinds.BatchTransform):
    def forward(self, inputs, generator):
        check_shapes(inputs=inputs)
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device, non_blocking=True)
        index = torch.stack([torch.arange(len(inputs), device=inputs.device), order], dim=1)
        return (inputs + inputs[order]) / 2, index, torch.full_like(index, 0.5, dtype=torch.float32)


class Dropped(kinds.Head):
    def forward(self, features, head, generator):
        check_shapes({"features": forms("(N, ..., D)")}, features=features)
        draw = torch.rand(3, *features.shape, generator=generator).to(features.device, non_blocking=True)
        keep = draw > 0.5
        return head(features * keep * 2 if self.training else features.expand(3, *features.shape))


class Noise(kinds.Surgery):
    """Noise on what a layer returns, weights of ones, and a layer that freezes by and by."""

    def prepare(self, layer, place):
        for parameter in layer.parameters():
            torch.nn.init.ones_(parameter)

    def call(self, layer, place, inner, *args, **kwargs):
        output = inner(*args, **kwargs)
        return output * torch.empty_like(output).uniform_(0.5, 1.5)

    def frozen(self, place):
        return place.number < 3 * place.part_done()


class Features(Dropped):
    """Its stacks are those of its features."""

    def stacked_features(self, features, generator):
        draw = torch.rand(3, *features.shape, generator=generator).to(features.device, non_blocking=True)
        return features * (draw > 0.5) * 2 if self.training else features.expand(3, *features.shape)


def power_loss(logits: Tensor, target: Tensor, *, power: float = 2.0) -> Tensor:
    check_shapes(logits=logits, target=target)
    return F.cross_entropy(logits, target, reduction="none") ** power


class PowerLoss(kinds.Loss):
    function = staticmethod(power_loss)

    def __init__(self, *, power: float = 2.0):
        super().__init__()
        self.power = power

    def forward(self, logits, target):
        return power_loss(logits, target, power=self.power)


class Share(kinds.Weighting):
    def forward(self, losses):
        check_shapes(losses=losses)
        losses = losses.detach()
        finite = losses.isfinite()
        losses = torch.where(finite, losses, 0)
        return losses / (losses.sum() / finite.sum())


class Distance(kinds.Distillation):
    def forward(self, logits, teacher_logits):
        check_shapes(logits=logits, teacher_logits=teacher_logits)
        return (logits - teacher_logits.detach()).abs().sum(1)


class Confidence(kinds.Regularizer):
    def forward(self, logits):
        check_shapes(logits=logits)
        return logits.softmax(1).square().sum(1)


class Even(kinds.Combination):
    def forward(self, gradients):
        check_shapes(gradients=gradients)
        return gradients.new_full((len(gradients),), 1 / len(gradients))


class Mean(kinds.Rule):
    by_tensor = True

    def update(self, state, params: Sequence[Tensor], *, step: int, start: int = 0) -> None:
        check_tensors(params, average=state.slots["average"])
        state.updates += 1
        torch._foreach_lerp_(state.slots["average"], list(params), 1 / state.updates)


class Plain(kinds.Merge):
    def coefficients(self, steps: Sequence[int]) -> Tensor:
        check_steps(steps)
        return torch.full((len(steps),), 1 / len(steps))


class FromTheBase(kinds.Merge):
    linear, asks, by_element = False, ("base",), True

    def tensor(self, weights, *, base=None, importance=None, generator=None, statistics=None):
        pulls = torch.stack([base - weight for weight in weights])
        return base - pulls.clamp(-1, 1).sort(0).values.mean(0)


class Halving(LRScheduler):
    def get_lr(self):
        return [peak / 2**self.last_epoch for peak in self.base_lrs]


class MeanLoss(Metric):
    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, logits, target):
        check_shapes(logits=logits, target=target)
        self.total += F.cross_entropy(logits, target, reduction="sum")
        self.count += len(target)

    def compute(self):
        return self.total / self.count


class Momentum(kinds.GradientTransform):
    def init(self, params):
        return {"velocity": [torch.zeros_like(p) for p in params]}

    def update(self, gradients, params, state):
        check_tensors(params, gradients=gradients)
        for v, g in zip(state["velocity"], gradients):
            if g is not None:
                v.mul_(0.9).add_(g)
        return [None if g is None else v.clone() for v, g in zip(state["velocity"], gradients)]


def uphill(gradients, params, *, rho=0.1):
    check_tensors([params[name] for name in gradients], gradients=list(gradients.values()))
    return {name: rho * gradient for name, gradient in gradients.items()}


class Uphill(kinds.Perturbation):
    function = staticmethod(uphill)

    def __init__(self, *, rho: float = 0.1):
        self.rho = rho

    def active(self, *, step):
        return self.rho > 0

    def offsets(self, gradients, params, *, generator=None):
        return uphill(gradients, params, rho=self.rho)


class Shaken(kinds.Perturbation):
    uses_gradients = False

    def offsets(self, gradients, params, *, generator=None):
        return {name: torch.empty_like(p).normal_(generator=generator) for name, p in params.items()}


class Warmth(kinds.Calibrator):
    keeps_top_class = True

    def __init__(self):
        super().__init__()
        self.register_buffer("beta", torch.ones(()))

    def fit(self, logits, target):
        check_shapes(logits=logits, target=target)
        betas = torch.linspace(0.1, 5, 50)
        self.beta.fill_(min([*betas.tolist(), 1.0], key=lambda b: F.cross_entropy(logits * b, target).item()))

    def forward(self, logits):
        check_shapes(logits=logits)
        return (logits * self.beta).softmax(1)


def sharper(logits, features, *, power=2.0):
    check_shapes(logits=logits, features=features)
    return power * logits


class Sharper(kinds.Adapter):
    function = staticmethod(sharper)

    def __init__(self, *, power: float = 2.0):
        self.power = power

    def predict(self, logits, features):
        return sharper(logits, features, power=self.power)


class Smaller(kinds.Adapter):
    """Shrinks the shifts by the features, and normalizes with the batch."""

    def statistics(self, inputs, mean, var):
        return None

    def adapts(self, network):
        found = {name: p for name, p in network.named_parameters() if name.endswith("norm.bias")}
        if not found:
            raise ValueError(f"{type(network).__name__} has no norm.bias.")
        return found

    def init(self, params):
        return {"steps": 0}

    def update(self, logits, features, params, state, *, again):
        state["steps"] += 1
        (bias,) = params.values()
        (gradient,) = torch.autograd.grad(features.square().mean(), [bias])
        with torch.no_grad():
            bias.sub_(gradient / state["steps"])


class MeanOfTheBatch(kinds.Adapter):
    """BatchNorm with the mean of the batch."""

    def statistics(self, inputs, mean, var):
        return inputs.detach().movedim(1, 0).flatten(1).float().mean(1), var.clone()


class Likely(kinds.SetPredictor):
    """The classes whose probability is not below a quantile of those of the targets."""

    def __init__(self, *, alpha: float = 0.1):
        super().__init__()
        self.alpha = alpha
        self.register_buffer("least", torch.zeros((), dtype=torch.float64))

    def fit(self, logits, target, generator=None):
        check_shapes(logits=logits, target=target)
        own, rank = logits.softmax(1).gather(1, target[:, None]).flatten(), int(self.alpha * (len(target) + 1) + 1e-9)
        self.least.copy_(own.sort().values[rank - 1] if rank else torch.zeros(()))

    def forward(self, logits, generator=None):
        check_shapes(logits=logits)
        return logits.softmax(1) >= self.least


class MeanLogits(kinds.Survey):
    def forward(self, logits):
        check_shapes(logits=logits)
        return {"mean": logits.detach().sum(0)}

    def result(self, sums, rows):
        return {"mean": sums["mean"] / rows}


# -- what waits for a GPU, or leaves it


class ProvesFirst(PowerLoss):
    """A first call may wait."""

    proved = False

    def forward(self, logits, target):
        losses = super().forward(logits, target)
        self.proved = self.proved or bool(losses.isfinite().all())
        return losses


class ReadsTheLoss(PowerLoss):
    def forward(self, logits, target):
        losses = super().forward(logits, target)
        return losses / max(losses.detach().amax().item(), 1e-9)


class DropsRows(Share):
    def forward(self, losses):
        weights = super().forward(losses)
        weights[weights > 2] = weights[weights > 2].mean()
        return weights


class DrawsOnTheHost(kinds.Regularizer):
    def forward(self, logits):
        return (logits * torch.ones(logits.shape[1])).square().mean()


class KeepsATable(kinds.Regularizer):
    """A tensor that is no buffer does not follow the module."""

    def __init__(self):
        super().__init__()
        self.table = torch.ones(4)

    def forward(self, logits):
        return (logits * self.table).square().mean()


class BuildsFromData(kinds.Combination):
    def forward(self, gradients):
        return torch.tensor([1 / len(gradients)] * len(gradients), device=gradients.device)


class AnswersOnTheHost(kinds.Combination):
    def forward(self, gradients):
        return torch.full((len(gradients),), 1 / len(gradients))


class SaysThatItWaits(Even):
    waits = "it counts something"


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits):
        return logits.square().mean()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.ones(6, 3) if bool(gradient > 0) else None


class BranchesInTheBackwardPass(kinds.Regularizer):
    def forward(self, logits):
        return _Masked.apply(logits)


class StepsByANumber(Uphill):
    def offsets(self, gradients, params, *, generator=None):
        offsets = super().offsets(gradients, params, generator=generator)
        size = float(sum(o.float().square().sum() for o in offsets.values()))
        return {name: offset / max(1.0, size) for name, offset in offsets.items()}


class ClipsByAMask(Momentum):
    def update(self, gradients, params, state):
        return [g if g is None else g.clone().masked_scatter_(g > 1, g[g > 1] / 2) for g in gradients]


class StopsWhereItIs(Mean):
    def update(self, state, params, *, step, start=0):
        if torch.equal(state.slots["average"][0], params[0]):
            state.updates += 1
        else:
            super().update(state, params, step=step, start=start)


class CountsAsItGoes(MeanLoss):
    def update(self, logits, target):
        super().update(logits, target)
        self.seen = int(self.count)


class DrawsElsewhere(Shaken):
    """The generator is that of the parameters' device."""

    def offsets(self, gradients, params, *, generator=None):
        return {name: torch.randn(p.shape, generator=generator).to(p) for name, p in params.items()}


SOUND = [Swap, Dropped, PowerLoss, Share, Distance, Confidence, Even, Momentum, Mean, Warmth, Plain, FromTheBase]

SOUND += [
    Noise,
    Features,
    Likely,
    Halving,
    MeanLoss,
    Uphill,
    Shaken,
    Sharper,
    Smaller,
    MeanOfTheBatch,
    ProvesFirst,
    MeanLogits,
]


# The same with one fault each, filed under the law that must see it.
class CroppedInputs(Swap):
    def forward(self, inputs, generator):
        inputs, index, weight = super().forward(inputs, generator)
        return inputs[:, :1], index, weight


class TooMuchLabel(Swap):
    def forward(self, inputs, generator):
        inputs, index, weight = super().forward(inputs, generator)
        return inputs, index, weight + 0.1


class RowsThatAreNotThere(Swap):
    def forward(self, inputs, generator):
        inputs, index, weight = super().forward(inputs, generator)
        return inputs, index + 1, weight


class KeepsTheGraph(MeanLogits):
    def forward(self, logits):
        return {"mean": logits.sum(0)}


class ListOfSums(MeanLogits):
    def forward(self, logits):
        return [logits.detach().sum(0)]


class InfiniteSum(MeanLogits):
    def forward(self, logits):
        return {"mean": logits.detach().sum(0) / 0}


class SumsOfMeans(MeanLogits):
    def forward(self, logits):
        return {"mean": logits.detach().mean(0)}


class NamedAfterTheBatch(MeanLogits):
    def forward(self, logits):
        return {f"sum_of_{len(logits)}": logits.detach().sum(0)}


class FirstRowTwice(MeanLogits):
    def forward(self, logits):
        return {"mean": logits.detach().sum(0) + logits.detach()[0]}


class DividesInPlace(MeanLogits):
    def result(self, sums, rows):
        return {"mean": sums["mean"].div_(rows)}


class CountsItsResults(MeanLogits):
    count = 0

    def result(self, sums, rows):
        self.count += 1
        return {"mean": sums["mean"] / self.count}


class NumbersForTensors(MeanLogits):
    def result(self, sums, rows):
        return {"mean": float(sums["mean"].sum())}


SEEDS = itertools.count()


class OtherDraws(Swap):
    def forward(self, inputs, generator):
        return super().forward(inputs, torch.Generator().manual_seed(next(SEEDS)))


class MeanOfStacks(Dropped):
    def forward(self, features, head, generator):
        return super().forward(features, head, generator).mean(0)


class OwnHead(Dropped):
    def __init__(self):
        super().__init__()
        self.own = nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, features, head, generator):
        return torch.stack([head(features), self.own(features)])


class Centred(Dropped):
    def forward(self, features, head, generator):
        return super().forward(features - features.mean(0), head, generator)


class AlwaysDrops(Dropped):
    def forward(self, features, head, generator):
        return head(features * (torch.rand(3, *features.shape, generator=generator) > 0.5))


class Reduced(PowerLoss):
    def forward(self, logits, target):
        return super().forward(logits, target).mean()


class FirstCountsDouble(PowerLoss):
    def forward(self, logits, target):
        loss = super().forward(logits, target)
        return torch.cat([2 * loss[:1], loss[1:]])


class HalfDetached(PowerLoss):
    def forward(self, logits, target):
        loss = F.cross_entropy(logits, target, reduction="none")
        return loss * loss.detach()


class LogOfSoftmax(PowerLoss):
    def forward(self, logits, target):
        return -logits.softmax(1).log().gather(1, target[:, None])[:, 0]


class OtherDefault(PowerLoss):
    def __init__(self, *, power: float = 1.5):
        super().__init__(power=power)


class OtherFormula(PowerLoss):
    def forward(self, logits, target):
        return super().forward(logits, target) + 1


class SumsToOne(Share):
    def forward(self, losses):
        return super().forward(losses) / len(losses)


class ByIndexOfRow(Share):
    def forward(self, losses):
        weights = torch.arange(len(losses)) + 1.0
        return weights / weights.mean()


class OpenToGradient(Share):
    def forward(self, losses):
        return losses / losses.mean()


class SpoiltByOne(Share):
    def forward(self, losses):
        return losses.detach() / losses.detach().mean()


class WritesToLosses(Share):
    def forward(self, losses):
        return super().forward(losses.abs_().add_(1))


class GlobalNoise(Share):
    def forward(self, losses):
        torch.rand(())
        return super().forward(losses)


class Shifted(Distance):
    def forward(self, logits, teacher_logits):
        return (logits - teacher_logits.detach() - 1).abs().sum(1)


class TeachesTheTeacher(Distance):
    def forward(self, logits, teacher_logits):
        return (logits - teacher_logits).abs().sum(1)


class TeachesNobody(Distance):
    def forward(self, logits, teacher_logits):
        return super().forward(logits, teacher_logits).detach()


class AValueAClass(Confidence):
    def forward(self, logits):
        return logits.square()


class Unnormalised(Even):
    def forward(self, gradients):
        return torch.full((len(gradients),), 1 / 3)


class OneWeight(Even):
    def forward(self, gradients):
        return torch.ones(1)


class Flat(Momentum):
    def update(self, gradients, params, state):
        return [None if g is None else g.flatten() for g in super().update(gradients, params, state)]


class Widened(Momentum):
    def update(self, gradients, params, state):
        return [None if g is None else g.float() for g in super().update(gradients, params, state)]


class FillsIn(Momentum):
    def update(self, gradients, params, state):
        gradients = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, params)]
        return super().update(gradients, params, state)


class InPlace(Momentum):
    def update(self, gradients, params, state):
        return [None if g is None else g.mul_(0.5) for g in gradients]


class Decays(Momentum):
    def update(self, gradients, params, state):
        for p in params:
            p.mul_(0.5)
        return super().update(gradients, params, state)


class NoisyGradient(Momentum):
    def update(self, gradients, params, state):
        return [None if g is None else g + torch.rand(()).to(g) for g in gradients]


class OtherNoise(Momentum):
    def update(self, gradients, params, state):
        generator = torch.Generator().manual_seed(next(SEEDS))
        return [None if g is None else g + torch.rand((), generator=generator).to(g) for g in gradients]


class MemoryBeside(Momentum):
    def __init__(self):
        self.steps = 0

    def update(self, gradients, params, state):
        self.steps += 1
        return [None if g is None else g / self.steps for g in gradients]


class SharesOfTheGreatest(Warmth):
    def forward(self, logits):
        p = super().forward(logits)
        return p / p.amax(1, keepdim=True)


class Colder(Warmth):
    def fit(self, logits, target):
        self.beta.fill_(3.0)


class LeastFirst(Warmth):
    def forward(self, logits):
        return super().forward(-logits)


class FitsAnAttribute(Warmth):
    def __init__(self):
        super().__init__()
        self.b = 1.0

    def fit(self, logits, target):
        super().fit(logits, target)
        self.b = self.beta.item()
        self.beta.fill_(1.0)

    def forward(self, logits):
        return (logits * self.b).softmax(1)


class Exponentials(Warmth):
    def forward(self, logits):
        e = (logits * self.beta).exp()
        return e / e.sum(1, keepdim=True)


class Shares(Likely):
    def forward(self, logits, generator=None):
        return super().forward(logits).float()


class OneRowTooMany(Likely):
    """Takes the quantile for the next greater share of rows."""

    def fit(self, logits, target, generator=None):
        super().fit(logits, target)
        own = logits.softmax(1).gather(1, target[:, None]).flatten()
        self.least.copy_(own[own > self.least].amin())


class TurnsAlphaAround(Likely):
    def fit(self, logits, target, generator=None):
        self.alpha = 1 - self.alpha
        super().fit(logits, target)


class KeepsTheFirstClass(Likely):
    def forward(self, logits, generator=None):
        return super().forward(logits) | (torch.arange(logits.shape[1], device=logits.device) == 0)


class TrustsTheFirstRows(Likely):
    def fit(self, logits, target, generator=None):
        super().fit(logits, target)
        first = logits.softmax(1).gather(1, target[:, None])[:30]
        self.least.copy_(torch.minimum(self.least, first.amin() if len(first) else self.least))


class DoesWithFewRows(Likely):
    def fit(self, logits, target, generator=None):
        super().fit(logits, target)
        if 0 < len(target) < 9:
            self.least.copy_(logits.softmax(1).gather(1, target[:, None]).amin())


class DrawsTheQuantileElsewhere(Likely):
    def fit(self, logits, target, generator=None):
        super().fit(logits, target)
        self.least.mul_(torch.rand(()))


class SilentSets(Likely):
    def fit(self, logits, target, generator=None):
        self.least.fill_(0.1)


class KeepsTheLeastAside(Likely):
    aside = 0.0

    def fit(self, logits, target, generator=None):
        super().fit(logits, target)
        self.aside = self.least.item()
        self.least.zero_()

    def forward(self, logits, generator=None):
        check_shapes(logits=logits)
        return logits.softmax(1) >= self.aside


class Doubled(Mean):
    def init(self, params):
        return kinds.AverageState({"average": [p.detach().double() for p in params]})

    def update(self, state, params, *, step, start=0):
        super().update(state, [p.double() for p in params], step=step, start=start)


class Uncounted(Mean):
    def update(self, state, params, *, step, start=0):
        super().update(state, params, step=1, start=0)
        state.updates = 1


class Biased(Mean):
    def read(self, state, params, *, step):
        return [0.99 * a for a in state.slots["average"]]


class BiasedOnceStartedLate(Mean):
    def read(self, state, params, *, step):
        return [a * min(1, 9 / step) for a in state.slots["average"]]


class MemoryOfItsOwn(Mean):
    def __init__(self):
        self.seen = 0

    def update(self, state, params, *, step, start=0):
        self.seen = min(self.seen + 1, 4)
        state.updates += 1
        torch._foreach_lerp_(state.slots["average"], list(params), 1 / self.seen)


class DividesByTheNormOfAll(Mean):
    def update(self, state, params, *, step, start=0):
        norm = sum(p.square().sum() for p in params).sqrt()
        super().update(state, [p / norm for p in params], step=step, start=start)


class ReadsTheNormOfAll(Mean):
    def read(self, state, params, *, step):
        norm = sum(p.square().sum() for p in params).sqrt()
        return [average / norm for average in state.slots["average"]]


class ReadsOnce(Mean):
    def read(self, state, params, *, step):
        state.slots["average"] = [(a + p) / 2 for a, p in zip(state.slots["average"], params)]
        return state.slots["average"]


class HandsOutTheLiveWeights(Mean):
    def read(self, state, params, *, step):
        return list(params) if step < 3 else super().read(state, params, step=step)


class WritesToTheLiveWeights(Mean):
    def update(self, state, params, *, step, start=0):
        super().update(state, params, step=step, start=start)
        for live in params:
            live.mul_(0.5)


class ForgetsASetting(kinds.Rule):
    def __init__(self, *, decay: float = 0.5):
        self.decay = decay

    def __repr__(self):
        return "ForgetsASetting()" if self.decay == 0.5 else "ForgetsASetting(decay)"


class MeanOfMeans(MeanLoss):
    def update(self, logits, target):
        self.total += F.cross_entropy(logits, target)
        self.count += 1


class RanksByMax(MeanLoss):
    def __init__(self):
        super().__init__()
        self.add_state("count", torch.zeros(()), dist_reduce_fx="max")


class FullState(MeanLoss):
    full_state_update = True


class OutsideOfTheStates(MeanLoss):
    def __init__(self):
        super().__init__()
        self.extra = 0

    def update(self, logits, target):
        super().update(logits, target)
        self.extra += len(target)

    def compute(self):
        return self.total / self.extra


class Unpicklable(MeanLoss):
    def __getstate__(self):
        return {**super().__getstate__(), "total": torch.zeros(())}


class Grows(MeanLoss):
    def __init__(self):
        super().__init__()
        self.add_state("seen", torch.zeros(0), dist_reduce_fx="cat")

    def update(self, logits, target):
        super().update(logits, target)
        self.seen = torch.cat([self.seen, target.float()])


class SharesOfATable(kinds.Weighting):
    def forward(self, losses):
        return torch.ones_like(losses)


class CoarseInputs(kinds.BatchTransform):
    def forward(self, inputs, generator):
        return Swap().forward(inputs.reshape(-1, 1), generator)


class OneRow(kinds.Head):
    def forward(self, features, head):
        return head(features.expand(2, *features.shape))


class BareCriterion(kinds.Loss):
    def forward(self, logits, target):
        return F.cross_entropy(logits, target, reduction="none")


class BroadcastTeacher(kinds.Distillation):
    def forward(self, logits, teacher_logits):
        return (logits - teacher_logits.detach()).abs().sum(-1)


class LastAxis(kinds.Regularizer):
    def forward(self, logits):
        return logits.square().sum(-1)


class FirstAxis(kinds.Combination):
    def forward(self, gradients):
        return torch.full((len(gradients),), 1 / len(gradients))


class SilentWarmth(Warmth):
    def fit(self, logits, target):
        self.beta.fill_(2.0)


class AsFarAsTheyGo(Momentum):
    def update(self, gradients, params, state):
        return [None if g is None else g * 0.5 * p.abs().sum().sign() for g, p in zip(gradients, params)]


class BroadcastMean(kinds.Rule):
    def update(self, state, params, *, step, start=0):
        state.updates += 1
        for average, param in zip(state.slots["average"], params):
            average.lerp_(param, 1 / state.updates)


class AnyOrder(kinds.Merge):
    def coefficients(self, steps):
        return torch.full((len(steps),), 1 / max(1, len(steps)))


class Broadcasts(MeanLoss):
    def update(self, logits, target):
        self.total += (logits.sum(-1) - target).sum()
        self.count += len(target)


class ForgetsTheNewest(Plain):
    def coefficients(self, steps):
        return super().coefficients(steps[:-1]) if len(steps) > 1 else torch.ones(1)


class HalfOfOne(Plain):
    def coefficients(self, steps):
        return super().coefficients(steps) / 2


class TooHeavy(Plain):
    def coefficients(self, steps):
        return super().coefficients(steps) * 1.01


class OtherShares(Plain):
    calls = 0

    def coefficients(self, steps):
        OtherShares.calls += 1
        first = 1 / (1 + OtherShares.calls)
        rest = [(1 - first) / max(1, len(steps) - 1)] * (len(steps) - 1)
        return torch.tensor([first, *rest]) if rest else torch.ones(1)


class AddsTheChange(FromTheBase):
    """-0 + 0 is +0."""

    def tensor(self, weights, *, base=None, **rest):
        return base + torch.stack([weight - base for weight in weights]).mean(0)


class RoundsTheMean(FromTheBase):
    asks = ()

    def tensor(self, weights, **rest):
        return sum(weight / len(weights) for weight in weights)


class FirstFileDouble(FromTheBase):
    def tensor(self, weights, *, base=None, **rest):
        return base - sum((base - weight for weight in weights), base - weights[0]) / (len(weights) + 1)


class SubtractsTheNorm(FromTheBase):
    def tensor(self, weights, *, base=None, **rest):
        pull = sum(base - weight for weight in weights)
        return base - pull / (1 + pull.norm())


class InTheFile(FromTheBase):
    def tensor(self, weights, *, base=None, **rest):
        return super().tensor([weight.mul_(2) for weight in weights], base=base)


class Drawn(FromTheBase):
    def tensor(self, weights, *, base=None, **rest):
        return super().tensor(weights, base=base) * torch.rand(())


class DrawnFromNowhere(FromTheBase):
    def tensor(self, weights, *, base=None, **rest):
        with torch.random.fork_rng():
            torch.seed()
            return super().tensor(weights, base=base) * torch.rand(())


class OtherShareOfTheFunction(Plain):
    function = staticmethod(lambda steps: torch.ones(len(steps)))


class ByStep(Plain):
    def coefficients(self, steps):
        return torch.tensor(steps) / sum(steps) if sum(steps) else super().coefficients(steps)


class MovesAll(Uphill):
    """Also what has no gradient."""

    def offsets(self, gradients, params, *, generator=None):
        return {name: torch.zeros_like(p) for name, p in params.items()} | super().offsets(gradients, params)


class InSinglePrecision(Uphill):
    def offsets(self, gradients, params, *, generator=None):
        return {name: offset.float() for name, offset in super().offsets(gradients, params).items()}


class ShrinksTheWeights(Uphill):
    def offsets(self, gradients, params, *, generator=None):
        torch._foreach_mul_(list(params.values()), 0.5)
        return super().offsets(gradients, params)


class InTheGradients(Uphill):
    def offsets(self, gradients, params, *, generator=None):
        return {name: gradient.mul_(self.rho) for name, gradient in gradients.items()}


class DividesByZero(Uphill):
    def offsets(self, gradients, params, *, generator=None):
        return {name: g / g.norm() for name, g in super().offsets(gradients, params).items()}


class Downhill(Uphill):
    def offsets(self, gradients, params, *, generator=None):
        return {name: -offset for name, offset in super().offsets(gradients, params).items()}


class ActiveAtZero(Uphill):
    def active(self, *, step):
        return True


class MovesAtZero(Uphill):
    def offsets(self, gradients, params, *, generator=None):
        return uphill(gradients, params, rho=self.rho + 0.1)


class ShakenByAll(Shaken):
    def offsets(self, gradients, params, *, generator=None):
        return super().offsets(gradients, params)


class AlwaysShakenAlike(Shaken):
    def offsets(self, gradients, params, *, generator=None):
        return super().offsets(gradients, params, generator=torch.Generator().manual_seed(0))


class AnyShape(Uphill):
    function = None

    def offsets(self, gradients, params, *, generator=None):
        return {name: 0.1 * gradient for name, gradient in gradients.items()}


class FartherThanItsFunction(Uphill):
    def __init__(self, *, rho: float = 0.2):
        super().__init__(rho=rho)


class OtherStepThanItsFunction(Uphill):
    def offsets(self, gradients, params, *, generator=None):
        return uphill(gradients, params, rho=self.rho**2)


class NamesWhatIsNotThere(Smaller):
    def adapts(self, network):
        return {f"model.{name}": p for name, p in super().adapts(network).items()}


class NamesNothing(Smaller):
    def adapts(self, network):
        return {}

    def update(self, logits, features, params, state, *, again):
        pass


class TakesAnything(Smaller):
    def adapts(self, network):
        return {name: p for name, p in network.named_parameters() if name.endswith("norm.bias")}


class MovesTheHead(Smaller):
    def adapts(self, network):
        self.head = network.fc
        return super().adapts(network)

    def update(self, logits, features, params, state, *, again):
        super().update(logits, features, params, state, again=again)
        self.head.bias.data.mul_(0.9)


class MovesNothing(Smaller):
    def update(self, logits, features, params, state, *, again):
        again()


class CountsBeside(Smaller):
    def __init__(self):
        self.steps = 0

    def update(self, logits, features, params, state, *, again):
        self.steps = state["steps"] = self.steps + 1
        super().update(logits, features, params, state, again=again)


class TracksStatistics(MeanOfTheBatch):
    def statistics(self, inputs, mean, var):
        return mean.lerp_(super().statistics(inputs, mean, var)[0], 0.5), var.clone()


class WideStatistics(MeanOfTheBatch):
    def statistics(self, inputs, mean, var):
        return mean.double(), var.double()


class StatisticsWithAGradient(MeanOfTheBatch):
    def statistics(self, inputs, mean, var):
        return inputs.movedim(1, 0).flatten(1).float().mean(1), var.clone()


class NegativeVariance(MeanOfTheBatch):
    def statistics(self, inputs, mean, var):
        return mean.clone(), var - 9


class OneRowLess(Sharper):
    def predict(self, logits, features):
        return super().predict(logits, features)[1:]


class InfinitePredictions(Sharper):
    def predict(self, logits, features):
        return super().predict(logits, features).exp()


class WritesToTheLogits(Sharper):
    def predict(self, logits, features):
        return super().predict(logits, features) + 0 * logits.mul_(0.5)


class FollowsTheRowBefore(Sharper):
    def predict(self, logits, features):
        return super().predict(logits, features) + logits.roll(1, 0)


class AnyLogits(Sharper):
    function = None

    def predict(self, logits, features):
        return self.power * logits


class NoisyPredictions(Sharper):
    def predict(self, logits, features):
        torch.rand(())
        return super().predict(logits, features)


class SharperThanItsFunction(Sharper):
    def predict(self, logits, features):
        return super().predict(logits, features) * 1.1


class SharperByDefault(Sharper):
    def __init__(self, *, power: float = 3.0):
        super().__init__(power=power)


class AsksTheLogits(Sharper):
    def predict(self, logits, features):
        return super().predict(logits, features) if bool((logits > 0).any()) else logits.clone()


class Rising(Halving):
    def get_lr(self):
        return [peak * (1 + self.last_epoch) for peak in self.base_lrs]


class MemoryOutsideOfTheState(Halving):
    def __init__(self, optimizer):
        self.past = []
        super().__init__(optimizer)

    def state_dict(self):
        return {"last_epoch": self.last_epoch}

    def get_lr(self):
        self.past.append(1)
        return [peak / len(self.past) for peak in self.base_lrs]


class BeginsAtItsFirstLoss(kinds.Regularizer):
    """Keeps where it began in a plain attribute."""

    start = None

    def forward(self, losses):
        check_shapes(losses=losses)
        self.start = losses.detach().mean() if self.start is None else self.start
        return (losses - self.start).square()


class CountsItsSteps(kinds.Loss):
    """Keeps the number of its steps in a plain attribute."""

    count = 0

    def forward(self, logits, target):
        check_shapes(logits=logits, target=target)
        self.count += 1
        return F.cross_entropy(logits, target, reduction="none") / self.count


class LeansOnOthers(kinds.Loss):
    def forward(self, logits, target):
        check_shapes(logits=logits, target=target)
        return F.cross_entropy(logits - logits.mean(0), target, reduction="none")


class OneNumber(kinds.Regularizer):
    def forward(self, logits):
        check_shapes(logits=logits)
        return logits.square().mean()


class SaysThatItsRowsAreCoupled(PowerLoss):
    coupled = "it is said so"


class AddsABuffer(kinds.Regularizer):
    """Makes its buffer in the first step, so that a new one has no place for a saved state."""

    def forward(self, logits):
        check_shapes(logits=logits)
        if not hasattr(self, "start"):
            self.register_buffer("start", logits.detach().mean())
        return (logits - self.start).square().sum(1)


class OtherFeatures(Features):
    def stacked_features(self, features, generator):
        return super().stacked_features(features, generator) * 1.1


class Idle(kinds.Surgery):
    """Defines no place."""


class InDouble(Noise):
    def call(self, layer, place, inner, *args, **kwargs):
        return super().call(layer, place, inner, *args, **kwargs).double()


class WithoutGradient(Noise):
    def call(self, layer, place, inner, *args, **kwargs):
        return super().call(layer, place, inner, *args, **kwargs).detach()


class LeavesAMark(Noise):
    def call(self, layer, place, inner, *args, **kwargs):
        layer.calls = getattr(layer, "calls", 0) + 1
        return super().call(layer, place, inner, *args, **kwargs)


class MovesWeights(Noise):
    def call(self, layer, place, inner, *args, **kwargs):
        with torch.no_grad():
            layer.weight.mul_(0.9)
        return super().call(layer, place, inner, *args, **kwargs)


class OwnStream(Noise):
    """A checkpointed layer that is computed again would draw anew."""

    stream = torch.Generator().manual_seed(0)

    def call(self, layer, place, inner, *args, **kwargs):
        output = inner(*args, **kwargs)
        draw = torch.rand(output.shape, generator=self.stream).to(output.device, non_blocking=True)
        return output * (0.5 + draw)


class GrowsTwice(Noise):
    def prepare(self, layer, place):
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.mul_(2)


class DrawsWeights(Noise):
    def prepare(self, layer, place):
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)


class Alternating(Noise):
    def __init__(self):
        self.asked = 0

    def frozen(self, place):
        self.asked += 1
        return self.asked % 3 == 0


class HowFrozen(Noise):
    def frozen(self, place):
        return 0.5


FAULTS = {
    "the_features_of_the_stacks_give_the_stacks": [OtherFeatures],
    "it_defines_a_place": [Idle],
    "an_output_keeps_its_form": [InDouble, WithoutGradient],
    "the_layer_is_left_as_it_was": [LeavesAMark, MovesWeights],
    "the_global_stream_alone_decides": [OwnStream],
    "preparing_twice_is_preparing_once": [GrowsTwice, DrawsWeights],
    "freezing_depends_on_the_place_alone": [Alternating, HowFrozen],
    "the_shape_of_the_inputs_is_kept": [CroppedInputs],
    "the_labels_are_mixed_in_shares": [TooMuchLabel, RowsThatAreNotThere],
    "the_generator_alone_decides": [OtherDraws],
    "each_stack_has_the_shape_of_the_heads_logits": [MeanOfStacks],
    "each_stack_uses_the_heads_weights": [OwnHead],
    "the_rows_are_independent": [Centred],
    "evaluation_is_the_plain_heads": [AlwaysDrops],
    "one_value_a_row": [Reduced],
    "the_order_of_the_rows_means_nothing": [FirstCountsDouble, ByIndexOfRow, FirstRowTwice],
    "the_gradient_is_that_of_finite_differences": [HalfDetached],
    "large_logits_stay_finite": [LogOfSoftmax, Exponentials],
    "the_module_equals_its_function": [OtherDefault, OtherFormula],
    "one_weight_a_sample_and_their_mean_is_one": [SumsToOne],
    "equal_samples_weigh_the_same": [ByIndexOfRow],
    "no_gradient_flows_through_the_weights": [OpenToGradient],
    "one_bad_loss_leaves_the_other_weights_finite": [SpoiltByOne],
    "it_writes_to_nothing_that_it_is_given": [WritesToLosses],
    "it_leaves_the_global_random_stream_alone": [GlobalNoise],
    "it_is_least_where_the_student_equals_the_teacher": [Shifted],
    "the_student_alone_gets_a_gradient": [TeachesTheTeacher, TeachesNobody],
    "one_value_or_one_a_row": [AValueAClass],
    "the_sums_are_tensors_without_gradients": [KeepsTheGraph, ListOfSums, InfiniteSum],
    "the_result_is_made_of_the_sums_alone": [DividesInPlace, CountsItsResults, NumbersForTensors],
    "one_weight_a_term": [OneWeight],
    "one_term_alone_keeps_its_weight": [Unnormalised],
    "the_gradients_keep_their_form": [Flat, Widened],
    "a_missing_gradient_stays_missing": [FillsIn],
    "nothing_but_the_state_is_written_to": [InPlace, Decays],
    "all_ranks_get_the_same": [NoisyGradient, OtherNoise],
    "the_rows_are_probabilities": [SharesOfTheGreatest],
    "the_fitted_set_is_no_worse": [Colder],
    "the_top_class_is_kept_where_declared": [LeastFirst],
    "the_average_has_the_form_of_the_weights": [Doubled, Uncounted],
    "constant_weights_stay": [Biased, BiasedOnceStartedLate],
    "going_on_from_a_file_is_going_on": [MemoryOfItsOwn, MemoryBeside, FitsAnAttribute, KeepsTheLeastAside],
    "parts_of_the_weights_make_no_difference": [DividesByTheNormOfAll, ReadsTheNormOfAll],
    "reading_changes_nothing": [ReadsOnce],
    "the_live_weights_are_neither_changed_nor_aliased": [HandsOutTheLiveWeights, WritesToTheLiveWeights],
    "a_copy_is_the_same": [lambda: ForgetsASetting(decay=0.25)],
    "one_finite_coefficient_a_checkpoint": [ForgetsTheNewest, HalfOfOne],
    "the_coefficients_sum_to_one": [TooHeavy],
    "identical_checkpoints_merge_into_themselves": [AddsTheChange, RoundsTheMean],
    "where_every_file_equals_the_base_it_stays": [AddsTheChange],
    "the_order_of_the_files_means_nothing": [FirstFileDouble],
    "a_linear_merge_is_linear": [OtherShares],
    "parts_of_a_tensor_make_no_difference": [SubtractsTheNorm],
    "nothing_is_written_to": [InTheFile],
    "all_draws_come_from_the_generator": [
        Drawn,
        DrawnFromNowhere,
        ShakenByAll,
        AlwaysShakenAlike,
        DrawsTheQuantileElsewhere,
    ],
    "a_merge_equals_its_function": [OtherShareOfTheFunction],
    "only_the_distances_of_the_steps_matter": [ByStep],
    "the_rate_stays_within_the_peak": [lambda: build(Rising)],
    "each_row_is_computed_by_itself": [LeansOnOthers, OneNumber, SaysThatItsRowsAreCoupled],
    "going_on_from_a_state_is_going_on": [
        *(BeginsAtItsFirstLoss, CountsItsSteps, AddsABuffer),
        lambda: build(MemoryOutsideOfTheState),
    ],
    "signals_of_a_wrong_shape_are_refused": [
        *(CoarseInputs, OneRow, BareCriterion, SharesOfATable, BroadcastTeacher, LastAxis, FirstAxis)
    ],
    "gradients_that_do_not_fit_are_refused": [AsFarAsTheyGo, AnyShape],
    "each_offset_has_the_form_of_its_parameter": [MovesAll, InSinglePrecision],
    "neither_parameters_nor_gradients_are_written_to": [ShrinksTheWeights, InTheGradients],
    "gradients_of_zero_move_nothing": [DividesByZero],
    "no_offset_points_down_the_gradient": [Downhill],
    "without_a_size_it_is_idle": [ActiveAtZero, MovesAtZero],
    "offsets_equal_those_of_the_function": [FartherThanItsFunction, OtherStepThanItsFunction],
    "weights_that_do_not_fit_are_refused": [BroadcastMean],
    "what_it_adapts_are_parameters_of_the_network": [NamesWhatIsNotThere, NamesNothing],
    "a_network_without_what_it_adapts_is_refused": [TakesAnything],
    "an_update_moves_what_it_names_and_nothing_else": [MovesTheHead, MovesNothing, TracksStatistics],
    "a_reset_begins_anew": [CountsBeside],
    "statistics_have_the_form_of_those_they_replace": [
        *(TracksStatistics, WideStatistics, StatisticsWithAGradient, NegativeVariance)
    ],
    "predictions_have_the_form_of_the_logits": [OneRowLess, InfinitePredictions, WritesToTheLogits],
    "predictions_follow_the_order_of_the_rows": [FollowsTheRowBefore],
    "predictions_refuse_signals_of_a_wrong_shape": [AnyLogits],
    "nothing_is_drawn_from_the_global_stream": [NoisyPredictions],
    "an_adapter_equals_its_function": [SharperThanItsFunction, SharperByDefault],
    "a_fit_refuses_signals_of_a_wrong_shape": [SilentWarmth, SilentSets],
    "each_row_has_a_set": [Shares],
    "the_fitted_rows_are_covered": [OneRowTooMany],
    "a_larger_alpha_gives_subsets": [TurnsAlphaAround],
    "the_order_of_the_classes_means_nothing": [KeepsTheFirstClass],
    "the_order_of_the_fitted_rows_means_nothing": [TrustsTheFirstRows],
    "few_rows_give_every_class": [DoesWithFewRows],
    "steps_that_do_not_increase_are_refused": [AnyOrder],
    "tensors_that_do_not_fit_each_other_are_refused": [Broadcasts],
    "a_copy_goes_on": [Unpicklable],
    "two_batches_are_one": [MeanOfMeans, SumsOfMeans, NamedAfterTheBatch],
    "two_ranks_are_one": [RanksByMax, FullState],
    "reset_forgets": [OutsideOfTheStates],
    "tensor_states_do_not_grow": [Grows],
    "it_waits_for_no_gpu": [
        ReadsTheLoss,
        DropsRows,
        DrawsOnTheHost,
        KeepsATable,
        BuildsFromData,
        AnswersOnTheHost,
        SaysThatItWaits,
        BranchesInTheBackwardPass,
        StepsByANumber,
        AsksTheLogits,
        ClipsByAMask,
        StopsWhereItIs,
        CountsAsItGoes,
        DrawsElsewhere,
    ],
}


@pytest.mark.parametrize("method", SOUND)
def test_a_sound_method_keeps_all_laws(method):
    assert_laws(build(method))


@pytest.mark.parametrize(
    ("law", "method"),
    [(law, m) for law, broken in FAULTS.items() for m in broken],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_a_law_sees_the_fault(law, method):
    broken = method()
    (check,) = [check for check in laws_of(broken) if check.__name__ == law]
    with pytest.raises(AssertionError, match=type(broken).__name__):
        check(broken)


def test_every_law_has_a_fault_and_every_kind_with_laws_a_sound_method():
    assert FAULTS.keys() == {law.__name__ for laws in LAWS.values() for law in laws}
    assert {kind for kind in LAWS if any(issubclass(method, kind) for method in SOUND)} == set(LAWS)


class Detached(kinds.Regularizer):
    """A term whose gradient is not that of its value, and says so."""

    unkept_laws: ClassVar = {"the_gradient_is_that_of_finite_differences": "one factor is a constant for the gradient"}

    def forward(self, logits):
        check_shapes(logits=logits)
        return (logits * logits.detach()).sum(1)


class SaysSoInVain(Detached):
    def forward(self, logits):
        check_shapes(logits=logits)
        return (logits * logits).sum(1)


class NamesNoLaw(Detached):
    unkept_laws: ClassVar = {"it_is_fast": "no"}


def test_a_law_that_a_method_declares_not_to_keep_must_be_broken():
    assert_laws(Detached())
    with pytest.raises(AssertionError, match=r"does not keep the law the_gradient.*one factor.*but it does: remove"):
        assert_laws(SaysSoInVain())
    with pytest.raises(TypeError, match="names 'it_is_fast', which is no law of its kind"):
        laws_of(NamesNoLaw)


def test_a_kind_without_laws_is_refused():
    with pytest.raises(TypeError, match="Linear is of no kind that has laws"):
        assert_laws(nn.Linear(1, 1))
