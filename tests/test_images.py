"""The stratified split and the cache file of a data set."""

import io
import resource

import numpy as np
import pytest

from cnnlab.augment import CropFlip
from cnnlab.config.options import UserError
from cnnlab.config.paths import expand
from cnnlab.config.shape import Shape
from cnnlab.data import images as module
from cnnlab.data.images import DataSet, Images, cached_data, fingerprint, load_once
from cnnlab.data.pipeline import ImageData
from cnnlab.data.plan import of_process
from cnnlab.data.shapes import Shapes
from cnnlab.data.split import stratified_split
from cnnlab.normalize import Standard

LABELS = np.repeat(np.arange(5), [100, 200, 300, 50, 10])


def test_split_holds_out_the_fraction_of_each_class_and_loses_nothing():
    kept, held_out = stratified_split(LABELS, 0.1, seed=0)
    assert np.bincount(LABELS[held_out]).tolist() == [10, 20, 30, 5, 1]
    assert sorted([*kept, *held_out]) == list(range(len(LABELS)))


def test_split_depends_on_the_seed_alone():
    assert np.array_equal(stratified_split(LABELS, 0.1, 0)[1], stratified_split(LABELS, 0.1, 0)[1])
    assert not np.array_equal(stratified_split(LABELS, 0.1, 0)[1], stratified_split(LABELS, 0.1, 1)[1])


def test_nothing_held_out():
    kept, held_out = stratified_split(LABELS, 0, seed=0)
    assert len(kept) == len(LABELS)
    assert len(held_out) == 0


def images(value=0) -> Images:
    return Images(np.full((4, 3, 8, 8), value, np.uint8), np.arange(4), ("a", "b", "c", "d"))


def test_cache_gives_back_what_was_made_and_makes_it_once(tmp_path):
    path = tmp_path / "new" / "data.images"
    first = cached_data(path, lambda: (images(1), images(2)))
    second = cached_data(path, lambda: pytest.fail("made twice"))
    assert first.fingerprint == second.fingerprint == fingerprint(images(1), images(2))
    assert (second.train.pixels == 1).all()
    assert (second.test.pixels == 2).all()
    assert second.train.classes == ("a", "b", "c", "d")
    assert second.train.pixels.transpose(0, 2, 3, 1).flags.c_contiguous


def poisoned(path, labels: bytes, others: bytes) -> None:
    """Other labels in the file, as whoever can write to the folder might put them there."""
    content = path.read_bytes()
    assert labels in content
    path.write_bytes(content.replace(labels, others))


def test_poisoned_labels_are_not_believed(tmp_path, caplog):
    path = tmp_path / "data.images"
    cached_data(path, lambda: (images(1), images(2)))
    poisoned(path, np.arange(4).tobytes(), np.arange(4)[::-1].tobytes())
    assert cached_data(path, lambda: (images(1), images(2))).train.targets.tolist() == [0, 1, 2, 3]
    assert f"{path} is not what was written" in caplog.text


def test_a_copy_for_the_machine_is_verified_and_a_convenience(tmp_path, monkeypatch, caplog):
    path, node = tmp_path / "data.images", tmp_path / "node"
    monkeypatch.setenv("CNNLAB_NODE_DIR", str(node))
    cached_data(path, lambda: (images(1), images(2)))
    assert (node / path.name).read_bytes() == path.read_bytes()
    poisoned(node / path.name, np.arange(4).tobytes(), np.arange(4)[::-1].tobytes())
    assert cached_data(path, lambda: pytest.fail("made twice")).train.targets.tolist() == [0, 1, 2, 3]
    monkeypatch.setenv("CNNLAB_NODE_DIR", "/dev/null/node")
    assert (cached_data(path, lambda: pytest.fail("made twice")).train.pixels == 1).all()


def records(claimed: tuple[int, ...], labels: np.ndarray) -> io.BytesIO:
    """The content of a cache file whose first array has less than it says."""
    file = io.BytesIO()
    np.save(file, np.array(["a", "b"]))
    np.save(file, np.array("0" * 64))
    for _ in ("train", "test"):
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": claimed})
        file.write(bytes(48))
        np.save(file, labels)
    file.seek(0)
    return file


@pytest.mark.parametrize(
    ("claimed", "labels", "said"),
    [
        ((1000, 1000, 1000, 3), np.array([1]), "greater than file size"),
        ((1, 4, 4, 3), np.array([2]), "but there are 2 classes"),
        ((1, 4, 4, 3), np.array([1.0]), "are float64, not int64"),
    ],
    ids=["3 GB", "label without a class", "labels that are no numbers of classes"],
)
def test_a_wrong_record_is_refused_without_room_for_it(tmp_path, claimed, labels, said):
    (tmp_path / "file").write_bytes(records(claimed, labels).getvalue())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=said), open(tmp_path / "file", "rb") as file:
        module._read(file)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_no_home_and_no_name_are_one_paragraph(monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere")
    assert str(expand("~/cache")) == "/nowhere/cache"
    with pytest.raises(UserError, match="cache_dir is empty"):
        expand("")
    with pytest.raises(UserError, match="cannot be expanded"):
        expand("~nobody-of-that-name/cache")


def test_a_failure_while_making_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError):
        cached_data(tmp_path / "data.images", lambda: 1 / 0)
    assert not (tmp_path / "data.images").exists()
    cached_data(tmp_path / "data.images", lambda: (images(), images()))


def test_fingerprint_sees_pixels_labels_and_classes():
    base = fingerprint(images())
    other_pixels = images()
    other_pixels.pixels[3, 2, 7, 7] = 1
    assert fingerprint(other_pixels) != base
    assert fingerprint(Images(images().pixels, np.arange(4)[::-1], images().classes)) != base
    assert fingerprint(Images(images().pixels, np.arange(4), ("a", "b", "c", "e"))) != base


def test_jobs_of_a_process_share_the_data_set():
    assert load_once(Shapes(20, 10)) is load_once(Shapes(20, 10))


def test_targets_of_another_kind_than_declared_are_refused():
    class Numbers:
        shape = Shape(1, 3, 8, 8, "regression")

        def digest(self) -> str:
            return "numbers"

        def load(self) -> DataSet:
            found = Images(np.zeros((4, 3, 8, 8), np.uint8), np.float32([[0], [1], [1], [0]]), ("a",))
            return DataSet(found, found, "f")

    with pytest.raises(UserError, match="Numbers declares targets that are regression, and loads such that are multil"):
        load_once(Numbers())


def test_test_images_whose_classes_have_another_order_are_refused(tmp_path):
    """Their targets would be other classes than those of the training images."""
    made = Shapes(20, 10).load()
    test = Images(made.test.pixels, made.test.targets, made.test.classes[::-1])
    with pytest.raises(UserError, match=r"of different classes: circle, ring, .*, and arrow, crescent"):
        cached_data(tmp_path / "data.images", lambda: (made.train, test))


def test_arrays_of_any_memory_layout_are_cropped_alike(tmp_path):
    """A project's own source returns (N, C, H, W), and need not know that an image is stored as (H, W, C)."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 3, 12, 12), dtype=np.uint8)
    stored_by_pixel = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    batches = []
    for layout in (pixels, stored_by_pixel):
        part = Images(layout, np.arange(16) % 4, ("a", "b", "c", "d"))
        data = ImageData(
            DataSet(part, part, "f"), Standard(), {"crop": CropFlip(8)}, 8, val_fraction=0.25, cache_dir=str(tmp_path)
        )
        batches.append(data.make(of_process(data.draw_whole(0), 8), 8))
    assert all(first.equal(second) for first, second in zip(*batches, strict=True))
