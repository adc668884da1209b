"""What train.py does: one run, or with -m a run for every combination of values.

torch is imported when a run starts, not to compose and check a configuration. Exit status: 0 done, 1 a run failed, 2
the input is wrong, 143 stopped by a signal after saving (130: by Ctrl-C).
"""

import os
import re
import sys
from errno import EACCES, EDQUOT, EEXIST, EFBIG, EIO, ELOOP, ENAMETOOLONG, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS, ESTALE
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cnnlab import __version__
from cnnlab.config.check import check_single
from cnnlab.config.errors import refuse, refusing
from cnnlab.config.options import CONF, UserError, folders, use_folders
from cnnlab.config.overrides import check_flags, check_overrides, flags_last, note_repeats, own_folders
from cnnlab.console import announce, outlive_terminal
from cnnlab.launch.job import Job
from cnnlab.runs.directory import RunDirectory

# errors of a file system that is full, over its quota, broken, not ours, or has no such folder
NOT_WRITTEN = (EACCES, EDQUOT, EEXIST, EFBIG, EIO, ELOOP, ENAMETOOLONG, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS, ESTALE)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def single(config: DictConfig) -> None:
    """One run: return it if it is finished, otherwise train it. For sweeps, see hydra_plugins/cnnlab_sweepers.py."""
    settings = HydraConfig.get()
    run = RunDirectory(Path(settings.runtime.output_dir))
    try:
        with refusing():
            whole = OmegaConf.create({**config, "hydra": settings})
            check_single(whole)
            if config.plan:
                from cnnlab.report.plan import print_plan

                print_plan([whole], Path(config.output_dir))
                sys.exit(0)
    except SystemExit:
        if re.search("-[0-9a-f]{8}$", run.path.name):
            run.remove_if_empty()  # Hydra has created the directory
        raise
    sys.exit(Job.of(whole, run.path).do())


def main(*conf: str) -> None:
    """Train as the command line says. conf: folders of option files that are searched before ours."""
    outlive_terminal()
    os.environ["MPLBACKEND"] = "agg"  # a notebook's backend cannot be imported here
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, and we print one paragraph
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP advises against what conf/trainer/ddp.yaml sets
    words = flags_last(sys.argv[1:])
    try:
        with refusing():
            if own := [*own_folders(words), *conf]:
                use_folders(own)
            sys.argv[1:] = words
            folders()
            if "--version" in words:
                print(f"cnnlab {__version__}")
            elif {"--help", "-h"} & set(words):
                from cnnlab.config.help import print_help

                print_help(words)
            else:
                announce("Composing the configuration")
                check_flags(words)
                check_overrides(words)
                note_repeats(words)
                single()
    except OSError as error:
        if RunDirectory(Path()).is_lost:
            sys.exit(refuse(UserError("The working directory was removed. Change to an existing one.")))
        if error.errno not in NOT_WRITTEN:
            raise
        what = error.filename or "The output folder"
        sys.exit(refuse(UserError(f"{what} cannot be written ({error.strerror}). Use output_dir=FOLDER.")))
    except KeyboardInterrupt:  # before training has started, or a second Ctrl-C
        sys.exit(130)
