"""The TensorBoard logger: curves of training and held-out images together, hyperparameters, figures."""

import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from cnnlab.report.run_figures import tiled
from cnnlab.runs.log import log


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, with one event file in the run directory that stays open from fit to the last test.

    Args:
        save_dir: the run directory.
    """

    def __init__(self, save_dir: str):
        super().__init__(save_dir, name="", version="", default_hp_metric=False)

    def open_run(self, held_out: str, measures: Sequence[str]) -> None:
        """Start a new event file, with the layout of the custom scalars page and the sheet of training images.

        A resumed run logs all its epochs again, and `go_on` copies what others had logged, so that no point is missing
        or doubled.
        """
        for events in filter(Path.is_file, Path(self.save_dir).glob("events.out.tfevents.*")):
            events.rename(events.with_name(events.name.replace("tfevents", "before")))
        together = {
            {"acc": "accuracy"}.get(metric, metric): ["Multiline", [f"train/{metric}", f"{held_out}/{metric}"]]
            for metric in measures
        }
        self.experiment.add_custom_scalars({f"training and {held_out}": together})
        self.add_png("samples", step=0)
        for name in ("overrides", "config"):
            if (file := Path(self.save_dir, ".hydra", f"{name}.yaml")).exists():
                self.experiment.add_text(name, textwrap.indent(file.read_text(encoding="utf-8"), "    "))

    def go_on(self, until: float, rewritten: Collection[str]) -> None:
        """Copy the scalars that callbacks had logged up to a time, except for those that are logged again.

        A damaged file is read as far as possible.
        """
        from google.protobuf.message import DecodeError
        from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

        for file in sorted(filter(Path.is_file, Path(self.save_dir).glob("events.out.before.*"))):
            try:
                for event in LegacyEventFileLoader(str(file)).Load():
                    scalars = [value.tag for value in event.summary.value if value.HasField("simple_value")]
                    again = any(tag in rewritten or tag.startswith("final/") for tag in scalars)
                    if scalars and not again and event.wall_time <= until:
                        self.experiment._get_file_writer().event_writer.add_event(event)
            except (DecodeError, MemoryError, OverflowError, OSError) as error:  # a damaged record may claim any size
                log.warning(f"{file} is damaged ({type(error).__name__}): some of what callbacks had logged is lost.")
            file.unlink()

    def add_filters(self, filters: Tensor, epoch: int) -> None:
        """The first layer's filters after an epoch: (N, k, k, 1 or 3) uint8."""
        self.experiment.add_image("filters", tiled(filters.numpy()), epoch, dataformats="HWC")

    def close_run(self, hyperparameters: dict[str, Any], metrics: dict[str, float], step: int) -> None:
        """Log the hyperparameters with the metrics of the best epoch, and the figures of the run."""
        final = {f"final/{name}": value for name, value in metrics.items() if not name.startswith("last/")}
        for page in hparams(hyperparameters, final):
            self.experiment._get_file_writer().add_summary(page)
        for name, value in final.items():
            self.experiment.add_scalar(name, value, step)
        for name in ("curves", "confusion", "mistakes"):
            self.add_png(name, step)
        self.experiment.close()

    def add_png(self, name: str, step: int) -> None:
        """Log a PNG file of the run directory; `add_image` would decode and encode it again."""
        path = Path(self.save_dir, f"{name}.png")
        if not path.exists():  # it could not be drawn
            return
        with Image.open(path) as file:
            size = {"width": file.width, "height": file.height, "colorspace": len(file.getbands())}
        image = Summary.Image(encoded_image_string=path.read_bytes(), **size)
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self.experiment._get_file_writer().add_summary(summary, step)

    def save(self) -> None:
        """The configuration is in .hydra/; hparams.yaml would repeat it."""

    def finalize(self, status: str) -> None:
        """Called by Lightning after fit, after every test, and if one of them fails."""
        self.experiment.flush()
        if status == "failed":
            self.experiment.close()
