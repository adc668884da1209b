"""How threads that wait for each other cost time: a training step with and without a busy neighbor process.

    python benchmarks/threads.py [--rounds 3] [--seconds 6]

The steps are those of the bare loop of contenders.py, in float32. Every combination of wait policy and number of
threads is a process of its own, as OpenMP reads its variables once, and all of them are measured in every round; the
table has the medians, in images/s. The neighbors compute in Python, one process for each.
"""

import argparse
import os
import subprocess
import sys
from statistics import median

POLICIES = {"default": "", "passive": "PASSIVE"}
BUSY = "while True: pass"


def steps(batch_size: int, seconds: float) -> float:
    """Images/s of a training step, the median over some seconds."""
    import torch
    import torch.nn.functional as F
    from contenders import network
    from torch.utils.benchmark import Timer

    net = network().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, fused=True)
    images = torch.randn(batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch_size,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
    return batch_size / timer.blocked_autorange(min_run_time=seconds).median


def measured(policy: str, threads: int, batch_size: int, neighbors: int, seconds: float) -> float:
    """The same in a process of its own, beside so many others."""
    own = {"OMP_NUM_THREADS": str(threads)} | ({"OMP_WAIT_POLICY": policy} if policy else {})
    busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(neighbors)]
    try:
        words = [sys.executable, __file__, "--step", str(batch_size), "--seconds", str(seconds)]
        return float(subprocess.run(words, env=os.environ | own, capture_output=True, text=True, check=True).stdout)
    finally:
        for process in busy:
            process.kill()
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(steps(options.step, options.seconds))
        return
    cores = len(os.sched_getaffinity(0))
    rows = [(name, threads) for threads in sorted({cores, 1}, reverse=True) for name in POLICIES if threads > 1]
    rows.append(("default", 1))
    columns = [(size, neighbors) for size in (16, 128) for neighbors in (0, 1)]
    found: dict[tuple[str, int, int, int], list[float]] = {}
    for _ in range(options.rounds):
        for name, threads in rows:
            for size, neighbors in columns:
                rate = measured(POLICIES[name], threads, size, neighbors, options.seconds)
                found.setdefault((name, threads, size, neighbors), []).append(rate)
    print(f"{'wait policy':12} {'threads':>7}", *(f"batch {size}, {busy} busy" for size, busy in columns))
    for name, threads in rows:
        rates = (median(found[name, threads, size, busy]) for size, busy in columns)
        print(
            f"{name:12} {threads:7}",
            *(
                f"{rate:>{len(f'batch {size}, {busy} busy')}.0f}"
                for rate, (size, busy) in zip(rates, columns, strict=True)
            ),
        )


if __name__ == "__main__":
    main()
