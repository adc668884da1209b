"""Lightning's Trainer for a run: precision, strategy, callbacks, loggers, CUDA graphs. Imports torch."""

import inspect
import logging
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cnnlab.config.check import refuse_no_step
from cnnlab.config.objects import filled, instantiate
from cnnlab.config.options import UserError
from cnnlab.config.values import plain
from cnnlab.data.pipeline import ImageData
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.log import log
from cnnlab.train import checkpoint, graph, graphable
from cnnlab.train.machine import computes_in_bf16
from cnnlab.train.optimizers import keeps_factors, make_optimizer, schedule
from cnnlab.train.parts import Parts
from cnnlab.train.progress import progress
from cnnlab.train.records import Records
from cnnlab.train.refusals import misfits_as_user_errors

warnings.filterwarnings("ignore", module=r"lightning\.")  # deprecations in torch
warnings.filterwarnings("ignore", "The AccumulateGrad node's stream")  # Lightning prepares DDP on another one
for name in ("lightning.pytorch", "lightning.fabric"):  # which announce what `describe` records
    logging.getLogger(name).setLevel(logging.WARNING)


NEEDS_GPU = (  # and what to use without one
    ("accelerator", ("gpu", "cuda", "mps"), "trainer=auto"),
    ("devices", (-1,), "trainer.devices=1, or another number of processes"),
    ("precision", ("16-mixed",), "trainer.precision=auto"),  # Lightning would compute in bfloat16
)


def make_trainer(
    config: DictConfig, run: RunDirectory, records: Records, chosen: Mapping[str, Callback], run_key: str = ""
) -> Trainer:
    """Lightning's Trainer, with precision, strategy, callbacks and loggers filled in.

    run_key: the id of the run in loggers.
    """
    callbacks: list[Callback] = [*chosen.values(), *progress(), records]
    node = plain(config.trainer)
    if node["precision"] == "auto":
        node["precision"] = "bf16-mixed" if computes_in_bf16(node["accelerator"]) else "32-true"
    if not torch.accelerator.is_available():
        for key, values, instead in NEEDS_GPU:
            if node[key] in values:
                raise UserError(
                    f"trainer.{key}={node[key]}: this machine has no GPU that torch can use. Use {instead}."
                )
    devices = node["devices"] if node["devices"] > 0 else torch.cuda.device_count()
    if node["strategy"] in ("auto", "ddp") and devices * node["num_nodes"] > 1:
        node["strategy"] = ddp()
    torch.backends.cudnn.deterministic = True  # with the same seed, the same bits
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is float32
    environment = LightningEnvironment()  # whatever started the processes: see cnnlab.config.processes.Place.settle
    environment.set_global_rank(0)  # Lightning would guess it from variables such as SLURM_PROCID; DDP sets it again
    trainer = instantiate(
        {"benchmark": False, **node},
        callbacks=callbacks,
        logger=[make_logger(logger, run, run_key) for logger in config.logger.values()],
        plugins=[records.files, environment],
        default_root_dir=str(run.path),
        deterministic=config.deterministic,
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    trainer._signal_connector.register_signal_handlers = lambda: None  # they would replace ours
    trainer.precision_plugin.clip_gradients = partial(clip_gradients, trainer.precision_plugin)
    # `Records` passes metrics to the loggers, by epoch; Lightning would do it again, by step
    connector = trainer._logger_connector
    connector.log_eval_end_metrics = lambda metrics: None
    connector.update_train_epoch_metrics = connector.reset_results
    return trainer


def clip_gradients(plugin: Precision, optimizer: Any, clip_val: float = 0.0, *algorithm: Any, **named: Any) -> None:
    """Clip gradients also for fused optimizers in float16, which Lightning refuses.

    Such an optimizer unscales gradients in its step, unless they have been unscaled before, as they are here.
    """
    scaler = getattr(plugin, "scaler", None)
    if scaler is not None and clip_val and getattr(optimizer, "_step_supports_amp_scaling", False):
        scaler.unscale_(optimizer)
    Precision.clip_gradients(plugin, optimizer, clip_val, *algorithm, **named)


def make_logger(node: DictConfig, run: RunDirectory, run_key: str = "") -> Any:
    """A logger. Its file can use run.name, run.path and run.id, which a resumed run keeps and a rerun does not.

    `save_dir`, if it takes one, is the run directory unless the file says otherwise.
    """
    facts = {"name": run.path.name, "path": str(run.path.absolute()), "id": run_key}
    arguments = filled(node, facts, root="run")
    taken = inspect.signature(instantiate({"_target_": arguments["_target_"], "_partial_": True}).func).parameters
    if "save_dir" in taken:
        arguments.setdefault("save_dir", str(run.path))
    return instantiate(arguments)


UNSUPPORTED = {  # callbacks that break what a run promises: why, and what to use instead
    StochasticWeightAveraging: "its average is neither tested nor in the checkpoints. Use callbacks=ema",
    LearningRateFinder: "the learning rate would differ from that in the run's name. Use -m optim.lr=A,B,...",
    BatchSizeFinder: "the batch size would differ from that in the run's name. Use -m batch_size=A,B,...",
    ModelPruning: "which weights are pruned is not in the checkpoints. Prune in a module of your own",
    GradientAccumulationScheduler: "learning rate schedules assume steps of a constant size. Use batch_size",
}


def make_callbacks(config: DictConfig, run: RunDirectory) -> dict[str, Callback]:
    """The chosen callbacks by name. Raises: UserError for one that is not supported."""
    made = {str(name): instantiate(node) for name, node in sorted(config.callbacks.items())}
    for name, callback in made.items():
        for kind, reason in UNSUPPORTED.items():
            if isinstance(callback, kind):
                raise UserError(f"callbacks={name} is not supported: {reason}.")
        has_state = graphable.overrides(type(callback), Callback, "state_dict")
        if has_state and (others := [key for key in made if key != name and made[key].state_key == callback.state_key]):
            raise UserError(
                f"callbacks={name} and {others[0]} have the same state_key, by which Lightning tells states apart."
                f" Leave one out, or change what one monitors and when; a class of your own can have another state_key."
            )
        if isinstance(callback, ModelCheckpoint):  # every run has a folder of its own; checkpoints/ is ours
            callback.dirpath = str(Path(callback.dirpath, run.path.name) if callback.dirpath else run.path / name)
    return made


def ddp(timeout_minutes: float = 10.0) -> DDPStrategy:
    """Distributed data parallel training; processes wait so long for one that does not respond.

    Without find_unused_parameters, DDP would rebuild its gradient buckets after the first step, and with three or more
    processes a resumed run would sum gradients in another order than an uninterrupted one.
    """
    return DDPStrategy(find_unused_parameters=True, timeout=timedelta(minutes=timeout_minutes))


def with_graph(
    config: DictConfig,
    trainer: Trainer,
    kind: type[LightningModule],
    make_optimizer: Any,
    make_scheduler: Any,
    datamodule: ImageData,
) -> type[LightningModule]:
    """A class that replays training steps as CUDA graphs if possible; otherwise the given one, and on a GPU log why."""
    if not config.cuda_graph or not isinstance(kind, type):
        return kind
    made = getattr(make_optimizer, "func", make_optimizer)
    with misfits_as_user_errors("Invalid arguments for the optimizer"):
        optimizer = make_optimizer([nn.Parameter(torch.zeros(1))]) if made in graphable.OPTIMIZERS else made
    if reason := graphable.unsupported(trainer, optimizer, make_scheduler, datamodule, plain(config.trainer), kind):
        if trainer.strategy.root_device.type == "cuda":
            log.info(f"No CUDA graph: {reason}.")
        return kind
    datamodule.passes_are_batches = not any(map(graphable.looks_at_every_step, cast(Any, trainer).callbacks))
    return graph.graphed(kind)


def on_copies(make: Any) -> Any:
    """Makes an optimizer for copies of the weights: some constructors change weights, or register hooks on them."""

    def copy(weight: Tensor) -> nn.Parameter:
        copied = nn.Parameter(weight.detach().clone())
        vars(copied).update(vars(weight))  # a mark by which an optimizer distinguishes weights
        return copied

    return lambda groups: make([group | {"params": list(map(copy, group["params"]))} for group in groups])


OF_THE_DATA = (  # hooks that Lightning calls on the data alone
    *("train_dataloader", "val_dataloader", "test_dataloader"),
    *("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"),
)


def check_parts(config: DictConfig, parts: Parts, callbacks: Mapping[str, Callback]) -> None:
    """Raises: UserError for callbacks that the module brings, metrics that are not measured, and what the optimizer or
    its schedule refuses.
    """
    if own := parts.module.configure_callbacks():
        names = ", ".join(type(callback).__name__ for callback in (own if isinstance(own, Sequence) else [own]))
        raise UserError(
            f"{config.module['_target_']}.configure_callbacks returns {names}, which nothing would check. Choose them "
            f"with callbacks=NAME instead."
        )
    if ignored := [name for name in OF_THE_DATA if graphable.overrides(type(parts.module), LightningModule, name)]:
        raise UserError(
            f"{config.module['_target_']} has {', '.join(ignored)}, which would not be called: batches come from the "
            f"options data, aug and norm. Change them there, or in the training step."
        )
    if not graphable.overrides(type(parts.module), LightningModule, "test_step"):
        raise UserError(f"{config.module['_target_']} has no test_step, which evaluates the test images at the end.")
    if lazy := [name for name, weight in parts.module.named_parameters() if is_lazy(weight)]:
        raise UserError(f"{config.module['_target_']}: {lazy[0]} has no size yet. Use a layer of a given size there.")
    checkpoint.serialized(dict(parts.module.hparams))  # else refused when the first epoch is over
    for name, callback in callbacks.items():
        if monitor := getattr(callback, "monitor", None):
            mode = getattr(callback, "mode", "max" if parts.higher else "min")
            parts.check_monitor(f"callbacks.{name}.monitor", monitor, mode)
    data, together = parts.data, config.trainer.get("accumulate_grad_batches", 1)
    refuse_no_step(data.batch_size, together, len(data.train_index))  # data may not tell their number before
    make_scheduler, num_steps = instantiate(config.sched), data.num_batches // together * config.trainer.max_epochs
    try:
        optimizer = make_optimizer(on_copies(instantiate(config.optim)), parts.network, config.decay_all)
        made = schedule(make_scheduler, optimizer, num_steps=max(1, num_steps), monitor="")
    except (ValueError, TypeError, ArithmeticError) as error:
        raise UserError(f"Invalid arguments for the optimizer or its schedule: {error}.") from error
    scheduler, mode = made["scheduler"], "max" if parts.higher else "min"
    if isinstance(scheduler, ReduceLROnPlateau) and scheduler.mode != mode:
        raise UserError(f"sched.mode={scheduler.mode} waits for {parts.select_on} to get worse. Use sched.mode={mode}.")
    by_epoch = made["interval"] == "epoch"
    if config.warmup_epochs > by_epoch and not keeps_factors(scheduler):
        raise UserError(
            f"warmup_epochs={config.warmup_epochs}: {type(scheduler).__name__} sets every rate anew, whatever the "
            f"warmup has made of it. Use warmup_epochs={int(by_epoch)}, or another sched."
        )
