"""Augmentations of batches of images, each in two steps: drawing random parameters, and applying them.

`draw` draws the parameters of all images of an epoch from a generator (cnnlab.data.plan). `apply` is a pure function of
images and parameters and runs on the device. Augmentations are applied by stage, and within a stage by name:

    CROP       takes pixels from the data set
    GEOMETRY   moves pixels
    COLOR      changes their values
    QUALITY    degrades them as a camera does: blur, noise
               (normalization)
    ERASE      removes parts
    MIX        combines images and labels, each image with the one before it in the batch
"""

from cnnlab.augment.base import Augmentation, Crop, Mixer, Size, Stage
from cnnlab.augment.color import Blur, Color, Noise
from cnnlab.augment.crop import CropFlip
from cnnlab.augment.geometry import Affine
from cnnlab.augment.mix import CutMix, Cutout, MixUp
from cnnlab.augment.trivial_augment import TrivialAugment

__all__ = [
    "Affine",
    "Augmentation",
    "Blur",
    "Color",
    "Crop",
    "CropFlip",
    "CutMix",
    "Cutout",
    "MixUp",
    "Mixer",
    "Noise",
    "Size",
    "Stage",
    "TrivialAugment",
]
