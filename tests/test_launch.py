"""The jobs of a sweep elsewhere: several at once on this machine, on a Ray and on a Slurm that are started here.

Whatever happens to them, they end with the metrics of a run that was left alone.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, until
from omegaconf import OmegaConf
from slurm import Slurm, descendants
from test_processes import SMALL, summaries
from test_resume import only_run

from cnnlab.config.identity import configuration, run_path, targets
from cnnlab.config.objects import data_source
from cnnlab.config.options import UserError
from cnnlab.config.processes import Place
from cnnlab.launch import job_states, local
from cnnlab.launch.children import python_path
from cnnlab.launch.job import Job
from cnnlab.launch.slurm import on_slurm
from cnnlab.launch.sweep import archive_old
from cnnlab.project import new
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.provenance import code_digest

EPOCHS = 25
LONGER = (*SMALL, f"trainer.max_epochs={EPOCHS}")
TWO_NODES = (*LONGER, "trainer=ddp", "trainer.devices=1", "trainer.num_nodes=2", "launcher.cpus_per_task=1")


def sweep(folder: Path, *words: str, program: Path = ROOT / "train.py", **environment: str) -> subprocess.Popen[str]:
    """Type a sweep in a folder."""
    own = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "CNNLAB_CACHE": str(folder.parent / "cache")}
    return subprocess.Popen(
        [sys.executable, str(program), "-m", *words],
        cwd=folder,
        env=os.environ | own | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a test run in the background ignores
    )


def ended(process: subprocess.Popen[str], timeout: float = 300) -> tuple[int, str]:
    """Wait for the end: the exit status, and what was printed."""
    printed, _ = process.communicate(timeout=timeout)
    return process.returncode, printed


def alive(number: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        return Path(f"/proc/{number}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def metrics(folder: Path) -> dict[str, dict]:
    found = summaries(folder / "outputs")
    assert {one["status"] for one in found.values()} == {"done"}
    return {name: one["metrics"] for name, one in found.items()}


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two runs, one after the other in one process."""
    folder = tmp_path_factory.mktemp("plain")
    status, printed = ended(sweep(folder, *SMALL, "optim=sgd,adam"))
    assert status == 0, printed
    return folder


@pytest.fixture(scope="module")
def plain(in_turn: Path) -> dict[str, dict]:
    """What these runs come to."""
    return metrics(in_turn)


# ------------------------------------------------------------------------------------------------------- this machine


def test_two_at_once_come_to_the_same(plain, tmp_path):
    """Each sees a device of its own, if there are any. The same command again returns them at once."""
    words = (*SMALL, "optim=sgd,adam", "launcher=local", "trainer.accelerator=auto")
    driver = sweep(tmp_path, *words, CUDA_VISIBLE_DEVICES="7,8")
    until(lambda: len(list(tmp_path.glob("outputs/runs/*/.holder"))) == 2, process=driver)
    numbers = [int(file.read_text().split()[1]) for file in tmp_path.glob("outputs/runs/*/.holder")]
    environments = [Path(f"/proc/{number}/environ").read_text().split("\0") for number in numbers]
    assert sorted(line for lines in environments for line in lines if line.startswith("CUDA_VISIBLE_DEVICES")) == [
        "CUDA_VISIBLE_DEVICES=7",
        "CUDA_VISIBLE_DEVICES=8",
    ]
    status, printed = ended(driver)
    assert status == 0, printed
    assert "2 at a time, 1 thread each\n" in printed
    assert re.search(r"\ndone 1/2, optim=\w+, test accuracy [\d.]+%, about \d+ s left\n", printed)
    assert re.search(r"\ndone 2/2, optim=\w+, test accuracy [\d.]+%\n", printed)
    assert metrics(tmp_path) == plain
    assert {one["environment"]["num_threads"] for one in summaries(tmp_path / "outputs").values()} == {1}
    words = (*SMALL, "optim=sgd,adam", "launcher=local", "launcher.jobs_per_device=2")
    status, printed = ended(sweep(tmp_path, *words))
    assert (status, printed.count("already finished")) == (0, 2)
    status, printed = ended(sweep(tmp_path, *words, "rerun=true"))
    assert (status, printed.count("The old run is kept as")) == (0, 2)
    assert len(list(tmp_path.glob("outputs/runs/*.old1/summary.json"))) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("select_on=val/acc,val/f1", "rerun=true"),
            "The run with select_on=val/f1: select_on=val/f1 is not measured.",
        ),
        (
            ("callbacks=early_stopping", "callbacks.early_stopping.monitor=val/acc,val/f1", "launcher=local"),
            "The run with callbacks.early_stopping.monitor=val/f1: callbacks.early_stopping.monitor=val/f1 is not",
        ),
        (
            ("sched=plateau", "sched.mode=max,min"),
            "The run with sched.mode=min: sched.mode=min waits for val/acc to get worse. Use sched.mode=max.",
        ),
    ],
)
def test_a_run_of_which_the_parts_do_not_fit_is_refused_before_another_has_trained(in_turn, tmp_path, words, said):
    shutil.copytree(in_turn, tmp_path, dirs_exist_ok=True)
    before = sorted(tmp_path.rglob("*"))
    status, printed = ended(sweep(tmp_path, *SMALL, *words))
    assert (status, said in printed) == (2, True), printed
    assert sorted(tmp_path.rglob("*")) == before


def test_threads_are_the_cores_in_equal_shares_or_those_that_are_typed(monkeypatch):
    monkeypatch.setattr(local, "num_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert local.num_threads(OmegaConf.create({"threads": 5}), 2, 1) == 5
    assert local.num_threads(OmegaConf.create({"threads": None}), 2, 1) == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert [
        local.num_threads(OmegaConf.create({"threads": None}), *at_once) for at_once in ((2, 1), (2, 2), (9, 2))
    ] == [*(4, 2, 1)]


def test_a_resumed_sweep_has_the_threads_of_the_whole_one(in_turn, tmp_path):
    """Though the one run that is left could have all cores."""
    shutil.copytree(in_turn, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(next(tmp_path.glob("outputs/runs/shapes-*adam*")))
    words = (*SMALL, "optim=sgd,adam", "launcher=local", "launcher.jobs_per_device=2")
    status, printed = ended(sweep(tmp_path, *words, OMP_NUM_THREADS=""))
    assert status == 0, printed
    assert f"1 at a time, {max(1, local.num_cores() // 2)} thread" in printed
    assert "done 2/2, optim=adam" in printed


@pytest.mark.parametrize("changed", ["", "code_digest", "data_digest"])
def test_a_rerun_that_has_begun_is_resumed_unless_code_or_data_have_changed(tmp_path, changed):
    """Or what has changed would be refused, with the advice to type what was typed."""
    config = configuration([*SMALL, f"output_dir={tmp_path}", "rerun=true"])
    run = RunDirectory(run_path(config))
    archive_old(config)
    digests = {"code_digest": code_digest(targets(config)), "data_digest": data_source(config.data).digest()}
    begun = {"run": run.path.name, "choices": {}, "changes": {}, "seed": 0, "status": "interrupted"}
    run.write_summary(begun | digests | ({changed: "another"} if changed else {}))
    archive_old(config)
    assert bool(run.summary()) == (not changed)


def test_a_path_is_told_as_text(tmp_path, capsys):
    """A terminal would obey the control characters in it."""
    path = tmp_path / "run"
    job_states.report_ended(SimpleNamespace(path=path), 2, {path: "name=\x1b[31m", tmp_path: "", Path(): ""}, 75)
    assert f"not started 1/3, name=\\x1b[31m, {path}, about 1 min 15 s left\n" in capsys.readouterr().out


def test_threads_are_those_of_the_largest_run_of_the_sweep_though_it_is_done(monkeypatch):
    """Or a resumed sweep would compute with more of them, and other last bits."""

    def worker(environment: dict[str, str]) -> None:
        raise RuntimeError(environment["OMP_NUM_THREADS"])

    monkeypatch.setattr(local, "Worker", worker)
    monkeypatch.setattr(local, "num_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    jobs = [
        SimpleNamespace(
            config=OmegaConf.create({"trainer": {"devices": devices, "accelerator": "cpu"}}),
            path=Path(str(devices)),
            content={"about": {"overrides": []}},
        )
        for devices in (1, 2)
    ]
    for to_do in (jobs, jobs[:1]):
        with pytest.raises(RuntimeError, match=r"^4$"):
            local.locally(OmegaConf.create({"threads": None, "jobs_per_device": 1}), to_do, jobs)


def test_a_killed_process_is_a_failed_run_and_the_others_go_on(tmp_path):
    """The driver's own end by kill -9 leaves nobody behind, and all are done when it is typed again."""
    words = (*LONGER, "optim=sgd,adam,adamw", "launcher=local", "launcher.jobs_per_device=1")
    driver = sweep(tmp_path, *words)
    first, *_ = until(lambda: list(tmp_path.glob("outputs/runs/*/metrics.csv")), process=driver)
    os.kill(int((first.parent / ".holder").read_text().split()[1]), signal.SIGKILL)
    until(lambda: len(list(tmp_path.glob("outputs/runs/*/metrics.csv"))) == 2, process=driver)
    summary = json.loads((first.parent / "summary.json").read_text())
    assert (summary["status"], summary["error"]["message"]) == ("failed", "its process ended by SIGKILL")
    workers = descendants(driver.pid)
    assert workers
    driver.kill()
    driver.communicate()
    until(lambda: not [worker for worker in workers if alive(worker)])
    assert sorted(one["status"] for one in summaries(tmp_path / "outputs").values()) == ["failed", "interrupted"]
    second = sweep(tmp_path, *words)
    until(lambda: "running" in {one["status"] for one in summaries(tmp_path / "outputs").values()}, process=second)
    second.send_signal(signal.SIGTERM)
    status, printed = ended(second)
    assert status == 143, printed
    status, printed = ended(sweep(tmp_path, *words))
    assert status == 0, printed
    assert set(metrics(tmp_path)) == {"sgd", "adam", "adamw"}


def test_a_worker_that_was_killed_between_two_jobs_is_replaced(tmp_path):
    first, job = local.Worker({"A": "1"}), SimpleNamespace(path=tmp_path, text="")
    first.process.kill()
    first.process.wait()
    second = first.assign(job)
    try:
        assert (second.environment, second.process.poll()) == ({"A": "1"}, None)
    finally:
        for worker in (first, second):
            worker.process.kill()
            with contextlib.suppress(BrokenPipeError), worker.process:
                pass


LOSES_ITS_GPU = """
import os, sys
if sys.argv[0] == "-m" and "cnnlab.launch.job" in sys.orig_argv and not os.path.exists("lost"):
    import torch
    def fails(*_, **__):
        open("lost", "w").close()
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
    torch.nn.functional.cross_entropy = fails
"""


def test_a_worker_that_has_lost_its_gpu_ends_and_a_new_one_goes_on(tmp_path):
    """The first worker's every step fails as after a CUDA error."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(LOSES_ITS_GPU)
    words = (*SMALL, "trainer.max_epochs=1", "optim=sgd,adam,adamw", "launcher=local")
    status, printed = ended(sweep(tmp_path, *words, PYTHONPATH=str(tmp_path / "site")))
    assert status == 1, printed
    found = summaries(tmp_path / "outputs")
    assert {name: one["status"] for name, one in found.items()} == {"sgd": "failed", "adam": "done", "adamw": "done"}
    assert found["sgd"]["error"]["type"] == "AcceleratorError"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("launcher=local",), "is for sweeps"),
        (("-m", "launcher=local", "launcher.jobs_per_device=0"), "jobs_per_device >= 1"),
        (("-m", "launcher=local", "hydra/sweeper=optuna"), "Remove launcher="),
        (("-m", "launcher=somewhere"), "local, ray, slurm"),
        (("-m", "launcher=slurm", "trainer.devices=-1"), "use a number from 1"),
        (("-m", "launcher=local", "trainer.num_nodes=2"), "needs launcher=slurm"),
        (("-m", "hydra.job.chdir=true"), "have no effect in a sweep"),
        (("-m", "hydra/launcher=submitit_slurm"), "submitit_slurm"),
    ],
    ids=lambda words: words[-1] if isinstance(words, tuple) else "",
)
def test_mistakes(command, words, said):
    result = command("train.py", *SMALL, *words)
    assert result.returncode == 2, result.stdout + result.stderr
    assert said in " ".join(result.stderr.split())
    assert not list(Path().glob("outputs/runs/*/summary.json"))


# ---------------------------------------------------------------------------------------------------------------- Ray


def test_on_ray(plain, tmp_path):
    """Though the process that does the first run is killed: Ray does it again, from its last checkpoint."""
    driver = sweep(tmp_path, *SMALL, "optim=sgd,adam", "launcher=ray")
    first, *_ = until(lambda: list(tmp_path.glob("outputs/runs/*/metrics.csv")), process=driver)
    os.kill(int((first.parent / ".holder").read_text().split()[1]), signal.SIGKILL)
    status, printed = ended(driver)
    assert status == 0, printed
    assert metrics(tmp_path) == plain


# -------------------------------------------------------------------------------------------------------------- Slurm


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    made = Slurm(tmp_path_factory.mktemp("slurm"))
    yield made
    made.stop()


def not_later(slurm: Slurm) -> str:
    """The queue. Slurm lets a requeued job wait for two minutes; a few seconds are enough for its end to be known."""
    waiting = slurm.said("squeue", "--noheader", "--array", "--format", "%i %r")
    if "BeginTime" in waiting:
        time.sleep(3)
    for line in waiting.splitlines():
        if line.endswith("BeginTime"):
            slurm.said("scontrol", "update", f"JobId={line.split()[0]}", "StartTime=now")
    return waiting


@pytest.mark.slurm
def test_the_script_is_shown(slurm, tmp_path):
    words = ("launcher=slurm", "launcher.dry_run=true", "launcher.partition=gpus", "launcher.time=90")
    more = (
        "optim=sgd,adam",
        "trainer.devices=2",
        "trainer.accelerator=gpu",
        'launcher.additional=["reservation=night"]',
    )
    status, printed = ended(sweep(tmp_path, *SMALL, *words, *more, **slurm.environment))
    assert status == 0, printed
    options = dict(re.findall(r"#SBATCH --([a-z-]+)=?(\S*)", printed))
    assert (
        options
        | {
            "array": "0-1%2",
            "partition": "gpus",
            "time": "90",
            "ntasks-per-node": "2",
            "gpus-per-node": "2",
            "reservation": "night",
            "signal": "USR2@120",
        }
        == options
    )
    assert "requeue" in options
    assert "--kill-on-bad-exit=1" in printed  # or the others wait for a dead process
    assert slurm.said("squeue", "--noheader") == ""
    assert not (tmp_path / "outputs").exists() or not list(tmp_path.glob("outputs/runs/*/"))


def test_processes_import_nothing_from_the_current_folder(tmp_path):
    (tmp_path / "logging.py").write_text("raise SystemExit('shadowed')")
    words = [sys.executable, "-m", "cnnlab.launch.job"]
    result = subprocess.run(words, env=os.environ | python_path(), stdin=subprocess.DEVNULL, capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")


def test_a_folder_whose_name_slurm_would_change_is_refused():
    with pytest.raises(UserError, match="contains %, which Slurm would replace"):
        on_slurm(OmegaConf.create({"dry_run": True}), [Job(Path("out%j/runs/a"), "")], [])


@pytest.mark.slurm
def test_what_slurm_refuses_is_said(slurm, tmp_path):
    wrong = tmp_path / "slurm.conf"
    wrong.write_text("Nonsense=1\n")
    for partition, environment, said in (
        ("nowhere", slurm.environment, r"(sbatch: error: .*\n)+cnnlab: sbatch rejects .*\n"),
        ("all", {"SLURM_CONF": str(wrong)}, r"cnnlab: squeue fails.*\n"),
    ):
        words = (*SMALL, "optim=sgd,adam", "launcher=slurm", f"launcher.partition={partition}")
        status, printed = ended(sweep(tmp_path, *words, **environment))
        assert status == 2
        assert re.fullmatch(said, printed), printed


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What two runs by two processes each come to on this machine."""
    folder = tmp_path_factory.mktemp("alone")
    one_node = (*LONGER, "trainer=ddp", "trainer.devices=2", "launcher=local")
    status, printed = ended(sweep(folder, *one_node, "optim=sgd,adam"))
    assert status == 0, printed
    return metrics(folder)


@pytest.mark.slurm
def test_two_node_jobs_survive_what_happens_to_them(slurm, alone, tmp_path, command):
    """Requeued, told to stop, a node lost, the driver gone: the metrics are those of this machine alone."""
    there = tmp_path / "there"
    there.mkdir()
    words = (*TWO_NODES, "optim=sgd,adam", "launcher=slurm")
    driver = sweep(there, *words, **slurm.environment)
    until(lambda: len(list(there.glob("outputs/runs/*/.queued"))) == 2, process=driver)
    jobs = {file.read_text(): file.parent for file in sorted(there.glob("outputs/runs/*/.queued"))}
    first, second = sorted(jobs)

    def epochs(job: str) -> int:
        log = jobs[job] / "train.log"
        return len(re.findall(r"epoch +\d+/", log.read_text())) if log.exists() else 0

    until(lambda: epochs(first), process=driver)
    slurm.said("scontrol", "requeue", first)
    until(lambda: epochs(second), process=driver)
    driver.send_signal(signal.SIGINT)
    slurm.said("scancel", "--signal=USR1", second)
    status, printed = ended(driver)
    assert status == 130, printed
    assert "The same command waits for them again." in printed
    until(lambda: "interrupted" in {one.get("status") for one in summaries(there / "outputs").values()})
    told = command("-m", "cnnlab", "status", str(there / "outputs"))
    assert re.search(rf"interrupted.*\d+/{EPOCHS}.* {second}", told.stdout.replace("\n", " ")), (
        told.stdout + told.stderr
    )

    driver = sweep(there, *words, **slurm.environment)
    before = {job: epochs(job) for job in jobs}
    until(lambda: not_later(slurm) and any(epochs(job) > before[job] + 1 for job in jobs), process=driver)
    slurm.kill_node("n2")
    time.sleep(5)
    slurm.start_node("n2")
    while driver.poll() is None:
        not_later(slurm)
        time.sleep(0.5)
    status, printed = ended(driver)
    assert status == 0, printed
    assert "2 of them are already in the queue" in printed
    assert metrics(there) == alone
    assert sorted(file.read_text() for file in there.glob("outputs/runs/*/.queued")) == [first, second]
    told = "".join(file.read_text() for file in there.glob("outputs/runs/.slurm/*_0_log.out"))
    assert told.count("SIGUSR1: saving") == 1
    assert "DUE TO JOB REQUEUE" in told
    assert "ConnectionError" in told


@pytest.mark.slurm
def test_a_new_project_comes_to_the_same_on_two_nodes(slurm, tmp_path):
    """`cnnlab new`, its experiment here by two processes, and there by two nodes."""
    found = []
    two_nodes = ("trainer.devices=1", "trainer.num_nodes=2", "launcher=slurm", "launcher.cpus_per_task=1")
    for name, words, environment in (
        ("here", ("trainer.devices=2", "launcher=local"), {}),
        ("there", two_nodes, slurm.environment),
    ):
        project = tmp_path / name / "stripey"
        project.parent.mkdir()
        new.make(project)
        words = ("experiment=first", "model=small,linear", "trainer=ddp", "trainer.accelerator=cpu", *words)
        driver = sweep(project, *words, program=project / "train.py", PYTHONPATH=str(ROOT), **environment)
        status, printed = ended(driver)
        assert status == 0, printed
        assert "Which model (linear, small)" in next(project.glob("outputs/runs/report-*/report.md")).read_text()
        summaries = [json.loads(file.read_text()) for file in project.glob("outputs/runs/*/summary.json")]
        found.append({one["choices"]["model"]: one["metrics"] for one in summaries})
    assert found[0].keys() == {"small", "linear"}
    assert "test/worst_class" in found[0]["small"]
    assert found[0] == found[1]


@pytest.mark.slurm
def test_jobs_for_which_there_is_no_node_are_told(slurm, tmp_path):
    words = (*TWO_NODES[:-1], "optim=sgd,adam", "launcher=slurm", "launcher.cpus_per_task=3")
    driver = sweep(tmp_path, *words, **slurm.environment)
    told = [driver.stdout.readline() for _ in range(3)]  # after what is set twice, and the number of jobs
    assert re.match(r"No job has started yet: PENDING \(PartitionConfig\)\. If no node has", told[2])
    driver.send_signal(signal.SIGINT)
    status, printed = ended(driver)
    slurm.said("scancel", "--user", "root")
    assert status == 130, printed


@pytest.mark.slurm
def test_srun_starts_the_processes_and_sbatchs_script_is_one(slurm, tmp_path):
    train = [sys.executable, str(ROOT / "train.py"), *SMALL, "trainer=ddp", "trainer.max_epochs=1"]
    own = {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    environment = os.environ | own | slurm.environment

    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)

    refused = typed("srun", "-N1", "-n2", *train, "trainer.devices=4")
    assert refused.returncode == 2, refused.stderr
    assert "srun has started 2 processes on 1 node, but trainer.devices=4" in refused.stderr
    result = typed("srun", "-N2", "-n2", *train, "trainer.devices=1", "trainer.num_nodes=2")
    assert result.returncode == 0, result.stderr
    [summary] = summaries(tmp_path / "outputs").values()
    assert (summary["status"], summary["environment"]["num_devices"]) == ("done", 2)
    said = (
        "import omegaconf as o; from cnnlab.config.processes import place as p; print(p(o.OmegaConf.create({trainer})))"
    )
    script = "".join(
        f"{sys.executable} -c '{said.format(trainer=trainer)}'\n"
        for trainer in ('{"devices": 1, "num_nodes": 1}', '{"devices": 2, "num_nodes": 1}')
    )
    (tmp_path / "script").write_text(f"#!/bin/bash\n#SBATCH --ntasks=4\n{script}")
    told = typed("sbatch", "--wait", "--output=out", "script")
    assert told.returncode == 0, told.stderr
    assert (tmp_path / "out").read_text() == f"{Place()}\n" * 2


@pytest.mark.slurm
def test_preempted_and_without_the_node_of_its_script(slurm, alone, tmp_path):
    """Slurm puts the job back both times, and it goes on from where it was."""
    words = (*TWO_NODES, "launcher=slurm", "optim=sgd")
    driver = sweep(tmp_path, *words, **slurm.environment)
    [run] = until(lambda: [file.parent for file in tmp_path.glob("outputs/runs/*/metrics.csv")], process=driver)
    log = run / "train.log"
    slurm.said("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    until(lambda: "SIGTERM" in log.read_text(), process=driver)
    begun = len(log.read_text())
    until(lambda: not_later(slurm) and "epoch " in log.read_text()[begun:], process=driver)
    slurm.kill_node("n1")
    time.sleep(5)
    slurm.start_node("n1")
    while driver.poll() is None:
        not_later(slurm)
        time.sleep(0.5)
    status, printed = ended(driver)
    assert status == 0, printed
    assert metrics(tmp_path)["sgd"] == alone["sgd"]
    told = "".join(file.read_text() for file in tmp_path.glob("outputs/runs/.slurm/*_0_log.out"))
    assert "DUE TO PREEMPTION" in told


@pytest.mark.slurm
def test_a_time_limit_strikes(slurm, tmp_path):
    """The job saves before, goes back into the queue, and is done in the end.

    On a slow machine it may strike before the first epoch's end.
    """
    words = (*SMALL, "trainer.max_epochs=400", "launcher=slurm", "launcher.cpus_per_task=1")
    driver = sweep(tmp_path, *words, "launcher.time=1", "launcher.save_before=35", **slurm.environment)
    output = tmp_path / "outputs"
    until(lambda: not_later(slurm) and list(output.glob("runs/*/metrics.csv")), timeout=300, process=driver)
    until(lambda: "BeginTime" in slurm.said("squeue", "--noheader", "--format", "%r"), process=driver)
    assert json.loads((only_run(output) / "summary.json").read_text())["status"] == "interrupted"
    while driver.poll() is None:
        not_later(slurm)
        time.sleep(0.5)
    status, printed = ended(driver)
    assert status == 0, printed
    assert "SIGUSR2: saving" in "".join(file.read_text() for file in output.glob("runs/.slurm/*.out"))
