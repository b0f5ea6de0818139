import copy
import pickle

from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_objectives._trainer.patch import Patch


class Net(BoringModel):
    def training_step(self, batch, batch_idx):
        return {"loss": batch * 1, "idx": batch_idx}


def test_nested_patches_come_off_in_any_order():
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]):
        net = Net()
        patches = [Patch(net, "training_step", lambda inner, *a, k=k: [k, inner(*a)]) for k in range(3)]
        assert net.training_step(1, 0) == [2, [1, [0, {"loss": 1, "idx": 0}]]]
        left = [0, 1, 2]
        for i in order:
            patches[i].remove()
            patches[i].remove()
            left.remove(i)
            value = {"loss": 1, "idx": 0}
            for k in left:
                value = [k, value]
            assert net.training_step(1, 0) == value
        assert "training_step" not in vars(net)
        assert net.training_step(1, 0) == {"loss": 1, "idx": 0}


def test_an_attribute_of_the_instance_is_put_back():
    net = Net()
    mine = lambda batch, batch_idx: "mine"  # noqa: E731
    net.training_step = mine
    first, second = (Patch(net, "training_step", lambda inner, *a: inner(*a)) for _ in range(2))
    first.remove()
    second.remove()
    assert net.training_step is mine


def test_lightning_sees_the_users_signature():
    net = Net()
    Patch(net, "training_step", lambda inner, *a: inner(*a))
    Patch(net, "training_step", lambda inner, *a: inner(*a))
    assert is_overridden("training_step", net)
    assert is_param_in_hook_signature(net.training_step, "batch_idx", explicit=True)


def test_copies_and_pickles_come_out_unpatched_and_their_own():
    net = Net()
    Patch(net, "training_step", lambda inner, *a: "patched")
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.training_step(1, 0) == {"loss": 1, "idx": 0}
        assert other.training_step.__self__ is other
    assert net.training_step(1, 0) == "patched"
