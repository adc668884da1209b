"""What would fail, wait or crawl on a GPU, found without one: tensors claim to be there (benchmarks/launches.py).

On a machine with a GPU, the losses of the same runs are compared with those of its CPU.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, unset_fake_temporarily

from benchmarks.launches import GPU, Pretended, bare, per_step, pretend, pretended_gpu
from cnnlab.augment import Color
from cnnlab.config.identity import configuration
from cnnlab.config.objects import data_source
from cnnlab.config.options import UserError
from cnnlab.config.values import without_hydra
from cnnlab.data import resident
from cnnlab.data.images import load_once
from cnnlab.data.pipeline import ImageData
from cnnlab.networks import ConvNet
from cnnlab.runs.directory import RunDirectory
from cnnlab.train import machine, run
from cnnlab.train.classifier import Classifier
from cnnlab.train.graph import graphed
from cnnlab.use.trained import Trained

RUNS = {
    "plain": (),
    "crop_flip": ("aug=crop_flip", "norm=minmax"),
    "black borders": ("aug=pad_crop_flip", "aug.pad_crop_flip.padding_mode=constant", "norm=robust"),
    "geometry": ("aug=[rotate,scale,translate,affine]", "norm=standard", "norm.per=pixel"),
    "color, blur, noise": ("aug=[color,blur,noise]", "norm=zca", "norm.per=channel"),
    "trivial_augment, cutout": ("aug=[trivial_augment,cutout]", "norm=pca", "norm.per=channel"),
    "two mixers, smoothed": ("aug=[crop_flip,cutmix,mixup]", "loss.label_smoothing=0.1", "norm=standard"),
    "whitened once": ("norm=zca", "norm.per=channel", "test_flips=true"),
    "batch norm, dropout": ("model.batch_norm=true", "model.dropout=0.5", "decay_all=false"),
    "fully convolutional": ("model=fully_convolutional", "aug=crop_flip"),
    "linear": ("model=linear", "optim=sgd_momentum"),
    "residual, label weights, alternating flips": (
        *(
            "model=resnet18",
            "loss=focal",
            "aug=pad_crop_flip",
            "aug.pad_crop_flip.alternating_flips=true",
            "norm=standard",
        ),
    ),
    "speednet, shifts": ("model=speednet", "test_flips=true", "test_shifts=1", "norm=standard"),
    "hinge loss": ("model=bow", "model.num_words=20", "aug=cutmix"),
    "Adam": ("optim=adamw", "callbacks=ema"),
    "in host memory": ("resident=host", "aug=[pad_crop_flip,color,cutmix]", "norm=standard"),
    "in host memory, whitened": ("resident=host", "norm=pca", "norm.per=channel"),
    "in host memory, whole": ("resident=host", "norm=standard"),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_step_stays_on_the_device(name):
    """Training, validation and test; two devices are never mixed, and nothing waits."""
    with pretended_gpu():
        one = Pretended(*RUNS[name])
        launches = one.train()
        one.evaluate()
        images, labels = one.data.made[1]
        assert images.device == labels.device == GPU
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
    assert bool(launches.copies) == name.startswith("in host memory")
    assert launches.copies.total() <= 6  # for 32 steps: pixels, labels


@pytest.mark.parametrize("name", ["plain", "two mixers, smoothed", "batch norm, dropout", "Adam"])
def test_recorded_steps_stay_on_the_device(name):
    with pretended_gpu():
        assert not Pretended(*RUNS[name], graphed=True).train().copies


def test_predictions_stay_on_the_device():
    with pretended_gpu():
        one = Pretended("aug=crop_flip", "norm=standard", "test_flips=true")
        with unset_fake_temporarily():
            classes = one.data.data.train.classes
            model = Trained(
                one.data.norm, one.classifier.network, one.data.crop, True, classes, one.data.stored, bf16=True
            )
        pretend(model.norm)
        logits = model(torch.empty(4, 3, 32, 32, dtype=torch.uint8, device=GPU))
    assert (logits.device, logits.shape) == (GPU, (4, 10))


def test_launches_of_a_step():
    """Of 95 before batches were made and measured several at a time."""
    words = ("aug=pad_crop_flip", "norm=standard")
    eager, recorded = per_step(*words, graphed=False), per_step(*words, graphed=True)
    assert 50 < bare() < eager["launches"] <= 85 * 0.8
    assert recorded["launches"] <= 80 * 0.8
    assert eager["copies"] == recorded["copies"] == 0
    assert per_step(*words, "callbacks=ema", graphed=True)["launches"] < recorded["launches"] + 2


class FromTheProcessor(Color):
    def apply(self, images, **drawn):
        return images + torch.ones(3, 1, 1)


class Waits(Color):
    def apply(self, images, **drawn):
        return images * (2 if images.max() > 100 else 1)


@pytest.mark.parametrize(("kind", "error"), [(FromTheProcessor, RuntimeError), (Waits, DataDependentOutputException)])
def test_what_would_fail_or_wait_is_found(kind, error):
    with pretended_gpu():
        one = Pretended("norm=standard", "aug=color")
        one.data.before_norm = {"color": kind()}
        with pytest.raises(error):
            one.train()


def test_images_are_uploaded_once_for_all_runs_of_a_process():
    with pretended_gpu():
        for _ in range(3):
            Pretended("norm=standard")
        assert resident._uploaded.cache_info().misses == 2  # training and test images


def test_evaluation_takes_fewer_large_images_at_once():
    cpu = torch.device("cpu")
    assert [resident.evaluated_together(cpu, (size, size)) for size in (16, 32, 64, 5000)] == [2000, 500, 125, 2]
    assert resident.evaluated_together(GPU, (32, 32)) == 2500


def test_a_gpu_that_torch_cannot_use_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.unused_gpu(tmp_path) == ""
    (tmp_path / "nvidia0").touch()
    assert machine.unused_gpu(tmp_path)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in machine.unused_gpu(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.unused_gpu(tmp_path) == ""


@pytest.mark.skipif(
    sys.platform != "linux",
    reason="the peak of a process can be reset by /proc/self/clear_refs alone, which only Linux has; CI is on Linux",
)
def test_the_peak_of_memory_is_that_of_one_run():
    np.ones(30_000_000).sum()  # 240 MB, let go of at once
    before = machine.peak_memory(torch.device("cpu"))
    machine.reset_peak_memory()
    assert machine.peak_memory(torch.device("cpu")) < before - 200_000_000


def trained(folder: Path, *words: str) -> dict:
    config = configuration(["data=shapes", "data.num_train=100", "data.num_test=20", "batch_size=10", *words])
    data = load_once(data_source(config.data))
    return run.train_run(
        without_hydra(config), RunDirectory(folder), data, {"overrides": [], "choices": {}, "changes": {}, "run": ""}
    )


@pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs an NVIDIA GPU, and this machine has none; that nothing is on the wrong device is tested here by "
    "test_a_step_stays_on_the_device, on the same runs",
)
@pytest.mark.parametrize("name", RUNS)
def test_the_losses_are_those_of_the_cpu(tmp_path, name):
    """Up to rounding, which ten steps of a deep network amplify."""
    words = (*RUNS[name], "trainer.precision=32-true", "trainer.max_epochs=1", "logger=none")
    words = (*words, *("model.dropout=0" for word in words if word.startswith("model.dropout")))  # other random numbers
    losses = [trained(tmp_path / kind, *words, f"trainer.accelerator={kind}")["metrics"] for kind in ("gpu", "cpu")]
    assert losses[0]["train/loss"] == pytest.approx(losses[1]["train/loss"], rel=5e-3)


def test_an_operation_without_a_deterministic_kernel_is_refused_and_all_is_let_go(tmp_path, monkeypatch):
    released = []
    monkeypatch.setattr(Classifier, "release", lambda classifier: released.append("steps"))
    forward, release = ConvNet.forward, ImageData.release
    monkeypatch.setattr(ImageData, "release", lambda data: released.append("batches") or release(data))

    def puts(network: ConvNet, images: torch.Tensor) -> torch.Tensor:
        image = images.clone().put_(torch.tensor([0]), torch.ones(1)) if network.training else images
        return forward(network, image)

    monkeypatch.setattr(ConvNet, "forward", puts)
    with pytest.raises(UserError, match=r"deterministic=true, and put_ has no deterministic impl.*deterministic=false"):
        trained(tmp_path, "deterministic=true", "trainer.accelerator=cpu")
    assert released == ["batches", "steps", "batches"]  # the first time by its constructor


def test_deterministic_holds_for_one_run_of_a_process(tmp_path):
    words = ("trainer.accelerator=cpu", "trainer.max_epochs=1", "model=linear", "logger=none")
    found = [trained(tmp_path / word, *words, f"deterministic={word}") for word in ("true", "false")]
    assert [one["environment"]["deterministic"] for one in found] == [True, False]


def test_a_recording_is_let_go():
    classifier = graphed(Classifier)(nn.Linear(2, 2), torch.optim.SGD, torch.optim.lr_scheduler.ConstantLR)
    classifier.replays, classifier.step_buffers = {1: print}, {"images": torch.zeros(1)}
    classifier.network.weight.grad = torch.zeros(2, 2)
    classifier.release()
    assert not classifier.replays
    assert not classifier.step_buffers
    assert classifier.network.weight.grad is None
