"""The TensorBoard logger: metrics, hyperparameters, figures, and the command.

TensorBoard sorts tags by name, scalars and images together, and opens on the first ones. So the columns of metrics.csv
have other names here, as "acc/val" for "val/acc", and names of figures and times sort after "acc" and "loss".
"""

import math
import shlex
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from cnnlab.report.run_figures import tiled
from cnnlab.runs.log import log

FIGURES = {
    "samples": "samples",
    "curves": "results/curves",
    "confusion": "results/confusion",
    "mistakes": "results/mistakes",
}


def tag_of(column: str) -> str:
    """The tag of a column of metrics.csv: "val/acc" -> "acc/val", "epoch_seconds" -> "speed/epoch_seconds"."""
    if column in ("epoch_seconds", "images_per_second"):
        return f"speed/{column}"
    part, slash, metric = column.partition("/")
    return f"{metric}/{part}" if slash else column


def best_tag(column: str) -> str:
    """The tag of a column's best value so far: "val/acc" -> "acc/best_val"; sorted before the tag of its values."""
    part, _, metric = column.partition("/")
    return f"{metric}/best_{part}"


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, with one event file in the run directory that stays open from fit to the last test.

    Args:
        save_dir: the run directory.
    """

    def __init__(self, save_dir: str):
        super().__init__(save_dir, name="", version="", default_hp_metric=False)

    def open_run(self, summary: Mapping[str, Any], held_out: str, measures: Sequence[str]) -> None:
        """Start a new event file, with the layout of the custom scalars page, the sheet of training images, and texts.

        summary: the run's. measures: the metrics that are computed on training and on held-out images.

        A resumed run logs all its epochs again, and `go_on` copies what others had logged, so that no point is missing
        or doubled.
        """
        for events in filter(Path.is_file, Path(self.save_dir).glob("events.out.tfevents.*")):
            events.rename(events.with_name(events.name.replace("tfevents", "before")))
        together = {
            {"acc": "accuracy"}.get(metric, metric): ["Multiline", [f"{metric}/train", f"{metric}/{held_out}"]]
            for metric in measures
        }
        self.held_out, self.selected_on, self.best = held_out, summary["selected_on"], math.nan
        self.better = np.fmax if summary["select_mode"] == "max" else np.fmin  # NaN is never better
        self.experiment.add_custom_scalars({f"training and {held_out}": together})
        self.add_png("samples", step=0)
        self.add_block("command", shlex.join(["python", "train.py", *summary["overrides"]]))
        if (file := Path(self.save_dir, ".hydra", "config.yaml")).exists():
            self.add_block("config", file.read_text(encoding="utf-8"))

    def add_block(self, name: str, text: str) -> None:
        self.experiment.add_text(name, textwrap.indent(text, "    "))  # Markdown's code block

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics; a row of metrics.csv by its tags, with the best value of the selection metric so far.

        The HParams page shows the last point of a tag, which for the best value so far is that of the best epoch.
        """
        if "epoch_seconds" in metrics:
            self.best = float(self.better(self.best, metrics[self.selected_on]))
            metrics = {tag_of(name): value for name, value in metrics.items()} | {best_tag(self.selected_on): self.best}
        super().log_metrics(metrics, step)

    def go_on(self, until: float, rewritten: Collection[str]) -> None:
        """Copy the scalars that callbacks had logged up to a time, except for those that are logged again.

        until: when the checkpoint was written; `close_run` had logged the metrics on the test images later. A damaged
        file is read as far as possible.
        """
        from google.protobuf.message import DecodeError
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

        tags = {*map(tag_of, rewritten), best_tag(self.selected_on)}
        for file in sorted(filter(Path.is_file, Path(self.save_dir).glob("events.out.before.*"))):
            try:
                for event in LegacyEventFileLoader(str(file)).Load():
                    scalars = [value.tag for value in event.summary.value if value.HasField("simple_value")]
                    if scalars and tags.isdisjoint(scalars) and event.wall_time <= until:
                        self.experiment._get_file_writer().event_writer.add_event(event)
            except (DecodeError, MemoryError, OverflowError, OSError) as error:  # a damaged record may claim any size
                log.warning(f"{file} is damaged ({type(error).__name__}): some of what callbacks had logged is lost.")
            file.unlink()

    def add_filters(self, filters: Tensor, epoch: int) -> None:
        """The first layer's filters after an epoch: (N, k, k, 1 or 3) uint8."""
        self.experiment.add_image("weights/filters", tiled(filters.numpy()), epoch, dataformats="HWC")

    def close_run(self, hyperparameters: dict[str, Any], metrics: dict[str, float], step: int) -> None:
        """Log the hyperparameters, the metrics on the test images, and the figures of the run.

        A metric on the test images is computed once, and drawn as a level line over all epochs. There is no experiment
        summary, as that of an arbitrary run would be used for all: TensorBoard then reads all runs, shows first the
        hyperparameters that differ, and takes all scalars as metrics.
        """
        _, started, ended = hparams(hyperparameters, {})
        for page in (started, ended):
            self.experiment._get_file_writer().add_summary(page)
        for name in metrics:
            if name.startswith("test/") and self.held_out != "test":
                for epoch in sorted({1, step}):
                    self.experiment.add_scalar(tag_of(name), metrics[name], epoch)
        for name in ("curves", "confusion", "mistakes"):
            self.add_png(name, step)
        self.experiment.close()

    def add_png(self, name: str, step: int) -> None:
        """Log a figure of the run directory; `add_image` would decode and encode it again."""
        path = Path(self.save_dir, f"{name}.png")
        if not path.exists():  # it could not be drawn
            return
        with Image.open(path) as file:
            size = {"width": file.width, "height": file.height, "colorspace": len(file.getbands())}
        image = Summary.Image(encoded_image_string=path.read_bytes(), **size)
        summary = Summary(value=[Summary.Value(tag=FIGURES[name], image=image)])
        self.experiment._get_file_writer().add_summary(summary, step)

    def save(self) -> None:
        """The configuration is in .hydra/; hparams.yaml would repeat it."""

    def finalize(self, status: str) -> None:
        """Called by Lightning after fit, after every test, and if one of them fails."""
        self.experiment.flush()
        if status == "failed":
            self.experiment.close()
