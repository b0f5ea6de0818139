import lightning as L
import pytest
import torch
from averaging_nets import Net, equal, fit, flat
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from safetensors.torch import load_file
from torch import nn

from lightning_objectives.averaging import EMA
from lightning_objectives.callbacks import AverageWeights
from lightning_objectives.merging import export_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:The `srun`", "ignore:.*litlogger.*", "ignore:.*using `ckpt_path`.*")


class Tied(Net):
    def __init__(self):
        torch.manual_seed(7)
        super().__init__(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 1))
        self.layers[2].weight = self.layers[0].weight
        self.register_buffer("zeros", torch.zeros(4))


def saved(folder, callback, net=None, **settings):
    net, _ = fit(callback, ModelCheckpoint(folder, filename="x", **settings), net=net or Tied())
    return folder / "x.ckpt"


def test_raw_and_average(tmp_path):
    reference, _ = fit(net=Tied())
    file = saved(tmp_path, AverageWeights(EMA(decay=0.5)))
    raw = export_checkpoint(file, tmp_path / "raw.ckpt", weights="raw")
    average = export_checkpoint(file, tmp_path / "average.ckpt", weights="average")
    for path, expected in ((raw, reference.state_dict()), (average, torch.load(file)["state_dict"])):
        net = Tied.load_from_checkpoint(path, map_location="cpu")
        assert equal(net, dict(expected))
    assert not equal(dict(torch.load(average)["state_dict"]), dict(reference.state_dict()))
    assert "optimizer_states" not in torch.load(average)
    weights = load_file(export_checkpoint(file, tmp_path / "raw.safetensors", weights="raw"))
    assert all(torch.equal(weights[key], value) for key, value in reference.state_dict().items())


def test_a_training_goes_on_from_the_raw_weights_as_if_there_had_never_been_an_average(tmp_path):
    file = saved(tmp_path, AverageWeights(EMA(decay=0.5)))
    raw = export_checkpoint(file, tmp_path / "raw.ckpt", weights="raw")
    whole, _ = fit(epochs=4, net=Tied())
    resumed, _ = fit(epochs=4, net=Tied(), ckpt_path=raw)
    assert equal(resumed, whole)
    assert not [key for key in torch.load(raw)["callbacks"] if key.startswith("Average")]


def test_half_precision_ties(tmp_path):
    """The average is cast once for each name, so that the file does not show that the two are one."""

    class Half(Tied):
        def __init__(self):
            super().__init__()
            self.bfloat16()

        def training_step(self, batch, batch_idx):
            return nn.functional.mse_loss(self(batch[0].bfloat16()), batch[1].bfloat16())

    reference, _ = fit(net=Half())
    file = saved(tmp_path, AverageWeights(EMA(decay=0.5)), net=Half())
    state = torch.load(export_checkpoint(file, tmp_path / "raw.pt", weights="raw"))["state_dict"]
    assert equal(dict(state), dict(reference.state_dict()))


def test_lightnings_own_average(tmp_path):
    reference, _ = fit(net=Net())
    file = saved(tmp_path, EMAWeightAveraging(decay=0.5), net=Net())
    raw = export_checkpoint(file, tmp_path / "raw.ckpt", weights="raw")
    assert torch.equal(flat(Net.load_from_checkpoint(raw, map_location="cpu")), flat(reference))
    assert not {"current_model_state", "averaging_state"} & torch.load(raw).keys()


@pytest.mark.parametrize("weights", ["raw", "average"])
@pytest.mark.parametrize("callback", [L.Callback(), AverageWeights(EMA(), start_step=99)], ids=["plain", "not begun"])
@pytest.mark.filterwarnings("ignore:AverageWeights of")
def test_a_checkpoint_without_an_average_is_refused(tmp_path, weights, callback):
    file = saved(tmp_path, callback)
    with pytest.raises(ValueError, match="holds no average beside raw weights"):
        export_checkpoint(file, tmp_path / "out.ckpt", weights=weights)
    assert not (tmp_path / "out.ckpt").exists()


def test_weights_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="weights='both' must be"):
        export_checkpoint(tmp_path / "x", tmp_path / "y", weights="both")
