"""What users' modules, hooks and other callbacks make of a checkpoint that holds an average."""

import copy
import pickle
import subprocess
import sys
import textwrap
import types

import lightning as L
import pytest
import torch
from average_checkpoint_nets import Classifier, Holder
from averaging_nets import Net, equal, fit

from lightning_objectives._trainer.patch import Patch
from lightning_objectives.averaging import BEMA, EMA
from lightning_objectives.callbacks.add_regularizer import AddRegularizer
from lightning_objectives.callbacks.average_weights import AverageWeights
from lightning_objectives.regularizers import SpectralDecoupling

pytestmark = pytest.mark.filterwarnings("ignore:The `srun`", "ignore:.*litlogger.*", "ignore:.*num_workers.*")


def opens_without_us(path, check):
    """Open a pickle in a process that cannot import the package, and run lines on what it holds, ``loaded``."""
    code = f"""
        import sys
        sys.modules["lightning_objectives"] = None
        sys.path.insert(0, {str(__file__).rsplit("/", 1)[0]!r})
        import torch
        loaded = torch.load({str(path)!r}, weights_only=False)
        {check}
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


# Pickles


@pytest.mark.parametrize(
    "callback", [AverageWeights(BEMA()), AddRegularizer(SpectralDecoupling())], ids=lambda c: type(c).__name__
)
def test_a_module_that_is_pickled_in_training_opens_without_the_package(tmp_path, callback):
    class Save(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            torch.save(pl_module, tmp_path / "module.pt")

    fit(Save(), callback, net=Classifier(), val=True)
    opens_without_us(
        tmp_path / "module.pt",
        "assert loaded.on_save_checkpoint.__self__ is loaded; loaded.on_save_checkpoint({}); loaded.training_step",
    )


def test_a_checkpoint_that_pickles_the_module_opens_without_the_package(tmp_path):
    class Save(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / "x.ckpt")

    fit(AverageWeights(EMA(decay=0.5)), Save(), net=Holder(), epochs=1)
    opens_without_us(tmp_path / "x.ckpt", "assert type(loaded['model']).__name__ == 'Holder'")


def test_an_attribute_of_the_instance_survives_a_pickle_under_several_patches():
    net = Net()
    net.on_train_start = types.MethodType(Net.on_fit_start, net)
    for _ in range(2):
        Patch(net, "on_train_start", lambda inner: "patched")
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.on_train_start() is None
        assert other.on_train_start.__func__ is Net.on_fit_start
        assert other.on_train_start.__self__ is other
    assert b"lightning_objectives" not in pickle.dumps(net)
    assert equal(net, Net())
