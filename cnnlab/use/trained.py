"""A trained run, ready for use: images in, logits out, including cropping and normalization."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
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
from cnnlab.networks import mean_of_views
from cnnlab.normalize import Normalization
from cnnlab.runs.directory import CheckpointError
from cnnlab.runs.wording import CHANGED
from cnnlab.text import say
from cnnlab.train.checkpoint import CheckpointFiles
from cnnlab.train.machine import computes_in_bf16
from cnnlab.train.parts import make_augmentations, make_loss, make_metrics, make_network
from cnnlab.train.refusals import MISFITS
from cnnlab.train.weights import below, place_of
from cnnlab.use.bounded import bounded
from cnnlab.use.opened import OpenedRun, code_changed, opened

ImageInput: TypeAlias = Tensor | np.ndarray | Image.Image | Sequence[Image.Image]


class Trained(nn.Module):
    """The network of a run in evaluation mode, with the run's normalization, crop and test-time views.

    A module that evaluates anything else, such as an average of its network that it keeps itself, is not reproduced.

    (B, C, H, W) uint8, of the shape `stored` -> outputs (B, K) float32: logits, or numbers for regression.

    `logits`, `probabilities`, `labels` and `features` take any number of images: pixels (N, C, H, W) uint8 as a tensor
    or an array, or one Pillow image or a list of them, of any size and mode. `network` is a plain nn.Module; its input
    is `norm(cropped(pixels))`.

    Args:
        norm: with the statistics of the training images.
        network: with its weights.
        crop: its `center` is the part of an image that is evaluated; None: the whole image.
        test_flips, test_shifts: the views of an image over which logits are averaged, see `mean_of_views`.
        classes: names, by label.
        stored: the shape of the images.
        bf16: whether the network computes in bfloat16, as in training; normalization never does.
        loss, metrics: those of the training.
        background: the color behind transparent images.
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
        self.norm, self.network, self.crop = norm, network, crop
        self.test_flips, self.test_shifts, self.background = test_flips, test_shifts, background
        self.classes, self.stored, self.bf16, self.loss = tuple(classes), stored, bf16, loss
        self.metrics = (metrics if metrics is not None else {"acc": Accuracy()},)  # a tuple: not a submodule
        self.eval()

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, pixels: Tensor) -> Tensor:
        images = self.norm(self.cropped(pixels))
        with self.precision():
            return self.classified(images).float()

    def classified(self, images: Tensor) -> Tensor:
        """The logits of normalized images, in the network's precision."""
        return mean_of_views(self.network, images, self.test_flips, self.test_shifts)

    def precision(self) -> AbstractContextManager:
        """In this context the network computes in the precision of its training."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    def cropped(self, pixels: Tensor) -> Tensor:
        """The center of images, if the training cropped them."""
        if self.crop is None:
            return pixels
        return self.crop.center(pixels.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def float32_on_cpu(self) -> "Trained":
        """This model as other programs compute it."""
        self.bf16 = False
        model = self.cpu()
        for values in (*model.parameters(), *model.buffers()):
            values.data = values.data.contiguous()
        return model

    def pixels(self, images: ImageInput) -> Tensor:
        """(N, C, H, W) uint8. Pillow images are converted like image files, see cnnlab.data.decode.read_image.

        Raises: UserError for images of another shape or type.
        """
        channels, size = self.stored.channels, self.stored.size
        if isinstance(images, Image.Image):
            images = [images]
        if isinstance(images, Sequence):
            if channels not in MODES:
                raise UserError(f"The run takes images of {channels} channels; Pillow's have 1, 3 or 4. Pass pixels.")
            decoded = [converted(image.copy(), size, self.background, channels) for image in images]
            return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(np.require(images, requirements="W"))
        if images.dtype != torch.uint8 or images.shape[1:] != (channels, *size):
            wanted, given = f"(N, {channels}, {size[0]}, {size[1]})", str(images.dtype).removeprefix("torch.")
            raise UserError(
                f"These images are {tuple(images.shape)} {given}. The run takes {wanted} uint8, or Pillow images."
            )
        return images

    def chunks(self, images: ImageInput) -> Iterator[Tensor]:
        """Images in batches, on the device of the model."""
        for chunk in self.pixels(images).split(evaluated_together(self.device, self.stored.size)):
            yield chunk.to(self.device)

    @torch.no_grad()
    def logits(self, images: ImageInput) -> Tensor:
        """(N, K) float32, on the CPU."""
        return torch.cat([self(chunk).cpu() for chunk in self.chunks(images)])

    def probabilities(self, images: ImageInput) -> Tensor:
        """(N, K), of every class or label; for regression, the predicted numbers."""
        logits = self.logits(images)
        if self.stored.task == "multiclass":
            return logits.softmax(1)
        return logits.sigmoid() if self.stored.task == "multilabel" else logits

    def labels(self, images: ImageInput) -> list[str] | list[list[str]]:
        """The most probable class of every image; for multilabel runs, all labels that are more probable than not.

        Raises: UserError if the run predicts numbers.
        """
        shares = self.probabilities(images)
        if self.stored.task == "multiclass":
            return [self.classes[place] for place in torch.sort(shares, dim=1, descending=True, stable=True)[1][:, 0]]
        if self.stored.task == "multilabel":
            return [[name for name, share in zip(self.classes, row, strict=True) if share > 0.5] for row in shares]
        raise UserError(f"The run predicts {', '.join(self.classes)}: numbers, not labels. Use logits.")

    @torch.no_grad()
    def features(self, images: ImageInput) -> Tensor:
        """The inputs of the last layer with weights, on the CPU: (N, D) float32, averaged over space or tokens.

        Raises: UserError if the network has no such layer, or its inputs are not one for each image.
        """
        inputs: list[Tensor] = []

        def append(layer: nn.Module, values: tuple[Tensor, ...]) -> None:
            features_last = cast(Tensor, layer.weight).ndim == 2  # (B, ..., D); otherwise (B, D, ...)
            inputs.append(values[0].movedim(-1, 1) if features_last else values[0])

        found = []
        with ExitStack() as hooks:
            for layer in self.network.modules():
                if isinstance(getattr(layer, "weight", None), Tensor) and cast(Tensor, layer.weight).ndim > 1:
                    hooks.enter_context(layer.register_forward_pre_hook(append))
            for chunk in self.chunks(images):
                with self.precision():
                    self.network(self.norm(self.cropped(chunk)))
                if not inputs or len(inputs[-1]) != len(chunk):
                    raise UserError(f"{type(self.network).__name__} has no last layer whose inputs could be features.")
                found.append(inputs[-1].flatten(2).mean(2) if inputs[-1].ndim > 2 else inputs[-1])
                inputs.clear()
        return torch.cat([values.float().cpu() for values in found])


def open_run(path: Path, epoch: str = "best") -> tuple[Trained, DictConfig, dict[str, Any]]:
    """The model of a run directory, its configuration and its summary. epoch: "best" or "last".

    Raises: UserError if it is not a run, or has no checkpoint of its best epoch; CheckpointError if that is damaged, or
        another network's.
    """
    run = opened(path)
    checkpoint = run.best.with_name(f"{epoch}.ckpt")
    saved = CheckpointFiles().load_checkpoint(checkpoint)
    try:
        model = _made(run, saved)
        stored = model.stored
        found = model.logits(torch.zeros(1, stored.channels, *stored.size, dtype=torch.uint8)).shape
        if found != (1, stored.num_classes):
            raise UserError(
                f"The network of {path} returns {tuple(found)} for one image instead of one number for each of "
                f"{stored.num_classes} classes: only its own module knows what it means."
            )
    except MISFITS as error:
        raise CheckpointError(
            f"{checkpoint} does not fit the configuration and the summary of {path}: {error}"
        ) from error
    used = (place_of(model.network, saved["state_dict"]), "loss.")
    if others := sorted({key.partition(".")[0] for key in saved["state_dict"] if not key.startswith(used)}):
        say(f"cnnlab: {checkpoint} also has weights of {', '.join(others)}; only the network is used.", sys.stderr)
    if code_changed(run):
        say(f"cnnlab: {path}: the source code {CHANGED}", sys.stderr)
    if (status := run.summary.get("status")) != "done":
        number = len(saved["records"]["rows"])
        say(f"cnnlab: {path} is {status}: these are the weights of epoch {number}, its {epoch} so far.", sys.stderr)
    return model, run.config, run.summary


def _made(run: OpenedRun, saved: dict[str, Any]) -> Trained:
    """The model, on the GPU if there is one. saved: the content of the checkpoint."""
    config, data, stored = run.config, run.summary["data"], run.stored
    augmentations = in_order(make_augmentations(config.aug, stored))
    shape = stored.resized(output_size(augmentations, stored.size))
    if list(shape.size) != data["input_size"]:
        raise ValueError(f"the network's input is {data['input_size']} pixels, but augmentations give {shape.size}")
    state = saved["state_dict"]
    with bounded(sum(values.nbytes for values in state.values() if isinstance(values, Tensor))):
        network = make_network(config.model, shape, try_it=False)
        weights = below(place_of(network, state), state)
        if network.state_dict() and not weights:
            raise UserError(
                f"The module of {run.path} keeps its network neither as self.network nor in exactly one other part. "
                f"Rename it to self.network, and use rerun=true."
            )
        network.load_state_dict(weights)
        loss, metrics = make_loss(config.loss, shape), make_metrics(config.metrics, shape)
        kept = below("loss.", state)
        if isinstance(loss, nn.Module) and kept.keys() == loss.state_dict().keys():
            loss.load_state_dict(kept)
    norm = instantiate(filled(config.norm, stored.facts()))
    norm.restore(saved.get("ImageData", {}))  # a normalization may have no statistics
    crop = next((aug for aug in augmentations.values() if aug.stage == Stage.CROP), None)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = run.summary["environment"]["precision"] == "bf16-mixed" and computes_in_bf16(device)
    network.to(memory_format=torch.channels_last)
    model = Trained(
        norm,
        network,
        cast(Crop | None, crop),
        config.test_flips,
        data["classes"],
        stored,
        bf16,
        loss,
        metrics,
        config.test_shifts,
        run.background,
    )
    return model.to(device)
