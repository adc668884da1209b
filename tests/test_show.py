"""`cnnlab show` draws what the network sees, originals above."""

import numpy as np
from PIL import Image

from cnnlab.augment import CropFlip
from cnnlab.data.loaders import samples
from cnnlab.data.pipeline import ImageData
from cnnlab.data.shapes import Shapes
from cnnlab.normalize import ZCA
from cnnlab.report.run_figures import sheet
from cnnlab.use import explain


def test_show_writes_and_names_a_sheet(command, tmp_path):
    small = ("data=shapes", "data.num_train=200", "data.num_test=50", "batch_size=50")
    result = command("-m", "cnnlab", "show", *small, "aug=[cutmix,crop_flip]")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "outputs/show/shapes-crop_flip+cutmix.png"
    with Image.open(tmp_path / "outputs" / "show" / "shapes-crop_flip+cutmix.png") as picture:
        assert picture.width == 10 * 34 * 3
    other = command("-m", "cnnlab", "show", *small, "--num", "20", "--out", "a/b.png")
    assert other.stdout.strip() == "a/b.png"
    with Image.open(tmp_path / "a" / "b.png") as picture:
        assert picture.size == (10 * 34 * 3, 30 + 2 * (2 * 34 * 3 + 36))  # a title, and captions below each image
    for words in (("aug=cutmx",), ("--num", "0"), ("--picture", "a.png")):
        assert command("-m", "cnnlab", "show", *words).returncode == 2


def test_samples_are_denormalized_and_below_their_originals(tmp_path):
    data = Shapes(200, 50).load()
    module = ImageData(data, ZCA(), {"crop_flip": CropFlip(28, flip_probability=0)}, batch_size=8, cache_dir=tmp_path)
    originals, seen, *labels = samples(module, 20)
    assert (originals.shape, seen.shape) == ((20, 32, 32, 3), (20, 28, 28, 3))
    for original, crop in zip(originals.astype(int), seen.astype(int), strict=True):
        differences = [
            np.abs(original[top : top + 28, left : left + 28] - crop).max() for top in range(5) for left in range(5)
        ]
        assert min(differences) <= 2
    sheet(tmp_path / "sheet.png", originals, seen, *labels)
    with Image.open(tmp_path / "sheet.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    below_title = pixels[30:]
    shown = below_title[1::3, 1::3]  # the middle of each pixel, enlarged three times
    assert np.array_equal(shown[1:33, 1:33], originals[0])
    assert np.array_equal(shown[34 + 3 : 34 + 3 + 28, 3 : 3 + 28], seen[0])
    assert np.array_equal(below_title[2 * 34 * 3 + 36 :][1::3, 1::3][1:33, 9 * 34 + 1 : 9 * 34 + 33], originals[19])
    caption = below_title[2 * 34 * 3 :][:36, : 34 * 3]
    assert caption.min() < 100


def test_confused_classes_of_many_are_those_that_are_confused(tmp_path, monkeypatch):
    """Labels are stored in bytes: 70 * 100 + 71 is none."""
    found = []
    monkeypatch.setattr(explain, "confused_pairs", lambda counts: found.append(counts) or [])
    labels = np.repeat(np.arange(100, dtype=np.uint8), 10)
    predicted = np.where(labels == 70, 71, labels).astype(np.uint8)
    explain.draw_confused(tmp_path / "confused.png", lambda places: None, labels, predicted, list(map(str, range(100))))
    [counts] = found
    assert np.argwhere(counts - np.diag(np.diag(counts))).tolist() == [[70, 71]]
    assert (counts[70, 71], counts.sum()) == (10, 1000)
