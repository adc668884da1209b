"""What a configuration means: options, identity, checks, mistakes. Does not import torch."""
