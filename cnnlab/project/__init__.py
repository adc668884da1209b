"""Projects: a new one that uses cnnlab, or a fork under another name. Does not import torch."""
