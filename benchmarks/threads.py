"""How threads that wait for each other cost time: a training step alone, beside a busy process, and in two processes.

    python benchmarks/threads.py [--rounds 3] [--seconds 6] [--beside alone ddp]

The steps are those of the bare loop of contenders.py, in float32. Every combination of variables is a process of its
own, as OpenMP reads them once, and all of them are measured in every round; the table has the medians, in images/s. The
busy process computes in Python. "two" are two trainings at once, of which the sum is shown: with launcher=local, each
has half of the threads. "ddp" is one training by two processes (torch's DistributedDataParallel), which share a batch.
"""

import argparse
import os
import socket
import subprocess
import sys
from statistics import median

POLICIES = {
    "OpenMP's own": {"GOMP_SPINCOUNT": "300000"},
    "cnnlab's": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
BESIDE = ("alone", "busy", "two", "ddp")
BUSY = "while True: pass"


def steps(batch_size: int, seconds: float) -> float:
    """Images/s of a training step, the median over some seconds."""
    import torch
    import torch.nn.functional as F
    from contenders import network
    from torch.utils.benchmark import Timer

    net: torch.nn.Module = network().to(memory_format=torch.channels_last)
    shared = "RANK" in os.environ
    if shared:
        torch.distributed.init_process_group("gloo")
        net, batch_size = torch.nn.parallel.DistributedDataParallel(net), batch_size // 2
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, fused=True)
    images = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch_size,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    if shared:  # in both processes the same number of steps
        num = torch.tensor(seconds / timer.timeit(5).mean)
        torch.distributed.broadcast(num, 0)
        return batch_size / timer.timeit(max(1, int(num))).mean
    return batch_size / timer.blocked_autorange(min_run_time=seconds).median


def start(variables: dict[str, str], batch_size: int, seconds: float) -> subprocess.Popen[str]:
    """The same in a process of its own."""
    words = [sys.executable, __file__, "--step", str(batch_size), "--seconds", str(seconds)]
    return subprocess.Popen(words, env=os.environ | variables, stdout=subprocess.PIPE, text=True)


def measured(variables: dict[str, str], beside: str, batch_size: int, seconds: float) -> float:
    """Images/s alone, beside a busy process, of two trainings, or of one by two processes."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY])] if beside == "busy" else []
    ranks: list[dict[str, str]] = [{}, {}] if beside == "two" else [{}]
    if beside == "ddp":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
        ranks = [common | {"RANK": str(rank)} for rank in range(2)]
    processes = [start(variables | rank, batch_size, seconds) for rank in ranks]
    try:
        return sum(float(process.communicate()[0]) for process in processes)
    finally:
        for process in busy + processes:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--beside", nargs="+", default=BESIDE, choices=BESIDE)
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(steps(options.step, options.seconds))
        return
    cores = str(len(os.sched_getaffinity(0)))
    rows = {name: own | {"OMP_NUM_THREADS": cores} for name, own in POLICIES.items()}
    rows["one thread"] = {"OMP_NUM_THREADS": "1"}
    columns = [(size, beside) for size in (16, 128) for beside in options.beside]
    found: dict[tuple[str, int, str], list[float]] = {}
    for _ in range(options.rounds):
        for name, variables in rows.items():
            for size, beside in columns:
                found.setdefault((name, size, beside), []).append(measured(variables, beside, size, options.seconds))
    print(f"{'waiting':12}", *(f"{f'{size} {beside}':>10}" for size, beside in columns))
    for name in rows:
        print(f"{name:12}", *(f"{median(found[name, *column]):>10.0f}" for column in columns))


if __name__ == "__main__":
    main()
