"""Small modules and trainers for the tests of averaging."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def loader(n=16, batch_size=4, *, shuffle=False, dtype=torch.float32, seed=0, rank=None):
    """The whole data, or what the first or the second of two processes gets of them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator).to(dtype)
    data = TensorDataset(x, x.sum(1, keepdim=True))
    sampler = None if rank is None else DistributedSampler(data, 2, rank, shuffle=False)
    return DataLoader(data, batch_size, shuffle=shuffle, sampler=sampler)


class Net(L.LightningModule):
    """A user's module that knows nothing of averaging."""

    def __init__(self, *layers, lr=0.1):
        super().__init__()
        torch.manual_seed(7)
        self.layers = nn.Sequential(*(layers or (nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))))
        self.lr = lr
        self.path = []
        self.seen = []

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx):
        self.path.append(flat(self))  # the weights before each batch
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.seen.append(flat(self))
        self.log("val", nn.functional.mse_loss(self(batch[0]), batch[1]))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        self.seen.append(flat(self))

    def configure_optimizers(self):
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), self.lr, momentum=0.9)


class NormNet(Net):
    def __init__(self):
        torch.manual_seed(7)
        super().__init__(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 1))


def flat(net):
    return torch.cat([p.detach().flatten().clone() for p in net.parameters()])


def trainer(*callbacks, epochs=2, **kwargs):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    saves = any(isinstance(callback, Checkpoint) for callback in callbacks)
    settings = {"max_epochs": epochs, "enable_checkpointing": saves, "devices": 1, **quiet, **kwargs}
    return L.Trainer(callbacks=list(callbacks), **settings)


def fit(*callbacks, net=None, val=False, data=None, ckpt_path=None, **kwargs):
    net = net or Net()
    runner = trainer(*callbacks, **kwargs)
    runner.fit(net, loader() if data is None else data, loader(seed=1) if val else None, ckpt_path=ckpt_path)
    return net, runner


def equal(a, b):
    """Two modules, dictionaries, lists or tensors, to the bit."""
    a, b = (x.state_dict() if isinstance(x, nn.Module) else x for x in (a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def ema(path, decay):
    """The slow reference: the average of the weights after each step, the first copied."""
    average = path[0].double()
    for weights in path[1:]:
        average = decay * average + (1 - decay) * weights.double()
    return average
