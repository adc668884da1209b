"""What a project brings is an option like ours; the project is examples/own_project, copied."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

DATA = ("data=shapes", "data.num_train=200", "data.num_test=50", "batch_size=20", "trainer.max_epochs=1")
SMALL = (*DATA, "trainer.accelerator=cpu", "logger=none", "norm=standard")
OWN = ("model=tower", "optim=adafactor")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "examples" / "own_project", tmp_path / "project"))


def typed(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """python -m cnnlab WORDS in a folder."""
    environment = {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | environment
    command = [sys.executable, "-m", "cnnlab", *words]
    return subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )


def only(folder: Path) -> Path:
    [run] = folder.glob("outputs/*/*/summary.json")
    return run.parent


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_network_and_an_optimizer(project):
    words = (
        "train",
        *SMALL,
        *OWN,
        "model.scale=1.5",
        "model.hidden=[8,16]",
        "model.momentum=0.5",
        "model.padding=valid",
    )
    first = typed(project, *words)
    assert first.returncode == 0, first.stderr
    run = only(project)
    assert run.name.startswith("shapes-standard-tower-adafactor-")
    assert "scale=1.5-hidden=_8_16_" in run.name or "hidden=_8_16_-scale=1.5" in run.name
    assert "done before" in typed(project, *words).stdout
    change(project / "own" / "networks.py", "return self.scale *", "return 2 * self.scale *")
    again = typed(project, *words)
    assert "But the source code changed since" in again.stdout, again.stdout + again.stderr


def test_its_class_is_moved_and_its_option_removed(project):
    words = ("train", *SMALL, *OWN)
    assert typed(project, *words).returncode == 0
    run = only(project)
    (project / "own" / "networks.py").rename(project / "own" / "towers.py")
    change(project / "conf" / "model" / "tower.yaml", "own.networks.Tower", "own.towers.Tower")
    assert "done before" in typed(project, *words).stdout
    evaluated = typed(project, "evaluate", str(run))
    assert evaluated.returncode == 0, evaluated.stderr
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert found["acc"] == json.loads((run / "summary.json").read_text())["metrics"]["test/acc"]
    (project / "conf" / "model" / "tower.yaml").unlink()
    gone = typed(project, "evaluate", str(run))
    assert gone.returncode == 2
    assert "was trained with model=tower, and there is no such option here" in gone.stderr


def test_two_losses_and_two_networks_swept_in_processes_of_their_own_from_another_folder(project, tmp_path):
    axes = ("model=tower,cnn", "loss=cross_entropy,focal", "data.num_train=60")
    own = ("--config-dir", "project/conf")
    words = ("train", *own, "-m", "launcher=local", "launcher.jobs_per_device=2", *SMALL, *axes)
    refused = typed(tmp_path, *words, "model.scale=1")  # cnn has none
    assert refused.returncode == 2
    assert "model.scale" in refused.stderr
    result = typed(tmp_path, *words)
    assert result.returncode == 0, result.stdout + result.stderr
    found = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/runs/*/summary.json")]
    choices = {(one["choices"]["model"], one["choices"]["loss"]): one["metrics"]["test/loss"] for one in found}
    assert set(choices) == {(m, loss) for m in ("tower", "cnn") for loss in ("cross_entropy", "focal")}
    assert all(choices[m, "focal"] < choices[m, "cross_entropy"] for m in ("tower", "cnn"))
    [focal] = list(tmp_path.glob("outputs/runs/*tower-focal*"))
    evaluated = typed(tmp_path, *own, "evaluate", str(focal))
    assert evaluated.returncode == 0, evaluated.stderr
    assert f"loss {choices['tower', 'focal']:.4f}" in evaluated.stdout


def test_a_function_of_another_package(project):
    small = ("data.num_train=40", "data.num_test=10", "val_fraction=0.25")
    result = typed(project, "train", *SMALL, *small, "model=resnet18")
    assert result.returncode == 0, result.stderr
    assert json.loads((only(project) / "summary.json").read_text())["num_weights"] == 11_181_642


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model=towr",), "Did you mean model=tower?"),
        (("model=tower", "model.sise=3"), "model.size"),
        (("model=tower", "model.size=medium"), "size=medium is none of small, large"),
        (("model=tower", "model.labels=3"), "gives (1, 3) for one image"),
        (("model=tower", "model.labels=data.number"), "data.num_classes, data.channels, data.image_size"),
        (("model=tower", "model._target_=os.system"), "is not allowed"),
        (("loss=focal", "loss.gamma=-1"), "loss.gamma=-1 is not allowed; it must satisfy gamma >= 0"),
        (("loss=focal", "loss.gamma=much"), "loss.gamma=much is not a finite number"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_mistakes_are_one_paragraph(project, words, said):
    result = typed(project, "train", *SMALL, *words)
    assert result.returncode == 2, result.stdout + result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_elsewhere_there_is_no_such_option(project, tmp_path):
    result = typed(tmp_path, "train", *SMALL, "model=tower")
    assert (result.returncode, "The group model offers bow, cnn" in result.stderr) == (2, True)


def test_a_folder_that_is_not_there(tmp_path):
    result = typed(tmp_path, "train", "--config-dir=nowhere", *SMALL)
    assert (result.returncode, "nowhere is no folder of options" in result.stderr) == (2, True)


def test_a_stranger_names_no_folder_of_options(project, tmp_path):
    """A pyproject.toml above the current folder may be somebody else's, as in /tmp."""
    os.chown(project / "pyproject.toml", 12345, 12345)
    result = typed(project, "train", *SMALL, "model=tower")
    assert (result.returncode, "there is no 'tower'" in result.stderr) == (2, True)
