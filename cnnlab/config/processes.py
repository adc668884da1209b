"""Which of a run's processes this one is, and what has started them. Does not import torch.

A run trains on trainer.devices x trainer.num_nodes devices, with one process for each. If that is one, it is this
process, whatever the environment says: a task of an array, of `srun` or of an MPI job is a run of its own. Otherwise
the environment shows what has started the processes:

    torchrun          TORCHELASTIC_RUN_ID, and WORLD_SIZE > 1
    srun              SLURM_STEP_NUM_TASKS > 1. SLURM_NTASKS and SLURM_PROCID are also set in sbatch's script, which is
                      one process however many tasks the job has; salloc sets SLURM_NTASKS only
    another platform  RANK, MASTER_ADDR, and WORLD_SIZE > 1, as in Azure ML, SageMaker and Kubeflow
    mpirun            OMPI_COMM_WORLD_SIZE, PMI_SIZE or another kind's > 1: refused
    cnnlab            in all other cases, and only on one node; CNNLAB_ABOUT is set in them

and their number must be that of the devices. Ray sets none of these for its tasks.
"""

import functools
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from omegaconf import DictConfig

from cnnlab.config.options import UserError

ABOUT = "CNNLAB_ABOUT"  # the variable from which the processes of a run read what its summary begins with

MPI = ("OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "JSM_NAMESPACE_SIZE")  # besides PMI_SIZE, which srun sets too

# The variables from which Lightning and torch read which process this is, and others that torchrun sets.
RANKS = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)


@dataclass(frozen=True)
class Place:
    """One of the processes of a run.

    Attributes:
        starter: what has started them; "" for a process that is alone, or has yet to start the others.
        node, local_rank: of this process.
        address, port: of the first process.
    """

    starter: str = ""
    node: int = 0
    local_rank: int = 0
    address: str = ""
    port: str = ""

    @property
    def is_first(self) -> bool:
        """Whether this process opens the run and writes its files."""
        return self.node == self.local_rank == 0

    def settle(self) -> None:
        """Set the variables that LightningEnvironment reads, whatever has started this process."""
        if not self.starter:
            for name in RANKS:
                os.environ.pop(name, None)
        elif self.starter != "cnnlab":  # for which Lightning has set them
            os.environ |= {"NODE_RANK": str(self.node), "LOCAL_RANK": str(self.local_rank)}
            os.environ |= {"MASTER_ADDR": self.address, "MASTER_PORT": self.port}


def place(trainer: DictConfig, environment: Mapping[str, str] = os.environ) -> Place:
    """Which of a run's processes this one is.

    trainer: with `devices` (-1: all of the node) and `num_nodes`. environment: of the process.

    Raises: UserError if other processes were started than the run asks for.
    """
    devices, nodes = trainer.devices, trainer.num_nodes
    if ABOUT in environment:
        return Place("cnnlab", local_rank=whole_number(environment, "LOCAL_RANK"))
    if devices == nodes == 1:
        return Place()
    found, shares = started(environment, nodes)
    if not found.starter:
        if nodes > 1:
            raise UserError(f"trainer.num_nodes={nodes} needs launcher=slurm, or torchrun or srun on every node.")
        return found
    if devices == -1:
        devices = shares[0]
    if shares != [devices] * nodes:
        raise UserError(
            f"{found.starter} has started {sum(shares)} processes on {len(shares)} node{'s' * (len(shares) > 1)}, but "
            f"trainer.devices={trainer.devices} with trainer.num_nodes={nodes} needs {devices} on each of {nodes}. "
            f"Start one process for each device, or change trainer.devices and trainer.num_nodes."
        )
    return found


def whole_number(environment: Mapping[str, str], name: str) -> int:
    """The value of a variable, 0 if it is not set. Raises: UserError if it is not a whole number."""
    try:
        return int(environment.get(name) or 0)
    except ValueError:
        raise UserError(f"The variable {name}={environment[name]} is not a whole number. Unset it.") from None


def started(environment: Mapping[str, str], nodes: int) -> tuple[Place, list[int]]:
    """This process among several that were started together, and how many of them each node has; else Place().

    nodes: that the run asks for. Raises: UserError for mpirun.
    """

    number = functools.partial(whole_number, environment)
    tasks, world = number("SLURM_STEP_NUM_TASKS"), number("WORLD_SIZE")
    by_torchrun = "TORCHELASTIC_RUN_ID" in environment
    if not by_torchrun and (any(number(name) > 1 for name in MPI) or number("PMI_SIZE") not in (0, 1, tasks)):
        raise UserError(
            "mpirun has started several processes, which cannot train together. Use torchrun or srun instead, or start "
            "train.py once: on one node it starts the processes itself."
        )
    if tasks > 1 and not by_torchrun:
        if lacking := {"SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST"} - environment.keys():
            raise UserError(f"SLURM_STEP_NUM_TASKS={tasks}, but {min(lacking)} is not set. Use srun.")
        words = re.findall(r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"])  # 2(x3),1
        shares = [int(count) for count, times in words for _ in range(int(times or 1))]
        address = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
        job, step = number("SLURM_JOB_ID"), number("SLURM_STEP_ID")
        port = environment.get("MASTER_PORT") or str(15000 + (job * 31 + step) % 10000)
        return Place("srun", number("SLURM_NODEID"), number("SLURM_LOCALID"), address, port), shares
    if world > 1 and "RANK" in environment and "MASTER_ADDR" in environment:
        rank = number("RANK")
        # Kubeflow starts one process on a node and does not number it; Azure ML does not say how many there are.
        share = number("LOCAL_WORLD_SIZE") or (max(1, world // nodes) if "LOCAL_RANK" in environment else 1)
        node, local_rank = divmod(rank, share)
        address, port = environment["MASTER_ADDR"], environment.get("MASTER_PORT", "29500")
        starter = "torchrun" if by_torchrun else "the platform (RANK, WORLD_SIZE)"
        return Place(starter, node, local_rank, address, port), [share] * (world // share) + [world % share] * (
            world % share > 0
        )
    return Place(), [1]


def first_host(nodes: str) -> str:
    """The first of a list of hosts as Slurm writes it: gpu[03-05,9],cpu1 -> gpu03."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", re.split(r",(?![^\[]*\])", nodes)[0])


def num_cores() -> int:
    """The number of cores that this process may use, as far as the system says."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
