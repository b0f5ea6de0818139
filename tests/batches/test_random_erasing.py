import pytest
import torch
from torchvision.transforms import v2

from lightning_objectives._trainer.random import private_stream
from lightning_objectives.batches import RandomErasing, draw_boxes, erase_boxes


def theirs(count, height, width, *, min_area, max_area, min_ratio):
    """(N, 4) boxes of torchvision, with its draws; one that fits into no image is empty."""
    transform = v2.RandomErasing(p=1.0, scale=(min_area, max_area), ratio=(min_ratio, 1 / min_ratio))
    with private_stream(0):
        drawn = [transform.make_params([torch.zeros(3, height, width)]) for _ in range(count)]
    boxes = [(p["i"], p["i"] + p["h"], p["j"], p["j"] + p["w"]) if p["v"] is not None else [0] * 4 for p in drawn]
    return torch.tensor(boxes)


def ours(count, height, width, **settings):
    return draw_boxes(count, height, width, torch.Generator().manual_seed(0), **settings)


def sizes(boxes):
    top, bottom, left, right = boxes.unbind(1)
    return bottom - top, right - left


def test_by_hand():
    """Pixels are numbered by rows; the second box is empty, the third reaches beyond the image."""
    images = torch.arange(1.0, 13).view(3, 2, 2)
    boxes = torch.tensor([[0, 1, 1, 2], [1, 1, 0, 2], [1, 5, -3, 9]])
    assert erase_boxes(images, boxes, value=-1.0).tolist() == [[[1, -1], [3, 4]], [[5, 6], [7, 8]], [[9, 10], [-1, -1]]]
    assert images[0, 0, 1] == 2


@pytest.mark.parametrize(("area", "ratio"), [(0.1, 1.0), (0.2, 1.0), (0.02, 1.0)])
def test_a_fixed_size_equals_torchvision(area, ratio):
    settings = {"min_area": area, "max_area": area, "min_ratio": ratio}
    for mine, other in zip(sizes(ours(1, 32, 40, **settings)), sizes(theirs(1, 32, 40, **settings))):
        assert torch.equal(mine, other)


def test_a_tenth_of_the_area_twice_as_wide_as_high(monkeypatch):
    """102.4 pixels, r = 1/2: 7 by 14, the number of torchvision and timm. The logarithm's end is the inverse."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.zeros(shape, dtype=torch.float64))
    box = draw_boxes(1, 32, 32, torch.Generator(), min_area=0.1, max_area=0.1, min_ratio=2.0**-1)
    assert box.tolist() == [[0, 14, 0, 7]]  # The draw 0 is the greatest ratio, 2.
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 1 - 1e-12, dtype=torch.float64))
    box = draw_boxes(1, 32, 32, torch.Generator(), min_area=0.1, max_area=0.1, min_ratio=2.0**-1)
    assert box.tolist() == [[25, 32, 18, 32]]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (12, 60)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    """The means and deviations of areas, ratios and corners of 4000 boxes, within five standard errors."""
    settings = {"min_area": 0.02, "max_area": 0.4, "min_ratio": 0.3}
    mine, other = (f(4000, height, width, **settings) for f in (ours, theirs))
    high, wide = sizes(mine)
    assert (high < height).all()
    assert (wide < width).all()
    mine, other = (boxes[boxes[:, 1] > boxes[:, 0]] for boxes in (mine, other))  # without those that fitted nowhere
    for number in (
        lambda b: sizes(b)[0] * sizes(b)[1] / (height * width),
        lambda b: (sizes(b)[0] / sizes(b)[1]).log(),
        lambda b: b[:, 0] / (height - sizes(b)[0]),
        lambda b: b[:, 2] / (width - sizes(b)[1]),
    ):
        a, b = number(mine), number(other)
        tolerance = 5 * b.std().item() * (2 / 4000) ** 0.5
        assert a.mean().item() == pytest.approx(b.mean().item(), abs=tolerance)
        assert a.std().item() == pytest.approx(b.std().item(), abs=tolerance)


def test_what_is_erased_equals_torchvision():
    images, boxes = torch.rand(6, 3, 9, 7), ours(6, 9, 7)
    erased = erase_boxes(images, boxes)
    for image, (top, bottom, left, right), mine in zip(images, boxes.tolist(), erased):
        size = bottom - top, right - left
        other = v2.functional.erase(image, top, left, *size, torch.zeros(3, 1, 1))
        assert torch.equal(mine, other)
    assert not torch.equal(erased, images)


def test_where_no_box_fits_the_image_stays():
    boxes = ours(50, 1, 30, min_area=0.5, max_area=0.5, min_ratio=0.5)
    assert torch.equal(boxes[:, 0], boxes[:, 1])
    assert torch.equal(erase_boxes(torch.ones(50, 1, 30), boxes), torch.ones(50, 1, 30))


def test_prob_is_the_share_of_changed_images_and_the_labels_stay():
    images, index, weight = RandomErasing(prob=0.25)(torch.ones(800, 2, 8, 8), torch.Generator().manual_seed(0))
    changed = (images == 0).any((1, 2, 3))
    assert changed.sum().item() == pytest.approx(200, abs=40)
    assert index[:, 0].tolist() == list(range(800))
    assert torch.equal(weight, torch.ones(800, 1))
    assert not RandomErasing(prob=0.0).active(step=0)


def test_noise_is_standard_normal_and_lies_in_the_box_alone():
    method, images = RandomErasing(prob=1.0, noise=True), torch.full((200, 3, 16, 16), 100.0)
    new = method(images, torch.Generator().manual_seed(0))[0]
    written = new[new != 100]
    assert written.mean().item() == pytest.approx(0, abs=0.05)
    assert written.std().item() == pytest.approx(1, abs=0.05)
    zeros = RandomErasing(prob=1.0)(images, torch.Generator().manual_seed(0))[0]
    assert torch.equal(zeros == 0, new != 100)


def test_whole_numbers_are_erased_with_whole_numbers():
    images, boxes = torch.full((1, 2, 2), 7, dtype=torch.uint8), torch.tensor([[0, 1, 0, 2]])
    assert erase_boxes(images, boxes).tolist() == [[[0, 0], [7, 7]]]
    with pytest.raises(ValueError, match=r"Inputs of torch\.uint8 hold whole numbers"):
        erase_boxes(images, boxes, value=0.5)
    with pytest.raises(ValueError, match=r"Inputs of torch\.uint8 hold whole numbers"):
        RandomErasing(noise=True)(images, torch.Generator())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prob": 1.5}, r"prob=1\.5 must be in \[0, 1\]"),
        ({"min_area": 0.5}, r"min_area=0\.5 and max_area=0\.4 must be parts"),
        ({"max_area": 1.5}, r"max_area=1\.5 must be parts"),
        ({"min_ratio": 0.0}, r"min_ratio=0\.0 must be in \(0, 1\]"),
        ({"min_ratio": 3.0}, r"min_ratio=3\.0 must be in \(0, 1\]"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RandomErasing(**settings)
