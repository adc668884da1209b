"""python train.py [group=option ...] [key=value ...]: train one run; with -m, every combination of lists of values.

Composing and checking a configuration takes no torch; it is imported when a run starts. Exit status: 0 done, 1 a run
failed, 2 the input is wrong, 143 stopped by a signal after saving (130: by Ctrl-C).
"""

import os
import sys
from contextlib import suppress
from errno import EACCES, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import Any

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cnnlab import signals
from cnnlab.config import GROUPS, UserError, changes, chosen, data_source, described, options, refuse
from cnnlab.job import is_first_process, run_job, train
from cnnlab.records import BusyError, RunDirectory, code_digest, now
from cnnlab.signals import Interrupted


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def job(config: DictConfig) -> None:
    """One job: show the finished run if there is one, otherwise train it."""
    settings = HydraConfig.get()
    run = RunDirectory(Path(settings.runtime.output_dir))
    if not is_first_process():
        if config.rerun or run.summary().get("status") != "done":
            with suppress(Interrupted):
                train(config, run, {})
        return
    try:
        with run.owned(config.on_busy):
            status = open_job(config, run, settings)
    except BusyError as error:
        print(f"cnnlab: {error}. Type on_busy=wait to wait for it.", file=sys.stderr)
        status = 1
    except UserError as error:
        status = refuse(error)
    if status == 2:
        run.forget()
    if status not in (0, 1, 2) or settings.mode == RunMode.RUN:  # else the other jobs of the sweep run
        sys.exit(status)


def open_job(config: DictConfig, run: RunDirectory, settings: HydraConf) -> int:
    """Return a finished run, go on with an interrupted one, begin a new one; return the exit status.

    Raises: UserError.
    """
    digest = data_source(config.data).digest()
    summary = run.summary()
    if summary and config.rerun:
        print(f"The old run is kept as {run.put_aside()}.")
    elif summary.get("status") == "done":
        print(recall(run, summary, digest))
        return 0
    elif summary and summary["data_digest"] != digest:
        raise UserError(f"The data have changed since {run.path} was interrupted. Type rerun=true to train it anew.")
    whole = OmegaConf.create({**config, "hydra": settings})
    about = {
        "run": run.path.name,
        "choices": described(chosen(whole)),
        "changes": changes(whole),
        "overrides": list(settings.overrides.task),
        "seed": config.seed,
        "started": now(),
        "code_digest": code_digest(),
        "data_digest": digest,
    }
    status = run_job(config, run, about, settings)
    if status == 0 and signals.received() and settings.mode == RunMode.MULTIRUN:  # too late to interrupt this job
        return Interrupted(signals.received()).exit_status
    return status


def recall(run: RunDirectory, summary: dict[str, Any], data_digest: str) -> str:
    """One line for a run that was finished before; it says whether code or data have changed since."""
    changed = [
        name
        for name, then, today in (
            ("source code", summary["code_digest"], code_digest()),
            ("data", summary["data_digest"], data_digest),
        )
        if then != today
    ]
    note = f" But the {' and the '.join(changed)} changed since: rerun=true trains it anew." if changed else ""
    accuracy = summary["metrics"]["test/acc"]
    return (
        f"{os.path.relpath(run.path)}: done before, test accuracy {accuracy:.4f}; started {summary['started']}.{note}"
    )


def main() -> None:
    sys.argv[1:] = sorted(sys.argv[1:], key=lambda word: word not in ("-m", "--multirun"))  # wherever it was typed
    os.environ["HYDRA_FULL_ERROR"] = "1"  # mistakes come to us whole and leave as one paragraph
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP advises against what conf/trainer/ddp.yaml says
    try:
        for word in sys.argv[1:]:
            group, _, option = word.partition("=")
            if option == "null" and group in GROUPS:
                raise UserError(f"{word}: a group cannot be null. It offers {', '.join(options(group))}.")
        job()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(refuse(error))
    except OSError as error:
        if error.errno not in (EACCES, EPERM, EROFS, ENOSPC):
            raise
        what = error.filename or "The output folder"
        sys.exit(refuse(UserError(f"{what} cannot be written ({error.strerror}). Type output_dir=FOLDER.")))
    except KeyboardInterrupt:  # before a training has started, or after a second Ctrl-C
        sys.exit(130)


if __name__ == "__main__":
    main()
