"""SVHN, cropped digits: MATLAB files.

Source: Y. Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011. In the files, the
digit 0 has the label 10.
"""

from pathlib import Path

from cnnlab.config.shape import Shape
from cnnlab.data.images import Images
from cnnlab.data.published import Published


class SVHN(Published):
    """73,257 training and 26,032 test images of house numbers, 32x32. The 531,131 additional ones are not used."""

    title, name, files = "SVHN", "svhn", ("train_32x32.mat", "test_32x32.mat")
    num_train = 73_257
    shape = Shape(num_classes=10, channels=3, height=32, width=32)

    @staticmethod
    def read(*files: Path) -> tuple[Images, Images]:
        import numpy as np
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError

        def images(path: Path) -> Images:
            try:
                content = loadmat(path, variable_names=("X", "y"))
            except (MatReadError, NotImplementedError) as error:  # the second for MATLAB's newer format, HDF5
                raise ValueError(str(error)) from error
            pixels = np.ascontiguousarray(content["X"].transpose(3, 0, 1, 2))  # (H, W, C, N) -> (N, H, W, C)
            return Images(pixels.transpose(0, 3, 1, 2), content["y"].ravel().astype(np.int64) % 10, tuple("0123456789"))

        train, test = map(images, files)
        return train, test
