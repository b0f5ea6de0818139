import pytest
import torch
from torchvision.transforms import v2

from lightning_objectives.batches import AugMix

PIXELS = torch.rand(5, 3, 9, 7, generator=torch.Generator().manual_seed(0))


def called(method, images, seed=0):
    return method(images, torch.Generator().manual_seed(seed))[0]


def test_each_image_is_torchvisions_with_draws_of_its_own():
    """The number: torchvision's own transform, one image after the other, from the seed that the generator gives."""
    ours = called(AugMix(severity=5, width=2, depth=2, alpha=0.7), PIXELS)
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(0)))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        transform = v2.AugMix(severity=5, mixture_width=2, chain_depth=2, alpha=0.7, all_ops=False)
        theirs = torch.stack([transform(image) for image in PIXELS])
    assert torch.equal(ours, theirs)


def test_the_mixture_by_hand(monkeypatch):
    """m = 0.6, w = (0.2, 0.3, 0.5), x = (0.2, 0.8): 0.4 x + 0.6 (0.2 (0.4, 0.6) + 0.3 (0, 1) + 0.5 (1, 0.5))."""
    chains = iter([(0.4, 0.6), (0.0, 1.0), (1.0, 0.5)])
    draws = iter([torch.tensor([[0.4, 0.6]]), torch.tensor([[0.2, 0.3, 0.5]])])
    monkeypatch.setattr(v2.AugMix, "_sample_dirichlet", lambda self, params: next(draws))
    monkeypatch.setattr(
        v2.AugMix,
        "_apply_image_or_video_transform",
        lambda self, image, *_, **__: torch.tensor(next(chains)).view(1, 1, 1, 2),
    )
    mixed = called(AugMix(depth=1), torch.tensor([0.2, 0.8]).view(1, 1, 1, 2))
    torch.testing.assert_close(mixed.flatten(), torch.tensor([0.428, 0.722]))


def test_normalized_images_are_those_of_their_pixels():
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
    normalized = v2.Normalize(mean, std)(PIXELS)
    ours = called(AugMix(mean=mean, std=std), normalized)
    torch.testing.assert_close(ours, v2.Normalize(mean, std)(called(AugMix(), PIXELS)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"severity": 0}, "severity=0 must be in"),
        ({"width": 0}, "width=0 must be >= 1"),
        ({"depth": 0}, "depth=0 must be >= 1, or -1"),
        ({"alpha": 0.0}, r"alpha=0\.0 must be > 0"),
        ({"std": (0.5,)}, "belong together"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AugMix(**settings)


def test_pixels_that_are_unknown_are_refused():
    with pytest.raises(ValueError, match=r"outside of \[0, 1\]"):
        called(AugMix(), PIXELS * 255)
