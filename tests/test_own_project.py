"""What a project brings is an option like ours; the project is examples/own_project, copied."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image
from zygote import differences, left_by, only_run, said

from cnnlab.cli import verbs
from cnnlab.config.options import _folders, folders
from cnnlab.runs.wording import headline, in_words, reported

DATA = ("data=shapes", "data.num_train=200", "data.num_test=50", "batch_size=20", "trainer.max_epochs=1")
SMALL = (*DATA, "trainer.accelerator=cpu", "logger=none", "norm=standard")
OWN = ("model=tower", "optim=adafactor")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "examples" / "own_project", tmp_path / "project"))


def typed(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """cnnlab WORDS in a folder."""
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
    assert "already finished" in typed(project, *words).stdout
    change(project / "own" / "networks.py", "return self.scale *", "return 2 * self.scale *")
    again = typed(project, *words)
    assert "But the source code changed since" in again.stdout, again.stdout + again.stderr


def test_its_class_is_moved_and_its_option_removed(project):
    words = ("train", *SMALL, *OWN)
    assert typed(project, *words).returncode == 0
    run = only(project)
    (project / "own" / "networks.py").rename(project / "own" / "towers.py")
    change(project / "conf" / "model" / "tower.yaml", "own.networks.Tower", "own.towers.Tower")
    assert "already finished" in typed(project, *words).stdout
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
        (("model=tower", "model.size=medium"), "size=medium is not one of small, large"),
        (("model=tower", "model.labels=3"), "returns (1, 3) for one image"),
        (("model=tower", "model.labels=data.number"), "data.num_classes, data.channels, data.height"),
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


def test_help_lists_what_a_project_brings(project):
    said = typed(project, "train", "--help").stdout
    assert [
        name for name in ("tower", "gray", "autoencoder", "f1_of_labels", "halves", "focal") if name not in said
    ] == []


@pytest.mark.parametrize(
    ("program", "line", "offered"),
    [
        ("train.py", "python train.py model=t", "model=timm model=timm_resnet18 model=torchvision model=tower"),
        ("cnnlab", "cnnlab train -m model=to", "model=torchvision model=tower"),
        ("cnnlab", "cnnlab anatomy model=to", "model=torchvision model=tower"),
        ("cnnlab", "cnnlab ev", " ".join(verbs())),  # bash takes those that begin with ev
        ("cnnlab", "cnnlab predict la", ""),
    ],
)
def test_completion_offers_what_a_project_brings(project, program, line, offered):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COMP_LINE": line, "COMP_POINT": str(len(line))}
    words = [program] if program == "train.py" else ["-m", program]
    command = [sys.executable, *words, "-sc", "query=bash"]
    result = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == offered.split(), result.stderr


def test_elsewhere_there_is_no_such_option(project, tmp_path):
    result = typed(tmp_path, "train", *SMALL, "model=tower")
    assert (result.returncode, "The group model offers bow, cnn" in result.stderr) == (2, True)


def test_a_folder_that_is_not_there(tmp_path):
    result = typed(tmp_path, "train", "--config-dir=nowhere", *SMALL)
    assert (result.returncode, "nowhere is not a folder of options" in result.stderr) == (2, True)


def test_a_stranger_names_no_folder_of_options(project, tmp_path):
    """A pyproject.toml above the current folder may be somebody else's, as in /tmp."""
    os.chown(project / "pyproject.toml", 12345, 12345)
    result = typed(project, "train", *SMALL, "model=tower")
    assert (result.returncode, "there is no 'tower'" in result.stderr) == (2, True)


@pytest.mark.parametrize("how", ["a folder of everybody", "a link to ours", "a folder of another user"])
def test_what_a_stranger_can_put_there_names_no_folder_of_options(project, monkeypatch, capsys, how):
    if how == "a folder of everybody":
        project.chmod(0o1777)
    elif how == "a link to ours":
        (project / "pyproject.toml").rename(project.parent / "ours.toml")
        (project / "pyproject.toml").symlink_to(project.parent / "ours.toml")
        os.chown(project / "pyproject.toml", 12345, 12345, follow_symlinks=False)
    else:
        os.chown(project, 12345, 12345)
    monkeypatch.chdir(project)
    _folders.cache_clear()
    assert len(folders()) == 1
    assert "pyproject.toml may be another user's and is not used" in capsys.readouterr().err


def test_a_run_directory_names_no_folder_of_options(project, monkeypatch):
    """Though its files belong to the user who has unpacked it."""
    monkeypatch.chdir(project)
    assert folders()[0] == project / "conf"
    (project / ".hydra").mkdir()
    _folders.cache_clear()
    assert len(folders()) == 1


# --------------------------------------------------------------------------------------- everything, killed and used

FAST = (
    *("data.num_train=400", "data.num_test=80", "batch_size=40", "trainer.max_epochs=2", "trainer.accelerator=cpu"),
    "checkpoint.every_n_steps=3",
)
BROUGHT = {
    "own crop and mixer, a hundred gray classes, a head with a rate of its own, Lightning's average": (
        *("data=gray", "data.num_train=1200", "data.num_test=200", "model=tower", "model.head_rate=10"),
        *("metrics=[acc,top5,f1,auroc]", "aug=[rows,halves]", "callbacks=[average,rates]"),
        *("optim=sgd", "sched=cyclic", "norm=standard"),
    ),
    "four channels, a function of another package": (
        *("data=four_channels", "model=timm_resnet18", "norm=zca", "data.num_train=80", "data.num_test=20"),
        *("batch_size=10", "val_fraction=0.25", "optim=sgd"),
    ),
    "several labels, chosen by their F1": (
        *("data=labels", "model=tower", "loss=bce", "metrics=f1_of_labels", "select_on=val/f1_of_labels"),
        *("aug=halves", "norm=standard", "optim=adafactor"),
    ),
    "numbers": (
        *("data=numbers", "model=cnn", "model.hidden=20", "loss=mse", "metrics=mae", "select_on=val/mae"),
        *("select_mode=min", "norm=standard", "optim=adafactor", "sched=plateau", "sched.mode=min"),
    ),
    "images that workers fetch, and move at random": (
        *("data=on_the_fly", "model=tower", "norm=standard", "aug=[rows,cutmix]", "optim=adafactor"),
        "sampling=balanced",
    ),
    "an autoencoder": ("experiment=autoencoder", "data=four_channels", "optim=adam"),
}


@pytest.fixture
def own(project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The project's options, for this process and for others."""
    monkeypatch.setenv("CNNLAB_CONF", str(project / "conf"))
    monkeypatch.syspath_prepend(str(project))
    for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
        del sys.modules[name]
    return {"CNNLAB_CONF": str(project / "conf")}


@pytest.mark.parametrize("name", BROUGHT)
def test_it_is_killed_and_goes_on_bit_for_bit_and_is_used(zygote, verb, own, tmp_path, name):
    command = (*FAST, *BROUGHT[name])
    plain, output = tmp_path / "plain", tmp_path / "outputs"
    assert zygote.run(plain, command=command, environment=own)["status"] == 0, said(plain)
    for number in (2, 3):  # in the first epoch, and in the second
        killed = zygote.run(output, command=command, environment=own, faults=[("last.ckpt", number, "SIGKILL")])
        assert killed["status"] == -9, said(output)
    assert zygote.run(output, command=command, environment=own)["status"] == 0, said(output)
    assert differences(left_by(plain), left_by(output)) == []
    assert "Warning" not in said(plain)
    run, summary = only_run(output), json.loads((only_run(output) / "summary.json").read_text())
    assert zygote.run(output, command=command, environment=own)["status"] == 0
    assert f"): {headline(summary)}." in said(output)

    evaluated = verb("evaluate", run)
    if "autoencoder" in name:
        assert (evaluated.returncode, "only its own module knows" in evaluated.stderr) == (2, True)
        return
    assert evaluated.returncode == 0, evaluated.stderr
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert {f"test/{key}": found[key] for key in ("loss", *summary["choices"]["metrics"].split("+"))} == {
        key: value for key, value in summary["metrics"].items() if key.startswith("test/")
    }
    Image.new("L", (50, 30), 90).save(tmp_path / "image.png")
    predicted = verb("predict", run, tmp_path / "image.png", "--format", "json")
    assert predicted.returncode == 0, predicted.stderr
    [answer] = json.loads(predicted.stdout)
    classes = summary["data"]["classes"]
    if summary["data"]["task"] == "multiclass":
        assert len(answer["top"]) == min(3, len(classes))
    else:
        assert set(answer.get("numbers", {})) == (set(classes) if summary["data"]["task"] == "regression" else set())
    for form in ("torch", "onnx"):
        exported = verb("export", run, "--format", form)
        assert exported.returncode == 0, exported.stderr
        assert "differ from the run's by at most" in exported.stdout
    assert verb("show", run, "--picture", tmp_path / "image.png").returncode == 0
    assert verb("report", output, "--out", tmp_path / "report").returncode == 0
    assert f"{in_words(reported(summary))}" in (tmp_path / "report" / "report.md").read_text()


def test_fetched_images_do_not_depend_on_the_number_of_workers(zygote, own, tmp_path):
    command = (*FAST, *BROUGHT["images that workers fetch, and move at random"], "model.scale=2")
    outputs = [tmp_path / str(num) for num in (0, 3)]
    for output in outputs:
        words = f"data.num_workers={output.name}"
        assert zygote.run(output, words, command=command, environment=own)["status"] == 0, said(output)
    first, second = map(left_by, outputs)
    assert differences(first, second) == []


def test_distillation_depends_on_what_the_teacher_is(zygote, verb, own, tmp_path):
    common = (*FAST, "optim=adafactor", "data=gray", "data.num_train=1000", "model=tower", "trainer.max_epochs=1")
    teachers = []
    for seed in (0, 1):
        teacher = tmp_path / f"teacher{seed}"
        words = (f"seed={seed}", "norm=standard")
        assert zygote.run(teacher, *words, command=common, environment=own)["status"] == 0, said(teacher)
        teachers.append(only_run(teacher))
    distilled = (*common, "module=distillation", f"module.teacher={tmp_path}/teacher")
    student = (*distilled, "norm=standard")
    shutil.copytree(teachers[0], tmp_path / "teacher")
    cropped = tmp_path / "cropped"
    assert zygote.run(cropped, "aug=crop_flip", command=student, environment=own)["status"] == 2
    assert "images of another size" in said(cropped)
    outputs = tmp_path / "student"
    assert zygote.run(outputs, command=student, environment=own)["status"] == 0, said(outputs)
    first = only_run(outputs)
    assert json.loads((first / "summary.json").read_text())["choices"]["module"] == "distillation"
    shutil.rmtree(tmp_path / "teacher")
    shutil.copytree(teachers[1], tmp_path / "teacher")
    assert zygote.run(outputs, command=student, environment=own)["status"] == 0
    assert len(list((outputs / "runs").glob("*/summary.json"))) == 2  # another teacher is another run
    shutil.rmtree(tmp_path / "teacher")
    evaluated = verb("evaluate", first)  # which needs no teacher
    assert evaluated.returncode == 0, evaluated.stderr
    assert zygote.run(outputs, command=student, environment=own)["status"] == 2
    assert "module.teacher=" in said(outputs)
    assert "is not a run directory." in said(outputs)
    shutil.copytree(teachers[0], tmp_path / "teacher")
    assert zygote.run(tmp_path / "other", "norm=minmax", command=distilled, environment=own)["status"] == 2
    assert "was trained on other classes, images of another size, or with another norm" in said(tmp_path / "other")


def test_what_only_watches_is_no_part_of_the_run(zygote, own, tmp_path):
    command = (*FAST, "optim=adafactor", "data=four_channels", "model=tower")
    output = tmp_path / "outputs"
    assert zygote.run(output, "callbacks=[keep,rates]", command=command, environment=own)["status"] == 0, said(output)
    assert len(list((only_run(output) / "keep").glob("*.ckpt"))) == 6
    assert zygote.run(output, command=command, environment=own)["status"] == 0
    assert "already finished" in said(output)
    kept = (f"+callbacks.keep.dirpath={tmp_path}/kept", "callbacks=keep", "rerun=true")
    for seed in range(2):  # one folder for all, and no run overwrites another's
        assert zygote.run(output, *kept, f"seed={seed}", command=command, environment=own)["status"] == 0
    assert [len(list(folder.glob("*.ckpt"))) for folder in (tmp_path / "kept").iterdir()] == [6, 6]
    assert zygote.run(output, "callbacks=swa", command=command, environment=own)["status"] == 2
    assert "callbacks=swa is not supported: its average is neither tested nor in the checkpoints" in said(output)


WATCH = """
from lightning import Callback

class Watch(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        for name in ("train/twice", "gan/d_loss"):
            module.log(name, outputs["loss"], on_step=True, on_epoch=True)
        module.log("train/per_step", 1.0)
        module.log("watched", 1.0, logger=False)
"""


def test_callbacks_log_values_and_see_those_of_the_epoch_before_in_a_resumed_run_too(zygote, own, project, tmp_path):
    (project / "own" / "watch.py").write_text(WATCH)
    (project / "conf" / "callbacks" / "watch.yaml").write_text(
        "# @package callbacks.watch\n_target_: own.watch.Watch\n"
    )
    command = (*FAST, "optim=adafactor", "data=four_channels", "model=tower", "callbacks=[keep,watch]")
    kept, outputs = [], [tmp_path / "plain", tmp_path / "killed"]
    for output, faults in zip(outputs, ([], [("step", 14, "SIGKILL")]), strict=True):
        for given in [faults, []] if faults else [[]]:
            words = {"command": (*command, "+callbacks.keep.monitor=train/loss"), "environment": own, "faults": given}
            assert zygote.run(output, **words)["status"] == (-9 if given else 0), said(output)
        kept.append(sorted(path.name for path in (only_run(output) / "keep").glob("*.ckpt")))
    assert kept == [[f"epoch=1-step={step}.ckpt" for step in (12, 15, 18)]] * 2
    first, second = map(left_by, outputs)
    assert differences(first["rows"], second["rows"]) == []
    named = {f"{part}/{kind}" for part in ("train", "val") for kind in ("loss", "acc")}
    assert first["rows"][0].keys() == named | {"epoch", "lr", "train/twice", "train/per_step"}
    assert said(outputs[0]).count("Not in metrics.csv: gan/d_loss. Log values as train/NAME, val/NAME or") == 1


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (
            ("data=labels", "model=tower", "metrics=f1_of_labels"),
            "CrossEntropy is for data that are multiclass",
        ),
        (("data=labels", "model=tower", "loss=bce"), "metrics.acc is for data that are multiclass"),
        (("data=numbers", "model=tower", "loss=mse", "metrics=mae", "aug=cutmix"), "aug=cutmix is for data that are"),
        (("data=gray", "model=tower", "metrics=[acc,f1]", "select_on=val/f2"), "select_on=val/f2 is not measured"),
        (("data=numbers", "model=cnn", "loss=mse", "metrics=mae", "select_on=val/mae"), "lower values are better"),
        (("data=gray", "model=tower", "loss=mse"), "does not accept outputs"),
        (("module=autoencoder", "data=gray", "model=hourglass"), "takes no argument metrics"),
        (("experiment=autoencoder", "data=gray", "loss=hinge"), "takes no argument loss. Use loss=cross_entropy,"),
        (("experiment=autoencoder", "data=gray", "test_flips=true"), "test_flips=True: own.modules.Autoencoder takes"),
        (
            ("experiment=autoencoder", "data=gray", "aug=rows", "aug.rows.num_rows=29"),
            "num_rows=29 is more than the 28",
        ),
        (("data=gray", "model=tower", "aug=[rows,crop_flip]"), "Several crops are chosen"),
        (("data=gray", "model=hourglass"), "returns (1, 1, 28, 40) for one image"),
        (("data=gray", "model=cnn", "model.channels=[1,1,1,1,1]"), "images of 28x40 pixels cannot be halved 5 times"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_together_is_one_sentence(zygote, own, tmp_path, words, what):
    output = tmp_path / "outputs"
    size = "data.num_train=1200" if "data=gray" in words else FAST[0]
    assert zygote.run(output, command=(size, *FAST[1:], *words), environment=own)["status"] == 2, said(output)
    assert what in said(output)
    assert said(output).count("\n") == 1
    assert not list(output.rglob("summary.json"))
