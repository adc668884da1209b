"""One run, from its configuration to its summary: open, resume, fit, test, close. Imports torch."""

import logging
import os
import platform
import re
import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import lightning
import torch
import torchvision
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from cnnlab import checkpoint, graph, signals
from cnnlab.board import TensorBoard
from cnnlab.callbacks import ProgressBar, Records
from cnnlab.check import refuse_uneven
from cnnlab.checkpoint import CheckpointFiles
from cnnlab.classifier import Classifier, schedule
from cnnlab.config import UserError, instantiate, leaves, plain, targets
from cnnlab.data.images import DataSet
from cnnlab.data.module import ImageData
from cnnlab.parts import make_network
from cnnlab.processes import num_cores, place
from cnnlab.provenance import code_digest, git_state, source_changes
from cnnlab.records import RunDirectory, log, write_text
from cnnlab.report import pictures

warnings.filterwarnings("ignore", module=r"lightning\.")  # of its use of older torch
for name in ("lightning.pytorch", "lightning.fabric"):  # announcements; `describe` says what is used
    logging.getLogger(name).setLevel(logging.WARNING)


FITTED_ON = 10_000  # training images, given to a network that learns from them before it is trained


def train(config: DictConfig, run: RunDirectory, data: DataSet, about: Mapping[str, Any]) -> dict[str, Any]:
    """Train one configuration to its end, going on from its last checkpoint if there is one; return the summary.

    config: as composed, without the `hydra` node. run: its directory, owned by this process. data: its images.
    about: what the summary says of the run from the start.
    """
    use_threads(run, config.trainer.devices)
    seed_everything(config.seed, verbose=False)
    reset_peak_memory()
    datamodule = make_data(config, data)
    channels = data.train.pixels.shape[1]
    network = make_network(config.model, len(data.train.classes), channels, datamodule.input_size)
    optimizer, scheduler = instantiate(config.optim), instantiate(config.sched)
    refuse_early(optimizer, scheduler)
    files = CheckpointFiles()
    code = code_digest(targets(config))
    records = Records(run, files, code, f"{datamodule.held_out}/acc", **config.checkpoint)
    trainer = make_trainer(config, run, records)
    asked = config.trainer.devices * config.trainer.num_nodes
    if 0 < asked != trainer.world_size:
        raise UserError(f"{trainer.world_size} processes would train, and trainer.devices asks for {asked}.")
    refuse_uneven(config.batch_size, trainer.world_size)
    if config.trainer.sync_batchnorm and trainer.strategy.root_device.type != "cuda":
        raise UserError("trainer.sync_batchnorm=true needs GPUs: torch has it for nothing else. Type it as false.")
    kind = Classifier
    if config.cuda_graph and use_graph(trainer, optimizer, scheduler, datamodule, plain(config.trainer)):
        kind = graph.GraphedClassifier
    classifier = kind(
        network,
        optimizer,
        scheduler,
        datamodule.held_out,
        loss=instantiate(config.loss),
        warmup_epochs=config.warmup_epochs,
        decay_all=config.decay_all,
        test_flips=config.test_flips,
        compiled=config.compile,
    )
    summary = {"status": "running"} | dict(about) | describe(trainer, classifier, datamodule)
    if trainer.is_global_zero:
        if config.trainer.accelerator == "auto" and (reason := unused_gpu()):
            log.warning(
                f"This machine has an NVIDIA GPU that torch cannot use: {reason}. The run trains on the CPU, many "
                f"times slower. Use trainer.accelerator=cpu if that is what you want."
            )
        open_records(run, summary, trainer, datamodule)

    failed = True
    try:
        with signals.noted():
            newest = begins_with(config, run, trainer)
            if (fit := getattr(network, "fit", None)) and newest is None:
                mixed = torch.randperm(len(datamodule.train_index))[:FITTED_ON]
                fit(datamodule.evaluation_images("train", datamodule.train_index[mixed]))
            summary |= fit_and_test(trainer, classifier, datamodule, records, newest)
            if trainer.is_global_zero:
                close_records(run, summary, trainer, config)
        failed = False
    except signals.Interrupted:
        failed = False
        raise
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise UserError(
            f"deterministic=true, and {str(error).split(' does not')[0]} has no deterministic implementation on "
            f"{trainer.strategy.root_device.type}. Use deterministic=false, or another layer."
        ) from error
    finally:
        files.close()
        classifier.release()
        datamodule.release()
        leave_process_group(failed)
    return summary


def begins_with(config: DictConfig, run: RunDirectory, trainer: Trainer) -> Path | None:
    """The checkpoint from which all processes of a run go on."""
    if place(config.trainer).starter in ("", "cnnlab"):  # the first one has come to this before it starts the others
        return checkpoint.newest(run.checkpoints, put_aside=trainer.is_global_zero)
    trainer.strategy.setup_environment()  # waits for the first one, which may have archived an old run meanwhile
    return trainer.strategy.broadcast(checkpoint.newest(run.checkpoints) if trainer.is_global_zero else None)


def leave_process_group(failed: bool) -> None:
    """End the group of this run's processes, without which its threads abort the process at its end.

    After a failure the others may be dead, and NCCL would wait for them: then it is aborted.
    """
    if torch.distributed.is_initialized():
        if failed and torch.distributed.get_backend() == "nccl":
            torch.distributed.distributed_c10d._abort_process_group()
        else:
            torch.distributed.destroy_process_group()


THREADS = torch.get_num_threads()  # what OMP_NUM_THREADS or the number of cores says


def use_threads(run: RunDirectory, devices: int) -> None:
    """Compute with the number of threads that the run began with: with another one, sums differ in their last bits."""
    several = devices > 1
    ours = THREADS if not several or os.environ.get("OMP_NUM_THREADS") else max(1, num_cores() // devices)
    kept = run.summary().get("environment", {}).get("num_threads", ours)
    torch.set_num_threads(kept)
    if several:  # Lightning would set its own
        os.environ["OMP_NUM_THREADS"] = str(kept)
    if kept != ours:
        log.info(f"The run goes on with {kept} threads, as it began, instead of {ours}; rerun=true trains it anew.")


def fit_and_test(
    trainer: Trainer, classifier: Classifier, datamodule: ImageData, records: Records, newest: Path | None
) -> dict[str, Any]:
    """Train to the end, then evaluate the test images; return what the summary says about it.

    newest: the checkpoint from which the training goes on.
    """
    started = time.perf_counter()
    trainer.fit(classifier, datamodule, ckpt_path=newest, weights_only=True)
    train_seconds = records.seconds_before + time.perf_counter() - started
    graphed = isinstance(classifier, graph.GraphedClassifier) and classifier.was_recorded
    classifier.release()  # the memory that steps have used, for the tests
    datamodule.release()

    best, rows = records.best, records.rows
    at_last = test(trainer, classifier, datamodule, records.last)
    best_path = records.run.checkpoints / "best.ckpt"
    at_best = at_last if best is rows[-1] else test(trainer, classifier, datamodule, best_path)
    assert classifier.predictions is not None
    predicted, confidence = (values.numpy() for values in classifier.predictions)
    if trainer.is_global_zero:
        shown = datamodule.data.test
        labels = shown.labels[: len(predicted)]  # with trainer.limit_test_batches they are not all
        records.run.write_predictions(predicted, labels, confidence)
        pixels = shown.pixels.transpose(0, 2, 3, 1)
        pictures.mistakes(records.run.path / "mistakes.png", pixels, labels, predicted, confidence, shown.classes)
    return {
        "status": "done",
        "selected_on": records.monitor,
        "best_epoch": int(best["epoch"]),
        "epochs_done": len(rows),
        "metrics": flat_metrics(best, at_best, rows[-1], at_last),
        "train_seconds": round(train_seconds, 2),
        "images_per_second": sorted(row["images_per_second"] for row in rows)[len(rows) // 2],
        "cuda_graph": graphed,
        "peak_memory": peak_memory(trainer.strategy.root_device),
    }


def make_data(config: DictConfig, data: DataSet) -> ImageData:
    """The batches that a configuration makes out of a data set."""
    return ImageData(
        data,
        instantiate(config.norm),
        {name: instantiate(node) for name, node in config.aug.items()},
        batch_size=config.batch_size,
        val_fraction=config.val_fraction,
        num_train_images=config.num_train_images,
        seed=config.seed,
        resident=config.resident,
        cache_dir=config.cache_dir,
    )


def refuse_early(make_optimizer: Callable[..., Optimizer], make_scheduler: Callable[..., LRScheduler]) -> None:
    """What torch's optimizers and schedules refuse is the user's to fix, and is said before anything is written."""
    try:
        optimizer = make_optimizer([nn.Parameter(torch.zeros(1))])
        schedule(make_scheduler, optimizer, num_steps=100, monitor="")
    except (ValueError, TypeError) as error:
        raise UserError(f"The optimizer or its schedule refuses its arguments: {error}.") from error


def make_trainer(config: DictConfig, run: RunDirectory, records: Records) -> Trainer:
    """Lightning's Trainer with what the configuration leaves to us: precision, callbacks, loggers."""
    callbacks: list[Callback] = [records, *(instantiate(node) for node in config.callbacks.values())]
    if os.isatty(1):
        callbacks.append(ProgressBar())
    node = plain(config.trainer)
    if node["precision"] == "auto":
        node["precision"] = "bf16-mixed" if computes_in_bf16(node["accelerator"]) else "32-true"
    devices = node["devices"] if node["devices"] > 0 else torch.cuda.device_count()
    if node["strategy"] in ("auto", "ddp") and devices * node["num_nodes"] > 1:
        node["strategy"] = ddp()
    torch.backends.cudnn.deterministic = True  # with the same seed, the same bits
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is float32
    environment = LightningEnvironment()  # whoever has started the processes: see cnnlab.processes.Place.settle
    environment.set_global_rank(0)  # Lightning's own guess comes from SLURM_PROCID and the like; DDP sets it again
    trainer = instantiate(
        {"benchmark": False, **node},
        callbacks=callbacks,
        logger=[instantiate(logger, save_dir=str(run.path)) for logger in config.logger.values()],
        plugins=[records.files, environment],
        default_root_dir=str(run.path),
        deterministic=config.deterministic,
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer._signal_connector.register_signal_handlers = lambda: None  # it would put its own in place of ours
    return trainer


def ddp(timeout_minutes: float = 10.0) -> DDPStrategy:
    """Several processes, each with its share of every batch, which wait so long for one that does not answer.

    Without find_unused_parameters DDP would rearrange the gradients after its first step, and with three processes or
    more a resumed run would sum them in another order than one that was left alone.
    """
    return DDPStrategy(find_unused_parameters=True, timeout=timedelta(minutes=timeout_minutes))


def use_graph(
    trainer: Trainer,
    make_optimizer: Callable[..., Optimizer],
    make_scheduler: Callable[..., LRScheduler],
    datamodule: ImageData,
    arguments: Mapping[str, Any],
) -> bool:
    """Whether CUDA graphs can do the training steps; if not on a GPU, say why.

    arguments: of Lightning's Trainer.
    """
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))])
    if reason := graph.unsupported(trainer, optimizer, make_scheduler, datamodule, arguments):
        if trainer.strategy.root_device.type == "cuda":
            log.info(f"No CUDA graph: {reason}.")
        return False
    datamodule.passes_are_batches = not any(map(graph.looks_at_every_step, cast(Any, trainer).callbacks))
    return True


def computes_in_bf16(accelerator: str) -> bool:
    """Whether the hardware itself computes in bfloat16; emulated it is 4 to 16 times slower than float32."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and any(flag in cpuinfo.read_text(encoding="utf-8") for flag in ("avx512_bf16", "amx_bf16"))


def reset_peak_memory() -> None:
    """What earlier runs of this process have used does not count."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux has it
        Path("/proc/self/clear_refs").write_bytes(b"5")


def peak_memory(device: torch.device) -> int:
    """The most memory that this run has had in use so far, in bytes: of the GPU, or all that was resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s*(\d+)", status.read_text("utf-8"))):
        return 1024 * int(peak[1])  # getrusage also counts what the process that has started this one had
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def test(trainer: Trainer, classifier: Classifier, datamodule: ImageData, path: Path) -> dict[str, float]:
    """Loss and accuracy on the test images with the weights of a checkpoint."""
    classifier.load_state_dict(CheckpointFiles().load_checkpoint(path)["state_dict"])
    classifier.measured = {}
    trainer.test(classifier, datamodule, verbose=False)
    return classifier.measured


def flat_metrics(
    best: Mapping[str, float], at_best: Mapping[str, float], last: Mapping[str, float], at_last: Mapping[str, float]
) -> dict[str, float]:
    """Loss and accuracy of every part at the best epoch ("test/acc") and at the last one ("last/test/acc")."""

    def measured(row: Mapping[str, float], tested: Mapping[str, float]) -> dict[str, float]:
        return {name: value for name, value in row.items() if "/" in name} | dict(tested)

    return measured(best, at_best) | {f"last/{name}": value for name, value in measured(last, at_last).items()}


def describe(trainer: Trainer, classifier: Classifier, datamodule: ImageData) -> dict[str, Any]:
    """What a summary says of weights, data and environment."""
    data, root_device = datamodule.data, trainer.strategy.root_device
    cuda = root_device.type == "cuda"
    return {
        "num_weights": sum(weights.numel() for weights in classifier.network.parameters()),
        "data": {
            "num_train": len(datamodule.train_index),
            "num_held_out": len(datamodule.held_out_index),
            "num_test": len(data.test.labels),
            "image_size": datamodule.image_size,
            "input_size": datamodule.input_size,
            "classes": list(data.train.classes),
            "fingerprint": data.fingerprint,
            "split": datamodule.split_digest,
        },
        "environment": {
            "device": torch.cuda.get_device_name(root_device)
            if cuda
            else f"{root_device.type} ({os.cpu_count()} cores)",
            "num_devices": trainer.world_size,
            "num_threads": torch.get_num_threads(),
            "precision": trainer.precision,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "lightning": lightning.__version__,
            **(of_gpus() if cuda else {}),
            **git_state(),
        },
    }


def of_gpus() -> dict[str, Any]:
    """What decides the bits of a result on a GPU, besides torch."""
    driver = Path("/sys/module/nvidia/version")
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver.read_text("utf-8").strip() if driver.exists() else None,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32": torch.backends.cudnn.allow_tf32,
    }


def unused_gpu(devices: Path = Path("/dev")) -> str:
    """Why torch cannot use the NVIDIA GPU that this machine has; empty if it can, if there is none or it is hidden."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    if torch.cuda.is_available() or hidden or not list(devices.glob("nvidia[0-9]*")):
        return ""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return "torch.cuda.is_available() is false"


def open_records(run: RunDirectory, summary: dict[str, Any], trainer: Trainer, datamodule: ImageData) -> None:
    """Write and say what is about to run; draw the sheet of training images."""
    run.write_summary(summary)
    if difference := source_changes():
        write_text(run.path / "source.diff", difference)
    environment, data = summary["environment"], summary["data"]
    log.info(
        f"{os.path.relpath(run.path)}: {data['num_train']:,} training images of {data['input_size']} pixels, "
        f"{summary['num_weights']:,} weights, {environment['precision']} on {environment['device']}"
    )
    pictures.sheet(run.path / "samples.png", *datamodule.samples())
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.open(datamodule.held_out)


def close_records(run: RunDirectory, summary: dict[str, Any], trainer: Trainer, config: DictConfig) -> None:
    """Draw the pictures, then write the summary, last.

    TensorBoard's table gets the choices, what was typed, what differs from the defaults, and what everyone asks for.
    """
    pictures.curves(run.path / "curves.png", run.metrics(), title=summary["run"])
    classes = summary["data"]["classes"]
    pictures.confusion(run.path / "confusion.png", run.confusion(len(classes)), classes)
    typed = {word.split("=")[0].lstrip("+") for word in summary["overrides"]}
    knobs = {
        path: value if isinstance(value, int | float) else str(value)
        for path, value in leaves(plain(config))
        if path in {"seed", "batch_size", "optim.lr", "trainer.max_epochs", *summary["changes"], *typed}
    }
    knobs |= summary["choices"]
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.close(knobs, summary["metrics"], summary["epochs_done"])
        else:
            logger.log_hyperparams(knobs)
    run.write_summary(summary)
    metrics = summary["metrics"]
    log.info(
        f"done: test accuracy {metrics['test/acc']:.4f} at epoch {summary['best_epoch']}, the best by "
        f"{summary['selected_on']}; {metrics['last/test/acc']:.4f} at the last; "
        f"pictures in {os.path.relpath(run.path)}"
    )
