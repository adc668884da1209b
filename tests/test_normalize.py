"""Statistics come from the training images alone, exactly, and undo themselves."""

import io
import subprocess
import sys
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from sklearn import decomposition, preprocessing
from torch import Tensor
from torch.utils.data import Dataset

from cnnlab import normalize
from cnnlab.augment import CropFlip, CutMix
from cnnlab.config.options import UserError
from cnnlab.data.fetched import Fetched, seeded
from cnnlab.data.images import DataSet, Images
from cnnlab.data.loaders import warn_of_absent_classes
from cnnlab.data.pipeline import ImageData
from cnnlab.normalize import PCA, ZCA, MinMax, Normalization, Robust, Standard, Unchanged, fit_once

NORMS = (Unchanged, Standard, MinMax, Robust, PCA, ZCA)


def natural(num: int, size: int = 6) -> Tensor:
    """Smooth pictures with a different mean in every channel: (num, 3, size, size) uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(num, 3, 3, 3, generator=generator).mul_(30)
    coarse += torch.randn(num, 1, 3, 3, generator=generator).mul_(40) + torch.tensor([90.0, 120, 150])[:, None, None]
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return (fine + 4 * torch.randn(num, 3, size, size, generator=generator)).clamp(0, 255).byte()


PIXELS = natural(2500)  # more than are measured at a time


def fitted(norm: Normalization) -> Normalization:
    norm.fit(PIXELS)
    return norm


def features(images: Tensor, per: str) -> np.ndarray:
    """What the references call samples and features: pixels and channels, or images and values."""
    images = images.double()
    return images.permute(0, 2, 3, 1).reshape(-1, 3).numpy() if per == "channel" else images.flatten(1).numpy()


def test_unchanged_is_to_tensor():
    assert Unchanged()(PIXELS).equal(PIXELS.float() / 255)


@pytest.mark.parametrize("per", ["channel", "pixel"])
@pytest.mark.parametrize(
    ("norm", "reference"),
    [
        (Standard, preprocessing.StandardScaler()),
        (MinMax, preprocessing.MinMaxScaler()),
        (Robust, preprocessing.RobustScaler()),
    ],
)
def test_scalers_equal_scikit_learn(norm, reference, per):
    expected = reference.fit_transform(features(PIXELS, per))
    np.testing.assert_allclose(features(fitted(norm(per))(PIXELS), per), expected, atol=1e-5)


@pytest.mark.parametrize("num_components", [None, 40, 1])
def test_pca_of_images_equals_scikit_learn(num_components):
    """In the first places, largest variance first, up to the sign of each component; the other places are zero."""
    ours = features(fitted(PCA(num_components=num_components, eps=1e-12))(PIXELS), "pixel")
    reference = decomposition.PCA(num_components, whiten=True, svd_solver="full").fit(features(PIXELS, "pixel"))
    theirs = reference.transform(features(PIXELS, "pixel")) * np.sqrt(len(PIXELS) / (len(PIXELS) - 1))
    num = theirs.shape[1]
    np.testing.assert_allclose(np.abs(ours[:, :num]), np.abs(theirs), atol=1e-3)
    assert not ours[:, num:].any()


def test_pca_of_channels_equals_scikit_learn():
    ours = features(fitted(PCA(per="channel", num_components=2, eps=1e-12))(PIXELS), "channel")
    theirs = decomposition.PCA(2, whiten=True).fit_transform(features(PIXELS, "channel"))
    np.testing.assert_allclose(np.abs(ours[:, :2]), np.abs(theirs), atol=1e-3)
    assert not ours[:, 2].any()


@pytest.mark.parametrize("per", ["channel", "pixel"])
@pytest.mark.parametrize("norm", [PCA, ZCA])
def test_whitened_training_images_are_uncorrelated(norm, per):
    """Their covariance is the identity to 1e-4, and their mean is zero."""
    whitened = features(fitted(norm(per, eps=1e-12))(PIXELS), per)
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(whitened.shape[1]), atol=1e-4)
    np.testing.assert_allclose(whitened.mean(0), 0, atol=1e-4)


@pytest.mark.parametrize("num_components", [None, 70, 20])
def test_zca_equals_a_slow_loop(num_components):
    """P = V (L + eps)^(-1/2) V', one image after the other, in float64."""
    eps = 1e-3
    vectors = features(PIXELS, "pixel") / 255
    mean = vectors.mean(0)
    variance, components = np.linalg.eigh(np.cov(vectors.T, bias=True))
    variance, components = variance[::-1][:num_components], components[:, ::-1][:, :num_components]
    matrix = components @ np.diag((variance + eps) ** -0.5) @ components.T
    ours = features(fitted(ZCA(num_components=num_components, eps=eps))(PIXELS[:20]), "pixel")
    for row, vector in zip(ours, vectors, strict=False):
        np.testing.assert_allclose(row, matrix @ (vector - mean), atol=1e-4)


@pytest.mark.parametrize("per", ["channel", "pixel"])
@pytest.mark.parametrize("norm", NORMS)
def test_inverse_gives_the_pixels_back(norm, per):
    made = fitted(norm() if norm is Unchanged else norm(per))
    torch.testing.assert_close(made.inverse(made(PIXELS[:50])), PIXELS[:50].float(), rtol=0, atol=2e-2)


@pytest.mark.parametrize("norm", NORMS)
def test_floating_point_pixels_are_normalised_alike_and_left_alone(norm):
    made, pixels = fitted(norm()), PIXELS[:50].float()
    assert made(pixels).equal(made(PIXELS[:50]))
    assert pixels.equal(PIXELS[:50].float())
    assert made(PIXELS[:50].contiguous(memory_format=torch.channels_last)).equal(made(PIXELS[:50]))


@pytest.mark.parametrize("norm", NORMS)
def test_what_does_not_vary_is_not_divided_by_zero(norm):
    made, pixels = norm(), torch.full((4, 3, 4, 4), 7, dtype=torch.uint8)
    made.fit(pixels)
    expected = 7 / 255 if norm is Unchanged else 0.0
    torch.testing.assert_close(made(pixels), torch.full((4, 3, 4, 4), expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("norm", [Standard, Robust, MinMax])
def test_what_hardly_varies_is_not_blown_up(norm):
    """Of mostly black images, the interquartile range is 0."""
    made, pixels = norm(), torch.zeros(100, 1, 4, 4, dtype=torch.uint8)
    pixels[:10] = 255
    made.fit(pixels)
    assert made(pixels).abs().max() < 4


@pytest.mark.parametrize("norm", NORMS[1:])
def test_an_unknown_per_is_refused(norm):
    with pytest.raises(ValueError, match="per=image is neither channel nor pixel"):
        norm(per="image")


def data_of(pixels: np.ndarray, test: np.ndarray, fingerprint: str = "") -> DataSet:
    labels, classes = np.arange(len(pixels)) % 10, tuple("0123456789")
    return DataSet(Images(pixels, labels, classes), Images(test, labels[: len(test)], classes), fingerprint)


@pytest.mark.parametrize("norm", NORMS[1:])
def test_held_out_and_test_images_never_enter(norm, tmp_path):
    """Statistics do not change when validation and test images are replaced by outliers."""

    def statistics(outlier: int | None) -> dict[str, Tensor]:
        pixels = PIXELS[:200].numpy().copy()
        test = pixels[:50].copy()
        data = data_of(pixels, test)
        held_out = ImageData(data, Unchanged(), {}, batch_size=8, seed=3, cache_dir=tmp_path / "any").held_out_index
        if outlier is not None:
            pixels[held_out] = outlier
            test[:] = outlier
        made = norm()
        ImageData(data, made, {}, batch_size=8, seed=3, cache_dir=tmp_path / str(outlier))
        return made.state_dict()

    clean, planted = statistics(None), statistics(255)
    assert len(clean) >= 2
    assert all(clean[name].equal(planted[name]) for name in clean)


def test_statistics_are_measured_once_for_the_same_images(tmp_path, monkeypatch):
    def made(norm: Normalization, fingerprint: str = "a", **options) -> Normalization:
        ImageData(
            data_of(PIXELS[:200].numpy(), PIXELS[:10].numpy(), fingerprint),
            norm,
            options.pop("aug", {}),
            batch_size=8,
            cache_dir=tmp_path,
            **options,
        )
        return norm

    first = made(ZCA())
    monkeypatch.setattr(normalize.Whitening, "fit", None)  # not to be called
    second = made(ZCA())
    assert all(values.equal(first.state_dict()[name]) for name, values in second.state_dict().items())
    assert second(PIXELS[:5]).equal(first(PIXELS[:5]))
    for other in (
        lambda: made(PCA()),
        lambda: made(ZCA(eps=0.1)),
        lambda: made(ZCA(per="channel")),
        lambda: made(ZCA(num_components=3)),
        lambda: made(ZCA(), "b"),
        lambda: made(ZCA(), seed=1),
        lambda: made(ZCA(), aug={"crop_flip": CropFlip(4)}),
    ):
        with pytest.raises(TypeError, match="not callable"):
            other()


def test_poisoned_statistics_are_not_believed(tmp_path, caplog):
    def made() -> Tensor:
        norm = Standard()
        fit_once(norm, lambda: PIXELS[:200], "a", tmp_path)
        return norm.scale

    scale = made()
    [path] = tmp_path.glob("*.statistics")
    poisoned = io.BytesIO()
    torch.save({"shift": torch.zeros(3, 1, 1), "scale": 50 * scale}, poisoned)
    for content in (poisoned.getvalue(), path.read_bytes()[:65] + poisoned.getvalue(), path.read_bytes()[:-1]):
        path.write_bytes(content)
        caplog.clear()
        assert made().equal(scale)
        assert f"{path} is not what was written" in caplog.text


class Quantile(Normalization):
    """Has an argument."""

    def __init__(self, q: float):
        super().__init__()
        self.q = q

    def fit(self, pixels: Tensor) -> None:
        self.register_buffer("divisor", pixels.float().flatten()[:10000].quantile(self.q))

    def forward(self, images: Tensor) -> Tensor:
        return images / self.divisor

    def inverse(self, images: Tensor) -> Tensor:
        return images * self.divisor


def test_statistics_are_those_of_the_same_arguments_and_code(tmp_path, monkeypatch):
    def fitted(q: float) -> float:
        norm = Quantile(q)
        fit_once(norm, lambda: PIXELS[:200], "a", tmp_path)
        return float(norm.divisor)

    assert fitted(0.1) < fitted(0.9)
    assert len(list(tmp_path.glob("*.statistics"))) == 2
    monkeypatch.setattr("cnnlab.normalize.code_digest", lambda targets: f"changed {sorted(targets)}")
    fitted(0.1)
    assert len(list(tmp_path.glob("*.statistics"))) == 3


def test_statistics_that_cannot_be_kept_are_used(tmp_path):
    (tmp_path / "norm").touch()
    kept, other = Standard(), Standard()
    fit_once(kept, lambda: PIXELS[:200], "a", tmp_path)
    fit_once(other, lambda: PIXELS[:200], "a", tmp_path / "norm")
    assert other.scale.equal(kept.scale)


class Corner(CropFlip):
    """Evaluates the upper left corner, not the center."""

    def center(self, images: Tensor) -> Tensor:
        return images[:, :4, :4]


def test_statistics_are_of_what_the_crop_takes_and_shared_by_crops_that_take_the_same(tmp_path):
    images = data_of(PIXELS[:200].numpy(), PIXELS[:10].numpy())
    for crop, num_fits in ((CropFlip(4), 1), (CropFlip(4, flip_probability=0.1), 1), (Corner(4), 2)):
        data = ImageData(images, Standard("pixel"), {"crop": crop}, batch_size=8, cache_dir=tmp_path)
        seen = data.evaluation_images("train", data.train_index)
        torch.testing.assert_close(seen.mean(0), torch.zeros(3, 4, 4))
        assert len(list((tmp_path / "norm").glob("*.statistics"))) == num_fits


class Noisy(Dataset):
    """Images that differ whenever they are fetched."""

    def __init__(self, images: np.ndarray):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.images[index] ^ np.random.randint(64, size=self.images.shape[1:], dtype=np.uint8)


def test_a_dataset_without_random_changes_is_fitted_and_evaluated_on(tmp_path):
    pixels = PIXELS[:200].numpy()
    plain = data_of(pixels, PIXELS[:10].numpy())
    fetched = Fetched(Noisy(pixels), pixels.shape[1:], num_workers=0, evaluated=cast(Dataset, pixels))
    brought = DataSet(Images(fetched, plain.train.targets, plain.train.classes), plain.test, "another")
    expected, found = (
        ImageData(images, Standard("pixel"), {}, batch_size=8, cache_dir=tmp_path) for images in (plain, brought)
    )
    assert found.norm.state_dict()["shift"].equal(expected.norm.state_dict()["shift"])
    index = found.held_out_index
    assert found.evaluation_images("val", index).equal(expected.evaluation_images("val", index))
    assert not found.images["train"].pixels[index].equal(expected.images["train"].pixels[index])
    with pytest.raises(UserError, match="evaluated has 199 images, and dataset 200"):
        Fetched(Noisy(pixels), pixels.shape[1:], evaluated=cast(Dataset, pixels[1:]))


FAILS = """
import numpy as np
from cnnlab.data.fetched import Fetched
class Images:
    def __len__(self):
        return 100
    def __getitem__(self, index):
        if index == 78:
            ERROR
        return np.zeros((3, 8, 8), np.uint8)
for batch in Fetched(Images(), (3, 8, 8)).batches([[(index, 0)] for index in range(100)]):
    pass
"""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("raise OSError('no such image')", "OSError: no such image"),
        (
            "return np.zeros(3)",
            "UserError: Item 78 of Images is (3,) torch.float64, but should be (3, 8, 8) torch.uint8.",
        ),
    ],
)
def test_an_image_that_cannot_be_fetched_ends_the_process(error, said):
    """Its workers ignore signals."""
    code = FAILS.replace("ERROR", error)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.rstrip().endswith(said)


def test_a_class_of_which_no_image_is_evaluated_is_named(tmp_path, caplog):
    pixels, targets = np.zeros((104, 3, 4, 4), np.uint8), np.repeat([0, 1], [100, 4])
    images = Images(pixels, targets, ("cat", "dog"))
    warn_of_absent_classes(ImageData(DataSet(images, images, ""), Unchanged(), {}, batch_size=8, cache_dir=tmp_path))
    assert [record.message.partition(":")[0] for record in caplog.records] == ["No held-out image is of dog"]


def test_fetching_leaves_the_generators_of_gpus_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the masks of dropout would repeat"))
    with seeded(3):
        first = torch.rand(4)
    before = torch.get_rng_state()
    with seeded(3):
        assert torch.rand(4).equal(first)
    assert torch.get_rng_state().equal(before)


def test_statistics_of_a_checkpoint_go_to_the_device(tmp_path):
    data = ImageData(
        data_of(PIXELS[:200].numpy(), PIXELS[:10].numpy()), Standard(), {}, batch_size=8, cache_dir=tmp_path
    )
    statistics = data.state_dict()
    data.device = torch.device("meta")  # stands for a GPU, as `setup` leaves it
    data.norm.to(data.device)
    data.load_state_dict(statistics)
    assert data.norm.shift.device.type == "meta"


# as much of a trainer as the data need
TRAINER = SimpleNamespace(
    global_rank=0,
    world_size=1,
    current_epoch=0,
    num_training_batches=22,
    max_epochs=1,
    strategy=SimpleNamespace(root_device=torch.device("cpu")),
)


@pytest.mark.parametrize("aug", [{}, {"cutmix": CutMix()}])
def test_normalizing_the_whole_set_once_gives_the_batches_of_normalizing_each(aug, tmp_path, monkeypatch):
    def batches() -> tuple[list, set[str]]:
        data = ImageData(
            data_of(PIXELS[:200].numpy(), PIXELS[:30].numpy()), ZCA(), aug, batch_size=8, cache_dir=tmp_path
        )
        data.trainer = TRAINER
        data.setup("fit")
        loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
        made = [data.on_after_batch_transfer(batch, 0) for loader in loaders for batch in loader]
        return made, set(data.normalized)

    at_once, parts = batches()
    monkeypatch.setattr(ZCA, "once", False)
    each, none = batches()
    assert (parts, none) == ({"train", "val", "test"}, set())
    for (images, labels), (expected, expected_labels) in zip(at_once, each, strict=True):
        torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)
        assert labels.equal(expected_labels)
