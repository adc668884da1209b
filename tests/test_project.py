"""cnnlab new and cnnlab rename: a project that uses cnnlab, a fork of it, and the checks for a project's options."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

from cnnlab import __version__, testing
from cnnlab.config.options import UserError
from cnnlab.project import new
from cnnlab.project.rename import renamed


def run(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(
        words,
        cwd=cwd,
        env=inherited | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


# ------------------------------------------------------------------------------------------------------------------ new


def test_a_new_project_is_written_whole_under_its_name(verb, tmp_path):
    result = verb("new", "stripey")
    assert result.returncode == 0, result.stderr
    files = {path.relative_to(tmp_path).as_posix() for path in (tmp_path / "stripey").rglob("*") if path.is_file()}
    assert {
        "stripey/" + name
        for name in ("train.py", "Makefile", "README.md", ".gitignore", ".github/workflows/tests.yml", "pyproject.toml")
        + ("stripey/networks.py", "conf/model/small.yaml", "conf/experiment/first.yaml", "tests/test_options.py")
    } <= files
    texts = {name: (tmp_path / name).read_text() for name in files}
    assert not [name for name, text in texts.items() if new.NAME in text + name or "REQUIREMENT" in text]
    assert len(texts["stripey/train.py"].splitlines()) == 3
    assert all(len(text.splitlines()) <= 50 for name, text in texts.items() if name.endswith(".py"))
    project = tomllib.loads(texts["stripey/pyproject.toml"])
    assert project["project"]["dependencies"] == [f"cnnlab @ {ROOT.as_uri()}"]
    assert project["tool"]["cnnlab"]["conf"] == "conf"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stripey"]
    again = verb("new", "stripey")
    assert (again.returncode, "already exists" in again.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my-project", "for example my_project."),
        ("My", "for example my."),
        ("2d", "Use lower-case letters"),
        ("class", "cannot be the name"),
        ("été", "cannot be the name"),
        ("random", "random is in use"),
        ("cnnlab", "cnnlab is in use"),
        ("tests", "tests is in use"),
        ("torch", "torch would hide an installed package"),
        ("nowhere/stripey", "nowhere is not a folder"),
    ],
)
def test_a_name_that_is_none_or_taken(verb, tmp_path, name, said):
    result = verb("new", name)
    assert result.returncode == 2
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_half_a_project_is_never_there(monkeypatch, tmp_path):
    write = Path.write_text

    def fails(path: Path, *arguments, **named):
        if path.name == "losses.py":
            raise OSError("the disk is full")
        return write(path, *arguments, **named)

    monkeypatch.setattr(Path, "write_text", fails)
    with pytest.raises(OSError, match="the disk is full"):
        new.make(tmp_path / "stripey")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("noted", "requirement"),
    [
        ('{"url": "file:///src/cnnlab", "dir_info": {}}', "cnnlab @ file:///src/cnnlab"),
        (
            '{"url": "https://host/cnnlab", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
            "cnnlab @ git+https://host/cnnlab@abc",
        ),
        (None, f"cnnlab~={__version__}"),
    ],
)
def test_it_asks_for_the_cnnlab_that_wrote_it(monkeypatch, tmp_path, noted, requirement):
    class Distribution:
        def read_text(self, name):
            return noted

    monkeypatch.setattr(new, "PACKAGE", tmp_path / "cnnlab")  # as in site-packages: no pyproject.toml beside it
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Distribution())
    assert new.requirement() == requirement


NOT_SHAPES = '''
class Bars(Stripes):
    """Wide color images of three classes."""

    @property
    def shape(self) -> Shape:
        return Shape(3, channels=3, height=self.height, width=self.width)

    def draw(self, num: int, seed: int) -> Images:
        drawn = super().draw(num, seed)
        return Images(drawn.pixels.repeat(3, 1), drawn.targets % 3, ("a", "b", "c"))
'''
WIDE = """
class Wide(nn.Module):
    def __init__(self, planes: int, labels: int, pixels: int):
        super().__init__()
        self.layer = nn.Linear(planes * pixels, labels)

    def forward(self, images):
        return self.layer(images.flatten(1))
"""


def test_a_new_project_is_tested_changed_swept_and_reported(tmp_path):
    """Its own `make test`; then what a user would change: data of another shape, a network, a metric."""
    project = tmp_path / "stripey"
    new.make(project)
    tested = run("make", "test", f"PYTHON={sys.executable}", cwd=project)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "5 passed" in tested.stdout

    for file, text in (("data.py", NOT_SHAPES), ("networks.py", WIDE)):
        with open(project / "stripey" / file, "a") as opened:
            opened.write(text)
    for name, text in {
        "data/bars": "_target_: stripey.data.Bars\nnum_train: 90\nnum_test: 30\nheight: 12\nwidth: 40\nnoise: 0.5\n",
        "model/wide": "_target_: stripey.networks.Wide\nplanes: data.channels\nlabels: data.num_classes\npixels: 480\n",
        "metrics/kappa": "# @package metrics.kappa\n_target_: torchmetrics.classification.MulticlassCohenKappa\n"
        "num_classes: data.num_classes\n",
    }.items():
        (project / "conf" / f"{name}.yaml").write_text(text)
    words = ("experiment=first", "data=bars", "model=wide,small", "metrics=[acc,kappa,worst_class]", "batch_size=9")
    swept = run(sys.executable, "train.py", "-m", *words, "trainer.max_epochs=2", "seed=range(2)", cwd=project)
    assert swept.returncode == 0, swept.stdout + swept.stderr
    found = [json.loads(file.read_text()) for file in project.glob("outputs/runs/*/summary.json")]
    assert {one["choices"]["model"] for one in found} == {"wide", "small"}
    assert all({"test/kappa", "test/worst_class", "test/acc"} <= set(one["metrics"]) for one in found)
    [report] = project.glob("outputs/runs/report-*/report.md")
    assert "Which model (small, wide)" in report.read_text()


# -------------------------------------------------------------------------------------------------------------- testing

FAST = (
    *("data=shapes", "data.num_train=60", "data.num_test=20", "model.channels=[4,4,4]", "model.hidden=8"),
    *("batch_size=10", "trainer.max_epochs=2", "norm=standard"),
)
BROKEN = '''
import hashlib, itertools, random
import torch
from torch import nn
from cnnlab.data.shapes import Shapes
from cnnlab.networks import ConvNet

numbers = itertools.count()
own = random.Random(0)

class Forgets(ConvNet):
    """Is random in a way that nobody restores."""
    def forward(self, images):
        return super().forward(images) * (1 + own.random() * self.training)

class Nothing(nn.Module):
    """Has weights that no gradient reaches, and outputs that do not depend on the input."""
    def __init__(self, num_classes):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_classes))
    def forward(self, images):
        return (self.weight * 0 + self.weight.detach()).expand(len(images), -1)

class Counts(Shapes):
    """Two of them are not the same."""
    def digest(self):
        return hashlib.sha256(repr((next(numbers), vars(self))).encode()).hexdigest()

class Hashes(Shapes):
    """Is another one in another process."""
    def digest(self):
        return str(hash("shapes"))
'''


@pytest.fixture
def broken(own_options):
    files = {
        "model/forgets": "_target_: broken.Forgets\nnum_classes: data.num_classes\nin_channels: data.channels\n"
        "image_size: data.image_size\nchannels: [4]\nhidden: 8\n",
        "model/nothing": "_target_: broken.Nothing\nnum_classes: data.num_classes\n",
        "data/counts": "_target_: broken.Counts\nnum_train: 60\nnum_test: 20\n",
        "data/hashes": "_target_: broken.Hashes\nnum_train: 60\nnum_test: 20\n",
    }
    own_options("broken", BROKEN, files)


def test_what_is_wrong_with_an_option_is_found(broken):
    assert testing.own_options() == ["data=counts", "data=hashes", "model=forgets", "model=nothing"]
    small = [word for word in FAST if not word.startswith("model.")]
    with pytest.raises(AssertionError, match=r"of epoch 1: .* when resumed"):
        testing.check_resumes("model=forgets", *small)
    with pytest.raises(AssertionError, match="not changed any weight"):
        testing.check_one_batch("model=nothing", *small)
    with pytest.raises(AssertionError, match="The digest of Counts differs for the same arguments"):
        testing.check_identity("data=counts", *FAST)
    with pytest.raises(AssertionError, match="digest of Hashes differs in another process"):
        testing.check_identity("data=hashes", *FAST)
    with pytest.raises(AssertionError, match="fewer than 99 steps"):
        testing.check_resumes(*FAST, "trainer.max_epochs=1", step=99)


# --------------------------------------------------------------------------------------------------------------- rename


@pytest.fixture
def fork(tmp_path):
    """A checkout of this repository, committed, as it lies here."""
    folder = tmp_path / "fork"
    if not (ROOT / ".git").exists():
        pytest.skip("a source archive has no git history, and only a git repository can be forked")
    listed = run("git", "ls-files", "-z", cwd=ROOT).stdout.split("\0")[:-1]
    assert listed
    for name in listed:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    for words in (("init", "-q"), ("add", "-A"), ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all")):
        assert run("git", *words, cwd=folder).returncode == 0
    return folder


def test_a_fork_has_its_own_name_everywhere_and_finds_old_runs(fork, tmp_path):
    words = ("train.py", "data=shapes", "data.num_train=60", "data.num_test=20", "batch_size=20", "logger=none")
    words = (*words, "trainer.max_epochs=1", "model.hidden=8", f"output_dir={tmp_path}/outputs")
    first = run(sys.executable, *words, cwd=fork, PYTHONPATH=str(fork))
    assert first.returncode == 0, first.stderr
    (fork / "README.md").write_text("changed")
    with pytest.raises(UserError, match="has uncommitted changes"):
        renamed(fork, "petlab")
    assert run("git", "checkout", "README.md", cwd=fork).returncode == 0
    renamed(fork, "petlab")
    left = run("grep", "-rIil", "cnnlab", ".", "--exclude-dir=.git", cwd=fork).stdout.split()
    assert left == ["./LICENSE"]
    assert [path for path in fork.rglob("*[cC][nN][nN][lL][aA][bB]*") if ".git" not in path.parts] == []
    assert (fork / "petlab" / "conf" / "train.yaml").exists()
    again = run(sys.executable, *words, cwd=fork, PYTHONPATH=str(fork))
    assert again.returncode == 0, again.stderr
    assert "already finished" in again.stdout
    assert "source code" in again.stdout  # has changed, and that is said
    listed = run(sys.executable, "-m", "petlab", "ls", f"{tmp_path}/outputs", cwd=fork, PYTHONPATH=str(fork))
    assert re.search(r"1 of 1 runs", listed.stdout), listed.stderr


def test_only_a_repository_is_renamed(tmp_path):
    with pytest.raises(UserError, match="is not a git repository"):
        renamed(tmp_path, "petlab")
    with pytest.raises(UserError, match="cannot be the name"):
        renamed(tmp_path, "pet-lab")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("*")
    (tmp_path / "cnnlab").mkdir()
    (tmp_path / "cnnlab" / "__init__.py").write_text("")  # installed in an environment that a repository ignores
    with pytest.raises(UserError, match="is not a git repository"):
        renamed(tmp_path, "petlab")


def test_every_name_of_the_contract_is_there():
    names = set(re.findall(r"`(cnnlab(?:\.\w+)+)`", (ROOT / "docs" / "api.md").read_text()))
    assert len(names) > 15
    for name in sorted(names):
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last) or importlib.util.find_spec(name), name
