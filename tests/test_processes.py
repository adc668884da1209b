"""Runs on several devices: in a sweep, under torchrun, and with nobody left behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Timer
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, until
from omegaconf import OmegaConf
from test_resume import only_run, processes_of

from cnnlab.config.options import UserError
from cnnlab.config.processes import Place, first_host, place
from cnnlab.launch import job
from cnnlab.runs.directory import RunDirectory
from cnnlab.train.machine import leave_process_group
from cnnlab.train.records import Records

SMALL = (
    *("data=shapes", "data.num_train=800", "data.num_test=60", "batch_size=40", "model.channels=[8,8,8]"),
    *("model.hidden=32", "aug=[crop_flip,cutmix]", "norm=standard", "trainer.max_epochs=3", "trainer.accelerator=cpu"),
)
DDP = (*SMALL, "trainer=ddp")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
SBATCH = {name: value for name, value in SRUN.items() if "STEP" not in name} | {"SLURM_PROCID": "0"}
PLATFORM = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "6105"}
TORCHRUN = PLATFORM | {"LOCAL_RANK": "1", "GROUP_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
THERE = {"address": "10.0.0.1", "port": "6105"}
ALONE = Place()
PLACES = {
    "srun": (SRUN, 2, 2, Place("srun", 1, 1, address="gpu07", port="15219")),
    "srun, with an address of its own": (SRUN | PLATFORM, 2, 2, Place("srun", 1, 1, **THERE)),
    "srun for another number": (SRUN, 4, 1, "srun has started 4 processes on 2 nodes"),
    "srun, unevenly": (SRUN | {"SLURM_STEP_TASKS_PER_NODE": "3,1"}, 2, 2, "srun has started 4 processes on 2 nodes"),
    "srun's array of independent runs": (SRUN, 1, 1, ALONE),
    "srun of one task": (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, 2, 1, ALONE),
    "sbatch without srun": (SBATCH, 2, 1, ALONE),
    "sbatch without srun for two nodes": (SBATCH, 2, 2, "trainer.num_nodes=2 needs"),
    "tasks that are meant as cores": (SBATCH, 1, 1, ALONE),
    "salloc": ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, 4, 1, ALONE),
    "torchrun": (TORCHRUN, 2, 2, Place("torchrun", 1, 1, **THERE)),
    "torchrun for all devices": (TORCHRUN, -1, 2, Place("torchrun", 1, 1, **THERE)),
    "torchrun for another number": (
        TORCHRUN,
        2,
        1,
        "torchrun has started 4 processes on 2 nodes, but trainer.devices=2",
    ),
    "torchrun by srun": (SRUN | TORCHRUN, 2, 2, Place("torchrun", 1, 1, **THERE)),
    "torchrun of one process": ({"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "1"}, 2, 1, ALONE),
    "Azure ML": (PLATFORM | {"LOCAL_RANK": "1"}, 2, 2, Place("the platform (RANK, WORLD_SIZE)", 1, 1, **THERE)),
    "Kubeflow": (PLATFORM, 1, 4, Place("the platform (RANK, WORLD_SIZE)", 3, 0, **THERE)),
    "Kubeflow, with several devices": (PLATFORM, 2, 2, "has started 4 processes on 4 nodes"),
    "a rank that is left over": ({"RANK": "1", "LOCAL_RANK": "1", "NODE_RANK": "1"}, 2, 1, ALONE),
    "mpirun": ({"OMPI_COMM_WORLD_SIZE": "2"} | SRUN, 2, 2, "mpirun"),
    "mpiexec": ({"PMI_SIZE": "2", "PMI_RANK": "1"}, 2, 1, "mpirun"),
    "srun --mpi=pmi2": (SRUN | {"PMI_SIZE": "4"}, 2, 2, Place("srun", 1, 1, address="gpu07", port="15219")),
    "MVAPICH": ({"MV2_COMM_WORLD_SIZE": "2"}, 2, 1, "mpirun"),
    "words for numbers": ({"WORLD_SIZE": "two"}, 2, 1, "The variable WORLD_SIZE=two is not a whole number"),
    "our own, but for its rank": ({"CNNLAB_ABOUT": "{}", "LOCAL_RANK": "x"}, 2, 1, "LOCAL_RANK=x is not a whole"),
    "half of srun's": ({"SLURM_STEP_NUM_TASKS": "2"}, 2, 1, "but SLURM_STEP_NODELIST is not set"),
    "mpirun's independent runs": ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, 1, 1, ALONE),
    "our own": ({"CNNLAB_ABOUT": "{}", "LOCAL_RANK": "1"} | SBATCH, 2, 1, Place("cnnlab", 0, 1)),
}


@pytest.mark.parametrize("name", PLACES)
def test_who_starts_the_processes_and_which_one_this_is(name):
    environment, devices, num_nodes, expected = PLACES[name]
    trainer = OmegaConf.create({"devices": devices, "num_nodes": num_nodes})
    if isinstance(expected, str):
        with pytest.raises(UserError, match=re.escape(expected)):
            place(trainer, environment)
    else:
        assert place(trainer, environment) == expected


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n[1-2]", "n1"), ("gpu[03-05,9],cpu1", "gpu03"), ("a,b[1-2]", "a"), ("r[1-2]n[3,4]", "r1n3")],
)
def test_the_first_host_of_slurms_list(nodes, first):
    assert first_host(nodes) == first


def summaries(output: Path) -> dict[str, dict]:
    found = [json.loads(file.read_text()) for file in output.glob("runs/*/summary.json")]
    return {one["choices"]["optim"]: one for one in found}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs by two processes each."""
    folder = tmp_path_factory.mktemp("swept")
    result = typed(folder, "train.py", "-m", *DDP, "optim=sgd,adam")
    assert result.returncode == 0, result.stdout + result.stderr
    return folder / "outputs"


def typed(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = [str(ROOT / word) if word == "train.py" else word for word in words]
    environment = os.environ | ONE_THREAD | {"CNNLAB_CACHE": str(folder / "cache")} | environment
    return subprocess.run(
        [sys.executable, *given], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def begun(folder: Path, *words: str, **environment: str) -> subprocess.Popen[bytes]:
    """The driver of a sweep whose first run has finished an epoch."""
    driver = subprocess.Popen(
        [sys.executable, *words], cwd=folder, env=os.environ | ONE_THREAD | environment, stdout=subprocess.DEVNULL
    )
    until(lambda: list(folder.glob("outputs/runs/*/metrics.csv")), process=driver)
    return driver


def test_a_sweep_of_runs_by_two_processes(swept, tmp_path):
    """Each run has two, one directory and one .hydra. They, and four, come to what one process does."""
    found = summaries(swept)
    assert {name: (one["status"], one["environment"]["num_devices"]) for name, one in found.items()} == {
        "sgd": ("done", 2),
        "adam": ("done", 2),
    }
    assert len(list(swept.glob("**/.hydra"))) == 2
    losses = {2: found["adam"]["metrics"]["train/loss"]}
    for num, words in ((1, SMALL), (4, (*DDP, "trainer.devices=4"))):
        folder = tmp_path / str(num)
        folder.mkdir()
        assert typed(folder, "train.py", *words, "optim=adam").returncode == 0
        summary = summaries(folder / "outputs")["adam"]
        assert (summary["run"], summary["environment"]["num_devices"]) == (found["adam"]["run"], num)
        losses[num] = summary["metrics"]["train/loss"]
    assert [losses[2], losses[4]] == pytest.approx([losses[1]] * 2, rel=1e-3)


def test_every_process_drops_other_neurons(swept):
    for path in swept.glob("runs/*/checkpoints/last.ckpt"):
        first, second = torch.load(path, weights_only=True)["records"]["processes"]
        assert not first["random"]["torch"].equal(second["random"]["torch"])


def test_torchrun_makes_the_same(swept, tmp_path):
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "train.py"), *DDP)
    result = typed(tmp_path, *words, "optim=adam")
    assert result.returncode == 0, result.stderr
    there, here = summaries(swept)["adam"], summaries(tmp_path / "outputs")["adam"]
    assert (here["metrics"], here["environment"]["num_devices"]) == (there["metrics"], 2)
    again = typed(tmp_path, *words, "optim=adam")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already finished") == 1


def test_each_process_draws_its_own_random_numbers():
    """For dropout, say; and none those of another seed's. torch's generator on the CPU has seeds of 32 bits."""
    drawn = []
    for seed in (0, 1):
        for rank in range(4):
            torch.manual_seed(seed)
            records = Records(RunDirectory(Path("run")), None, "", "val/acc")
            records.on_train_start(SimpleNamespace(global_rank=rank, world_size=4), None)
            drawn.append(torch.rand(()).item())
    assert len(set(drawn)) == 8


NCCL = """
import sys
if "cnnlab.launch.job" in sys.orig_argv:
    import torch.distributed as dist
    import torch.distributed.distributed_c10d as c10d
    from lightning.pytorch.strategies import DDPStrategy, Strategy

    on_gpu, of_objects = [False], [0]  # objects travel by way of the current GPU, wherever the model is

    def after(kind, name, state):
        real = getattr(kind, name)
        def called(self, *arguments):
            on_gpu[0] = on_gpu[0] or state
            try:
                return real(self, *arguments)
            finally:
                on_gpu[0] = state
        setattr(kind, name, called)

    def guarded(name):
        real = getattr(c10d, name)
        def called(*arguments, **named):
            if not on_gpu[0] and not of_objects[0]:
                raise RuntimeError(f"No backend type associated with device type cpu ({name})")
            return real(*arguments, **named)
        return called

    def with_objects(name):
        real = getattr(c10d, name)
        def called(*arguments, **named):
            of_objects[0] += 1
            try:
                return real(*arguments, **named)
            finally:
                of_objects[0] -= 1
        return called

    after(Strategy, "teardown", False)
    after(DDPStrategy, "setup", True)
    for name in ("all_gather", "all_reduce", "broadcast", "reduce", "gather", "all_gather_into_tensor"):
        wrapped = guarded(name)
        setattr(dist, name, wrapped), setattr(c10d, name, wrapped)
    for name in ("all_gather_object", "broadcast_object_list", "gather_object"):
        wrapped = with_objects(name)
        setattr(dist, name, wrapped), setattr(c10d, name, wrapped)
"""


def test_no_tensor_is_sent_while_the_model_is_on_the_processor(tmp_path):
    """NCCL has no backend for such tensors, and Lightning moves the model to the CPU after every fit and test."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NCCL)
    nccl = {"PYTHONPATH": str(tmp_path / "site")}
    words = ("train.py", *DDP, "model.batch_norm=true", "callbacks=[ema,early_stopping]", "trainer.max_epochs=4")
    driver = begun(tmp_path, str(ROOT / "train.py"), *words[1:], **nccl)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=60) == 143
    result = typed(tmp_path, *words, **nccl)
    assert result.returncode == 0, result.stdout + result.stderr
    [summary] = summaries(tmp_path / "outputs").values()
    assert (summary["status"], summary["environment"]["num_devices"]) == ("done", 2)
    assert len(RunDirectory(only_run(tmp_path / "outputs")).predictions()[0]) == 60


def test_a_process_that_does_not_answer_is_waited_for_so_long_and_no_longer(tmp_path):
    """As on a cluster whose network or node hangs: nobody is dead, and nothing arrives."""
    words = (*SMALL, "trainer=ddp", "trainer.strategy.timeout_minutes=0.4", "trainer.max_epochs=3000")
    driver = begun(tmp_path, str(ROOT / "train.py"), *words)
    ranks = processes_of(tmp_path / "outputs")
    try:
        os.kill(ranks[1], signal.SIGSTOP)
        assert driver.wait(timeout=60) == 1
        [summary] = summaries(tmp_path / "outputs").values()
        assert summary["status"] == "failed"
        until(lambda: not processes_of(tmp_path / "outputs"))
    finally:
        driver.kill()
        for process in processes_of(tmp_path / "outputs").values():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


SLOW_TO_ARCHIVE = """
import sys, time
if any(word.endswith("train.py") for word in sys.orig_argv):
    from cnnlab.runs.directory import RunDirectory
    archive = RunDirectory.archive
    def later(run):
        time.sleep(8)
        return archive(run)
    RunDirectory.archive = later
"""


def test_processes_go_on_from_what_the_first_one_has_found(swept, tmp_path):
    """Which archives the old run while the others are ready to train already."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SLOW_TO_ARCHIVE)
    shutil.copytree(swept, tmp_path / "outputs")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "train.py"))
    path = {"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}
    result = typed(tmp_path, *torchrun, *DDP, "optim=adam", "rerun=true", **path)
    assert result.returncode == 0, result.stdout + result.stderr
    [old] = tmp_path.glob("outputs/runs/*.old1")
    shutil.rmtree(old)
    assert summaries(tmp_path / "outputs")["adam"]["metrics"] == summaries(swept)["adam"]["metrics"]


def test_a_signal_while_a_failure_is_recorded_stops_what_comes_after(tmp_path, monkeypatch):
    def fails(*_) -> None:
        raise ValueError("something")

    def signalled(run: RunDirectory, summary: dict) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        write_summary(run, summary)

    write_summary = RunDirectory.write_summary
    monkeypatch.setattr(job, "train_here", fails)
    monkeypatch.setattr(RunDirectory, "write_summary", signalled)
    assert job.train_and_record(OmegaConf.create(), RunDirectory(tmp_path), {}) == 143
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"


def test_a_run_that_is_refused_once_it_is_open_says_why(tmp_path, monkeypatch):
    """As by deterministic=true, which only shows when an operation is reached."""
    run = RunDirectory(tmp_path)
    begun = {"run": "run", "choices": {}, "changes": {}, "seed": 0, "status": "running"}

    def refuses(*_) -> None:
        run.write_summary(begun)
        raise UserError("it has no deterministic implementation")

    monkeypatch.setattr(job, "train_here", refuses)
    with pytest.raises(UserError):
        job.train_and_record(OmegaConf.create(), run, {})
    assert (run.summary()["status"], run.summary()["error"]["type"]) == ("failed", "UserError")


def test_after_a_failure_nccl_is_aborted_and_not_waited_for(monkeypatch):
    done = []
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: done.append("destroyed"))
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_abort_process_group", lambda: done.append("aborted"))
    for backend, failed in (("nccl", True), ("nccl", False), ("gloo", True)):
        monkeypatch.setattr(torch.distributed, "get_backend", lambda backend=backend: backend)
        leave_process_group(failed)
    assert done == ["aborted", "destroyed", "destroyed"]


def test_torchrun_of_another_number_is_refused(tmp_path):
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / "train.py"))
    result = typed(tmp_path, *words, *DDP, "trainer.devices=4")
    assert result.returncode == 1
    assert "torchrun has started 2 processes on 1 node, but trainer.devices=4 with trainer.num_nodes=1" in result.stderr
    assert "exitcode  : 2" in result.stderr
    assert not list(tmp_path.glob("outputs/runs/*/summary.json"))


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two hosts that see each other: network namespaces with a cable between them."""
    names = [f"cnnlab{os.getpid()}{end}" for end in "ab"]
    commands = [
        *(f"ip netns add {name}" for name in names),
        f"ip link add cable netns {names[0]} type veth peer name cable netns {names[1]}",
        *(f"ip -n {name} address add 10.77.0.{number}/24 dev cable" for number, name in enumerate(names, start=1)),
        *(f"ip -n {name} link set {device} up" for name in names for device in ("lo", "cable")),
    ]
    try:
        for line in commands:
            result = subprocess.run(line.split(), capture_output=True, text=True)
            assert result.returncode == 0, f"{line}: {result.stderr}"
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


@pytest.mark.hosts
def test_torchrun_on_two_hosts_makes_the_same(swept, hosts, tmp_path):
    """As two processes on one host; these come to what one process does, see above."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    words += ["--master-addr=10.77.0.1", "--master-port=29400"]
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", host, *words, f"--node-rank={rank}"]
            + [str(ROOT / "train.py"), *DDP, "trainer.devices=1", "trainer.num_nodes=2", "optim=adam"],
            cwd=tmp_path,
            env=os.environ | ONE_THREAD | {"GLOO_SOCKET_IFNAME": "cable"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, host in enumerate(hosts)
    ]
    printed = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    [summary] = summaries(tmp_path / "outputs").values()
    assert (summary["environment"]["num_devices"], summary["status"]) == (2, "done")
    assert summary["metrics"] == summaries(swept)["adam"]["metrics"]
    assert [len(re.findall(r"epoch +\d+/", text)) for text in printed] == [3, 0]  # the first of them records


def test_a_signal_before_the_processes_note_any_is_an_interruption(tmp_path, monkeypatch):
    """While they import torch, say."""
    started = subprocess.Popen
    monkeypatch.setattr(job.subprocess, "Popen", lambda words, **options: started(["sleep", "60"], **options))
    Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    about = {"run": "run", "choices": {}, "changes": {}, "seed": 0}
    assert job.in_processes(RunDirectory(tmp_path), about) == 143
    assert RunDirectory(tmp_path).summary()["status"] == "interrupted"


def test_a_job_that_fails_leaves_nobody_and_the_next_one_runs(tmp_path):
    result = typed(tmp_path, "train.py", "-m", *DDP, "optim=adam", "optim.lr=1e30,0.001")
    assert result.returncode == 1
    states = [json.loads(file.read_text())["status"] for file in tmp_path.glob("outputs/runs/*/summary.json")]
    assert sorted(states) == ["done", "failed"]
    assert "DivergedError" in result.stdout
    assert not processes_of(tmp_path / "outputs")


def test_when_the_driver_is_killed_nobody_is_left_and_the_sweep_goes_on(swept, tmp_path):
    output = tmp_path / "outputs"
    words = [str(ROOT / "train.py"), "-m", *DDP, "optim=sgd,adam", f"output_dir={output}"]
    driver = begun(tmp_path, *words)
    driver.kill()
    driver.wait()
    until(lambda: not processes_of(output))
    assert json.loads((only_run(output) / "summary.json").read_text())["status"] == "interrupted"  # told by SIGTERM
    result = typed(tmp_path, *words)
    assert result.returncode == 0, result.stdout + result.stderr
    for name, one in summaries(swept).items():
        assert summaries(output)[name]["metrics"] == one["metrics"]


def test_a_signal_to_the_driver_saves_and_stops(tmp_path):
    output = tmp_path / "outputs"
    words = [str(ROOT / "train.py"), "-m", *DDP, "optim=sgd,adam", f"output_dir={output}", "trainer.max_epochs=50"]
    driver = begun(tmp_path, *words)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=60) == 143
    assert json.loads((only_run(output) / "summary.json").read_text())["status"] == "interrupted"
    assert not processes_of(output)
