"""Applying an augmentation gives what torchvision gives for the same draw."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as reference

from cnnlab.augment import Affine, Blur, Color, CropFlip, CutMix, Cutout, MixUp, Noise, TrivialAugment
from cnnlab.augment.base import in_order
from cnnlab.augment.geometry import inverse_matrix
from cnnlab.augment.trivial_augment import CHANGES, NUM_STEPS

IMAGES = torch.randint(256, (12, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize(("size", "padding"), [(28, 0), (32, 4), (20, 2), (32, 0), (1, 0), (94, 31)])
def test_crop_flip_equals_torchvision(size, padding, mode):
    augmentation = CropFlip(size, padding, mode)
    index = torch.tensor([3, 3, 0, 11, 7, 8, 2, 1])
    drawn = augmentation.draw(generator(), len(index), (32, 32))
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
    drawn = CropFlip(28).draw(generator(), 20_000, (32, 32))
    for corner in (drawn["top"], drawn["left"]):
        assert stats.chisquare(corner.bincount(minlength=5)).pvalue > 1e-3
    assert stats.binomtest(int(drawn["flip"].sum()), 20_000, 0.5).pvalue > 1e-3
    assert not CropFlip(flip_probability=0).draw(generator(), 100, (32, 32))["flip"].any()


def test_cutmix_equals_torchvision_with_a_box_for_every_image():
    augmentation = CutMix()
    images, labels = IMAGES.float(), F.one_hot(torch.arange(12) % 10, 10).float()
    drawn = augmentation.draw(generator(), 12, (32, 32))
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
    box = CutMix(alpha).draw(generator(), 3000, (32, 32))["box"].double()
    areas = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    transform = v2.CutMix(alpha=alpha, num_classes=10)
    theirs = [(1 - transform.make_params([IMAGES.float()])["lam_adjusted"]) * 32**2 for _ in range(3000)]
    assert stats.ks_2samp(areas.numpy(), theirs).pvalue > 1e-3


def test_mixup_equals_torchvision_with_a_weight_for_every_image():
    images, labels = IMAGES.float(), F.one_hot(torch.arange(12) % 10, 10).float()
    drawn = MixUp(0.4).draw(generator(), 12, (32, 32))
    mixed, soft = MixUp().apply(images, labels, images.roll(1, 0), labels.roll(1, 0), **drawn)
    transform = v2.MixUp(num_classes=10)
    for row, share in enumerate(drawn["share"].tolist()):
        params = {"labels": torch.arange(12) % 10, "batch_size": 12, "lam": 1 - share}
        torch.testing.assert_close(mixed[row], transform.transform(images.clone(), params)[row])
        torch.testing.assert_close(soft[row], labels[row] * (1 - share) + labels.roll(1, 0)[row] * share)


@pytest.mark.parametrize("alpha", [1.0, 0.2])
def test_mixup_weights_come_from_the_beta_distribution(alpha):
    share = MixUp(alpha).draw(generator(), 5000, (32, 32))["share"].double().numpy()
    assert stats.kstest(share, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("angle", "x", "y", "scale", "shear_x", "shear_y"),
    [(30, 0, 0, 1, 0, 0), (0, 5, -3, 1, 0, 0), (0, 0, 0, 0.7, 0, 0), (0, 0, 0, 1.3, 10, -20), (-75, 2, 4, 1.1, 5, 8)],
)
@pytest.mark.parametrize("size", [32, 27])
def test_affine_equals_torchvision(angle, x, y, scale, shear_x, shear_y, size):
    images = IMAGES[:3, :, :size, :size].float()
    parameters = (torch.tensor([float(value)] * 3) for value in (angle, x, y, scale, shear_x, shear_y))
    result = Affine(padding_mode="constant").apply(images, inverse_matrix(*parameters, size=(size, size)))
    expected = reference.affine(
        images, angle, [x, y], scale, [shear_x, shear_y], interpolation=v2.InterpolationMode.BILINEAR
    )
    torch.testing.assert_close(result, expected, rtol=0, atol=0.05)


def test_affine_draws_for_every_image_what_torchvision_draws():
    ours = Affine(degrees=20, translate=0.1, scale=(0.8, 1.3), shear=10).draw(generator(), 4000, (32, 32))["theta"]
    theirs = v2.RandomAffine(20, translate=(0.1, 0.1), scale=(0.8, 1.3), shear=(-10, 10, -10, 10))
    torch.manual_seed(0)
    drawn = [theirs.make_params([IMAGES[0]]) for _ in range(4000)]
    columns = {name: torch.tensor([float(d[name]) for d in drawn]) for name in ("angle", "scale")}
    columns |= {name: torch.tensor([d["translate"][i] for d in drawn]).float() for i, name in enumerate("xy")}
    columns |= {f"shear_{name}": torch.tensor([d["shear"][i] for d in drawn]) for i, name in enumerate("xy")}
    expected = inverse_matrix(**columns, size=(32, 32))
    for row in range(2):
        for column in range(3):
            assert stats.ks_2samp(ours[:, row, column].numpy(), expected[:, row, column].numpy()).pvalue > 1e-3
    assert len(ours.unique(dim=0)) == 4000


def test_affine_reflects_at_the_edge():
    moved = Affine(padding_mode="reflect").apply(
        IMAGES.float(), inverse_matrix(*(torch.tensor([float(v)] * 12) for v in (0, 3, 0, 1, 0, 0)), size=(32, 32))
    )
    torch.testing.assert_close(moved[..., :3], IMAGES[..., :3].flip(3).float(), rtol=0, atol=0.05)


def test_color_equals_torchvision():
    augmentation, images = Color(0.9, 0.9, 0.9), IMAGES.float()
    drawn = augmentation.draw(generator(), 12, (32, 32))
    result = augmentation.apply(images, **drawn)
    for row in range(12):
        expected = images[row] / 255
        for name in ("brightness", "contrast", "saturation"):
            expected = getattr(reference, f"adjust_{name}")(expected, float(drawn[name][row]))
        torch.testing.assert_close(result[row] / 255, expected, rtol=0, atol=1e-3)


def test_color_draws_for_every_image_within_its_range():
    drawn = Color(brightness=0.2, contrast=1.5, saturation=0).draw(generator(), 4000, (32, 32))
    assert stats.kstest(drawn["brightness"].numpy(), stats.uniform(0.8, 0.4).cdf).pvalue > 1e-3
    assert stats.kstest(drawn["contrast"].numpy(), stats.uniform(0, 2.5).cdf).pvalue > 1e-3
    assert drawn["saturation"].equal(torch.ones(4000))


def test_noise_is_normal_of_the_given_width_and_differs_from_image_to_image():
    images = torch.full((500, 3, 32, 32), 127.0)
    augmentation = Noise(0.1)
    noise = (augmentation.apply(images, **augmentation.draw(generator(), 500, (32, 32))) - images) / 25.5
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert stats.kstest(noise.flatten()[::97].numpy(), "norm").pvalue > 1e-3
    assert len(noise[:, 0, 0, 0].unique()) > 490
    assert Noise(5).apply(images, **augmentation.draw(generator(), 500, (32, 32))).aminmax() == (0, 255)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 9])
def test_blur_equals_torchvision(kernel_size):
    augmentation, images = Blur(kernel_size, (0.1, 3.0)), IMAGES.float()
    drawn = augmentation.draw(generator(), 12, (32, 32))
    result = augmentation.apply(images, **drawn)
    for row, sigma in enumerate(drawn["sigma"].tolist()):
        expected = reference.gaussian_blur(images[row], [kernel_size] * 2, [sigma] * 2)
        torch.testing.assert_close(result[row], expected, rtol=0, atol=1e-2)
    assert drawn["sigma"].min() >= 0.1
    assert drawn["sigma"].max() <= 3
    assert len(drawn["sigma"].unique()) == 12


def test_cutout_equals_torchvisions_erase():
    augmentation, images = Cutout(8), IMAGES.float() - 100
    drawn = augmentation.draw(generator(), 12, (32, 32))
    result = augmentation.apply(images, **drawn)
    for row, (left, top, right, bottom) in enumerate(drawn["box"].tolist()):
        zero = torch.zeros(3, bottom - top, right - left)
        assert result[row].equal(reference.erase(images[row], top, left, bottom - top, right - left, zero))


def test_cutouts_center_is_anywhere():
    box = Cutout(7).draw(generator(), 32_000, (32, 32))["box"]
    covered = torch.zeros(32)
    for x in range(32):
        covered[x] = ((box[:, 0] <= x) & (x < box[:, 2])).float().mean()
    assert ((box[:, 2:] - box[:, :2]).amax(0) == 7).all()
    torch.testing.assert_close(covered[3:-3], torch.full((26,), 7 / 32), rtol=0, atol=0.01)
    torch.testing.assert_close(covered[[0, -1]], torch.full((2,), 4 / 32), rtol=0, atol=0.01)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 2)])
def test_trivial_augment_of_tiny_images(size):
    """Torchvision cannot blur or sharpen them either, and leaves them as they are."""
    images = torch.randint(256, (31, 3, *size)).float()
    sharpness = torch.full((31,), CHANGES.index("sharpness"))
    drawn = TrivialAugment.parameters(sharpness, torch.arange(31), torch.ones(31), size)
    assert TrivialAugment().apply(images, **drawn).equal(images)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("size", [32, 27])
def test_trivial_augment_equals_torchvision(name, size):
    """Every strength in both directions; colors within one level of 255 after torchvision's own roundings."""
    steps = torch.arange(NUM_STEPS).repeat(2)
    signs = torch.tensor([1, -1]).repeat_interleave(NUM_STEPS)
    smooth = F.avg_pool2d(IMAGES[:2].float(), 9, 1, 4)[..., :size, :size].sub_(60).mul_(1.7).clamp_(0, 255).byte()
    image = torch.where(torch.arange(size) < size // 2, smooth[0], smooth[1].clamp(30, 200))
    change = torch.full((62,), CHANGES.index(name))
    drawn = TrivialAugment.parameters(change, steps, signs, (size, size))
    ours = TrivialAugment().apply(image.float().expand(62, -1, -1, -1), **drawn)

    policy = v2.TrivialAugmentWide()
    theirs_name = {"color": "Color", "autocontrast": "AutoContrast"}.get(name, name.title().replace("_", ""))
    magnitudes, signed = policy._AUGMENTATION_SPACE[theirs_name]
    magnitudes = magnitudes(NUM_STEPS, size, size)
    for row in range(62):
        magnitude = 0.0 if magnitudes is None else float(magnitudes[steps[row]])
        magnitude *= float(signs[row]) if signed else 1
        theirs = policy._apply_image_or_video_transform(
            image, theirs_name, magnitude, v2.InterpolationMode.NEAREST, policy._fill
        )
        difference = (ours[row] - theirs.float()).abs()
        if name in ("rotate", "shear_x", "shear_y"):  # a place half-way between two pixels may go to either
            assert (difference > 0).float().mean() < 0.02, (row, magnitude)
        else:
            assert difference.max() <= (1 if name in (*CHANGES[6:10], "autocontrast") else 0), row


def test_trivial_augment_draws_every_change_and_strength_equally_often():
    drawn = TrivialAugment().draw(generator(), 28_000, (32, 32))
    assert stats.chisquare(drawn["change"].bincount(minlength=14)).pvalue > 1e-3
    strength = drawn["strength"][drawn["change"] == CHANGES.index("rotate")]
    assert stats.kstest(strength.numpy(), stats.uniform(-135, 270).cdf).statistic < 0.06


def test_a_batch_of_all_changes_gives_each_image_its_own():
    drawn = TrivialAugment().draw(generator(), 40, (32, 32))
    images = F.avg_pool2d(IMAGES.float(), 5, 1, 2).round().repeat(4, 1, 1, 1)[:40]
    together = TrivialAugment().apply(images, **drawn)
    for row in range(40):
        alone = TrivialAugment().apply(images[row : row + 1], **{key: v[row : row + 1] for key, v in drawn.items()})
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1)


PIXELWISE = (Affine(30, 0.2, (0.7, 1.4), 10), Color(0.5, 0.5, 0.5), Noise(0.2), Blur(), TrivialAugment(), Cutout())


@pytest.mark.parametrize("augmentation", PIXELWISE, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_comes_in_is_left_alone_and_stays_in_range(augmentation, channels):
    images = IMAGES[:, :channels].float()
    result = augmentation.apply(images, **augmentation.draw(generator(), 12, (32, 32)))
    assert images.equal(IMAGES[:, :channels].float())
    assert result.shape == images.shape
    assert result.dtype == torch.float32
    assert result.min() >= 0
    assert result.max() <= 255
    assert not result.equal(images)


def test_order_of_stages_does_not_depend_on_how_they_are_listed():
    listed = {
        "cutmix": CutMix(),
        "cutout": Cutout(),
        "noise": Noise(),
        "crop_flip": CropFlip(),
        "color": Color(),
        "affine": Affine(),
        "mixup": MixUp(),
        "blur": Blur(),
        "scale": Affine(),
    }
    ordered = ["crop_flip", "affine", "scale", "color", "blur", "noise", "cutout", "cutmix", "mixup"]
    assert list(in_order(listed)) == ordered
    assert list(in_order(dict(reversed(listed.items())))) == ordered


@pytest.mark.parametrize("wrong", [{"size": 0}, {"padding": -1}, {"flip_probability": 1.1}])
def test_crop_flip_refuses(wrong):
    with pytest.raises(ValueError, match="a crop needs"):
        CropFlip(**wrong)


def test_crop_flip_refuses_an_unknown_padding():
    with pytest.raises(ValueError, match="is neither reflect nor constant"):
        CropFlip(padding_mode="edge")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CutMix(0), "alpha=0"),
        (lambda: MixUp(-1), "alpha=-1"),
        (lambda: Affine(degrees=-1), "degrees=-1"),
        (lambda: Affine(scale=(1.2, 0.8)), "scale=.1.2, 0.8."),
        (lambda: Affine(shear=90), "shear=90"),
        (lambda: Affine(padding_mode="edge"), "is neither reflect nor constant"),
        (lambda: Color(contrast=-0.1), "contrast=-0.1"),
        (lambda: Noise(-1), "std=-1"),
        (lambda: Blur(4), "kernel_size must be odd"),
        (lambda: Blur(sigma=(0, 1)), "0 < sigma"),
        (lambda: Cutout(0), "size=0"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
