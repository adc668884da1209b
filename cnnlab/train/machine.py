"""The machine that a run trains on: threads, memory, GPUs, number formats. Imports torch."""

import os
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from cnnlab.config.processes import num_cores
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.log import log

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


def of_all_processes(mine: Any) -> list[Any]:
    """What each process of the run gives, by rank."""
    if not torch.distributed.is_initialized():
        return [mine]
    everything: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everything, mine)
    return everything


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


def leave_process_group(failed: bool) -> None:
    """End the group of this run's processes, without which its threads abort the process at its end.

    After a failure the others may be dead, and NCCL would wait for them: then it is aborted.
    """
    if torch.distributed.is_initialized():
        if failed and torch.distributed.get_backend() == "nccl":
            torch.distributed.distributed_c10d._abort_process_group()
        else:
            torch.distributed.destroy_process_group()
