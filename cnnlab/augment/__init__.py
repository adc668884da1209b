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

from cnnlab.augment.base import Augmentation as Augmentation
from cnnlab.augment.base import Crop as Crop
from cnnlab.augment.base import Mixer as Mixer
from cnnlab.augment.base import Size as Size
from cnnlab.augment.base import Stage as Stage
from cnnlab.augment.color import Blur as Blur
from cnnlab.augment.color import Color as Color
from cnnlab.augment.color import Noise as Noise
from cnnlab.augment.crop import CropFlip as CropFlip
from cnnlab.augment.geometry import Affine as Affine
from cnnlab.augment.mix import CutMix as CutMix
from cnnlab.augment.mix import Cutout as Cutout
from cnnlab.augment.mix import MixUp as MixUp
from cnnlab.augment.trivial_augment import TrivialAugment as TrivialAugment
