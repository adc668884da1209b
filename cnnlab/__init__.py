"""A research template for training small convolutional networks on small images."""

import sys

if sys.platform == "win32":  # no fcntl, no POSIX signals
    sys.exit("cnnlab runs on Linux, macOS and WSL, not on native Windows. Use it in WSL (wsl --install).")

__version__ = "0.1.0"
