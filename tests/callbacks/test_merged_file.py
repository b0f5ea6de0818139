"""What users' modules and hooks make of the file of a merge."""

import types

import pytest
import torch
from average_checkpoint_nets import cast, cloned, rebuilt, renamed
from averaging_nets import Net, equal, fit, flat

from lightning_objectives.averaging import EMA
from lightning_objectives.callbacks.average_weights import AverageWeights
from lightning_objectives.callbacks.merge_checkpoints import MergeCheckpoints
from lightning_objectives.merging import WSM

pytestmark = pytest.mark.filterwarnings("ignore:The `srun`", "ignore:.*litlogger.*", "ignore:.*num_workers.*")


def added(self, checkpoint):
    checkpoint["more"] = [{"module": self, "list": (self.layers[0].weight,)}]
    renamed(self, checkpoint)


def dropped(self, checkpoint):
    checkpoint["state_dict"] = {f"net.{k}": v for k, v in self.state_dict().items() if "bias" not in k}


class Hooked(Net):
    """Gets a hook for each test."""


def by_hand(net, names):
    """The mean of the weights after the last two steps, which WSM's linear shape takes with ``last=2``."""
    mean = (net.path[-1].double() + flat_after(net).double()) / 2
    sizes = [p.numel() for p in net.parameters()]
    values = {n: v.view(p.shape) for (n, p), v in zip(net.named_parameters(), mean.split(sizes))}
    return {name: values[name].float() for name in names}


def flat_after(net):
    plain, _ = fit(epochs=1)
    assert equal(net.path, plain.path)
    return flat(plain)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("keep", ["files", "sum"])
@pytest.mark.parametrize("on_instance", [False, True])
@pytest.mark.parametrize("hook", [rebuilt, cloned, renamed, cast, added, dropped])
def test_whatever_a_hook_builds_the_file_holds_the_merge(monkeypatch, hook, on_instance, keep, average):
    net = Hooked()
    if on_instance and hook is not added:  # No pickle of the module could hold the method.
        net.on_save_checkpoint = types.MethodType(hook, net)
    else:
        monkeypatch.setattr(Hooked, "on_save_checkpoint", hook)
    merge = MergeCheckpoints(WSM(shape="linear"), last=2, every_n_steps=1, keep=keep)
    averages = AverageWeights(EMA(decay=0.5))
    fit(*([averages] if average else []), merge, net=net, epochs=1)
    saved = torch.load(merge.path, weights_only=False)
    state = {k.removeprefix("net."): v for k, v in saved["state_dict"].items()}
    expected = by_hand(net, state)
    assert state.keys() == (expected.keys() if hook is not dropped else {"layers.0.weight", "layers.2.weight"})
    for key, value in state.items():
        torch.testing.assert_close(value.float(), expected[key], rtol=0, atol=1e-6)
        assert value.device.type == "cpu"
    if hook is added:
        for value in (saved["more"][0]["module"].layers[0].weight, *saved["more"][0]["list"]):
            torch.testing.assert_close(value.detach(), expected["layers.0.weight"], rtol=0, atol=1e-6)
    left = torch.cat([v.flatten() for v in averages.weights("ema").values()]) if average else flat_after(net)
    assert torch.equal(flat(net), left), "the module stays as the training left it"


def test_a_state_dict_that_casts_holds_the_merge():
    class Half(Net):
        def state_dict(self):
            return {k: v.bfloat16() for k, v in super().state_dict().items()}

    merge, net = MergeCheckpoints(WSM(shape="linear"), last=2, every_n_steps=1), Half()
    fit(merge, net=net, epochs=1)
    state = torch.load(merge.path, weights_only=True)["state_dict"]
    assert equal(state, {k: v.bfloat16() for k, v in by_hand(net, state).items()})


@pytest.mark.parametrize("average", [False, True])
def test_a_copy_of_trained_weights_that_a_hook_kept_is_refused(average):
    class Keeps(Net):
        def on_train_batch_end(self, *_):
            self.kept = {k: v.clone() for k, v in super().state_dict().items()}

        def on_save_checkpoint(self, checkpoint):
            checkpoint["state_dict"] = self.kept

    merge = MergeCheckpoints(WSM(), last=2, every_n_steps=1)
    with pytest.raises(
        RuntimeError, match=r"merged\.ckpt would hold the trained weights 'layers\.0\.weight' .* Keeps takes them"
    ):
        fit(*([AverageWeights(EMA(decay=0.5))] if average else []), merge, net=Keeps(), epochs=1)
    assert merge.path is None
