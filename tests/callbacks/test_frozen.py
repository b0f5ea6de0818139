"""A network that is asked and never changed."""

from collections import OrderedDict, namedtuple

import pytest
import torch
from helpers import Net, data, fit
from torch import nn
from torchvision.transforms.v2.functional import normalize

from lightning_objectives._step.frozen import Frozen, logits_of
from lightning_objectives.callbacks import Distill
from lightning_objectives.distillation import VanillaKD


class ModelOutput(OrderedDict):
    """What transformers' models return: keys that are attributes too."""

    def __getattr__(self, name):
        return self[name] if name in self else super().__getattribute__(name)


LOGITS = torch.ones(2, 3)
OUTPUTS = [
    LOGITS,
    (LOGITS, "hidden"),
    [LOGITS],
    {"hidden": 1, "logits": LOGITS},
    ModelOutput(hidden=1, logits=LOGITS),
    namedtuple("Output", "loss logits")(None, LOGITS),
]


@pytest.mark.parametrize("output", OUTPUTS, ids=lambda o: type(o).__name__)
def test_logits_wherever_they_lie(output):
    assert logits_of(output) is LOGITS


@pytest.mark.parametrize("output", [None, {}, (), ("a", LOGITS), {"prediction": LOGITS}], ids=repr)
def test_no_logits(output):
    with pytest.raises(ValueError, match="in which there are no logits"):
        logits_of(output)


def test_features_are_what_the_head_is_given():
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(2, 4)
    answer = Frozen(network, tap=True)(x, dtype=torch.float32)
    torch.testing.assert_close(answer.features, network[:2](x))
    assert not answer.logits.requires_grad
    assert Frozen(network, head="0", tap=True)(x, dtype=torch.float32).features is x
    assert Frozen(nn.Linear(4, 3))(x, dtype=torch.float32).features is None


def test_integer_inputs_take_the_modules_type():
    network = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3))
    assert Frozen(network)(torch.arange(5), dtype=torch.float64).logits.dtype is torch.float64
    assert Frozen(nn.Linear(4, 3))(torch.ones(2, 4).bfloat16(), dtype=torch.float32).logits.dtype is torch.bfloat16


def test_inputs_are_translated_between_normalizations():
    """The teacher is to see what its own normalization makes of the raw images."""
    raw = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    data = ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    own = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    seen = []
    network = nn.Identity()
    network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    Frozen(network, translate=(data, own))(normalize(raw, *data), dtype=torch.float32)
    torch.testing.assert_close(seen[0], normalize(raw, *own))


def test_timms_own_statistics_are_found():
    seen = []

    class Shown(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.pretrained_cfg = {"mean": (0.0,) * 4, "std": (2.0,) * 4}

        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    given = ([1.0] * 4, [4.0] * 4)
    fit(Distill(VanillaKD(), teacher=Shown(), data_normalization=given), max_epochs=1)
    torch.testing.assert_close(torch.cat(seen), (data().tensors[0] * 4 + 1) / 2)  # raw = 4 x + 1; 0 and 2 are its own


def test_a_std_of_zero_is_refused():
    with pytest.raises(ValueError, match="std > 0"):
        Frozen(Net(), translate=(([0.0], [0.0]), ([0.0], [1.0])))
    with pytest.raises(ValueError, match="one number a channel"):
        Frozen(Net(), translate=(([0.0, 0.0], [1.0, 1.0]), ([0.0], [1.0])))


def test_an_answer_can_be_kept_for_a_backward_pass():
    """A product keeps both factors; a tensor of the inference mode would be refused there."""
    seen = []

    class Teacher(nn.Linear):
        def forward(self, x):
            seen.append(torch.is_inference_mode_enabled())
            return super().forward(x)

    answer = Frozen(nn.Sequential(nn.ReLU(), Teacher(4, 3)), tap=True)(torch.randn(2, 4), dtype=torch.float32)
    student = torch.ones(2, 3, requires_grad=True)
    (student * answer.logits).sum().backward()
    assert seen == [True]
    torch.testing.assert_close(student.grad, answer.logits, rtol=0, atol=0)
    assert not answer.logits.is_inference()
    assert not answer.features.is_inference()
