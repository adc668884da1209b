"""The parts of a run, made out of its configuration for data of a certain shape. Imports torch."""

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn

from cnnlab.config import UserError, filled, instantiate


def make_network(
    node: DictConfig | Mapping[str, Any], num_classes: int, channels: int, image_size: int, try_it: bool = True
) -> nn.Module:
    """The network of an option: images (B, channels, image_size, image_size) -> logits (B, num_classes).

    try_it: on one black image. So layers that take their sizes from what they are given have them from the start.

    Raises: UserError if it takes no such images, or gives something else.
    """
    facts = {"num_classes": num_classes, "channels": channels, "image_size": image_size}
    network: nn.Module = instantiate(filled(node, facts))
    if not try_it:
        return network
    image = torch.zeros(1, channels, image_size, image_size)
    training = network.training
    try:
        with torch.no_grad():
            logits = network.eval()(image)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        given = "x".join(map(str, image.shape[1:]))
        raise UserError(f"{node['_target_']} does not take images of {given}: {error}.") from error
    network.train(training)
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (1, num_classes):
        raise UserError(
            f"{node['_target_']} gives {shape} for one image, and logits of {num_classes} classes are (1, "
            f"{num_classes}). Its file can pass on the number: ARGUMENT: data.num_classes."
        )
    return network
