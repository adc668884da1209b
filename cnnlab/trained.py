"""A trained run, ready for use: pixels in, logits out, with normalisation and all else that belongs to it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from cnnlab.augment import CropFlip
from cnnlab.checkpoint import CheckpointFiles
from cnnlab.config import instantiate
from cnnlab.data.module import evaluated_together
from cnnlab.normalize import Normalization
from cnnlab.opened import OpenedRun, opened
from cnnlab.parts import make_network
from cnnlab.records import CheckpointError
from cnnlab.run import computes_in_bf16


class Trained(nn.Module):
    """What a run has learned, at its best epoch, in evaluation mode.

    (B, C, H, W) uint8, of the size `image_size` -> logits (B, num_classes) float32.

    Args:
        norm: with the statistics of the training images.
        network: with its weights.
        crop: gives the centre that evaluation looks at; None: the whole image.
        test_flips: whether the logits are the mean over an image and its mirror image.
        classes: names, by label.
        image_size: height and width, in pixels.
        bf16: whether the network computes in bfloat16, as in training; normalisation never does.
        loss: that it was trained by.
    """

    def __init__(
        self,
        norm: Normalization,
        network: nn.Module,
        crop: CropFlip | None,
        test_flips: bool,
        classes: Sequence[str],
        image_size: int,
        bf16: bool = False,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ):
        super().__init__()
        self.norm, self.network, self.crop, self.test_flips = norm, network, crop, test_flips
        self.classes, self.image_size, self.bf16, self.loss = tuple(classes), image_size, bf16, loss
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        images = self.norm(self.cropped(pixels))
        with self.precision():
            return self.classified(images).float()

    def classified(self, images: Tensor) -> Tensor:
        """Logits of normalised images, as the network gives them."""
        logits = self.network(images)
        return (logits + self.network(images.flip(3))) / 2 if self.test_flips else logits

    def precision(self) -> AbstractContextManager:
        """In this context the network computes as it was trained."""
        return torch.autocast(next(self.parameters()).device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def cropped(self, pixels: Tensor) -> Tensor:
        """The centre, where the training cropped."""
        if self.crop is None:
            return pixels
        return self.crop.center(pixels.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def float32_on_cpu(self) -> "Trained":
        """The same model, as other programs compute it."""
        self.bf16 = False
        model = self.cpu()
        for values in (*model.parameters(), *model.buffers()):
            values.data = values.data.contiguous()
        return model

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """Of many images, on the CPU: (N, C, H, W) uint8 -> (N, num_classes) float32."""
        device = next(self.parameters()).device
        return torch.cat(
            [self(chunk.to(device)).cpu() for chunk in pixels.split(evaluated_together(device, self.image_size))]
        )


def open_run(path: Path, epoch: str = "best") -> tuple[Trained, DictConfig, dict[str, Any]]:
    """The model of a run directory at its best or its last epoch, its configuration and its summary.

    Raises: UserError if it is no run, or a run without a checkpoint of its best epoch; CheckpointError if that is
        damaged, or another network's.
    """
    run = opened(path)
    checkpoint = run.best.with_name(f"{epoch}.ckpt")
    saved = CheckpointFiles().load_checkpoint(checkpoint)
    try:
        model = _made(run, saved)
        model.logits(torch.zeros(1, 3, model.image_size, model.image_size, dtype=torch.uint8))
    except MISFITS as error:
        raise CheckpointError(
            f"{checkpoint} does not fit the configuration and the summary of {path}: {error}"
        ) from error
    return model, run.config, run.summary


# What torch and our classes raise where weights, statistics and sizes of several files do not fit together.
MISFITS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)


def _made(run: OpenedRun, saved: dict[str, Any]) -> Trained:
    """The model, on its device. saved: the content of the checkpoint."""
    config, data = run.config, run.summary["data"]
    sizes = (len(data["classes"]), 3, data["input_size"])
    prefix = "network."
    weights = {key.removeprefix(prefix): value for key, value in saved["state_dict"].items() if key.startswith(prefix)}
    with torch.device("meta"):  # first without memory: the network is as large as its checkpoint, or is not made
        make_network(config.model, *sizes, try_it=False).load_state_dict(
            {name: torch.empty_like(values, device="meta") for name, values in weights.items()}
        )
    network = make_network(config.model, *sizes, try_it=False)
    network.load_state_dict(weights)
    norm = instantiate(config.norm)
    norm.restore(saved.get("ImageData", {}))  # a normalisation may have no statistics
    augmentations = [instantiate(node) for node in config.aug.values()]
    size = data["image_size"]
    for augmentation in augmentations:
        size = augmentation.output_size(size)
    if size != data["input_size"]:
        raise ValueError(f"the network is said to see {data['input_size']} pixels, and augmentations give {size}")
    crops = [augmentation for augmentation in augmentations if isinstance(augmentation, CropFlip)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = run.summary["environment"]["precision"] == "bf16-mixed" and computes_in_bf16(device)
    network.to(memory_format=torch.channels_last)
    model = Trained(
        norm,
        network,
        next(iter(crops), None),
        config.test_flips,
        data["classes"],
        data["image_size"],
        bf16,
        instantiate(config.loss),
    )
    return model.to(device)
