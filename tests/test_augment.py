"""Applying an augmentation gives what torchvision gives for the same draw."""

import pytest
import torch
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from cnnlab.augment import CropFlip, CutMix, in_order, one_hot

IMAGES = torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize(("size", "padding"), [(28, 0), (32, 4), (20, 2), (32, 0), (1, 0), (94, 31)])
def test_crop_flip_equals_torchvision(size, padding, mode):
    augmentation = CropFlip(size, padding, mode)
    index = torch.tensor([3, 3, 0, 11, 7, 8, 2, 1])
    drawn = augmentation.draw(generator(), len(index), 32)
    result = augmentation.apply(IMAGES.permute(0, 2, 3, 1).contiguous(), index, **drawn).permute(0, 3, 1, 2)
    for row, number in enumerate(index):
        expected = reference.pad(IMAGES[number], [padding], padding_mode=mode)
        expected = reference.crop(expected, int(drawn["top"][row]), int(drawn["left"][row]), size, size)
        if drawn["flip"][row]:
            expected = reference.horizontal_flip(expected)
        assert result[row].equal(expected)


@pytest.mark.parametrize("size", [28, 27, 32, 1])
def test_center_equals_torchvision(size):
    result = CropFlip(size).center(IMAGES.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert result.equal(reference.center_crop(IMAGES, [size]))


def test_center_leaves_an_image_of_the_crops_size_alone():
    assert CropFlip(32, padding=4).center(IMAGES.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).equal(IMAGES)


def test_crops_reach_every_place_equally_often_and_half_are_flipped():
    drawn = CropFlip(28).draw(generator(), 20_000, 32)
    for corner in (drawn["top"], drawn["left"]):
        assert stats.chisquare(corner.bincount(minlength=5)).pvalue > 1e-3
    assert stats.binomtest(int(drawn["flip"].sum()), 20_000, 0.5).pvalue > 1e-3
    assert not CropFlip(flip_probability=0).draw(generator(), 100, 32)["flip"].any()


def test_cutmix_equals_torchvision_with_a_box_for_every_image():
    augmentation = CutMix()
    images, labels = IMAGES.float(), one_hot(torch.arange(12) % 10, 10)
    drawn = augmentation.draw(generator(), 12, 32)
    mixed, soft = augmentation.apply(images, labels, images.roll(1, 0), labels.roll(1, 0), **drawn)
    for row, (left, top, right, bottom) in enumerate(drawn["box"].tolist()):
        params = {
            "labels": torch.arange(12) % 10,
            "batch_size": 12,
            "box": (left, top, right, bottom),
            "lam_adjusted": 1 - (right - left) * (bottom - top) / 32**2,
        }
        transform = v2.CutMix(num_classes=10)
        assert mixed[row].equal(transform.transform(images, params)[row])
        expected = labels[row] * params["lam_adjusted"] + labels.roll(1, 0)[row] * (1 - params["lam_adjusted"])
        torch.testing.assert_close(soft[row], expected)
    assert soft.sum(1).allclose(torch.ones(12))


@pytest.mark.parametrize("alpha", [1.0, 0.3])
def test_cutmix_draws_boxes_as_torchvision_does(alpha):
    """Boxes before clipping have the area 1 - lambda, lambda from Beta(alpha, alpha); compared by distribution."""
    torch.manual_seed(0)
    box = CutMix(alpha).draw(generator(), 3000, 32)["box"].double()
    areas = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    transform = v2.CutMix(alpha=alpha, num_classes=10)
    theirs = [(1 - transform.make_params([IMAGES.float()])["lam_adjusted"]) * 32**2 for _ in range(3000)]
    assert stats.ks_2samp(areas.numpy(), theirs).pvalue > 1e-3


def test_order_of_stages_does_not_depend_on_how_they_are_listed():
    assert list(in_order({"cutmix": CutMix(), "crop_flip": CropFlip()})) == ["crop_flip", "cutmix"]


@pytest.mark.parametrize("wrong", [{"size": 0}, {"padding": -1}, {"flip_probability": 1.1}])
def test_crop_flip_refuses(wrong):
    with pytest.raises(ValueError, match="a crop takes"):
        CropFlip(**wrong)


def test_crop_flip_refuses_an_unknown_padding():
    with pytest.raises(ValueError, match="choose reflect or constant"):
        CropFlip(padding_mode="edge")


def test_cutmix_refuses():
    with pytest.raises(ValueError, match="alpha=0"):
        CutMix(0)
