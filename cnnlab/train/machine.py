"""The machine that a run trains on: threads, processes, memory, GPUs, number formats. Imports torch."""

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

THREADS = torch.get_num_threads()  # by OMP_NUM_THREADS, or the number of cores


def use_threads(run: RunDirectory, devices: int) -> None:
    """Use the number of threads that the run began with: with any other, sums differ in their last bits."""
    several = devices > 1
    default = THREADS if not several or os.environ.get("OMP_NUM_THREADS") else max(1, num_cores() // devices)
    num_threads = run.summary().get("environment", {}).get("num_threads", default)
    torch.set_num_threads(num_threads)
    if several:  # otherwise Lightning sets it
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
    if num_threads != default:
        log.info(f"The run continues with {num_threads} threads, as it began, instead of {default}. Or use rerun=true.")


def gather(mine: Any) -> list[Any]:
    """An object from each process of the run, by rank."""
    if not torch.distributed.is_initialized():
        return [mine]
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, mine)
    return gathered


AGREE_EVERY_N_STEPS = 10  # how often several processes agree on whether to stop


def agreed(late: bool, signal: int, device: torch.device) -> tuple[bool, int]:
    """Whether any process is late, and the largest signal that any has received."""
    both = torch.tensor([int(late), signal], device=device)
    torch.distributed.all_reduce(both, torch.distributed.ReduceOp.MAX)
    late_anywhere, largest = both.tolist()
    return bool(late_anywhere), largest


def computes_in_bf16(accelerator: str) -> bool:
    """Whether the hardware supports bfloat16; emulated, it is 4 to 16 times slower than float32."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and any(flag in cpuinfo.read_text(encoding="utf-8") for flag in ("avx512_bf16", "amx_bf16"))


def reset_peak_memory() -> None:
    """Forget the memory used by earlier runs of this process."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux only
        Path("/proc/self/clear_refs").write_bytes(b"5")


def peak_memory(device: torch.device) -> int:
    """The peak memory of this run so far, in bytes: allocated on the GPU, or resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists() and (peak := re.search(r"VmHWM:\s*(\d+)", status.read_text("utf-8"))):
        return 1024 * int(peak[1])  # getrusage also counts the memory of the process that forked this one
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def gpu_environment() -> dict[str, Any]:
    """What determines the bits of a result on a GPU, besides torch."""
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
    """Why torch cannot use this machine's NVIDIA GPU; empty if it can, or if there is none or it is hidden."""
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
    """End the process group of this run; otherwise its threads abort the process at exit.

    After a failure other processes may be dead, and NCCL would wait for them: it is aborted.
    """
    if torch.distributed.is_initialized():
        if failed and torch.distributed.get_backend() == "nccl":
            torch.distributed.distributed_c10d._abort_process_group()
        else:
            torch.distributed.destroy_process_group()
