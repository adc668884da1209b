"""The stratified split and the cache file of a data set."""

import numpy as np
import pytest

from cnnlab.data.images import Images, cached_data, fingerprint, load_once, stratified_split
from cnnlab.data.shapes import Shapes

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
