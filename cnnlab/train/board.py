"""The TensorBoard logger: curves, training and held-out together, choices with final metrics, pictures."""

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
    """Lightning's logger with one event file in the run directory, which stays open from fit to the last test.

    Args:
        save_dir: the run directory.
    """

    def __init__(self, save_dir: str):
        super().__init__(save_dir, name="", version="", default_hp_metric=False)

    def open_run(self, held_out: str, measures: Sequence[str]) -> None:
        """Begin anew, with the layout of the custom scalars page and the sheet of training images.

        A resumed run writes all its epochs again, and `go_on` what others had logged: no point appears twice, and none
        is missing.
        """
        for events in filter(Path.is_file, Path(self.save_dir).glob("events.out.tfevents.*")):
            events.rename(events.with_name(events.name.replace("tfevents", "before")))
        together = {
            {"acc": "accuracy"}.get(metric, metric): ["Multiline", [f"train/{metric}", f"{held_out}/{metric}"]]
            for metric in measures
        }
        self.experiment.add_custom_scalars({f"training and {held_out}": together})
        self.add_picture("samples", step=0)

    def go_on(self, until: float, rewritten: Collection[str]) -> None:
        """Keep the scalars that callbacks have logged, up to a time, but for those that are written again.

        A file that was damaged is read up to there.
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
            except (DecodeError, MemoryError, OverflowError, OSError) as error:  # of a record that claims any size
                log.warning(f"{file} is damaged ({type(error).__name__}): some of what callbacks had logged is lost.")
            file.unlink()

    def add_filters(self, filters: Tensor, epoch: int) -> None:
        """The first layer's filters after an epoch: (N, k, k, 1 or 3) uint8."""
        self.experiment.add_image("filters", tiled(filters.numpy()), epoch, dataformats="HWC")

    def close_run(self, knobs: dict[str, Any], metrics: dict[str, float], step: int) -> None:
        """Choices and knobs with the final metrics, and the pictures of the run."""
        final = {f"final/{name}": value for name, value in metrics.items()}
        for page in hparams(knobs, final):
            self.experiment._get_file_writer().add_summary(page)
        for name, value in final.items():
            self.experiment.add_scalar(name, value, step)
        for name in ("curves", "confusion", "mistakes"):
            self.add_picture(name, step)
        self.experiment.close()

    def add_picture(self, name: str, step: int) -> None:
        """A PNG file of the run directory, as it is: `add_image` would decode it and encode it again."""
        path = Path(self.save_dir, f"{name}.png")
        if not path.exists():  # it could not be drawn
            return
        with Image.open(path) as picture:
            size = {"width": picture.width, "height": picture.height, "colorspace": len(picture.getbands())}
        image = Summary.Image(encoded_image_string=path.read_bytes(), **size)
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self.experiment._get_file_writer().add_summary(summary, step)

    def save(self) -> None:
        """The configuration is in .hydra/; hparams.yaml would repeat it."""

    def finalize(self, status: str) -> None:
        """Lightning calls this after fit, after every test, and when one of them has failed."""
        self.experiment.flush()
        if status == "failed":
            self.experiment.close()
