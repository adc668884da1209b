"""Checks for the options of a project, for its own tests.

    from cnnlab import testing

    SMALL = ("data=stripes", "data.num_train=60", "batch_size=10", "trainer.max_epochs=2")

    @pytest.mark.parametrize("option", testing.own_options())
    def test_own_option(option):
        testing.check_one_batch(option, *SMALL)
        testing.check_resumes(option, *SMALL)
        testing.check_identity(option, *SMALL)

They take overrides like `train.py`; if a key is given twice, the first value counts. They train on the CPU, in a
temporary folder. A failed check is an AssertionError with a message; an invalid configuration is a UserError.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from omegaconf import OmegaConf

import cnnlab
from cnnlab.config.identity import chosen, identity, left_out
from cnnlab.config.objects import data_source, instantiate
from cnnlab.config.options import GROUPS, LISTED, VARIABLE, files, folders, leaves, option_file
from cnnlab.data.images import load_once
from cnnlab.launch.children import python_path
from cnnlab.runs.directory import RunDirectory

TIMES = ("epoch_seconds", "images_per_second")


def _is_own(group: str, name: str) -> bool:
    return any(files(group)[name].is_relative_to(folder) for folder in folders()[:-1])


def own_options() -> list[str]:
    """The options that the project brings, as overrides: ["data=stripes", "metrics=worst_class select_on=val/loss"]."""
    return [
        f"{group}={name}" + " select_on=val/loss" * (group == "metrics")
        for group in (*GROUPS, "experiment")
        for name in sorted(files(group))
        if _is_own(group, name)
    ]


def words(*overrides: str, folder: str = "") -> list[str]:
    """The overrides, the first one for every key, and those of the checks themselves. folder: for outputs."""
    own = ("trainer.accelerator=cpu", "logger=none", f"output_dir={folder}" if folder else "name=check")
    found: dict[str, str] = {}
    for word in shlex.split(" ".join((*overrides, *own))):
        found.setdefault(word.partition("=")[0], word)
    return list(found.values())


def check_one_batch(*overrides: str) -> None:
    """After one training step and one evaluation, all metrics are finite and weights have changed."""
    config = cnnlab.compose(words(*overrides))
    data = load_once(data_source(config.data))
    from lightning import Trainer

    from cnnlab.train.parts import assemble

    parts = assemble(config, data)
    before = [weights.detach().clone() for weights in parts.module.parameters()]
    trainer = Trainer(fast_dev_run=True, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(parts.module, parts.data)
    for name, value in trainer.callback_metrics.items():
        assert value.isfinite().all(), f"{name} is {value} after one batch"
    same = [old.equal(new) for old, new in zip(before, parts.module.parameters(), strict=True)]
    assert not all(same), "A training step has not changed any weight"


def check_resumes(*overrides: str, step: int = 2) -> None:
    """A run that is stopped after a step and resumed ends bit for bit like an uninterrupted one, and is then returned.

    If it does not, something draws random numbers outside the plan of an epoch and torch's own generators, or has state
    that is in no state_dict.
    """
    with TemporaryDirectory() as folder:
        plain = cnnlab.train(words(*overrides, folder=f"{folder}/plain"))
        again = words(*overrides, folder=f"{folder}/stopped")
        with stopped_after(step) as reached, suppress(KeyboardInterrupt):
            cnnlab.train(again)
        assert reached, f"The run has fewer than {step} steps. Use more images or epochs, or an earlier step."
        resumed = cnnlab.train(again)
        for before, after in zip(*(RunDirectory(run.path).metrics() for run in (plain, resumed)), strict=True):
            for name in before.keys() - TIMES:
                where = f"{name} of epoch {before['epoch']:.0f}"
                assert before[name] == after.get(name), f"{where}: {before[name]}, and {after.get(name)} when resumed"
        assert plain.metrics == resumed.metrics, f"{plain.metrics}, and when resumed {resumed.metrics}"
        for name in ("best", "last"):
            for key, values in _weights(plain, name).items():
                other = _weights(resumed, name)[key]  # an extra state may be anything
                same = values.equal(other) if hasattr(values, "equal") else repr(values) == repr(other)
                assert same, f"{key} of {name}.ckpt differs when resumed"
        written = (resumed.path / "summary.json").stat().st_mtime_ns
        cnnlab.train(again)
        assert (resumed.path / "summary.json").stat().st_mtime_ns == written, "A finished run was trained again"


def _weights(run: Any, name: str) -> dict[str, Any]:
    import torch

    return torch.load(run.path / "checkpoints" / f"{name}.ckpt", map_location="cpu", weights_only=True)["state_dict"]


@contextmanager
def stopped_after(step: int) -> Iterator[list[int]]:
    """Within the block, the first run gets SIGTERM after this many steps; yields their list."""
    from cnnlab.train.records import Records

    original, reached = Records.on_train_batch_end, list[int]()

    def on_train_batch_end(self: Records, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step >= step and not reached:
            reached.append(trainer.global_step)
            signal.raise_signal(signal.SIGTERM)  # SIGINT may be ignored, as in a background job
        original(self, trainer, *arguments)

    with patch.object(Records, "on_train_batch_end", on_train_batch_end):
        yield reached


def check_identity(*overrides: str) -> None:
    """Every number in the project's options is part of a run's identity, and a data set's digest identifies its images.

    The digest is the same for the same arguments, in another process too, and the images are the same every time.
    """
    given = words(*overrides)
    config = cnnlab.compose(given)
    assert identity(config) == identity(cnnlab.compose(given)), "The same overrides have two identities"
    out = left_out(config)
    for group, names in chosen(config).items():
        for name in names:
            if group not in GROUPS or not _is_own(group, name):
                continue
            prefix = f"{group}.{name}" if group in LISTED else group
            for key, value in leaves(option_file(f"{group}/{name}")):
                path = f"{prefix}.{key}"
                if isinstance(value, int | float) and path not in out and prefix not in out:
                    other = deepcopy(config)
                    OmegaConf.update(other, path, not value if isinstance(value, bool) else value + 1)
                    assert identity(other) != identity(config), f"{path} is not part of the run's identity"
    if _is_own("data", chosen(config)["data"][0]):
        source, another = data_source(config.data), instantiate(config.data)
        kind = type(source).__name__
        assert source.digest() == another.digest(), f"The digest of {kind} differs for the same arguments"
        assert source.load().fingerprint == another.load().fingerprint, f"The images of {kind} differ every time"
        assert source.digest() == _digest_elsewhere(given), f"The digest of {kind} differs in another process"


def _digest_elsewhere(given: list[str]) -> str:
    """The digest of the data in a process with another hash seed."""
    code = (
        "import sys, cnnlab\nfrom cnnlab.config.objects import data_source\n"
        "print('digest', data_source(cnnlab.compose(sys.argv[1:]).data).digest())"
    )
    project = {VARIABLE: os.pathsep.join(map(str, folders()[:-1]))}
    result = subprocess.run(
        [sys.executable, "-c", code, *given],
        env=os.environ | python_path() | project | {"PYTHONHASHSEED": "123"},
        capture_output=True,
        text=True,
        check=False,
        cwd=Path.cwd(),
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split("digest ")[1].strip()
