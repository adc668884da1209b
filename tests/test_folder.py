"""A folder of pictures becomes the arrays that PIL decodes, once per content."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnlab.config import UserError
from cnnlab.data import folder as module
from cnnlab.data.folder import ImageFolder


def write_pictures(root: Path, classes=("cat", "dog"), num=3, size=(32, 32)) -> None:
    generator = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for number in range(num):
                pixels = generator.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{number}.png")


def source(root: Path, **arguments) -> ImageFolder:
    return ImageFolder(str(root), cache_dir=os.environ["CNNLAB_CACHE"], **arguments)


def test_pixels_labels_and_classes(tmp_path):
    write_pictures(tmp_path / "root")
    data = source(tmp_path / "root").load()
    assert data.train.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    files = sorted((tmp_path / "root" / "train").glob("*/*"))
    expected = np.stack([np.asarray(Image.open(file)) for file in files]).transpose(0, 3, 1, 2)
    assert np.array_equal(data.train.pixels, expected)
    assert data.train.pixels.dtype == np.uint8
    assert source(tmp_path / "root").num_train == 6


def test_other_sizes_and_modes_are_resized_and_become_rgb(tmp_path):
    write_pictures(tmp_path / "root", size=(40, 30))
    Image.new("L", (64, 64), 77).save(tmp_path / "root" / "train" / "cat" / "grey.png")
    Image.new("P", (16, 16)).save(tmp_path / "root" / "train" / "cat" / "palette.png")
    Image.new("RGBA", (16, 16), (10, 20, 30, 255)).save(tmp_path / "root" / "train" / "cat" / "rgba.png")
    Image.new("RGB", (50, 50), (9, 9, 9)).save(tmp_path / "root" / "train" / "cat" / "upper.JPG", "jpeg")
    pixels = source(tmp_path / "root", image_size=24).load().train.pixels
    assert pixels.shape == (10, 3, 24, 24)
    assert (pixels[3] == 77).all()
    assert (pixels[5] == np.array([10, 20, 30])[:, None, None]).all()


def test_decoded_once_until_the_content_changes(tmp_path, monkeypatch):
    root = tmp_path / "root"
    write_pictures(root)
    first = source(root).load()
    with monkeypatch.context() as patch:
        patch.setattr(module.ImageFolder, "_read", None)  # decoding again would fail
        assert source(root).load().fingerprint == first.fingerprint
    digest = source(root).digest()
    os.utime(root / "train" / "cat" / "0.png")
    assert source(root).digest() == digest, "the same content, touched"
    Image.new("RGB", (32, 32)).save(root / "train" / "cat" / "0.png")
    assert source(root).digest() != digest
    assert source(root, image_size=16).digest() != source(root).digest()


def test_a_broken_link_is_named_or_skipped(tmp_path):
    root = tmp_path / "root"
    write_pictures(root)
    (root / "train" / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"dog/gone.png cannot be read"):
        source(root).load()
    assert source(root, unreadable="skip").load().train.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_corrupt_picture_is_named_or_skipped_and_counted(tmp_path, capsys):
    root = tmp_path / "root"
    write_pictures(root)
    bad = root / "train" / "dog" / "1.png"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(UserError, match=r"dog/1.png cannot be read.*data.unreadable=skip"):
        source(root).load()
    assert not list(Path(os.environ["CNNLAB_CACHE"]).rglob("*.images"))
    data = source(root, unreadable="skip").load()
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert "1 unreadable images skipped" in capsys.readouterr().out
