"""Arrays of NumPy are mapped where they lie, or converted once; what is wrong with them is one paragraph."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from cnnlab.config.options import UserError
from cnnlab.data.arrays import Arrays
from cnnlab.data.images import load_once

GENERATOR = np.random.default_rng(0)
PIXELS = {
    part: GENERATOR.integers(256, size=(num, 8, 9, 3), dtype=np.uint8) for part, num in (("train", 12), ("test", 6))
}
LABELS = {part: np.arange(len(pixels)) % 3 for part, pixels in PIXELS.items()}


def source(**given) -> Arrays:
    return Arrays(cache_dir=os.environ["CNNLAB_CACHE"], **given)


def loaded(arrays: Arrays):
    arrays.check()
    return load_once(arrays)


def mapped(array: np.ndarray) -> bool:
    while array is not None and not isinstance(array, np.memmap):
        array = array.base if isinstance(array, np.ndarray) else None
    return array is not None


def assert_right(data, arrays: Arrays) -> None:
    for part, images in (("train", data.train), ("test", data.test)):
        assert np.array_equal(images.pixels.transpose(0, 2, 3, 1), PIXELS[part])
        assert images.targets.tolist() == LABELS[part].tolist()
        assert images.classes == ("0", "1", "2")
        assert mapped(images.pixels)
    assert arrays.num_train == 12
    assert arrays.shape == data.shape


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", ["{}_images {}_labels", "x_{} y_{}"])
def test_one_npz_of_everything(tmp_path, save, names):
    images, labels = names.split()
    content = {images.format(part): PIXELS[part] for part in PIXELS} | {
        labels.format(part): LABELS[part] for part in LABELS
    }
    save(tmp_path / "all.npz", **content)
    arrays = source(train="all.npz")
    assert_right(loaded(arrays), arrays)
    converted = list((tmp_path / "cache").rglob("*.images"))
    assert bool(converted) == (save is np.savez_compressed), "what is not compressed is mapped where it lies"


@pytest.mark.parametrize(
    ("shape", "channels"), [((9, 9, 103), 103), ((103, 9, 9), 103), ((4, 9, 12), 4), ((9, 1, 1), 1)]
)
def test_square_images_may_have_more_channels_than_columns(tmp_path, shape, channels):
    """As patches of hyperspectral images have."""
    np.savez("all.npz", x_train=np.zeros((6, *shape), np.uint8), y_train=np.arange(6) % 2, x_test=[], y_test=[])
    assert source(train="all.npz").shape.channels == channels


@pytest.mark.parametrize("order", ["NHWC", "NCHW", "Fortran"])
def test_pairs_of_npy_in_every_order(tmp_path, order):
    for part in PIXELS:
        pixels = np.ascontiguousarray(PIXELS[part].transpose(0, 3, 1, 2)) if order == "NCHW" else PIXELS[part]
        np.save(f"{part}.npy", np.asfortranarray(pixels) if order == "Fortran" else pixels)
        np.save(f"{part}_labels.npy", LABELS[part][:, None].astype(np.uint8))  # as some write them
    arrays = source(train=["train.npy", "train_labels.npy"], test=["test.npy", "test_labels.npy"])
    data = loaded(arrays)
    assert_right(data, arrays)
    assert bool(list((tmp_path / "cache").rglob("*.images"))) == (order != "NHWC")
    again = source(train=["train.npy", "train_labels.npy"], test=["test.npy", "test_labels.npy"])
    assert again.load().fingerprint == data.fingerprint


def test_where_files_lie_is_no_part_of_a_run_and_what_they_hold_is(tmp_path):
    np.savez("a.npz", images=PIXELS["train"], labels=LABELS["train"])
    np.savez("b.npz", images=PIXELS["test"], labels=LABELS["test"])
    digest = source(train="a.npz", test="b.npz").identity()
    os.rename("a.npz", "c.npz")
    assert source(train="c.npz", test="b.npz").identity() == digest
    assert source(train="b.npz", test="c.npz").identity() != digest
    assert source(train="c.npz", test="b.npz", classes=["x", "y", "z"]).identity() != digest
    np.savez("c.npz", images=PIXELS["train"], labels=LABELS["train"][::-1])
    assert source(train="c.npz", test="b.npz").identity() != digest


@pytest.mark.parametrize(
    ("labels", "task", "classes"),
    [
        (np.eye(3)[LABELS["train"]], "multilabel", ("0", "1", "2")),
        (np.linspace(0, 1, 12), "regression", ("0",)),
    ],
    ids=["labels", "numbers"],
)
def test_several_labels_and_numbers(labels, task, classes):
    np.savez(
        "a.npz",
        train_images=PIXELS["train"][..., 0],
        train_labels=labels,
        test_images=PIXELS["train"][..., 0],
        test_labels=labels,
    )
    data = loaded(source(train="a.npz"))
    assert (data.shape.task, data.train.classes, data.shape.channels) == (task, classes, 1)
    assert np.allclose(data.train.targets, labels.reshape(12, -1))


IMAGES = PIXELS["train"]
WRONG = {
    "not there": (None, "data.train=a.npz cannot be read .*No such file.*Give an .npz file"),
    "no zip": (b"hello", "cannot be read .*BadZipFile"),
    "other names": (
        {"pictures": IMAGES, "y": LABELS["train"]},
        "contains pictures, y, and needs .*train_images and train_labels",
    ),
    "floats": (
        {"x": IMAGES / 255, "y": LABELS["train"]},
        r"are float64 of shape \(12, 8, 9, 3\), and should be uint8.*255",
    ),
    "flat": ({"x": IMAGES.reshape(12, -1), "y": LABELS["train"]}, r"are uint8 of shape \(12, 216\)"),
    "names as labels": ({"x": IMAGES, "y": np.array(["cat"] * 12)}, "should be numbers.*give data.classes"),
    "labels from 1": (
        {"x": IMAGES, "y": LABELS["train"] + 1},
        "from 1 to 3, but classes are counted from 0. Subtract 1",
    ),
    "negative label": ({"x": IMAGES, "y": LABELS["train"] - 1}, "from -1 to 1, but classes are counted"),
    "fewer labels": ({"x": IMAGES, "y": LABELS["train"][:5]}, "there are 12 images and 5 targets"),
    "no test images": (
        {"x_train": IMAGES, "y_train": LABELS["train"], "x_test": IMAGES[:0], "y_test": LABELS["train"][:0]},
        "Arrays returns no test images",
    ),
    "a class, and a list": (
        {"x_train": IMAGES, "y_train": LABELS["train"], "x_test": IMAGES, "y_test": np.eye(12, 3)},
        "a class for each image of one part, and a list of numbers in the other",
    ),
    "other kinds of targets": (
        {"x_train": IMAGES, "y_train": np.eye(12, 3), "x_test": IMAGES, "y_test": np.full((12, 3), 2.0)},
        "training targets that are all 0 or 1, and test targets that are not",
    ),
    "objects": ({"x": IMAGES, "y": np.array([{}] * 12)}, "holds objects, whose pickles can run code"),
}


@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_paragraph(content, said):
    if isinstance(content, bytes):
        Path("a.npz").write_bytes(content)
    elif content is not None:
        np.savez("a.npz", **content)
    with pytest.raises(UserError, match=said) as refused:
        loaded(source(train="a.npz", test="a.npz"))
    assert "\n" not in str(refused.value)


def test_a_pickle_in_an_array_is_not_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, ("executed",)

    for name in ("images.npy", "labels.npy"):
        np.save(name, np.array([Payload()], dtype=object))
    pickle.loads(pickle.dumps(Payload()))
    os.rmdir("executed")
    with pytest.raises(UserError, match="holds objects"):
        source(train=["images.npy", "labels.npy"], test=["images.npy", "labels.npy"]).check()
    assert not Path("executed").exists()


def test_training_images_are_never_taken_for_test_images():
    np.savez("a.npz", images=IMAGES, labels=LABELS["train"])
    with pytest.raises(
        UserError, match=r"needs images and labels called test_images and test_labels.*data.test to another"
    ):
        source(train="a.npz", test=None).check()


@pytest.mark.parametrize("classes", ["abc", 5])
def test_classes_are_a_list_of_names(classes):
    with pytest.raises(ValueError, match="is not a list of names"):
        source(train="a.npz", test="a.npz", classes=classes)
    np.savez("a.npz", x=IMAGES, y=LABELS["train"])
    with pytest.raises(UserError, match="a name occurs twice among the classes a, a, b"):
        loaded(source(train="a.npz", test="a.npz", classes=["a", "a", "b"]))


@pytest.mark.parametrize(
    "given", [{"train": ["a.npy"]}, {"train": ["a.npy", "b.npy"]}, {"train": "a.npz", "test": ["b"]}]
)
def test_other_numbers_of_files_are_refused(given):
    with pytest.raises(ValueError, match=r"images\.npy,labels\.npy"):
        source(**given)


def test_a_run_with_thousands_of_classes_is_finished(command, tmp_path):
    """Without a confusion matrix."""
    labels, images = np.arange(2001), np.zeros((2001, 8, 8, 1), np.uint8)
    np.savez("many.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    words = (
        "data=arrays",
        "data.train=many.npz",
        "val_fraction=0",
        "model=linear",
        "trainer=cpu",
        "trainer.max_epochs=1",
    )
    result = command(str(ROOT / "train.py"), *words, "logger=none")
    assert result.returncode == 0, result.stderr
    [run] = tmp_path.glob("outputs/runs/*/")
    assert (run / "predictions.npz").exists()
    assert not (run / "confusion.png").exists()
