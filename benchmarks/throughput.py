"""Training throughput, in images per second over whole epochs, of three ways to train the same network.

    cnnlab      this project: `train.py norm=standard aug=pad_crop_flip`, with its logs, checkpoints and progress bar
    bare loop   the limit: a bare PyTorch loop over resident, normalised float images, always in the same order; the
                same precision (bfloat16 where the hardware has it) and memory layout; no augmentation, no files
    template    the way of lightning-hydra-template: torchvision transforms, one picture at a time, in a DataLoader with
                worker processes; torchmetrics logged at every step; float32; logs, checkpoints and progress bar too

Same network, batch size, SGD and device. The pictures are drawn; an incomplete last batch is left out. A rate is the
training images of an epoch over the time since the end of the epoch before, so it pays for drawing the plan, starting
workers, checkpoints and logs; the first epoch of every run is warm-up. Evaluation is all but left out: ten images an
epoch. "cnnlab, steps" is images_per_second in metrics.csv, which ends with the last step.

Read the ratios. The three take turns in one process, so what disturbs the machine disturbs them alike; a ratio is that
of the median epochs of one round, and its median over the rounds is shown with its range. cnnlab / bare loop is what
Lightning, augmentation and records leave of the hardware's speed; cnnlab / template is what a user of that one gains.
What an epoch costs beside its steps weighs less in a longer one: on a GPU give --images 50000, the size of CIFAR-10.

    python benchmarks/throughput.py                 about five minutes on two cores; leave the machine alone
    python benchmarks/throughput.py --save NAME     also write benchmarks/results/NAME.json, with every number
    python benchmarks/throughput.py --smoke         half a minute, to see that it runs; its numbers mean nothing
"""

import argparse
import contextlib
import io
import json
import platform
import re
import shlex
import sys
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from unittest import mock

import lightning
import torch
import torch.nn.functional as F
import torchvision
from hydra import compose, initialize_config_dir
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision import transforms

from cnnlab.data.images import DataSet, Images
from cnnlab.data.shapes import Shapes
from cnnlab.networks import ConvNet
from cnnlab.normalize import Standard
from cnnlab.records import RunDirectory, git_state, now, write_text
from cnnlab.run import computes_in_bf16, train

ROOT = Path(__file__).resolve().parent.parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BF16 = computes_in_bf16(DEVICE.type)
LR = 0.01


class Nowhere(io.TextIOBase):
    """A terminal that nobody watches: progress bars are drawn in full, and thrown away."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)


def run_cnnlab(
    data: DataSet, options: argparse.Namespace, folder: Path, *chosen: str
) -> tuple[list[float], list[float]]:
    """When each epoch ended, its checkpoint written, in seconds; and the rates in metrics.csv."""
    overrides = ["data=shapes", *chosen, "val_fraction=0", f"optim.lr={LR}", f"cache_dir={folder.parent / 'cache'}"]
    overrides += [f"batch_size={options.batch_size}", f"trainer.max_epochs={options.epochs + 1}"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("train", [*overrides, f"trainer.accelerator={DEVICE.type}"])
    run = RunDirectory(folder / "run")
    with run.owned(), run.logged(), mock.patch("os.isatty", return_value=True):  # so that it has its progress bar
        train(config, run, data, {"run": "throughput", "choices": {}, "changes": {}, "overrides": overrides})
    ends = re.findall(r"^(.{23}) epoch ", (run.path / "train.log").read_text(), re.MULTILINE)
    times = [datetime.strptime(end, "%Y-%m-%d %H:%M:%S,%f").timestamp() for end in ends]
    return times, [row["images_per_second"] for row in run.metrics()]


def run_bare_loop(data: DataSet, options: argparse.Namespace, norm: Standard) -> list[float]:
    """When each epoch ended, in seconds."""
    images = norm(torch.from_numpy(data.train.pixels)).to(DEVICE)  # (N, C, H, W) float32, channels_last
    labels = torch.from_numpy(data.train.labels).to(DEVICE)
    batches = list(zip(images.split(options.batch_size), labels.split(options.batch_size), strict=True))
    network = ConvNet().to(memory_format=torch.channels_last).to(DEVICE)
    optimizer = torch.optim.SGD(network.parameters(), LR)
    times = []
    for _ in range(options.epochs + 1):
        for batch_images, batch_labels in batches:
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=BF16):
                loss = F.cross_entropy(network(batch_images), batch_labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the device
        times.append(time.perf_counter())
    return times


class Pictures(Dataset):
    """Pictures one at a time, as torchvision.datasets.CIFAR10 gives them."""

    def __init__(self, images: Images, *steps: nn.Module | transforms.ToTensor):
        self.pixels, self.labels = images.pixels.transpose(0, 2, 3, 1), images.labels.tolist()
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class Template(LightningModule):
    """Steps and logging as in lightning-hydra-template's MNISTLitModule; notes when an epoch gives way to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.criterion = ConvNet(), nn.CrossEntropyLoss()
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()
        self.train_acc, self.val_acc = MulticlassAccuracy(10, average="micro"), MulticlassAccuracy(10, average="micro")
        self.times: list[float] = []

    def step(self, stage: str, batch: tuple[Tensor, Tensor], mean_loss: MeanMetric, acc: MulticlassAccuracy) -> Tensor:
        images, labels = batch
        logits = self.net(images)
        loss = self.criterion(logits, labels)
        mean_loss(loss)
        acc(torch.argmax(logits, dim=1), labels)
        self.log(f"{stage}/loss", mean_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log(f"{stage}/acc", acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.step("train", batch, self.train_loss, self.train_acc)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.step("val", batch, self.val_loss, self.val_acc)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), LR)

    def on_train_epoch_start(self) -> None:
        self.times.append(time.perf_counter())

    on_train_end = on_train_epoch_start


def run_template(data: DataSet, options: argparse.Namespace, norm: Standard, folder: Path) -> list[float]:
    """When each epoch ended, its checkpoints written, in seconds."""
    mean, std = (norm.shift / 255).flatten().tolist(), (norm.scale / 255).flatten().tolist()
    augment = transforms.RandomCrop(data.train.pixels.shape[2], padding=4), transforms.RandomHorizontalFlip()
    to_tensor = transforms.ToTensor(), transforms.Normalize(mean, std)
    training = DataLoader(
        Pictures(data.train, *augment, *to_tensor),
        options.batch_size,
        shuffle=True,
        num_workers=options.workers,
        pin_memory=DEVICE.type == "cuda",
    )
    template = Template()
    Trainer(
        accelerator=DEVICE.type,
        devices=1,
        max_epochs=options.epochs + 1,
        logger=TensorBoardLogger(folder),
        callbacks=[ModelCheckpoint(folder, monitor="val/acc", mode="max", save_last=True), RichProgressBar()],
        enable_model_summary=False,
    ).fit(template, training, DataLoader(Pictures(data.test, *to_tensor), options.batch_size))
    return template.times[1:]


def run_round(data: DataSet, options: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second in every measured epoch: {"cnnlab": [...], ...}."""
    norm = Standard()
    norm.fit(torch.from_numpy(data.train.pixels))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(Nowhere()):
        times, steps = run_cnnlab(data, options, Path(folder, "cnnlab"), "norm=standard", "aug=pad_crop_flip")
        ends = {"cnnlab": times, "bare loop": run_bare_loop(data, options, norm)}
        ends["template"] = run_template(data, options, norm, Path(folder, "template"))
    num_images = len(data.train.labels)
    rates = {name: [num_images / (end - start) for start, end in pairwise(times)] for name, times in ends.items()}
    return rates | {"cnnlab, steps": steps[1:]}


def describe(options: argparse.Namespace) -> dict[str, object]:
    """What the numbers depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    packages = (torch, torchvision, lightning)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "finished": now(),
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        "cpu": model[1] if model else platform.processor(),
        "num_threads": torch.get_num_threads(),
        "precision": {"cnnlab and bare loop": "bfloat16" if BF16 else "float32", "template": "float32"},
        "versions": {"python": platform.python_version()} | {p.__name__: p.__version__ for p in packages},
        "git": git_state(),
        "options": vars(options),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="training images (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--epochs", type=int, default=2, help="measured in every run, after one (default %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="of the template's DataLoader (default %(default)s)")
    parser.add_argument("--save", metavar="NAME", help="write benchmarks/results/NAME.json")
    parser.add_argument("--smoke", action="store_true", help="384 images, one round of one measured epoch")
    options = parser.parse_args()
    if options.smoke:
        options.images, options.rounds, options.epochs = 384, 1, 1
    if not 1 <= options.batch_size <= options.images or min(options.rounds, options.epochs) < 1:
        parser.error("the numbers must be at least 1, and --images at least --batch-size")

    data = Shapes(options.images // options.batch_size * options.batch_size, num_test=10).load()
    rounds = []
    for number in range(1, options.rounds + 1):
        rounds.append(run_round(data, options))
        rates = "   ".join(f"{name} {median(rates):,.0f}" for name, rates in rounds[-1].items())
        print(f"round {number}/{options.rounds}: {rates} images/s", flush=True)

    machine = describe(options)
    table = Table("images/s", "median", "min", "max", title=f"{machine['device']}, {machine['cpu']}")
    for name in ("bare loop", "cnnlab, steps", "cnnlab", "template"):
        epochs = [rate for rates in rounds for rate in rates[name]]
        table.add_row(name, *(f"{value:,.0f}" for value in (median(epochs), min(epochs), max(epochs))))
    Console().print(table)
    ratios = {other: [median(r["cnnlab"]) / median(r[other]) for r in rounds] for other in ("bare loop", "template")}
    for other, of_rounds in ratios.items():
        print(f"cnnlab / {other}: {median(of_rounds):.3f} ({min(of_rounds):.3f} to {max(of_rounds):.3f})")
    if options.save:
        path = ROOT / "benchmarks" / "results" / f"{options.save}.json"
        path.parent.mkdir(exist_ok=True)
        write_text(path, json.dumps(machine | {"ratios": ratios, "images_per_second": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
