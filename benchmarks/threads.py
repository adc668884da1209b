"""How threads that wait for each other cost time: a training step alone, beside a busy process, and beside another.

    python benchmarks/threads.py [--rounds 3] [--seconds 6]

The steps are those of the bare loop of contenders.py, in float32. Every combination of variables is a process of its
own, as OpenMP reads them once, and all of them are measured in every round; the table has the medians, in images/s. The
busy process computes in Python; of two trainings, the sum is shown.
"""

import argparse
import os
import subprocess
import sys
from statistics import median

POLICIES = {
    "OpenMP's own": {"GOMP_SPINCOUNT": "300000"},
    "cnnlab's": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
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


def start(variables: dict[str, str], batch_size: int, seconds: float) -> subprocess.Popen[str]:
    """The same in a process of its own."""
    words = [sys.executable, __file__, "--step", str(batch_size), "--seconds", str(seconds)]
    return subprocess.Popen(words, env=os.environ | variables, stdout=subprocess.PIPE, text=True)


def measured(variables: dict[str, str], beside: str, batch_size: int, seconds: float) -> float:
    """Images/s alone, beside a busy process, or of two trainings."""
    busy = [subprocess.Popen([sys.executable, "-c", BUSY])] if beside == "busy" else []
    processes = [start(variables, batch_size, seconds) for _ in range(1 + (beside == "two"))]
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
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(steps(options.step, options.seconds))
        return
    cores = str(len(os.sched_getaffinity(0)))
    rows = {name: own | {"OMP_NUM_THREADS": cores} for name, own in POLICIES.items()}
    rows["one thread"] = {"OMP_NUM_THREADS": "1"}
    columns = [(size, beside) for size in (16, 128) for beside in ("alone", "busy", "two")]
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
