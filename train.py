"""python train.py [group=option ...] [key=value ...]: train one run; with -m, every combination of lists of values.

Composing and checking a configuration takes no torch; it is imported when a run starts. Exit status: 0 done, 1 a run
failed, 2 the input is wrong, 143 stopped by a signal after saving (130: by Ctrl-C).
"""

import os
import sys
from errno import EACCES, ENOSPC, EPERM, EROFS
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from cnnlab.config import GROUPS, UserError, options, refuse
from cnnlab.job import perform
from cnnlab.records import RunDirectory


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def job(config: DictConfig) -> None:
    """One job: show the finished run if there is one, otherwise train it."""
    settings = HydraConfig.get()
    status = perform(config, settings, RunDirectory(Path(settings.runtime.output_dir)))
    if status not in (0, 1, 2) or settings.mode == RunMode.RUN:  # else the other jobs of the sweep run
        sys.exit(status)


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
