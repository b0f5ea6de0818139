import pytest
import torch
from torchvision.transforms import v2

from lightning_objectives.batches import Mixup, RandAugment, RandomErasing
from lightning_objectives.callbacks import TransformBatch
from lightning_objectives.testing.conformance.case import Case

PIXELS = torch.rand(5, 3, 9, 7, generator=torch.Generator().manual_seed(0))


def called(method, images, seed=0):
    return method(images, torch.Generator().manual_seed(seed))[0]


def test_each_image_is_torchvisions_with_draws_of_its_own():
    """The number: torchvision's own transform, one image after the other, from the seed that the generator gives."""
    ours = called(RandAugment(num_ops=3, magnitude=20), PIXELS)
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(0)))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        transform = v2.RandAugment(num_ops=3, magnitude=20)
        theirs = torch.stack([transform(image) for image in PIXELS])
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, called(RandAugment(num_ops=3, magnitude=20), PIXELS, seed=1))


def test_equal_images_get_different_distortions():
    images = PIXELS[:1].expand(8, -1, -1, -1)
    assert len({image.numpy().tobytes() for image in called(RandAugment(magnitude=20), images)}) > 4


def test_the_global_stream_stays():
    before = torch.get_rng_state()
    called(RandAugment(), PIXELS)
    assert torch.equal(torch.get_rng_state(), before)


def test_normalized_images_are_those_of_their_pixels():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    normalized = v2.Normalize(mean, std)(PIXELS)
    ours = called(RandAugment(mean=mean, std=std), normalized)
    torch.testing.assert_close(ours, v2.Normalize(mean, std)(called(RandAugment(), PIXELS)), rtol=0, atol=1e-5)


def test_whole_numbers_stay_whole_numbers():
    images = (PIXELS * 255).to(torch.uint8)
    assert called(RandAugment(), images).dtype == torch.uint8


def test_half_precision_comes_back():
    assert called(RandAugment(), PIXELS.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (PIXELS * 4 - 2, {}, r"outside of \[0, 1\].*give mean= and std=.*Theirs are -"),
        (PIXELS * 255, {}, "convert them by images / 255"),
        (PIXELS.long(), {}, r"must be of torch\.uint8"),
        (PIXELS[:, :2], {}, "of 1 or 3 channels"),
        (PIXELS, {"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "has 2 channels, but the images have 3"),
    ],
)
def test_pixels_that_are_unknown_are_refused(images, settings, message):
    with pytest.raises(ValueError, match=message):
        called(RandAugment(**settings), images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_ops": -1}, "num_ops=-1 must be >= 0"),
        ({"magnitude": 31}, "magnitude=31 must be in"),
        ({"mean": (0.5,)}, "belong together"),
        ({"mean": (0.5,), "std": (0.0,)}, "must have a positive number"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RandAugment(**settings)


def test_without_operations_it_is_idle():
    assert not RandAugment(num_ops=0).active(step=0)


def test_the_usual_recipe_works():
    """RandAugment, then Mixup, then erasing, in the order of the list."""
    scale = {"mean": (0.5, 0.5, 0.5), "std": (0.1, 0.1, 0.1)}
    methods = [RandAugment(**scale), Mixup(alpha=0.8), RandomErasing(prob=1.0)]
    case = Case()
    plain = case.fit([])
    run = case.fit([TransformBatch(method) for method in methods])
    assert any(not torch.equal(a, run.weights[key]) for key, a in plain.weights.items())
