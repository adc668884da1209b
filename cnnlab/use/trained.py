"""A trained run, ready for use: pixels in, logits out, with normalisation and all else that belongs to it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics import Metric

from cnnlab.augment.base import Crop, Stage, in_order, output_size
from cnnlab.config.objects import filled, instantiate
from cnnlab.config.options import UserError
from cnnlab.config.shape import Shape
from cnnlab.data.resident import evaluated_together
from cnnlab.metrics import Accuracy
from cnnlab.normalize import Normalization
from cnnlab.runs.directory import CheckpointError
from cnnlab.train.checkpoint import CheckpointFiles
from cnnlab.train.machine import computes_in_bf16
from cnnlab.train.parts import MISFITS, make_augmentations, make_loss, make_metrics, make_network
from cnnlab.use.bounded import bounded
from cnnlab.use.opened import OpenedRun, opened


class Trained(nn.Module):
    """What a run has learned, at its best epoch, in evaluation mode.

    (B, C, H, W) uint8, of the shape `stored` -> outputs (B, K) float32: logits, or numbers.

    Args:
        norm: with the statistics of the training images.
        network: with its weights.
        crop: its `center` gives the part that evaluation looks at; None: the whole image.
        test_flips: whether the logits are the mean over an image and its mirror image.
        classes: names, by label.
        stored: of the images.
        bf16: whether the network computes in bfloat16, as in training; normalisation never does.
        loss, metrics: that it was trained by, and measured by.
    """

    def __init__(
        self,
        norm: Normalization,
        network: nn.Module,
        crop: Crop | None,
        test_flips: bool,
        classes: Sequence[str],
        stored: Shape,
        bf16: bool = False,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
        metrics: Mapping[str, Metric] | None = None,
    ):
        super().__init__()
        self.norm, self.network, self.crop, self.test_flips = norm, network, crop, test_flips
        self.classes, self.stored, self.bf16, self.loss = tuple(classes), stored, bf16, loss
        self.metrics = (metrics if metrics is not None else {"acc": Accuracy()},)  # no part of the module
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
        """Of many images, on the CPU: (N, C, H, W) uint8 -> (N, K) float32."""
        device = next(self.parameters()).device
        chunks = pixels.split(evaluated_together(device, self.stored.size))
        return torch.cat([self(chunk.to(device)).cpu() for chunk in chunks])


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
        found = model.logits(torch.zeros(1, model.stored.channels, *model.stored.size, dtype=torch.uint8)).shape
        if found != (1, model.stored.num_classes):
            raise UserError(
                f"{path} has a network that gives {tuple(found)} for one image, and not one number for each of "
                f"{model.stored.num_classes} classes: only its own module knows what to do with them."
            )
    except MISFITS as error:
        raise CheckpointError(
            f"{checkpoint} does not fit the configuration and the summary of {path}: {error}"
        ) from error
    return model, run.config, run.summary


def _made(run: OpenedRun, saved: dict[str, Any]) -> Trained:
    """The model, on its device. saved: the content of the checkpoint."""
    config, data, stored = run.config, run.summary["data"], run.stored
    augmentations = in_order(make_augmentations(config.aug, stored))
    shape = stored.resized(output_size(augmentations, stored.size))
    if list(shape.size) != data["input_size"]:
        raise ValueError(f"the network is said to see {data['input_size']} pixels, and augmentations give {shape.size}")
    prefix = "network."
    weights = {key.removeprefix(prefix): value for key, value in saved["state_dict"].items() if key.startswith(prefix)}
    with bounded(sum(values.nbytes for values in weights.values() if isinstance(values, Tensor))):
        network = make_network(config.model, shape, try_it=False)
        network.load_state_dict(weights)
    norm = instantiate(filled(config.norm, stored.facts()))
    norm.restore(saved.get("ImageData", {}))  # a normalisation may have no statistics
    crops = (augmentation for augmentation in augmentations.values() if augmentation.stage == Stage.CROP)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = run.summary["environment"]["precision"] == "bf16-mixed" and computes_in_bf16(device)
    network.to(memory_format=torch.channels_last)
    model = Trained(
        norm,
        network,
        cast(Crop | None, next(crops, None)),
        config.test_flips,
        data["classes"],
        stored,
        bf16,
        make_loss(config.loss, shape),
        make_metrics(config.metrics, shape),
    )
    return model.to(device)
