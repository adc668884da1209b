"""The files of a run directory: written, read, locked, verified. Does not import torch."""
