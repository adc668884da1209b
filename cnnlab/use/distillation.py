"""Knowledge distillation: a module that also learns from a finished run."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnlab.config.options import UserError
from cnnlab.data.pipeline import data_of
from cnnlab.train.classifier import Classifier
from cnnlab.use.trained import open_run


class Distillation(Classifier):
    """A classifier that learns from the labels and from the outputs of a trained network (G. Hinton et al., 2015).

    Both networks see the same augmented images. The loss is (1 - share) * loss + share * temperature**2 * KL, where KL
    is the divergence of the two softmaxes, whose logits are divided by the temperature.

    Args:
        teacher: the directory of a finished run with the same classes, input size and normalization. It is needed in
            training alone, and not part of checkpoints.
        share: of the divergence in the loss.
        temperature: divisor of the logits.
        parts, more: see Classifier.
    """

    def __init__(self, *parts: Any, teacher: str, share: float = 0.9, temperature: float = 2.0, **more: Any):
        super().__init__(*parts, **more)
        self.taught_by, self.share, self.temperature = teacher, share, temperature
        model, _, summary = open_run(Path(teacher))
        self.teacher_size = summary["data"]["input_size"]
        model.network.requires_grad_(False)
        self.teacher = (model,)  # in a tuple: not a submodule

    def on_fit_start(self) -> None:
        """Raises: UserError for a teacher that was trained on other images or classes."""
        [teacher], data = self.teacher, data_of(self.trainer)
        teacher.to(self.device)
        shape = (8, data.shape.channels, *data.shape.size)
        pixels = torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        try:
            ours, theirs = data.norm(pixels.to(self.device)), teacher.norm(teacher.cropped(pixels.to(self.device)))
            fits = self.teacher_size == list(data.shape.size) and torch.allclose(ours, theirs, atol=0.1)
            fits = fits and teacher.classes == data.data.train.classes
        except RuntimeError:  # of another size
            fits = False
        if not fits:
            raise UserError(
                f"module.teacher={self.taught_by} was trained on other classes, images of another size, or with "
                f"another norm. Use a run that differs in none of these."
            )

    def loss_of(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = super().loss_of(images, targets)
        with torch.no_grad():
            taught = self.teacher[0].network(images)
        ours, theirs = ((outputs.float() / self.temperature).log_softmax(1) for outputs in (logits, taught))
        divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * self.temperature**2
        return (1 - self.share) * loss + self.share * divergence, logits
