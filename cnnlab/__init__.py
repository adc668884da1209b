"""A research template for training small convolutional networks on small images."""

__version__ = "0.1.0"
