"""A trained run, ready for use: images in, logits out, with normalisation and all else that belongs to it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor, nn
from torchmetrics import Metric

from cnnlab.augment.base import Crop, Stage, in_order, output_size
from cnnlab.config.objects import filled, instantiate
from cnnlab.config.options import UserError
from cnnlab.config.shape import Shape
from cnnlab.data.decode import MODES, converted
from cnnlab.data.resident import evaluated_together
from cnnlab.metrics import Accuracy
from cnnlab.normalize import Normalization
from cnnlab.runs.directory import CheckpointError
from cnnlab.train.checkpoint import CheckpointFiles
from cnnlab.train.machine import computes_in_bf16
from cnnlab.train.parts import MISFITS, make_augmentations, make_loss, make_metrics, make_network
from cnnlab.train.views import mean_of_views
from cnnlab.use.bounded import bounded
from cnnlab.use.opened import OpenedRun, opened

Pictures: TypeAlias = Tensor | np.ndarray | Image.Image | Sequence[Image.Image]


class Trained(nn.Module):
    """What a run has learned, at its best epoch, in evaluation mode.

    (B, C, H, W) uint8, of the shape `stored` -> outputs (B, K) float32: logits, or numbers.

    `logits`, `probabilities`, `labels` and `features` take any number of images: pixels (N, C, H, W) uint8, as a tensor
    or an array, or one image of Pillow's or a list of them, of any size and mode. `network` is a plain nn.Module, which
    takes what `norm` makes of what `cropped` leaves.

    Args:
        norm: with the statistics of the training images.
        network: with its weights.
        crop: its `center` gives the part that evaluation looks at; None: the whole image.
        test_flips, test_shifts: over which views of an image the logits are the mean, see `mean_of_views`.
        classes: names, by label.
        stored: of the images.
        bf16: whether the network computes in bfloat16, as in training; normalisation never does.
        background: what is behind transparent images.
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
        test_shifts: int = 0,
        background: str = "black",
    ):
        super().__init__()
        self.norm, self.network, self.crop, self.test_flips = norm, network, crop, test_flips
        self.test_shifts = test_shifts
        self.classes, self.stored, self.bf16, self.loss = tuple(classes), stored, bf16, loss
        self.background = background
        self.metrics = (metrics if metrics is not None else {"acc": Accuracy()},)  # no part of the module
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        images = self.norm(self.cropped(pixels))
        with self.precision():
            return self.classified(images).float()

    def classified(self, images: Tensor) -> Tensor:
        """Logits of normalised images, as the network gives them."""
        return mean_of_views(self.network, images, self.test_flips, self.test_shifts)

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

    def pixels(self, images: Pictures) -> Tensor:
        """(N, C, H, W) uint8. Images of Pillow's are decoded as image files are, see cnnlab.data.decode.read_image.

        Raises: UserError for images of another shape or type.
        """
        channels, size = self.stored.channels, self.stored.size
        if isinstance(images, Image.Image):
            images = [images]
        if isinstance(images, Sequence):
            if channels not in MODES:
                raise UserError(
                    f"The run takes images of {channels} channels, and Pillow's have 1, 3 or 4. Pass pixels."
                )
            decoded = [converted(image.copy(), size, self.background, channels) for image in images]
            return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(np.require(images, requirements="W"))
        if images.dtype != torch.uint8 or images.shape[1:] != (channels, *size):
            wanted, given = f"(N, {channels}, {size[0]}, {size[1]})", str(images.dtype).removeprefix("torch.")
            raise UserError(
                f"These images are {tuple(images.shape)} {given}. The run takes {wanted} uint8, or images of Pillow's."
            )
        return images

    def chunks(self, images: Pictures) -> Iterator[Tensor]:
        """Images, a few at a time, on the device of the model."""
        device = next(self.parameters()).device
        for chunk in self.pixels(images).split(evaluated_together(device, self.stored.size)):
            yield chunk.to(device)

    @torch.no_grad()
    def logits(self, images: Pictures) -> Tensor:
        """On the CPU: (N, K) float32."""
        return torch.cat([self(chunk).cpu() for chunk in self.chunks(images)])

    def probabilities(self, images: Pictures) -> Tensor:
        """(N, K): of every class, or of every label; of numbers the numbers themselves."""
        return said(self.logits(images), self.stored.task)

    def labels(self, images: Pictures) -> list[str] | list[list[str]]:
        """The most probable class of every image; of several labels those that are more probable than not.

        Raises: UserError if the run predicts numbers.
        """
        shares = self.probabilities(images)
        if self.stored.task == "multiclass":
            return [self.classes[place] for place in torch.sort(shares, dim=1, descending=True, stable=True)[1][:, 0]]
        if self.stored.task == "multilabel":
            return [[name for name, share in zip(self.classes, row, strict=True) if share > 0.5] for row in shares]
        raise UserError(f"The run predicts {', '.join(self.classes)}: numbers, and no labels. Use logits.")

    @torch.no_grad()
    def features(self, images: Pictures) -> Tensor:
        """What the last layer with weights is given, on the CPU: (N, D) float32; of maps the mean over all places.

        Raises: UserError if the network has no such layer, or gives it another number of images.
        """
        given: list[Tensor] = []
        hooks = [
            layer.register_forward_pre_hook(lambda layer, values: given.append(values[0]))
            for layer in self.network.modules()
            if isinstance(getattr(layer, "weight", None), Tensor) and cast(Tensor, layer.weight).ndim > 1
        ]
        found = []
        try:
            for chunk in self.chunks(images):
                with self.precision():
                    self.network(self.norm(self.cropped(chunk)))
                if not given or len(given[-1]) != len(chunk):
                    raise UserError(f"{type(self.network).__name__} has no last layer whose inputs could be features.")
                found.append(given[-1].flatten(2).mean(2) if given[-1].ndim > 2 else given[-1])
                given.clear()
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([values.float().cpu() for values in found])


def said(outputs: Tensor, task: str) -> Tensor:
    """What the outputs of a network say, (N, K): probabilities, or numbers."""
    if task == "multiclass":
        return outputs.softmax(1)
    return outputs.sigmoid() if task == "multilabel" else outputs


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
        config.test_shifts,
        run.background,
    )
    return model.to(device)
