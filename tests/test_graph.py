"""A graph of the step trains as the steps themselves do, and Lightning cannot tell.

Without a GPU all but the recording is real: its replay is the recorded function, called again (see faults.py).
"""

import csv
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from lightning import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from zygote import differences, left_by, only_run, said

from cnnlab.train.classifier import Classifier
from cnnlab.train.graphable import unsupported

COMMON = (
    *("data=shapes", "data.num_train=800", "data.num_test=60", "batch_size=10", "model.channels=[8,8,8]"),
    *("model.hidden=32", "trainer.max_epochs=3", "trainer.accelerator=auto"),
)
STANDARD = "norm=standard"
RUNS = {
    "plain SGD": (STANDARD,),
    "momentum, noise, CutMix, dropout, a schedule by steps": (
        *("optim=sgd_momentum", "optim.nesterov=true", "optim.weight_decay=0.001", "aug=[crop_flip,noise,cutmix]"),
        *("model.dropout=0.5", "model.batch_norm=true", "sched=onecycle", "decay_all=false"),
        STANDARD,
    ),
    "Adam, clipped, a moving average, a schedule by epochs": (
        *("optim=adam", "trainer.gradient_clip_val=0.1", "callbacks=ema", "sched=exponential", "aug=mixup"),
        STANDARD,
    ),
    "warm-up, cosine, AdamW, early stopping": (
        *("optim=adamw", "sched=cosine", "warmup_epochs=1.5", "callbacks=early_stopping", "aug=[pad_crop_flip,color]"),
        STANDARD,
    ),
    "bfloat16 for the network alone": (
        *("trainer.precision=bf16-mixed", "aug=[affine,blur,trivial_augment,cutout]", "norm=pca", "norm.per=channel"),
    ),
}
GRAPH = [("", 0, "graph")]


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_typed_again_it_is_the_plain_run_bit_for_bit(zygote, tmp_path, name):
    command = COMMON + RUNS[name]
    assert zygote.run(tmp_path / "plain", command=command)["status"] == 0, said(tmp_path / "plain")
    output, words = tmp_path / "graph", ("cuda_graph=true", "checkpoint.every_n_minutes=0.0001")
    middle = ("step", 12, "SIGKILL")  # of the second epoch
    assert zygote.run(output, *words, command=command, faults=[*GRAPH, middle])["status"] == -9, said(output)
    result = zygote.run(output, *words, command=command, faults=GRAPH)
    assert result["status"] == 0, said(output)
    assert result["counts"]["step"] < 20  # of 216, less what was done; eight at once
    assert differences(left_by(tmp_path / "plain"), left_by(output)) == []
    assert "Warning" not in said(output)


def test_a_recording_that_fails_is_told_and_the_steps_are_done_one_by_one(zygote, tmp_path):
    command = (*COMMON, STANDARD, "sched=onecycle", "trainer.max_epochs=1")
    assert zygote.run(tmp_path / "plain", command=command)["status"] == 0
    fails = [("", 0, "no graph")]
    assert zygote.run(tmp_path / "graph", "cuda_graph=true", command=command, faults=fails)["status"] == 0
    assert "steps are run one by one: recording failed (operation not permitted" in said(tmp_path / "graph")
    assert differences(left_by(tmp_path / "plain"), left_by(tmp_path / "graph")) == []


def test_without_a_gpu_the_steps_are_done_one_by_one(zygote, tmp_path):
    command = (*COMMON, STANDARD, "trainer.accelerator=cpu", "cuda_graph=true", "trainer.max_epochs=1")
    assert zygote.run(tmp_path / "outputs", command=command)["counts"]["step"] == 72
    assert "CUDA graph" not in said(tmp_path / "outputs")  # nobody has asked for a GPU


class SeesGradients(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        """As a callback does that logs their norm."""


class OtherStep(Classifier):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * 2


class Looks(Classifier):
    def on_after_backward(self) -> None:
        """As a module does that logs its gradients."""


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, ""),
        ({"device": "mps"}, "needs a GPU"),
        ({"strategy": DDPStrategy}, "wait for each other"),
        ({"resident": "host"}, "resident=host"),
        ({"optimizer": torch.optim.RMSprop}, "RMSprop"),
        ({"optimizer": partial(torch.optim.SGD, fused=False)}, "fused=true"),
        ({"scheduler": partial(torch.optim.lr_scheduler.OneCycleLR, cycle_momentum=True)}, "cycle_momentum"),
        ({"scheduler": partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1)}, "cycle_momentum"),  # its default
        ({"optimizer": partial(torch.optim.SGD, fused=True, momentum=0.9, dampening=0.1)}, "dampening"),
        ({"precision": "16-mixed"}, "float16"),
        ({"arguments": {"detect_anomaly": True}}, "detect_anomaly"),
        ({"arguments": {"benchmark": True, "max_steps": None}}, ""),
        ({"callback": SeesGradients()}, "on_before_optimizer_step"),
        ({"module": OtherStep}, "the step of OtherStep may do more"),
        ({"module": Looks}, "Looks has on_after_backward"),
    ],
)
def test_what_a_graph_cannot_do_is_said(given, reason):
    strategy = given.get("strategy", SingleDeviceStrategy)()
    strategy._root_device, strategy.parallel_devices = torch.device(given.get("device", "cuda")), [torch.device("cuda")]
    trainer = SimpleNamespace(
        strategy=strategy,
        callbacks=[given.get("callback", Callback())],
        precision_plugin=SimpleNamespace(precision=given.get("precision", "bf16-mixed")),
    )
    optimizer = given.get("optimizer", partial(torch.optim.SGD, fused=True))([torch.zeros(1)])
    scheduler = given.get("scheduler", partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9))
    data = SimpleNamespace(resident=given.get("resident", "device"))
    module = given.get("module", Classifier)
    said_of_it = unsupported(trainer, optimizer, scheduler, data, given.get("arguments", {}), module)
    assert reason in said_of_it
    assert bool(reason) == bool(said_of_it)


NO_GPU = (
    "recording a CUDA graph needs an NVIDIA GPU, and this machine has none; all but the recording is tested on the "
    "same runs, bit for bit, by test_killed_and_typed_again_it_is_the_plain_run_bit_for_bit"
)


@pytest.mark.skipif(not torch.cuda.is_available(), reason=NO_GPU)
@pytest.mark.parametrize("name", RUNS)
def test_a_recorded_graph_trains_as_the_steps_do(command, tmp_path, name):
    """Up to the rounding of learning rates, which 24 steps amplify."""
    common = (*COMMON, "data.num_train=240", "trainer.precision=32-true")
    losses = []
    for words in (("cuda_graph=false",), ()):
        output = tmp_path / f"outputs{len(words)}"
        result = command(str(ROOT / "train.py"), *common, *RUNS[name], *words, f"output_dir={output}")
        assert result.returncode == 0, result.stderr
        assert "No CUDA graph" not in result.stdout
        with open(only_run(output) / "metrics.csv", newline="") as file:
            losses.append(float(next(csv.DictReader(file))["train/loss"]))  # of the first epoch: errors grow
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
