"""The GPU that is not there, against torch's own fake tensors, which know what waits and what mixes devices."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from lightning_objectives.testing.fake_gpu import FakeGPU, MixedDevicesError
from lightning_objectives.testing.fake_gpu.places import GPU

CASES = {
    "sum": lambda x, y, i: x + x,
    "a number of the host": lambda x, y, i: x + torch.tensor(2.0),
    "a plain number": lambda x, y, i: x * 2.0,
    "two devices": lambda x, y, i: x + y,
    "two devices in place": lambda x, y, i: x.add_(y),
    "a product of two devices": lambda x, y, i: x @ y,
    "a concatenation of two devices": lambda x, y, i: torch.cat([x, y]),
    "where of two devices": lambda x, y, i: torch.where(x > 0, x, y),
    "item": lambda x, y, i: x.sum().item(),
    "item of the host": lambda x, y, i: 1.0 * len(y),
    "bool": lambda x, y, i: bool((x > 0).all()),
    "float": lambda x, y, i: float(x[0, 0]),
    "a boolean index": lambda x, y, i: x[x > 0],
    "a boolean index that is filled": lambda x, y, i: x.masked_fill(x > 0, 0.0),
    "nonzero": lambda x, y, i: x.nonzero(),
    "masked_select": lambda x, y, i: x.masked_select(x > 0),
    "unique": lambda x, y, i: i.unique(),
    "an index": lambda x, y, i: x[i],
    "gather": lambda x, y, i: x.gather(1, i[:, None]),
    "gather from the host": lambda x, y, i: y.gather(1, i[:, None]),
    "scatter_add": lambda x, y, i: torch.zeros(4, device="cuda").scatter_add(0, i, x[:, 0]),
    "zeros of the host": lambda x, y, i: x * torch.zeros(4, 4),
    "zeros like": lambda x, y, i: x * torch.zeros_like(x),
    "zeros beside": lambda x, y, i: x * x.new_zeros(4),
    "zeros there": lambda x, y, i: x * torch.zeros(4, 4, device=x.device),
    "to the host": lambda x, y, i: x.to("cpu", non_blocking=True) + y,
    "to the GPU": lambda x, y, i: y.to("cuda", non_blocking=True) + x,
    "like another": lambda x, y, i: y.type_as(x).mul(1) if y.device == x.device else x,
    "cross_entropy": lambda x, y, i: F.cross_entropy(x, i),
    "cross_entropy with weights of the host": lambda x, y, i: F.cross_entropy(x, i, weight=y[0]),
    "batch_norm": lambda x, y, i: F.batch_norm(x, torch.zeros_like(x[0]), torch.ones_like(x[0]), training=True),
    "batch_norm of the host": lambda x, y, i: F.batch_norm(x, torch.zeros(4), torch.ones(4), training=True),
    "equal": lambda x, y, i: torch.equal(x, x.clone()),
    "allclose": lambda x, y, i: torch.allclose(x, x.clone()),
    "one_hot": lambda x, y, i: F.one_hot(i, 4),
    "topk": lambda x, y, i: x.topk(2).values,
    "sort": lambda x, y, i: x.sort(0).values,
    "an inplace copy from the host": lambda x, y, i: x.copy_(y, non_blocking=True),
    "a module of the host": lambda x, y, i: nn.Linear(4, 4)(x),
    "a module there": lambda x, y, i: nn.Linear(4, 4, device="cuda")(x),
}


def verdict_of_torch(case):
    """What torch's fake tensors say: the device of the result, or what is wrong."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, y = torch.ones(4, 4, device="cuda"), torch.ones(4, 4)
        i = torch.zeros(4, dtype=torch.long, device="cuda")
        try:
            result = case(x, y, i)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return "waits"
        except RuntimeError as error:
            return "mixed" if "device" in str(error) else str(error)
        return result.device.type if isinstance(result, torch.Tensor) else "a number"


def verdict_of_ours(case):
    """What ours says."""
    with FakeGPU() as gpu:
        x, y = torch.ones(4, 4, device="cuda"), torch.ones(4, 4)
        i = torch.zeros(4, dtype=torch.long, device="cuda")
        try:
            result = case(x, y, i)
        except MixedDevicesError:
            return "mixed"
        if gpu.waits:
            return "waits"
        return result.device.type if isinstance(result, torch.Tensor) else "a number"


@pytest.mark.parametrize("name", CASES)
def test_it_says_what_torchs_fake_tensors_say(name):
    assert verdict_of_ours(CASES[name]) == verdict_of_torch(CASES[name])


def waits(work):
    with FakeGPU() as gpu:
        gpu.counts = False
        x = torch.arange(4.0, device="cuda", requires_grad=True)
        gpu.counts = True
        work(x)
    return [wait.what for wait in gpu.waits]


def test_a_blocking_copy_waits():
    """As ``torch.cuda.set_sync_debug_mode`` says; a copy that does not block, and one on the device, do not."""
    assert waits(lambda x: x.cpu()) == ["a copy to the CPU"]
    assert waits(lambda x: torch.ones(3).to("cuda")) == ["a copy to the GPU"]
    assert waits(lambda x: torch.ones(3).cuda()) == ["a copy to the GPU"]
    assert waits(lambda x: torch.tensor([1.0], device="cuda")) == ["tensor() of data"]
    assert waits(lambda x: x.detach().copy_(torch.ones(4))) == ["copy() between the devices"]
    assert waits(lambda x: x[torch.tensor([0, 1])]) == ["an index from the CPU"]
    assert waits(lambda x: torch.where(x > 1, torch.as_tensor(0.0), x)) == ["a number from the CPU in where()"]
    assert waits(lambda x: x.tolist()) == ["tolist()"]
    assert waits(lambda x: torch.cuda.current_stream().synchronize()) == ["synchronize()"]
    for work in (
        lambda x: torch.ones(3).to("cuda", non_blocking=True),
        lambda x: x.to("cuda"),
        lambda x: x.double(),
        lambda x: torch.full((3,), 0.5, device="cuda"),
        lambda x: copy.deepcopy(x.detach()),
        lambda x: torch.ones(3).sum().item(),
        lambda x: torch.where(x > 1, 0.0, x),
        lambda x: torch.where(x > 1, x.new_zeros(()), x),
        lambda x: torch.as_tensor(2.0) * x,
        lambda x: x.detach().__setitem__(x > 1, 0.0),
        lambda x: torch.rand(3, generator=torch.Generator()).tolist(),
    ):
        assert waits(work) == []


def test_a_boolean_index_waits_in_the_backward_pass_too():
    assert waits(lambda x: x[x > 1].sum().backward()) == ["boolean index"] * 2
    assert waits(lambda x: x[(x > 1).nonzero().squeeze(1)].sum().backward()) == ["nonzero()"]


def test_a_wait_is_laid_to_the_line_that_causes_it():
    def reads(x):
        return x.sum().item()

    with FakeGPU() as gpu:
        reads(torch.ones(3, device="cuda"))
    (wait,) = gpu.waits
    assert (wait.function, wait.path.name) == ("reads", "test_fake_gpu.py")
    assert str(wait) == f"item() in reads (testing/test_fake_gpu.py:{wait.line})"


def test_values_gradients_and_optimizers_are_those_of_the_cpu():
    def train(device):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).to(device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        x, y = torch.randn(16, 4).to(device), (torch.arange(16) % 3).to(device)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            assert all(p.grad.device == p.device == next(net.parameters()).device for p in net.parameters())
        return net.to("cpu").state_dict()

    with FakeGPU():
        ours = train("cuda")
    assert all(torch.equal(value, ours[name]) for name, value in train("cpu").items())


def test_a_copy_lies_where_the_original_lies():
    with FakeGPU() as gpu:
        net = nn.Linear(2, 2).to("cuda")
        net.table = torch.ones(2, device="cuda")
        other = copy.deepcopy(net)
        assert {t.device for t in (*other.parameters(), other.table)} == {GPU}
        assert gpu.place(copy.deepcopy(torch.ones(2))) == "cpu"


def test_a_module_moves_in_inference_mode_too():
    layer = nn.Linear(2, 3)
    with FakeGPU(), torch.inference_mode():
        layer.to("cuda")
        assert layer(torch.ones(1, 2, device="cuda")).device == GPU


def test_a_generator_draws_for_its_own_device_alone():
    with FakeGPU():
        host, there = torch.Generator(), torch.Generator("cuda")
        assert (host.device.type, there.device.type) == ("cpu", "cuda")
        assert torch.rand(2, generator=there.manual_seed(0), device="cuda").is_cuda
        torch.empty(2, device="cuda").normal_(generator=there)
        for draw in (
            lambda: torch.rand(2, generator=host, device="cuda"),
            lambda: torch.rand(2, generator=there),
            lambda: torch.empty(2, device="cuda").normal_(generator=host),
            lambda: torch.randn(2).normal_(generator=there),
        ):
            with pytest.raises(MixedDevicesError, match="from a generator of the"):
                draw()


def test_the_memory_of_a_tensor_that_is_gone_is_on_no_device():
    with FakeGPU() as gpu:
        for _ in range(200):
            torch.ones(64, device="cuda")
            assert gpu.place(torch.from_numpy(torch.ones(64).numpy())) == "cpu"


def test_afterwards_nothing_is_left():
    before = torch.Generator, torch._C.DisableTorchFunction, torch.cuda.manual_seed
    with FakeGPU():
        x = torch.ones(2, device="cuda")
    assert (torch.Generator, torch._C.DisableTorchFunction, torch.cuda.manual_seed) == before
    assert x.device.type == "cpu"
