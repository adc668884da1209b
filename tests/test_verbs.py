"""What `cnnlab evaluate`, `predict` and `show` say about runs of any task, module and data option."""

import csv
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

import cnnlab
from cnnlab.config.options import UserError
from cnnlab.config.shape import Shape
from cnnlab.normalize import Unchanged
from cnnlab.train.checkpoint import CheckpointFiles
from cnnlab.train.weights import below
from cnnlab.use import explain
from cnnlab.use.evaluation import Evaluation, as_dictionary, print_evaluation
from cnnlab.use.opened import opened, with_other_data
from cnnlab.use.predict import in_words, prediction
from cnnlab.use.trained import Trained

CONF = {
    "data/stickers": """
_target_: cnnlab.data.folder.ImageFolder
root: ??? # [root] [changes nothing]
image_size: 16
channels: 1
background: white # [background]
cache_dir: ${cache_dir} # [changes nothing]
""",
    "module/teacher": "_target_: own_teacher.MeanTeacher\n",
    "loss/margin": "_target_: torch.nn.MultiMarginLoss\n",
    "loss/mse": "_target_: torch.nn.MSELoss\n",
    "metrics/mae": "# @package metrics.mae\n_target_: torchmetrics.MeanAbsoluteError\n",
}
TEACHER = """
import copy
import torch.nn.functional as F
from lightning import LightningModule


class MeanTeacher(LightningModule):
    def __init__(self, network, optimizer, scheduler):
        super().__init__()
        self.network, self.make_optimizer, self.make_scheduler = network, optimizer, scheduler
        self.teacher = copy.deepcopy(network).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx, part="val"):
        self.log(f"{part}/loss", F.cross_entropy(self.teacher(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.validation_step(batch, batch_idx, "test")

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.network.parameters())
        return [optimizer], [self.make_scheduler(optimizer)]
"""
SMALL = (
    *("batch_size=8", "val_fraction=0.25", "model.channels=[4]", "model.hidden=8", "optim=adam", "optim.lr=0.03"),
    *("trainer=cpu", "trainer.max_epochs=2", "logger=none"),
)
RUNS = {
    "stickers": ("data=stickers", "data.root=stickers", "norm=standard", "callbacks=ema", "callbacks.ema.decay=0.5"),
    "teacher": (
        *("data=stickers", "data.root=stickers", "module=teacher", "metrics=none", "select_on=val/loss"),
        "select_mode=min",
    ),
    "numbers": (
        *("data=arrays", "data.train=numbers.npz", "data.test=numbers.npz", "data.classes=[age,weight]", "loss=mse"),
        *("metrics=mae", "select_on=val/mae", "select_mode=min"),
    ),
    "labels": (
        *("data=arrays", "data.train=labels.npz", "data.test=labels.npz", "data.classes=[even,late]", "loss=bce"),
        *("metrics=none", "select_on=val/loss", "select_mode=min"),
    ),
}


def save_stickers(root: Path) -> None:
    """Dark disks or squares on a transparent ground."""
    chance = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :16] - 7.5
    for part, num in (("train", 16), ("test", 6)):
        for kind, inside in (("disk", np.hypot(rows, columns) < 6), ("square", abs(rows) + abs(columns) < 5)):
            (root / part / kind).mkdir(parents=True)
            for place in range(num):
                pixels = np.zeros((16, 16, 4), np.uint8)
                pixels[inside] = [*chance.integers(0, 120, 3), 255]
                Image.fromarray(pixels).save(root / part / kind / f"{place:02}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with options of its own, data, and one small run of each kind."""
    folder = tmp_path_factory.mktemp("verbs")
    for name, text in CONF.items():
        (folder / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "conf" / f"{name}.yaml").write_text(f"{text}")
    (folder / "own_teacher.py").write_text(TEACHER)
    save_stickers(folder / "stickers")
    chance, ramp = np.random.default_rng(0), np.arange(32, dtype=np.float32)
    images = chance.integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)
    np.savez(folder / "numbers.npz", images=images, labels=np.stack((ramp + 20, 2 * ramp + 40.5), 1))
    np.savez(folder / "labels.npz", images=images, labels=np.stack((ramp % 2 == 0, ramp > 15), 1).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        for name, words in RUNS.items():
            cnnlab.train([*SMALL, *words, f"name={name}"])
    return folder


def enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(folder)
    patch.setenv("CNNLAB_CACHE", str(folder / "cache"))
    patch.setenv("CNNLAB_CONF", str(folder / "conf"))
    patch.syspath_prepend(folder)


@pytest.fixture
def runs(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Copies of the runs, which may be changed."""
    enter(place, monkeypatch)
    return {name: Path(shutil.copytree(next((place / "outputs" / name).iterdir()), tmp_path / name)) for name in RUNS}


def change(run: Path, group: str, **values: object) -> None:
    file = run / ".hydra" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config[group].update(values)
    file.write_text(yaml.safe_dump(config))


def change_data(run: Path, **values: object) -> None:
    summary = json.loads((run / "summary.json").read_text())
    data = {key: value for key, value in (summary["data"] | values).items() if value is not None}
    (run / "summary.json").write_text(json.dumps(summary | {"data": data}))


# ----------------------------------------------------------------------------------------------------------- background


def test_images_are_decoded_on_the_background_of_an_own_option(runs, verb):
    file = Path("stickers/test/disk/00.png")
    expected = Image.new("RGBA", (16, 16), "white")
    expected.alpha_composite(Image.open(file))
    model = cnnlab.load(runs["stickers"])
    assert np.array_equal(model.pixels(Image.open(file))[0, 0], np.asarray(expected.convert("L")))
    predicted = json.loads(verb("predict", runs["stickers"], "stickers/test", "--format", "json").stdout)
    kept = np.load(runs["stickers"] / "predictions.npz")
    assert [one["label"] for one in predicted] == [model.classes[label] for label in kept["predicted"]]
    assert [one["probability"] for one in predicted] == pytest.approx(kept["confidence"].tolist(), abs=2e-3)


def test_a_background_that_is_no_color_is_the_runs_fault_and_not_that_of_the_images(runs, verb):
    change(runs["stickers"], "data", background="nonsense")
    for words in (("predict", runs["stickers"], "stickers/test"), ("show", runs["stickers"], "--picture", "a.png")):
        result = verb(*words)
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
        assert "config.yaml has data.background=nonsense, which is not a color" in result.stderr


def test_other_data_are_decoded_as_in_training(runs):
    run, words = opened(runs["stickers"]), ["data=image_folder", "data.root=stickers"]
    data = with_other_data(run, words).data
    assert (data.image_size, data.channels, data.background) == (16, 1, "white")
    typed = with_other_data(run, [*words, "data.background=red", "data.channels=3"]).data
    assert (typed.image_size, typed.channels, typed.background) == (16, 3, "red")


# ------------------------------------------------------------------------------------------------------------- evaluate


def test_the_same_norm_is_fitted_on_the_images_that_were_trained_on(runs, verb):
    result = verb("evaluate", runs["stickers"], "norm=standard", "--out", runs["stickers"] / "again")
    assert result.returncode == 0, result.stderr
    found = json.loads((runs["stickers"] / "again" / "evaluation.json").read_text())
    summary = json.loads((runs["stickers"] / "summary.json").read_text())
    assert found["loss"] == pytest.approx(summary["metrics"]["test/loss"], rel=1e-6)


def test_a_module_that_evaluates_something_else_is_noticed(runs, verb):
    result = verb("evaluate", runs["teacher"])
    assert result.returncode == 0, result.stderr
    weights, differ = result.stderr.splitlines()
    assert "also has weights of teacher; only the network is used" in weights
    assert "the training reported test/loss" in differ
    assert "Either its module does more" in differ  # what else it may be is not known here
    assert "or code or packages have changed" in differ
    assert verb("evaluate", runs["teacher"], "test_flips=true").stderr.splitlines() == [weights]
    for name in ("stickers", "numbers", "labels"):
        assert verb("evaluate", runs[name]).stderr == ""


def test_code_that_changed_since_the_training_is_mentioned(runs, verb, tmp_path):
    """In the words of the training command; other tests show that nothing is said otherwise."""
    file, image = runs["stickers"] / "summary.json", tmp_path / "image.png"
    Image.new("RGB", (16, 16)).save(image)
    for words in (("evaluate",), ("predict", image), ("export", "--format", "torch"), ("show",)):
        words = (words[0], runs["stickers"], *words[1:])
        assert "changed since" not in verb(*words).stderr
        summary = json.loads(file.read_text())
        file.write_text(json.dumps(summary | {"code_digest": "c" * 64}))
        result = verb(*words)
        assert result.returncode == 0
        assert f"{runs['stickers']}: the source code changed since: rerun=true trains it again." in result.stderr
        file.write_text(json.dumps(summary))


def test_a_network_is_found_wherever_its_module_keeps_it(runs):
    best = runs["teacher"] / "checkpoints" / "best.ckpt"
    saved, images = torch.load(best, weights_only=True), np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    expected, files = cnnlab.load(runs["teacher"]).logits(images), CheckpointFiles()
    weights = below("network.", saved["state_dict"])
    for parts in (["backbone"], ["model.0"], ["student", "teacher"]):
        places = {f"{part}.{name}": values for part in parts for name, values in weights.items()}
        files.save_checkpoint(saved | {"state_dict": places | {"head.bias": torch.zeros(1)}}, best)
        files.wait()
        if len(parts) == 2:
            with pytest.raises(UserError, match=r"keeps its network neither as self.network nor in exactly one"):
                cnnlab.load(runs["teacher"])
        else:
            assert cnnlab.load(runs["teacher"]).logits(images).equal(expected)


def test_a_training_that_tested_some_of_the_images_is_not_contradicted(runs, verb):
    file = runs["stickers"] / "summary.json"
    summary = json.loads(file.read_text())
    summary["metrics"]["test/loss"] += 1
    summary["changes"]["trainer.limit_test_batches"] = 1
    file.write_text(json.dumps(summary))
    assert verb("evaluate", runs["stickers"]).stderr == ""


def test_overrides_may_follow_options(runs, verb, tmp_path):
    result = verb("evaluate", runs["stickers"], "--out", tmp_path / "out", "test_flips=true")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["overrides"] == ["test_flips=true"]


def test_runs_of_several_labels_are_compared(runs, verb):
    result = verb("compare", runs["labels"], runs["labels"])
    assert "Image by image: only for data with one class per image." in result.stdout, result.stderr


def test_a_loss_for_whole_labels_does_not_take_mixed_ones(place, monkeypatch):
    enter(place, monkeypatch)
    with pytest.raises(
        cnnlab.UserError, match="aug=cutmix mixes labels, which the loss MultiMarginLoss does not accept"
    ):
        cnnlab.train([*SMALL, "data=stickers", "data.root=stickers", "loss=margin", "aug=cutmix", "name=margin"])


def test_a_run_that_is_not_finished_is_used_and_said_to_be(runs, verb):
    file = runs["stickers"] / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"status": "interrupted"}))
    result = verb("evaluate", runs["stickers"])
    assert (result.returncode, len(result.stderr.splitlines())) == (0, 1), result.stderr
    best = json.loads(file.read_text())["best_epoch"]
    assert (
        f"{runs['stickers']} is interrupted: these are the weights of epoch {best}, its best so far." in result.stderr
    )


def test_a_long_override_makes_a_short_folder(runs, verb, tmp_path):
    long = tmp_path / "/".join(["a" * 70] * 4)
    long.parent.mkdir(parents=True)
    long.symlink_to(Path("stickers").resolve())
    result = verb("evaluate", runs["stickers"], f"data.root={long}")
    assert result.returncode == 0, result.stderr
    [folder] = runs["stickers"].glob("evaluation-*")
    assert 100 <= len(folder.name) <= 110
    assert (folder / "evaluation.json").exists()
    assert verb("evaluate", runs["stickers"], f"data.root={long}", "test_flips=true").returncode == 0
    assert len(list(runs["stickers"].glob("evaluation-*"))) == 2


def test_what_was_evaluated_is_said_even_if_no_file_can_be_written(runs, verb):
    (runs["stickers"] / "taken").touch()
    result = verb("evaluate", runs["stickers"], "--out", runs["stickers"] / "taken" / "here")
    assert (result.returncode, "12 images: loss" in result.stdout) == (2, True)


@pytest.mark.parametrize("value", ["no", "off", "maybe", "7"])
def test_test_flips_is_true_or_false(runs, verb, value):
    result = verb("evaluate", runs["stickers"], f"test_flips={value}")
    assert (result.returncode, result.stdout) == (2, "")
    assert f"test_flips={value}" in result.stderr


def test_what_no_image_decides_is_not_a_zero(capsys):
    found = Evaluation({"loss": 1.0}, 3, np.array([[2, 0, 0], [1, 0, 0], [0, 0, 0]]), np.ones(3), np.ones(3))
    classes = as_dictionary(found, "abc")["classes"]
    assert classes["b"] == {"images": 1, "recall": 0.0, "precision": None}
    assert classes["c"] == {"images": 0, "recall": None, "precision": None}
    print_evaluation(found, "abc")
    [line] = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["c"]]
    assert line == ["c", "0", "-", "-"]


# -------------------------------------------------------------------------------------------------------- predict, show


def test_predictions_of_numbers(runs, verb, tmp_path):
    images = np.load("numbers.npz")["images"]
    for number in range(2):
        Image.fromarray(images[number]).save(tmp_path / f"{number}.png")
    expected = cnnlab.load(runs["numbers"]).logits(images[:2].transpose(0, 3, 1, 2).copy()).numpy()
    words = ("predict", runs["numbers"], tmp_path / "0.png", tmp_path / "1.png")
    found = json.loads(verb(*words, "--format", "json").stdout)
    assert [list(one["numbers"]) for one in found] == [["age", "weight"]] * 2
    assert np.allclose([list(one["numbers"].values()) for one in found], expected, rtol=1e-4)
    rows = list(csv.reader(verb(*words, "--format", "csv").stdout.splitlines()))
    assert rows[0] == ["path", "age", "weight"]
    assert np.allclose([[float(cell) for cell in row[1:]] for row in rows[1:]], expected, rtol=1e-4)
    refused = verb(*words, "--top", "2")
    assert (refused.returncode, "--top 2: the run is for regression data" in refused.stderr) == (2, True)
    table = verb(*words).stdout
    assert "probability" not in table
    assert f"{expected[1, 1]:.5g}" in table


def test_predictions_of_several_labels(runs, verb, tmp_path):
    images = np.load("labels.npz")["images"]
    Image.fromarray(images[0]).save(tmp_path / "0.png")
    model = cnnlab.load(runs["labels"])
    shares = model.probabilities(images[:1].transpose(0, 3, 1, 2).copy())[0].tolist()
    [found] = json.loads(verb("predict", runs["labels"], tmp_path / "0.png", "--format", "json").stdout)
    assert dict(found["labels"]) == {
        name: pytest.approx(share, abs=1e-4)
        for name, share in zip(("even", "late"), shares, strict=True)
        if share > 0.5
    }
    assert in_words(prediction(model, [0.2, 0.5])) == "none"
    assert in_words(prediction(model, [0.6, 0.9])) == "late 0.900, even 0.600"
    header, line = verb("predict", runs["labels"], tmp_path / "0.png", "--format", "csv").stdout.splitlines()
    assert header == "path,labels"
    assert line == f"{tmp_path}/0.png,{' '.join(f'{label}={share}' for label, share in found['labels'])}"
    assert "probability" not in verb("predict", runs["labels"], tmp_path / "0.png").stdout


def test_what_runs_of_other_tasks_have_learned(runs, verb):
    first, *_ = verb("show", runs["numbers"]).stdout.splitlines()
    assert first.startswith("first test image: true age 20, weight 40.5, predicted age ")
    first, *_ = verb("show", runs["labels"]).stdout.splitlines()
    assert first.startswith("first test image: true even 1.000, predicted ")


def test_figures_of_an_earlier_command_are_neither_listed_nor_left(runs, verb):
    run = runs["stickers"]
    assert "confused.png" in verb("show", run).stdout
    change_data(run, fingerprint="0" * 64)
    result = verb("show", run)
    assert result.returncode == 0, result.stderr
    assert "occlusion.png" in result.stdout
    assert "confused.png" not in result.stdout
    assert not (run / "figures" / "confused.png").exists()
    change_data(run, fingerprint=None)
    assert verb("show", run).returncode == 0


class Mean(nn.Module):
    """The mean of the upper left corner, and 2 minus it."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(4.0))

    def forward(self, images):
        corner = self.factor * images[:, :, :8, :8].mean((1, 2, 3))
        return torch.stack((corner, 2 - corner), 1)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_occlusion_is_that_of_the_task(task):
    model = Trained(Unchanged(), Mean(), None, False, ("a", "b"), Shape(2, 3, 24, 24, task))
    pixels = torch.full((1, 3, 24, 24), 255, dtype=torch.uint8)
    for label in range(2):
        lost, times = np.zeros((24, 24)), np.zeros((24, 24))
        for square in itertools.product((slice(8), slice(16), slice(8, 24)), repeat=2):
            covered = pixels.clone()
            covered[:, :, *square] = 128
            whole, less = model.probabilities(torch.cat((pixels, covered)))[:, label].double()
            lost[square] += float(whole - less)
            times[square] += 1
        assert np.allclose(explain.occlusion(model, pixels, label, size=16, stride=8), lost / times)
        assert abs(lost).max() > 0.1


class Tokens(nn.Module):
    """Nine tokens of five features each, and a head for each token."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Conv2d(3, 5, 8, 8), nn.Linear(5, 2)

    def forward(self, images):
        return self.head(self.embedding(images).flatten(2).mT).mean(1)


def test_features_of_tokens_are_averaged_over_the_tokens():
    model = Trained(Unchanged(), Tokens(), None, False, ("a", "b"), Shape(2, 3, 24, 24))
    pixels = torch.randint(256, (4, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = model.features(pixels)
    assert features.shape == (4, 5)
    torch.testing.assert_close(model.network.head(features), model.logits(pixels))
