"""The drawn pictures: the same for the same arguments, balanced, told apart by their shape alone."""

import numpy as np
import pytest
import torch

from cnnlab.data.shapes import CLASSES, SHAPES, Shapes


def test_same_arguments_same_pictures():
    first, second = Shapes(200, 100).load(), Shapes(200, 100).load()
    assert first.fingerprint == second.fingerprint
    assert np.array_equal(first.train.pixels, second.train.pixels)
    assert Shapes(200, 100, drawing_seed=1).load().fingerprint != first.fingerprint


def test_training_and_test_pictures_differ_and_classes_are_balanced():
    data = Shapes(1000, 200).load()
    assert data.train.pixels.shape == (1000, 3, 32, 32)
    assert data.train.pixels.dtype == np.uint8
    assert np.bincount(data.train.targets).tolist() == [100] * 10
    assert np.bincount(data.test.targets).tolist() == [20] * 10
    assert not np.array_equal(data.train.pixels[:200], data.test.pixels)
    assert len({picture.tobytes() for picture in data.train.pixels}) == 1000


def test_digest_changes_with_the_arguments():
    assert Shapes(noise=0.1).digest() != Shapes().digest() == Shapes().digest()


@pytest.mark.parametrize(("name", "shape"), list(zip(CLASSES, SHAPES, strict=True)))
def test_shapes_are_inside_near_their_middle_and_outside_far_away(name, shape):
    """Also left-right symmetric, except for the crescent: mirror images keep their label anyway."""
    axis = torch.linspace(-1.5, 1.5, 61)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    inside = shape(u, v) < 0
    assert 0.03 < inside.float().mean() < 0.4
    assert not inside[(u.square() + v.square()) > 1.3**2].any()
    if name != "crescent":
        assert (inside == inside.flip(1)).float().mean() > 0.99


def test_other_sizes():
    assert Shapes(20, 10, image_size=48).load().train.pixels.shape == (20, 3, 48, 48)
