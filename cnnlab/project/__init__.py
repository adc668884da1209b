"""Projects on cnnlab: a new one that uses it, or a fork under another name. Does not import torch."""
