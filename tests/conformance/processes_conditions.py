"""The conditions of several processes, and what is trained under them."""

import copy
import pickle
import warnings
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from pathlib import Path

import lightning as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from lightning_objectives.callbacks import RestoreRandomState
from lightning_objectives.data.with_index import with_index
from lightning_objectives.testing.conformance import Case, Trial, every_method
from lightning_objectives.testing.conformance.case import Classifier
from lightning_objectives.testing.conformance.check import differing, shape_of

PATIENCE = timedelta(seconds=60)
"""Of a collective call."""


def data(count=33, shape=(1, 3, 4)):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randint(3, (count,), generator=generator))


class Wrong(Classifier):
    """Large logits, hence gradients that are worth clipping."""

    def __init__(self):
        super().__init__()
        self.double()
        with torch.no_grad():
            self.fc.weight *= 5


def doubled():
    """float64 throughout; with 33 samples, batches of 6, 6 and 5 on each of two processes, one sample given twice."""
    return Case(module=Wrong, data=data, batch_size=6)


def by_ddp(**settings):
    return {"devices": 2, "max_epochs": 1, "strategy": lambda: DDPStrategy(timeout=PATIENCE, **settings)}


def by_fsdp2():
    sizes = {"data_parallel_size": 2, "tensor_parallel_size": 1}
    return {"devices": 2, "max_epochs": 1, "strategy": lambda: ModelParallelStrategy(timeout=PATIENCE, **sizes)}


class Ranked(Trial):
    """What strategies leave in a module (its `forward`, its sharded classes) is compared with a plain training's."""

    def fit(self, callbacks=None, *, strategy=None, **settings):
        more = {} if strategy is None else {"strategy": strategy()}  # one serves one trainer only
        return super().fit(callbacks, **more, **settings)

    def require_as_found(self, module, before):
        module.left = without_parameters(shape_of(module))


def without_parameters(shape):
    return {name: value for name, value in shape.items() if not name.endswith(": parameter")}


class PerRank(BatchSampler):
    """33 samples on two processes, none twice: the last batch has 5 on the first and 4 on the second."""

    def __init__(self, rank):
        mine = list(range(rank, 33, 2))
        self.batches = [mine[:6], mine[6:12], mine[12:]]

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return 3


class Sharded(Classifier):
    """Sharded layer by layer: 6 rows, which are even, and 3 and 1, which are not."""

    def __init__(self):
        super().__init__()
        self.backbone[1] = nn.Linear(12, 5)
        self.backbone[2] = nn.BatchNorm1d(5)
        self.fc = nn.Linear(5, 3)
        self.double()

    def configure_model(self):
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh
        if mesh is not None and not hasattr(self.fc, "reshard"):
            for layer in (self.backbone[1], self.fc, self):
                fully_shard(layer, mesh=mesh["data_parallel"])


def everyone(value):
    """What each rank has."""
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found


def flat(value, path=""):
    """The leaves of nested dictionaries and lists, by path."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else None
    if items is None:
        return {path: value.full_tensor() if hasattr(value, "full_tensor") else value}
    return {name: leaf for key, inner in items for name, leaf in flat(inner, f"{path}/{key}").items()}


def held(run):
    """The weights and what the callbacks keep, by path; of FSDP2 the whole tensors."""
    return flat({"weights": dict(run.module.state_dict()), "states": [c.state_dict() for c in run.callbacks]})


def agree(trial, run, plain):
    """The ranks hold the same, but for what is each rank's own without the plug-in as well: BatchNorm's statistics."""
    mine = held(plain)
    own = {name for other in everyone(mine) for name in differing(other, mine)}
    own = tuple("/" + name.rpartition("/")[2] for names in everyone(own) for name in names)
    mine = held(run)
    other = [name for name in differing(everyone(mine)[0], mine) if not name.endswith(own)]
    trial.require(not any(everyone(other)), f"the ranks must hold the same, but differ in {other}.")
    parameters = [name for name, _ in run.module.named_parameters()]
    trial.require(not set(own) & {f"/{name}" for name in parameters}, f"even without it the ranks differ in {own}.")


class Sharing:
    """What the conditions of a row, and the rows of a condition, share: finished runs, which nobody changes."""

    def __init__(self, directory):
        self.directory = directory
        self.plains = {}
        self.runs = {}

    def plain(self, trial, name, **settings):
        if name not in self.plains:
            self.plains[name] = trial.fit([], **settings)
        return self.plains[name]

    def laws(self, trial, name, **settings):
        """Zero strength is the training without it, to the bit; it acts; the ranks agree."""
        run = trial.fit(**settings)  # first, since at zero strength some refuse nothing
        plain, idle = self.plain(trial, name, **settings), trial.idle(**settings)
        trial.require_same(plain, idle, "at zero strength it must be the training without it.")
        trial.require_to_act(plain, run)
        trial.require(run.module.left == plain.module.left, "it must give the module back as it was.")
        agree(trial, run, plain)
        self.runs[name] = run

    def bound(self, check):
        @wraps(check)
        def bound(trial):
            check(trial, self)

        return bound


def ddp(trial, sharing):
    """Two processes, 33 samples of which one is given twice."""
    sharing.laws(trial, "ddp", **by_ddp())
    if dist.get_rank() == 0:
        file = sharing.directory / "saved" / str(trial.plug_in) / "ddp.pt"
        file.parent.mkdir(parents=True)
        torch.save(sharing.runs["ddp"].weights, file)


def ddp_find_unused_parameters(trial, sharing):
    """The same where DDP looks for unused parameters: to the bit."""
    run = trial.fit(**by_ddp(find_unused_parameters=True))
    trial.require_same(sharing.runs["ddp"], run, "find_unused_parameters must change nothing.")


def seeds_by_rank(trial, sharing):
    """Each process is seeded for itself: what is drawn at the start is the first one's."""
    seed = 1 + dist.get_rank()
    plain = sharing.plain(trial, "seeds", seed=seed, **by_ddp())
    agree(trial, trial.fit(seed=seed, **by_ddp()), plain)


def ddp_accumulation(trial, sharing):
    """Gradients of two of three batches, and of the one that is left, without synchronisation in between."""
    sharing.laws(trial, "accumulation", accumulate_grad_batches=2, **by_ddp())


def ddp_uneven_batches(trial, sharing):
    """The last batch has other numbers of rows on the two processes."""

    def train(callbacks):
        asked = any("index" in getattr(c, "signals", ()) or getattr(c, "remembers", False) for c in callbacks)
        rows = with_index(data()) if asked else data()
        return DataLoader(rows, batch_sampler=PerRank(dist.get_rank()))

    trial.case.loader_for = train
    sharing.laws(trial, "uneven", use_distributed_sampler=False, **by_ddp())


def save_on_two_resume_on_two(trial, sharing):
    """A training that goes on from its first epoch's file ends as the uninterrupted one: weights and states."""
    directory = Path(everyone(str(sharing.directory / "saved" / str(trial.plug_in)))[0])

    def run(name, **settings):
        made = trial.make()
        if not any(isinstance(callback, RestoreRandomState) for callback in made):
            made.append(RestoreRandomState())
        saver = ModelCheckpoint(directory, filename=name, save_on_train_epoch_end=True)
        settings = {**by_ddp(), "max_epochs": 2, "enable_checkpointing": True, **settings}
        seed = 1 + dist.get_rank()  # so that the random states, too, are each rank's own
        found = trial.fit([*made, saver], default_root_dir=directory / name, seed=seed, **settings)
        found.callbacks.remove(saver)
        return found

    half = run("half", max_epochs=1)
    at_half = held(half)
    if dist.get_rank() == 0:
        torch.save(at_half, directory / "held.pt")
    whole, resumed = run("whole"), run("resumed", ckpt_path=directory / "half.ckpt")
    ends = [{k: v for k, v in held(run).items() if "/window/" not in k} for run in (whole, resumed)]  # not of paths
    moved = differing(*ends)
    trial.require(not any(everyone(moved)), f"resuming must end as the uninterrupted training; they differ in {moved}.")


def tested_by(trial, callbacks, **settings):
    """The metrics of a test, and this rank's predictions; the ranks hold the weights that were validated."""
    torch.manual_seed(0)
    module = trial.case.module()
    strategy = {"devices": 2, "strategy": DDPStrategy(timeout=PATIENCE)} if dist.is_initialized() else {}
    trainer = trial.case.trainer(*callbacks, **strategy, **settings)
    trainer.validate(module, trial.case.loader(), verbose=False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    (metrics,) = trainer.test(module, trial.case.loader(), verbose=False)
    predictions = torch.cat(trainer.predict(module, trial.case.loader()))
    moved = differing(before, dict(module.state_dict()))
    trial.require(not moved, f"a test must leave the weights alone, but {moved} differ.")
    return metrics, predictions


@contextmanager
def unwarned():
    """Lightning warns that its sampler repeats samples, which is what is tried."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def ddp_tests(trial, sharing):
    """A test and predictions of 33 samples, one given twice: at zero strength each rank has the plain results."""
    with unwarned():
        if "tests" not in sharing.plains:
            sharing.plains["tests"] = tested_by(trial, [])
        plain, found = sharing.plains["tests"], tested_by(trial, trial.make())
        idle = tested_by(trial, trial.plug_in.idle(trial.case))
    for expected, mine, acts in ((plain, idle, False), (plain, found, trial.plug_in.changes_tests(trial.case))):
        other = differing(expected[0], {name: mine[0].get(name) for name in expected[0]})
        other += [] if torch.equal(expected[1], mine[1]) else ["predictions"]
        trial.require(bool(other) == acts, f"a test must differ: {acts}, but it differs in {other}.")
    ours = {name: value for name, value in found[0].items() if name not in plain[0]}
    trial.require(everyone(ours)[0] == ours, f"what it logs itself must be of all ranks, but a rank has {ours}.")


def fsdp2(trial, sharing):
    """Two processes that each hold a part of every tensor: as DDP."""

    sharing.laws(trial, "fsdp2", module=Sharded, **by_fsdp2())
    whole = held(sharing.runs["fsdp2"])
    cut = trial.fit(module=Sharded, **by_ddp())
    for name, _ in cut.module.named_parameters():
        near = torch.allclose(whole[f"/weights/{name}"], cut.weights[name], rtol=0, atol=1e-6)
        trial.require(all(everyone(near)), f"it must be the training under DDP, but {name} differs.")


CONDITIONS = [
    ddp,
    ddp_find_unused_parameters,
    seeds_by_rank,
    ddp_accumulation,
    ddp_uneven_batches,
    ddp_tests,
    save_on_two_resume_on_two,
    fsdp2,
]


class Loaded(L.Callback):
    """Keeps what the callbacks know when the training begins."""

    def __init__(self, callbacks):
        self.callbacks = callbacks

    def on_train_start(self, trainer, pl_module):
        self.states = copy.deepcopy(flat([callback.state_dict() for callback in self.callbacks]))


def save_on_two_load_on_one(trial, directory):
    """The file of two processes opens without this package, and one process goes on from it with all states."""
    directory = directory / "saved" / str(trial.plug_in)
    saved = torch.load(directory / "held.pt", weights_only=True)
    plain = trial.case.module()
    plain.load_state_dict(torch.load(directory / "half.ckpt", weights_only=True)["state_dict"])
    weights = {name.removeprefix("/weights/"): v for name, v in saved.items() if name.startswith("/weights/")}
    trial.require(not differing(weights, dict(plain.state_dict())), "the file must hold the weights after the fit.")
    made = trial.make()
    probe = Loaded(made)
    trial.fit([*made, probe], ckpt_path=directory / "half.ckpt", default_root_dir=directory)
    local = [i for i, callback in enumerate(made) if isinstance(callback, RestoreRandomState)]  # it says that it cannot
    found = {f"/states{k}": v for k, v in probe.states.items() if int(k.split("/")[1]) not in local}
    other = [name for name in found if differing({name: saved.get(name)}, {name: found[name]})]
    trial.require(not other, f"what two processes saved must be what one loads, but these differ: {other}.")


class Pickled(_MultiProcessingLauncher):
    """Gives each process what a spawned one gets, a pickled copy of everything, without its imports."""

    def _wrapping_function(self, process_idx, trainer, function, args, kwargs, return_queue, global_states=None):
        copied = pickle.loads(pickle.dumps((self, trainer, function, args, kwargs)))
        launcher, *rest = copied
        super(Pickled, launcher)._wrapping_function(process_idx, *rest, return_queue, global_states)


class Spawned(DDPStrategy):
    """Really, or as quickly as a fork."""

    def __init__(self, *, really, **kwargs):
        super().__init__(**kwargs)
        self.really = really

    def _configure_launcher(self):
        self._launcher = (
            _MultiProcessingLauncher(self, start_method="spawn") if self.really else Pickled(self, start_method="fork")
        )


def ddp_spawn(trial, directory):
    """Processes that get everything pickled (all together: new ones): the weights are those of `ddp`, to the bit."""
    really = str(trial.plug_in) == "all together"  # each imports torch anew, which takes longer than all the rows
    run = trial.fit(**{**by_ddp(), "strategy": lambda: Spawned(really=really, timeout=PATIENCE)})
    expected = torch.load(directory / "saved" / str(trial.plug_in) / "ddp.pt", weights_only=True)
    other = differing(expected, run.weights)
    trial.require(not other, f"spawned, it must be the training under ddp, but {other} differ.")


ALONE = {
    "FixedPredictorRejection": "its network gets no gradient, so DDP needs find_unused_parameters",
    "EditInvariantSequenceLoss": "its sequences have one token here, and noise cannot move a single token",
    "ProgressivePurification": "it changes nothing where each sample has one class; memory is tried with other methods",
}
"""Methods that these trainings under plain DDP do not fit, and why."""


def fits(row):
    """Whether a method works with a module without maps, for inputs of one size, under plain DDP."""
    callback = row.make(Case())[0]
    methods = callback.methods()
    sizes = all(getattr(method, "keeps_size", True) for method in methods)
    return "hidden" not in getattr(callback, "signals", ()) and sizes and str(row) not in ALONE


def fits_even(row):
    """Whether a method also works with a module that has no BatchNorm and no dropout."""
    changes = [getattr(method, "changes", ()) for method in row.make(Case())[0].methods()]
    return fits(row) and not any(isinstance(classes, tuple) and classes for classes in changes)


class Even(L.LightningModule):
    """No BatchNorm and no dropout, so that rows do not know of each other."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU())
        self.fc = nn.Linear(6, 3)
        self.double()

    def forward(self, x):
        return self.fc(self.backbone(x))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def objective_group(self, batch):
        return batch[1] % 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)


class Normalized(Even):
    """With BatchNorm, for methods that act on it, and a criterion in its test."""

    def __init__(self):
        super().__init__()
        self.backbone.append(nn.BatchNorm1d(6).double())

    def predict_step(self, batch, batch_idx):
        return self(batch[0])


class Layered(Normalized):
    """With dropout too, for methods that change these layers."""

    def __init__(self):
        super().__init__()
        self.backbone.append(nn.Dropout(0.5))


class Strided(Case):
    """Batch k of all processes together is batch k of one: 32 samples."""

    def __init__(self, count, rank, module=Even):
        super().__init__(module=module, data=lambda: data(64))
        self.count, self.rank = count, rank

    def loader(self):
        return self.loader_for([])

    def loader_for(self, callbacks):
        asked = any("index" in getattr(c, "signals", ()) or getattr(c, "remembers", False) for c in callbacks)
        rows = with_index(self.data()) if asked else self.data()
        sampler = DistributedSampler(rows, self.count, self.rank, shuffle=False)
        return DataLoader(rows, batch_size=32 // self.count, sampler=sampler)


def predicted(row, case, strategy):
    """The predictions of all processes, in the order of the samples."""
    torch.manual_seed(0)
    callbacks = row.make(case)
    for callback in callbacks:
        callback.problem = "classes"
    more = {"devices": case.count, "strategy": strategy["strategy"]()} if strategy else {}
    trainer = case.trainer(*callbacks, use_distributed_sampler=False, **more)
    mine = torch.cat(trainer.predict(case.module(), case.loader()))
    parts = everyone(mine) if strategy else [mine]
    return {"predictions": torch.stack(parts, 1).flatten(0, 1)}


def joined(count, rank):
    """What each method leaves after batches of all processes together."""
    strategy = {"devices": count, "strategy": lambda: DDPStrategy(timeout=PATIENCE)} if count > 1 else {}
    found = {}
    for row in filter(fits, every_method()):
        case = Strided(count, rank, Normalized)
        if row.changes_tests(case):
            found[str(row)] = predicted(row, case, strategy)
            continue
        module = Even if fits_even(row) else Layered
        run = Ranked(row, Strided(count, rank, module)).fit(max_epochs=2, use_distributed_sampler=False, **strategy)
        found[str(row)] = {name: value for name, value in held(run).items() if isinstance(value, torch.Tensor)}
    return found
