"""Statistics come from the training images alone, exactly, and undo themselves."""

import numpy as np
import torch

from cnnlab.data.images import DataSet, Images
from cnnlab.data.module import ImageData
from cnnlab.normalize import Standard, Unchanged

PIXELS = torch.randint(256, (200, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_unchanged_is_to_tensor():
    assert Unchanged()(PIXELS).equal(PIXELS.float() / 255)
    torch.testing.assert_close(Unchanged().inverse(Unchanged()(PIXELS)), PIXELS.float())


def test_standard_equals_numpy():
    norm = Standard()
    norm.fit(PIXELS)
    pixels = PIXELS.double().numpy()
    expected = (pixels - pixels.mean((0, 2, 3), keepdims=True)) / pixels.std((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(norm(PIXELS).numpy(), expected, atol=1e-5)
    torch.testing.assert_close(norm.inverse(norm(PIXELS)), PIXELS.float(), rtol=1e-5, atol=1e-3)


def test_a_constant_channel_does_not_divide_by_zero():
    norm = Standard()
    norm.fit(torch.zeros(4, 3, 8, 8, dtype=torch.uint8))
    assert norm(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)).equal(torch.zeros(4, 3, 8, 8))


def test_held_out_and_test_images_never_enter():
    """Statistics do not change when validation and test images are replaced by outliers."""

    def statistics(outlier: int | None) -> dict:
        pixels, labels = PIXELS.numpy().copy(), np.arange(200) % 10
        test = Images(pixels[:50].copy(), labels[:50], tuple("0123456789"))
        data = DataSet(Images(pixels, labels, tuple("0123456789")), test, "")
        held_out = ImageData(data, Unchanged(), {}, batch_size=8, seed=3).held_out_index
        if outlier is not None:
            pixels[held_out] = outlier
            test.pixels[:] = outlier
        norm = Standard()
        ImageData(data, norm, {}, batch_size=8, seed=3)
        return norm.state_dict()

    clean, planted = statistics(None), statistics(255)
    assert len(clean) == 2
    assert all(clean[name].equal(planted[name]) for name in clean)
