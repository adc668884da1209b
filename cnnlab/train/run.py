"""One run, from its configuration to its summary: open, resume, fit, test, close. Imports torch."""

import inspect
import os
import platform
import secrets
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision
from lightning import Trainer, seed_everything
from omegaconf import DictConfig

from cnnlab.config.check import refuse_uneven
from cnnlab.config.identity import targets
from cnnlab.config.options import UserError, leaves
from cnnlab.config.processes import place
from cnnlab.config.values import plain, selection
from cnnlab.data.images import DataSet
from cnnlab.data.loaders import refuse_few, samples, warn_of_absent_classes
from cnnlab.data.pipeline import ImageData
from cnnlab.report import run_figures
from cnnlab.runs import predictions, signals
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.files import write_text
from cnnlab.runs.log import log
from cnnlab.runs.provenance import code_digest, git_state, source_changes
from cnnlab.runs.wording import headline
from cnnlab.train import checkpoint, machine
from cnnlab.train.checkpoint import CheckpointFiles
from cnnlab.train.epoch_state import restore_for_evaluation
from cnnlab.train.logged import measured
from cnnlab.train.parts import (
    Parts,
    assemble,
    refuse_bf16_of_single_pixels,
    try_alone,
)
from cnnlab.train.records import Records
from cnnlab.train.refusals import explained, misfits_as_user_errors
from cnnlab.train.trainer import check_parts, make_callbacks, make_trainer, with_graph

FITTED_ON = 10_000  # training images for the `fit` of a network, before training


def train_run(config: DictConfig, run: RunDirectory, data: DataSet, about: Mapping[str, Any]) -> dict[str, Any]:
    """Train one configuration to the end, from its last checkpoint if there is one; return the summary.

    config: as composed, without the `hydra` node. run: its directory, owned by this process. data: its images.
    about: what the summary contains from the start.
    """
    machine.use_threads(run, config.trainer.devices)
    seed_everything(config.seed, verbose=False)
    machine.reset_peak_memory()
    files = CheckpointFiles()
    records = Records(run, files, code_digest(targets(config)), *selection(config), **config.checkpoint)
    callbacks = make_callbacks(config, run)
    # the id for loggers, which a resumed run keeps and a rerun does not
    about = {"id": run.summary().get("id") or f"{run.path.name[-8:]}-{secrets.token_hex(4)}", **about}
    trainer = make_trainer(config, run, records, callbacks, about["id"])
    requested = config.trainer.devices * config.trainer.num_nodes
    if 0 < requested != trainer.world_size:
        raise UserError(f"{trainer.world_size} processes would train, but trainer.devices asks for {requested}.")
    refuse_uneven(config.batch_size, trainer.world_size)
    if config.trainer.sync_batchnorm and trainer.strategy.root_device.type != "cuda":
        raise UserError("trainer.sync_batchnorm=true needs GPUs. Use trainer.sync_batchnorm=false.")
    with explained(trainer):
        parts = assemble(config, data, extend=partial(with_graph, config, trainer))
    check_parts(config, parts, callbacks)
    datamodule = parts.data
    refuse_few(datamodule, trainer.world_size)
    if config.batch_size == trainer.world_size:
        try_alone(parts.network, datamodule.shape)
    if trainer.precision == "bf16-mixed" and trainer.strategy.root_device.type == "cpu":
        refuse_bf16_of_single_pixels(parts.network, datamodule.shape)
    summary = {"status": "running"} | dict(about) | describe(trainer, parts)
    if trainer.is_global_zero:
        if config.trainer.accelerator == "auto" and (reason := machine.unused_gpu()):
            log.warning(
                f"This machine has an NVIDIA GPU that torch cannot use: {reason}. The run trains on the CPU, many "
                f"times slower. Use trainer.accelerator=cpu if that is what you want."
            )
        open_records(run, summary, trainer, parts, config)

    failed = True
    try:
        with signals.noted(), explained(trainer):
            newest = newest_checkpoint(config, run, trainer)
            if newest is None:
                fit_network(config, parts)
            summary |= fit_and_test(trainer, parts, records, newest)
            if trainer.is_global_zero:
                close_records(run, summary, trainer, config)
        failed = False
    except signals.Interrupted:
        failed = False
        raise
    finally:
        files.close()
        release(parts)
        for logger in trainer.loggers:  # the next run of this process is another one
            if callable(finish := getattr(getattr(logger, "_experiment", None), "finish", None)):
                finish()
        machine.leave_process_group(failed)
    return summary


def fit_network(config: DictConfig, parts: Parts) -> None:
    """Call the `fit` of a network that has one, with training images, unless all that it sets is from `weights`."""
    network, data = parts.network, parts.data
    if not (fit := getattr(network, "fit", None)) or parts.loaded == network.state_dict().keys():
        return
    if len(taken := inspect.signature(fit).parameters) != 1:
        raise UserError(
            f"{config.model._target_}.fit takes {', '.join(taken)}. A network's fit(images) is called with training "
            f"images before the training; give one that does something else another name."
        )
    before = {name: values.clone() for name, values in network.state_dict().items()}
    mixed = torch.randperm(len(data.train_index))[:FITTED_ON]
    with misfits_as_user_errors(f"{config.model._target_}.fit"):
        fit(data.evaluation_images("val", data.train_index[mixed]))
    fitted = {name for name, values in network.state_dict().items() if not values.equal(before[name])}
    if fitted <= parts.loaded:
        network.load_state_dict(before)


def newest_checkpoint(config: DictConfig, run: RunDirectory, trainer: Trainer) -> Path | None:
    """The checkpoint from which all processes of a run continue."""
    if place(config.trainer).starter in ("", "cnnlab"):  # the first process is here before it starts the others
        return checkpoint.newest(run.checkpoints, set_aside=trainer.is_global_zero)
    trainer.strategy.setup_environment()  # waits for the first process, which may be archiving an old run
    return trainer.strategy.broadcast(checkpoint.newest(run.checkpoints) if trainer.is_global_zero else None)


def release(parts: Parts) -> None:
    """Free the memory that training uses on the device, except for weights, images and statistics."""
    for part in (parts.module, parts.data):
        if free := getattr(part, "release", None):
            free()


def fit_and_test(trainer: Trainer, parts: Parts, records: Records, newest: Path | None) -> dict[str, Any]:
    """Train to the end, then evaluate the test images; return the summary of both.

    newest: the checkpoint from which training continues.
    """
    module, datamodule = parts.module, parts.data
    started = time.perf_counter()
    trainer.fit(module, datamodule, ckpt_path=newest, weights_only=True)
    train_seconds = records.seconds_before + time.perf_counter() - started
    graphed = getattr(module, "was_recorded", False)
    release(parts)  # makes room for the evaluation

    best, rows = records.best, records.rows
    at_last = test(trainer, parts, records.last)
    best_path = records.run.checkpoints / "best.ckpt"
    at_best = at_last if best is rows[-1] else test(trainer, parts, best_path)
    if trainer.is_global_zero and isinstance(answers := getattr(module, "predictions", None), tuple):
        write_answers(records.run, datamodule, [values.numpy() for values in answers])
    at_best, at_last = (
        {name: value for name, value in row.items() if "/" in name} | tested
        for row, tested in ((best, at_best), (rows[-1], at_last))
    )
    return {
        "status": "done",
        "best_epoch": int(best["epoch"]),
        "epochs_done": len(rows),
        "metrics": at_best | {f"last/{name}": value for name, value in at_last.items()},
        "train_seconds": round(train_seconds, 2),
        "images_per_second": sorted(row["images_per_second"] for row in rows)[len(rows) // 2],
        "cuda_graph": graphed,
        "peak_memory": machine.peak_memory(trainer.strategy.root_device),
    }


def write_answers(run: RunDirectory, datamodule: ImageData, answers: list[Any]) -> None:
    """Write the predictions for the test images, see `cnnlab.train.classifier.answers`; draw the worst mistakes."""
    tested, num = datamodule.data.test, len(answers[0])  # fewer than all with trainer.limit_test_batches
    run.write_predictions(tested.targets[:num], *answers)
    if tested.task == "multiclass":
        predicted, confidence = answers
        run_figures.mistakes(
            run.path / "mistakes.png", tested.at, tested.targets[:num], predicted, confidence, tested.classes
        )


def test(trainer: Trainer, parts: Parts, path: Path) -> dict[str, float]:
    """The metrics on the test images, with the weights of a checkpoint, and the states of callbacks in it."""
    restore_for_evaluation(CheckpointFiles().load_checkpoint(path), trainer, parts.module)
    trainer.test(parts.module, parts.data, verbose=False)
    return {name: value for name, value in measured(trainer, "test").items() if name.startswith("test/")}


def describe(trainer: Trainer, parts: Parts) -> dict[str, Any]:
    """Weights, data and environment, for the summary."""
    datamodule, root_device = parts.data, trainer.strategy.root_device
    data, cuda = datamodule.data, root_device.type == "cuda"
    cpu = f"{root_device.type} ({os.cpu_count()} cores)"
    return {
        "selected_on": parts.select_on,
        "select_mode": "max" if parts.higher else "min",
        "metric_modes": parts.modes,
        "metric_bounds": parts.bounds,
        "num_weights": sum(weights.numel() for weights in parts.module.parameters()),
        "data": {
            "num_train": len(datamodule.train_index),
            "num_held_out": len(datamodule.held_out_index),
            "num_test": len(data.test.targets),
            "task": datamodule.shape.task,
            "channels": datamodule.shape.channels,
            "image_size": list(datamodule.stored.size),
            "input_size": list(datamodule.shape.size),
            "classes": list(data.train.classes),
            "fingerprint": data.fingerprint,
            "split": datamodule.split_digest,
        },
        "environment": {
            "device": torch.cuda.get_device_name(root_device) if cuda else cpu,
            "num_devices": trainer.world_size,
            "num_threads": torch.get_num_threads(),
            "precision": trainer.precision,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "lightning": lightning.__version__,
            **(machine.gpu_environment() if cuda else {}),
            **git_state(),
        },
    }


def open_records(
    run: RunDirectory, summary: dict[str, Any], trainer: Trainer, parts: Parts, config: DictConfig
) -> None:
    """Write and log what is about to run; draw the sheet of training images."""
    run.write_summary(summary)
    if difference := source_changes():
        write_text(run.path / "source.diff", difference)
    environment, data = summary["environment"], summary["data"]
    log.info(
        f"{os.path.relpath(run.path)}: {data['num_train']:,} training images of "
        f"{'x'.join(map(str, data['input_size']))} pixels, "
        f"{summary['num_weights']:,} weights, {environment['precision']} on {environment['device']}"
    )
    run_figures.sheet(run.path / "samples.png", *samples(parts.data))
    warn_of_absent_classes(parts.data)
    for logger in trainer.loggers:
        if opened := getattr(logger, "open_run", None):
            opened(summary, parts.data.held_out, getattr(parts.module, "measures", ()))
        else:
            logger.log_hyperparams(hyperparameters(summary, config) | {"path": str(run.path.absolute())})


def hyperparameters(summary: Mapping[str, Any], config: DictConfig) -> dict[str, Any]:
    """For loggers: the chosen options, overrides, differences from the defaults, and the most common ones."""
    overrides = {word.split("=")[0].lstrip("+") for word in summary["overrides"]}
    wanted = {"seed", "batch_size", "optim.lr", "trainer.max_epochs", *summary["changes"], *overrides}
    values = {path: value for path, value in leaves(plain(config)) if path in wanted}
    return {p: v if isinstance(v, int | float) else str(v) for p, v in values.items()} | summary["choices"]


def close_records(run: RunDirectory, summary: dict[str, Any], trainer: Trainer, config: DictConfig) -> None:
    """Draw the figures, log the final metrics, and last of all write the summary."""
    metric = summary["selected_on"].partition("/")[2]
    run_figures.curves(run.path / "curves.png", run.metrics(), summary["run"], summary["best_epoch"], metric)
    data, classes = summary["data"], summary["data"]["classes"]
    few = data["task"] == "multiclass" and len(classes) <= predictions.MAX_CLASSES
    if few and (run.path / "predictions.npz").exists():
        run_figures.confusion(run.path / "confusion.png", run.confusion(len(classes)), classes)
    for logger in trainer.loggers:
        if close := getattr(logger, "close_run", None):
            close(hyperparameters(summary, config), summary["metrics"], summary["epochs_done"])
        else:
            tested = {name: value for name, value in summary["metrics"].items() if name.startswith("test/")}
            logger.log_metrics(tested, step=summary["epochs_done"])
            logger.save()
    run.write_summary(summary)
    at_last = {name.removeprefix("last/"): value for name, value in summary["metrics"].items() if "last/" in name}
    log.info(
        f"done: {headline(summary)} at epoch {summary['best_epoch']}, the best by {summary['selected_on']}; "
        f"{headline(summary | {'metrics': at_last}).rpartition(' ')[2]} after the last"
    )
