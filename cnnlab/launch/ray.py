"""launcher=ray: tasks of Ray."""

import os
from collections.abc import Sequence

from omegaconf import DictConfig

from cnnlab.config.options import UserError
from cnnlab.launch.children import python_path
from cnnlab.launch.job import Job
from cnnlab.launch.job_states import differing, report_ended
from cnnlab.launch.local import record_lost


def on_ray(settings: DictConfig, jobs: list[Job], sweep: Sequence[Job]) -> None:
    """Do the jobs where Ray places them; a job whose process or machine is lost is restarted up to ten times."""
    import ray

    ours = {name: value for name, value in os.environ.items() if name.startswith("CNNLAB_")}
    environment = ours | python_path()
    ray.init(address=settings.address, log_to_driver=False, runtime_env={"env_vars": environment})
    names = differing(sweep)
    task, waiting = ray.remote(max_retries=10)(in_folder), {}
    most = {kind: max(node["Resources"].get(kind, 0) for node in ray.nodes()) for kind in ("CPU", "GPU")}
    for job in jobs:
        trainer = job.config.trainer
        none = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not most["GPU"])
        gpus = settings.gpus if settings.gpus is not None else 0 if none else trainer.devices
        if settings.cpus > most["CPU"] or gpus > most["GPU"]:
            raise UserError(
                f"A run needs {settings.cpus} cores and {gpus} GPUs, and no machine of this Ray cluster has more than "
                f"{most['CPU']:.0f} and {most['GPU']:.0f}. Set launcher.cpus= and launcher.gpus=."
            )
        waiting[task.options(num_cpus=settings.cpus, num_gpus=gpus).remote(os.getcwd(), job)] = job
    try:
        while waiting:
            for ended in ray.wait(list(waiting))[0]:
                job = waiting.pop(ended)
                try:
                    ray.get(ended)
                except ray.exceptions.RayError as error:
                    record_lost(job, ChildProcessError(f"Ray could not do it: {error}"))
                report_ended(job, len(waiting), names)
    finally:
        ray.shutdown()


def in_folder(folder: str, job: Job) -> int:
    os.chdir(folder)
    return job.do()
