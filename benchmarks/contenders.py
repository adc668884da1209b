"""What people train small networks with instead of cnnlab, written as they write it, and the limit; one a process.

    limit         a bare PyTorch loop over resident, normalized float images, always in the same order: the precision
                  and memory layout of cnnlab, the fused optimizer, no augmentation, no files. On a GPU its step is a
                  CUDA graph.
    template      lightning-hydra-template: torchvision transforms, one picture at a time, in DataLoader workers;
                  Lightning; torchmetrics logged at every step; logs, checkpoints and progress bar; float32
    template-bf16 the same with precision="bf16-mixed"
    torchvision   the same Lightning module, with torchvision's v2 transforms on whole uint8 batches after the transfer.
                  All images of a batch get the same crop and flip: v2 draws once a call.
    kornia        the same, with kornia's modules, which draw for every image
    plain         pytorch-cifar by kuangliu: the same transforms and workers in a plain loop that reads the loss, counts
                  and prints at every step

All train the network of the report, of which `cnnlab` computes the same function, with SGD, and augment by crops of the
image padded by 4, mirror images and normalization.

    python benchmarks/contenders.py limit --cache-dir FOLDER --images 20000 --out FILE

writes to FILE when each epoch was over, in seconds since 1970, the largest memory in bytes, and what the machine is.
`pipeline` in place of `limit`: the images/s of making batches alone. `python benchmarks/table.py` runs them all, on
data that it puts into the cache folder. After every epoch peers evaluate ten images.
"""

import argparse
import json
import platform
import re
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision import transforms
from torchvision.transforms import v2

from cnnlab.augment import CropFlip
from cnnlab.data.cifar import CIFAR10
from cnnlab.data.images import DataSet, Images
from cnnlab.data.pipeline import ImageData
from cnnlab.networks import ConvNet
from cnnlab.normalize import Standard
from cnnlab.train.machine import computes_in_bf16, peak_memory

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BF16 = computes_in_bf16(DEVICE.type)
LR = 0.01


def network(num_classes: int = 10) -> nn.Sequential:
    """The network as the report has it: convolution, ReLU, pooling."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 4 * 4, 1000), nn.ReLU(), nn.Linear(1000, num_classes)),
    )


# ----------------------------------------------------------------------------------------------------------- the limit


def limit(data: DataSet, norm: Standard, options: argparse.Namespace) -> list[float]:
    images = norm(torch.from_numpy(data.train.pixels)).to(DEVICE)  # (N, C, H, W) float32, channels_last
    labels = torch.from_numpy(data.train.targets).to(DEVICE)
    batches = [
        batch
        for batch in zip(images.split(options.batch_size), labels.split(options.batch_size), strict=True)
        if len(batch[1]) == options.batch_size
    ]
    net = ConvNet().to(memory_format=torch.channels_last).to(DEVICE)
    optimizer = torch.optim.SGD(net.parameters(), LR, fused=True)

    def step(batch_images: Tensor, batch_labels: Tensor) -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=BF16, cache_enabled=DEVICE.type == "cpu"):
            loss = F.cross_entropy(net(batch_images), batch_labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    do = graphed(step, *batches[0]) if DEVICE.type == "cuda" else step
    ends = []
    for _ in range(options.epochs):
        for batch in batches:
            loss = do(*batch)
        loss.item()  # waits for the device
        ends.append(time.time())
    return ends


def graphed(step: Callable[..., Tensor], *example: Tensor) -> Callable[..., Tensor]:
    """The same step as a CUDA graph, of the shapes of the example."""
    inputs = [tensor.clone() for tensor in example]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step(*inputs)

    def replay(*batch: Tensor) -> Tensor:
        for mine, given in zip(inputs, batch, strict=True):
            mine.copy_(given)
        graph.replay()
        return loss

    return replay


# ----------------------------------------------------------------------------------------------------------- the peers


class Pictures(Dataset):
    """Pictures one at a time, as torchvision.datasets.CIFAR10 gives them."""

    def __init__(self, images: Images, transform: Callable[[Any], Tensor]):
        self.pixels, self.labels, self.transform = (
            images.pixels.transpose(0, 2, 3, 1),
            images.targets.tolist(),
            transform,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class Template(LightningModule):
    """Steps and logging as in lightning-hydra-template's MNISTLitModule; notes when an epoch gives way to the next.

    Args:
        augment, prepare: of whole batches for training and evaluation; None: the data sets have done it.
    """

    def __init__(self, augment: nn.Module | None = None, prepare: nn.Module | None = None) -> None:
        super().__init__()
        self.net, self.criterion = network(), nn.CrossEntropyLoss()
        self.augment, self.prepare = augment, prepare
        self.train_loss, self.val_loss = MeanMetric(), MeanMetric()
        self.train_acc, self.val_acc = MulticlassAccuracy(10, average="micro"), MulticlassAccuracy(10, average="micro")
        self.ends: list[float] = []

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        transform = self.augment if self.trainer.training else self.prepare
        return (images if transform is None else transform(images)), labels

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
        self.ends.append(time.time())

    on_train_end = on_train_epoch_start


def per_picture(data: DataSet, norm: Standard) -> tuple[Dataset, Dataset]:
    """Training and test pictures with torchvision's transforms, one at a time."""
    to_tensor = transforms.ToTensor(), transforms.Normalize(*mean_and_std(norm))
    augment = transforms.RandomCrop(data.train.pixels.shape[2], padding=4), transforms.RandomHorizontalFlip()
    return (
        Pictures(data.train, transforms.Compose([*augment, *to_tensor])),
        Pictures(data.test, transforms.Compose(to_tensor)),
    )


def mean_and_std(norm: Standard) -> tuple[list[float], list[float]]:
    return (norm.shift / 255).flatten().tolist(), (norm.scale / 255).flatten().tolist()


def loader(images: Dataset, options: argparse.Namespace, training: bool = True) -> DataLoader:
    return DataLoader(
        images,
        options.batch_size,
        shuffle=training,
        drop_last=training,
        num_workers=options.workers if training else 0,
        pin_memory=DEVICE.type == "cuda",
    )


def fit(
    module: Template, training: Dataset, test: Dataset, options: argparse.Namespace, precision: Any = "32-true"
) -> list[float]:
    folder = Path("lightning")
    Trainer(
        precision=precision,
        accelerator=DEVICE.type,
        devices=1,
        max_epochs=options.epochs,
        logger=TensorBoardLogger(folder),
        callbacks=[ModelCheckpoint(folder, monitor="val/acc", mode="max", save_last=True), RichProgressBar()],
        enable_model_summary=False,
    ).fit(module, loader(training, options), loader(test, options, training=False))
    return module.ends[1:]


def template(data: DataSet, norm: Standard, options: argparse.Namespace) -> list[float]:
    return fit(Template(), *per_picture(data, norm), options)


def template_bf16(data: DataSet, norm: Standard, options: argparse.Namespace) -> list[float]:
    return fit(Template(), *per_picture(data, norm), options, precision="bf16-mixed")


def uint8_tensors(images: Images) -> TensorDataset:
    return TensorDataset(torch.from_numpy(images.pixels).contiguous(), torch.from_numpy(images.targets))


def torchvision(data: DataSet, norm: Standard, options: argparse.Namespace) -> list[float]:
    prepare = v2.ToDtype(torch.float32, scale=True), v2.Normalize(*mean_and_std(norm))
    augment = v2.RandomCrop(data.train.pixels.shape[2], padding=4), v2.RandomHorizontalFlip()
    module = Template(v2.Compose([*augment, *prepare]), v2.Compose(prepare))
    return fit(module, uint8_tensors(data.train), uint8_tensors(data.test), options)


class Scale(nn.Module):
    """What torchvision calls ToDtype(torch.float32, scale=True)."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float() / 255


def kornia(data: DataSet, norm: Standard, options: argparse.Namespace) -> list[float]:
    import kornia.augmentation as K

    mean, std = (torch.tensor(values) for values in mean_and_std(norm))
    size = data.train.pixels.shape[2]
    augment = K.RandomCrop((size, size), padding=4), K.RandomHorizontalFlip()
    module = Template(
        nn.Sequential(Scale(), *augment, K.Normalize(mean, std)), nn.Sequential(Scale(), K.Normalize(mean, std))
    )
    return fit(module, uint8_tensors(data.train), uint8_tensors(data.test), options)


def plain(data: DataSet, norm: Standard, options: argparse.Namespace) -> list[float]:
    training, test = per_picture(data, norm)
    training_batches, test_batches = loader(training, options), loader(test, options, training=False)
    net, criterion = network().to(DEVICE), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), LR)
    ends = []
    for _ in range(options.epochs):
        net.train()
        train_loss = correct = total = 0.0
        for number, (images, labels) in enumerate(training_batches, 1):
            images, labels = images.to(DEVICE), labels.to(DEVICE)
            optimizer.zero_grad()
            outputs = net(images)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            train_loss += loss.item()
            correct += outputs.max(1)[1].eq(labels).sum().item()
            total += len(labels)
            print(
                f"\r{number}/{len(training_batches)} loss {train_loss / number:.3f} acc {correct / total:.3f}", end=""
            )
        net.eval()
        with torch.no_grad():
            for images, labels in test_batches:
                criterion(net(images.to(DEVICE)), labels.to(DEVICE)).item()
        torch.save(net.state_dict(), "ckpt.pth")
        ends.append(time.time())
    return ends


# ------------------------------------------------------------------------------------------------- the pipeline alone


def pipeline(data: DataSet, norm: Standard, options: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second of cnnlab's batches and of the template's DataLoader, epoch by epoch, in turns."""
    ours = ImageData(data, norm, {"crop_flip": CropFlip(32, padding=4)}, options.batch_size, val_fraction=0)
    trainer = SimpleNamespace(
        current_epoch=0, max_epochs=-1, num_training_batches=ours.num_batches, global_rank=0, world_size=1,
        strategy=SimpleNamespace(root_device=DEVICE),
    )  # fmt: skip
    ours.trainer = cast(Any, trainer)
    ours.setup("fit")
    theirs = loader(per_picture(data, norm)[0], options)
    rates: dict[str, list[float]] = {"cnnlab": [], "DataLoader": []}
    for _ in range(options.epochs):
        rates["cnnlab"].append(rate(ours.on_after_batch_transfer(batch, 0) for batch in ours.train_dataloader()))
        rates["DataLoader"].append(rate((images.to(DEVICE), labels.to(DEVICE)) for images, labels in theirs))
        trainer.current_epoch += 1
    return rates


def rate(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Images per second."""
    start, num_images = time.perf_counter(), 0
    for images, _ in batches:
        num_images += len(images)
    images.sum().item()  # waits for the device
    return num_images / (time.perf_counter() - start)


CONTENDERS: dict[str, Callable[[DataSet, Standard, argparse.Namespace], list[float]]] = {
    one.__name__.replace("_", "-"): one for one in (limit, template, template_bf16, torchvision, kornia, plain)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*CONTENDERS, "pipeline"])
    parser.add_argument("--sha256", default="0" * 64, help="as data.sha256")
    parser.add_argument("--cache-dir", required=True)
    parser.add_argument("--images", type=int, required=True, help="the first so many training images")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    data = CIFAR10([], options.sha256, options.cache_dir).load()
    train = Images(data.train.pixels[: options.images], data.train.targets[: options.images], data.train.classes)
    test = Images(data.test.pixels[:10], data.test.targets[:10], data.test.classes)
    data = DataSet(train, test, data.fingerprint)
    norm = Standard()
    norm.fit(torch.from_numpy(train.pixels))
    if options.name == "pipeline":
        made: dict[str, Any] = {"rates": pipeline(data, norm, options)}
    else:
        made = {"ends": CONTENDERS[options.name](data, norm, options)}
    made |= {"peak_memory": peak_memory(DEVICE), "machine": machine()}
    options.out.write_text(json.dumps(made))


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8")) if cpuinfo.exists() else None
    packages = ("torch", "torchvision", "lightning", "kornia")
    return {
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        "cpu": model[1] if model else platform.processor(),
        "num_threads": torch.get_num_threads(),
        "precision": {
            "cnnlab and limit": "bfloat16" if BF16 else "float32",
            "the others, but for template-bf16": "float32",
        },
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
