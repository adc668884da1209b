"""What a configuration means: options, identity, checks, errors. Does not import torch."""
