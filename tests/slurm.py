"""A Slurm of two nodes on this machine, in a folder of its own: with its own configuration, ports and munge."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged")
NODES = ("n1", "n2")

CONFIGURATION = """
ClusterName=two
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=5
OverTimeLimit=0
ReturnToService=2
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4 PriorityTier=1
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


def find(program: str) -> str:
    """Where a daemon is; Debian puts them where PATH of a user does not lead."""
    return shutil.which(program, path=os.environ["PATH"] + os.pathsep + "/usr/sbin") or ""


class Slurm:
    """The daemons; `environment` is what Slurm's commands need to find them."""

    def __init__(self, folder: Path):
        self.folder = folder
        ports = [free_port() for _ in range(3)]
        host = socket.gethostname()
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN"
            for name, port in zip(NODES, ports[1:], strict=True)
        )
        (folder / "state").mkdir()
        for name in NODES:
            (folder / name).mkdir()
        text = CONFIGURATION.format(host=host, folder=folder, ports=ports, nodes=nodes)
        (folder / "slurm.conf").write_text(text)
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        folder.chmod(0o755)
        files = {name: f"{folder}/munge.{name}" for name in ("socket", "pid", "log", "seed")}
        options = [f"--{name}{'-file' * (name != 'socket')}={path}" for name, path in files.items()]
        self.processes = {"munged": self.start("munged", "--foreground", "--force", f"--key-file={key}", *options)}
        while not Path(files["socket"]).exists():
            time.sleep(0.1)
        self.processes["slurmctld"] = self.start("slurmctld", "-D")
        for name in NODES:
            self.start_node(name)
        deadline = time.monotonic() + 60
        while self.said("sinfo", "--noheader", "--partition", "all", "--format", "%D %T") != "2 idle\n":
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()
            time.sleep(0.3)

    def start(self, program: str, *options: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{program}.out", "ab") as out:
            return subprocess.Popen(
                [find(program), *options],
                env=os.environ | self.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def start_node(self, name: str) -> None:
        self.processes[name] = self.start("slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """As if its plug was pulled: the daemon and everything that it has started are gone."""
        family = descendants(self.processes[name].pid)
        for number in [self.processes[name].pid, *family, *stepds(self.folder, name)]:
            for member in [number, *descendants(number)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
        self.processes[name].wait()

    def said(self, *words: str) -> str:
        result = subprocess.run(words, env=os.environ | self.environment, capture_output=True, text=True)
        return result.stdout

    def stop(self) -> None:
        self.said("scancel", "--user", "root")
        for name in reversed(self.processes):
            process = self.processes[name]
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def stepds(folder: Path, name: str) -> list[int]:
    """The processes that watch over the job steps of a node; they do not end with its daemon."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_bytes().startswith(b"slurmstepd"):
                files = {os.readlink(file) for file in (entry / "fd").iterdir()}
                found += [int(entry.name)] * (f"{folder}/{name}.log" in files)
        except OSError:
            continue
    return found


def descendants(number: int) -> list[int]:
    """All processes that a process has started, and those that these have."""
    found: list[int] = []
    for path in Path(f"/proc/{number}/task").glob("*/children"):
        try:
            for child in path.read_text().split():
                found += [int(child), *descendants(int(child))]
        except OSError:
            continue
    return found
