"""A trained run used: evaluated, asked for labels, exported, looked into."""

import csv
import itertools
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_resume import Zygote, said
from torch import nn
from torchmetrics.functional.classification import multiclass_calibration_error

from cnnlab.config.objects import data_source
from cnnlab.config.options import UserError
from cnnlab.config.shape import Shape
from cnnlab.data.decode import read_image
from cnnlab.data.images import Images, load_once
from cnnlab.normalize import Unchanged
from cnnlab.runs.directory import RunDirectory
from cnnlab.use import explain
from cnnlab.use.evaluation import Evaluation, evaluate
from cnnlab.use.export import TOLERANCE, export
from cnnlab.use.opened import opened, with_other_data
from cnnlab.use.trained import Trained, open_run

SMALL = (
    *("data=shapes", "data.num_train=800", "data.num_test=120", "data.noise=0", "data.clutter=0", "batch_size=20"),
    *("model.channels=[16,16,16]", "model.batch_norm=true", "optim=adam", "optim.lr=0.002", "trainer.max_epochs=4"),
    "trainer.accelerator=cpu",
)
NORMS = sorted(file.stem for file in (ROOT / "conf" / "norm").glob("*.yaml"))
KINDS = {
    "plain": (),
    "crops": ("norm=standard", "aug=crop_flip", "test_flips=true"),
    "zca": ("norm=zca", "norm.num_components=40", "aug=pad_crop_flip"),
    "pca": ("norm=pca", "callbacks=ema"),
    "robust": ("norm=robust", "norm.per=pixel", "trainer.precision=32-true"),
    "minmax": ("norm=minmax", "aug=crop_flip", "model=fully_convolutional", "model.channels=[8,8,8]"),
    "words": ("model=bow", "model.num_words=50", "~model.channels"),
    "linear": ("model=linear", "~model.channels", "norm=zca", "norm.per=channel"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run directory of every kind."""
    folder = tmp_path_factory.mktemp("trained")
    zygote, made = Zygote(folder), {}
    for name, words in KINDS.items():
        small = [word for word in SMALL if not (word.startswith("model.") and "~model.channels" in words)]
        typed = [*small, *(word for word in words if word[0] != "~"), f"name={name}", "logger=none"]
        assert zygote.run(folder / "outputs", command=typed)["status"] == 0, said(folder / "outputs")
        [made[name]] = [file.parent for file in (folder / "outputs" / name).glob("*/summary.json")]
    zygote.process.communicate()
    return made


Verb = Callable[..., subprocess.CompletedProcess[str]]


# ------------------------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_the_runs_own_to_the_last_digit(trained, verb, kind):
    result = verb("evaluate", str(trained[kind]))
    assert result.returncode == 0, result.stderr
    found = json.loads((trained[kind] / "evaluation" / "evaluation.json").read_text())
    summary = RunDirectory(trained[kind]).summary()
    assert found["loss"] == summary["metrics"]["test/loss"]
    assert found["acc"] == summary["metrics"]["test/acc"]
    with open(trained[kind] / "evaluation" / "confusion.csv", newline="") as file:
        counts = [[int(count) for count in row[1:]] for row in list(csv.reader(file))[1:]]
    assert counts == RunDirectory(trained[kind]).confusion(len(counts)).tolist()
    assert f"accuracy {found['acc']:.4f}" in result.stdout
    with Image.open(trained[kind] / "evaluation" / "reliability.png") as picture:
        assert picture.size == (600, 600)


def test_other_statistics_and_other_images(trained, verb, tmp_path):
    run = trained["crops"]
    own = RunDirectory(run).summary()["metrics"]["test/acc"]
    again = verb("evaluate", str(run), "norm=standard", "--out", "again")
    assert json.loads((tmp_path / "again" / "evaluation.json").read_text())["acc"] == pytest.approx(own, abs=0.03)
    wrong = verb("evaluate", str(run), "norm=none", "--out", "wrong")
    assert (again.returncode, wrong.returncode) == (0, 0), wrong.stderr
    assert json.loads((tmp_path / "wrong" / "evaluation.json").read_text())["acc"] < own
    result = verb("evaluate", str(run), "data.drawing_seed=7", "--out", "others")
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "others" / "evaluation.json").read_text())
    assert abs(found["acc"] - own) < 0.1
    assert found["loss"] != RunDirectory(run).summary()["metrics"]["test/loss"]


def test_calibration_error_is_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    shares = (3 * torch.randn(500, 10, generator=generator)).softmax(1)
    labels = torch.randint(10, (500,), generator=generator)
    confidence, predicted = shares.max(1)
    made = Evaluation({}, 500, np.zeros((10, 10)), confidence.numpy(), (predicted == labels).numpy())
    expected = multiclass_calibration_error(shares, labels, num_classes=10, n_bins=15, norm="l1")
    assert made.calibration_error == pytest.approx(float(expected), abs=1e-6)
    assert sum(num for *_, num in made.reliability()) == 500


# -------------------------------------------------------------------------------------------------------------- predict


def save_test_images(run: Path, folder: Path) -> Path:
    from cnnlab.config.objects import data_source
    from cnnlab.data.images import load_once

    folder.mkdir()
    for place, pixels in enumerate(load_once(data_source(with_other_data(opened(run)).data)).test.pixels):
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{place:04}.png")
    return folder


def test_predictions_are_those_of_the_evaluation(trained, verb, tmp_path):
    run = trained["crops"]
    save_test_images(run, tmp_path / "pictures")
    result = verb("predict", str(run), "pictures", "--format", "json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    labels, _, confidence = RunDirectory(run).predictions()
    classes = RunDirectory(run).summary()["data"]["classes"]
    assert [one["label"] for one in found] == [classes[label] for label in labels]
    assert [one["probability"] for one in found] == pytest.approx(confidence.tolist(), abs=1e-3)
    assert all(len(one["top"]) == 3 and one["top"][0][0] == one["label"] for one in found)
    written = verb("predict", str(run), "pictures/0003.png", "--format", "csv", "--top", "1")
    assert written.stdout.splitlines()[1].startswith(f"pictures/0003.png,{found[3]['label']},")


def test_pictures_of_all_kinds(trained, verb, command, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    picture = Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 50)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK"):
        picture.convert(mode).save(folder / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}")
    Image.fromarray(np.full((32, 32), 128 * 257, dtype=np.uint16)).save(folder / "16bit.png")
    assert (read_image(folder / "16bit.png", (32, 32)).pixels == 128).all()
    Image.new("RGB", (1, 1), "red").save(folder / "dot.png")
    turned = Image.new("RGB", (64, 32), "black")
    turned.paste((255, 255, 255), (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees: white is above then
    turned.save(folder / "turned.jpg", exif=exif, quality=95)
    upright = read_image(folder / "turned.jpg", (32, 32)).pixels
    assert upright[4].mean() > 250
    assert upright[-4].mean() < 5
    good = verb("predict", str(trained["plain"]), "mixed", "--format", "csv")
    assert good.returncode == 0, good.stderr
    assert len(good.stdout.splitlines()) == 1 + 10
    for name in ("text.png", ".hidden.png", "notes.txt"):
        (folder / name).write_text("no picture")
    (folder / "empty.jpg").write_bytes(b"")
    Image.new("1", (10_000, 10_000)).save(folder / "huge.png")
    some = command("-m", "cnnlab", "predict", str(trained["plain"]), "mixed")
    assert some.returncode == 1
    left_out, *failed = some.stderr.splitlines()
    assert left_out == "cnnlab: 1 files are not images (.txt 1) and were left out."
    assert [line.split()[1] for line in failed] == [f"mixed/{name}" for name in ("empty.jpg", "huge.png", "text.png")]
    assert "10000 x 10000 pixels are more than" in some.stderr
    assert "dot.png" in some.stdout


# --------------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_exported_files_give_the_runs_logits(trained, kind, form, tmp_path):
    model, _, summary = open_run(trained[kind])
    pixels = torch.randint(256, (50, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "model"
    model = model.float32_on_cpu()
    assert export(model, path, form, {"run": summary["run"]}, pixels) < 1e-3
    expected = model.logits(pixels[:7])
    if form == "onnx":
        session = onnxruntime.InferenceSession(path.read_bytes())
        for num in (1, 7):
            [logits] = session.run(None, {"pixels": pixels[:num].numpy()})
            torch.testing.assert_close(torch.from_numpy(logits), expected[:num], atol=1e-3, rtol=1e-3)
        about = session.get_modelmeta().custom_metadata_map
    else:
        extra = {"metadata.json": ""}
        with open(path, "rb") as file:
            loaded = torch.export.load(file, extra_files=extra).module()
        torch.testing.assert_close(loaded(pixels[:7]), expected, atol=1e-3, rtol=1e-3)
        about = json.loads(extra["metadata.json"])
    assert json.loads(about["classes"]) == summary["data"]["classes"]
    assert about["run"] == summary["run"]
    assert "32 x 32" in about["input"]


def test_a_file_that_gives_other_logits_is_not_kept(trained, tmp_path, monkeypatch):
    model, _, _ = open_run(trained["linear"])
    model = model.float32_on_cpu()
    right = model.logits
    monkeypatch.setattr(model, "logits", lambda pixels: right(pixels) + 0.01)
    with pytest.raises(UserError, match=r"differ by up to 0\.01"):
        export(model, tmp_path / "model.onnx", "onnx", {}, torch.zeros(4, 3, 32, 32, dtype=torch.uint8))
    assert not list(tmp_path.iterdir())


def test_what_onnx_cannot_express_is_said(trained, tmp_path):
    class Eigenvalues(nn.Conv2d):
        def forward(self, images):
            return torch.linalg.eigvals(images[:, 0]).real[:, :10]

    model, _, _ = open_run(trained["linear"])
    model.network = Eigenvalues(3, 10, 3)
    pixels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"cannot write this network as ONNX \(.*linalg_eig.*Use --format torch"):
        export(model.float32_on_cpu(), tmp_path / "model.onnx", "onnx", {}, pixels)
    assert not list(tmp_path.iterdir())


def test_the_export_command(trained, command):
    result = command("-m", "cnnlab", "export", str(trained["crops"]))
    assert result.returncode == 0, result.stderr
    assert (trained["crops"] / "model.onnx").exists()
    assert "on 120 test images" in result.stdout


# ----------------------------------------------------------------------------------------------------------------- show


def test_what_a_run_has_learned_is_shown(trained, verb):
    result = verb("show", str(trained["crops"]))
    assert result.returncode == 0, result.stderr
    shown = [Path(line) for line in result.stdout.splitlines()[1:]]
    assert [file.name for file in shown] == ["filters.png", "feature_maps.png", "occlusion.png", "confused.png"]
    model, _, _ = open_run(trained["crops"])  # with test_flips
    maps = explain.feature_maps(model, torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert [(name, values.shape[0]) for name, values in maps] == [("conv1", 16), ("conv2", 16), ("conv3", 16)]
    for file in shown:
        with Image.open(file) as picture:
            assert min(picture.size) > 50
    few = verb("show", str(trained["words"]))
    assert [Path(line).name for line in few.stdout.splitlines()[1:]] == ["occlusion.png", "confused.png"]


def test_occlusion_finds_what_the_network_looks_at():
    class Corner(nn.Module):
        """Class 1 if the upper left corner is bright."""

        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.tensor(4.0))

        def forward(self, images):
            bright = images[:, :, :8, :8].mean((1, 2, 3)) - 0.5
            return torch.stack((-bright, bright), 1) * self.factor

    model = Trained(Unchanged(), Corner(), None, False, ("dark", "bright"), Shape(2, 3, 32, 32))
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    pixels[..., :8, :8] = 255
    lost = explain.occlusion(model, pixels, label=1)
    assert lost[:6, :6].min() > 0.03
    assert np.abs(lost[16:, 16:]).max() < 1e-6


def test_confused_pairs_come_in_order():
    counts = np.array([[50, 3, 0], [9, 40, 1], [0, 0, 50]])
    assert explain.confused_pairs(counts, num=5) == [(1, 0, 9), (0, 1, 3), (1, 2, 1)]


# --------------------------------------------------------------------------------------------------------- wrong inputs


def test_wrong_inputs_are_one_paragraph(trained, command, tmp_path):
    plain = str(trained["plain"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no picture")
    bare = tmp_path / "bare"
    run = RunDirectory(trained["plain"])
    (bare / ".hydra").mkdir(parents=True)
    (bare / ".hydra" / "config.yaml").write_text((run.path / ".hydra" / "config.yaml").read_text())
    (bare / "summary.json").write_text(json.dumps(run.summary()))
    for words, answer in (
        (("evaluate", "empty"), "is not a run directory"),
        (("predict", "nowhere", "text.png"), "nowhere names no run"),
        (("export", "bare"), "it has finished no epoch"),
        (("predict", plain, "nothing.png"), "does not exist"),
        (("predict", plain, "empty"), "contains no images"),
        (("predict", plain, "text.png", "--top", "0"), "--top 0"),
        (("evaluate", plain, "optim.lr=1"), "only data, norm, test_flips and test_shifts"),
        (("evaluate", plain, "data.image_size=16"), "takes images of 3x32x32, but these are 3x16x16"),
        (("evaluate", plain, "norm=pac"), "Did you mean norm=pca?"),
        (("show", plain, "--picture", "text.png"), "cannot be read as an image"),
    ):
        result = command("-m", "cnnlab", *words)
        assert (result.returncode, result.stdout) == (2, ""), (words, result.stderr)
        assert answer in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_other_classes_are_refused(trained):
    from cnnlab.config.options import UserError
    from cnnlab.use.evaluation import check_fits

    model, _, _ = open_run(trained["plain"])
    images = Images(np.zeros((1, 3, 32, 32), dtype=np.uint8), np.zeros(1, dtype=np.int64), ("unicorn",))
    with pytest.raises(UserError, match="does not know unicorn"):
        check_fits(model, images)


def test_classes_are_matched_by_name(trained):
    model, _, _ = open_run(trained["plain"])
    classes = tuple(reversed(model.classes))
    pixels = np.random.default_rng(0).integers(0, 255, (20, 3, 32, 32), dtype=np.uint8)
    labels = np.arange(20) % 10
    there = evaluate(model, Images(pixels, labels, classes))
    here = evaluate(model, Images(pixels, 9 - labels, model.classes))
    assert there.metrics == here.metrics


# ------------------------------------------------------------------------------------------------------- real pictures


@pytest.fixture(scope="module")
def on_real_pictures(pictures, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run directory for every normalization and crop size, trained on 2,000 pictures; 1,000 are its test images."""
    folder = tmp_path_factory.mktemp("real")
    for part, num in (("train", 200), ("test", 100)):
        for kind in (pictures / part).iterdir():
            (folder / "root" / part / kind.name).mkdir(parents=True)
            for file in sorted(kind.iterdir())[:num]:
                (folder / "root" / part / kind.name / file.name).symlink_to(file)
    zygote, made = Zygote(folder), {}
    network = ("model.channels=[16,16,16]", "model.hidden=64")
    small = (f"data.root={folder}/root", "trainer.max_epochs=1", "trainer.accelerator=cpu", "logger=none", *network)
    for norm, aug in itertools.product(NORMS, ("none", "crop_flip")):
        typed = ("data=image_folder", f"norm={norm}", f"aug={aug}", f"name={norm}-{aug}", *small)
        assert zygote.run(folder / "outputs", command=typed)["status"] == 0, said(folder / "outputs")
        [made[f"{norm}-{aug}"]] = [
            file.parent for file in (folder / "outputs" / f"{norm}-{aug}").glob("*/summary.json")
        ]
    zygote.process.communicate()
    return made


@pytest.mark.pictures
@pytest.mark.parametrize("aug", ["none", "crop_flip"])
@pytest.mark.parametrize("norm", NORMS)
def test_exports_give_the_logits_of_a_thousand_real_pictures(on_real_pictures, norm, aug, tmp_path):
    run = on_real_pictures[f"{norm}-{aug}"]
    model, _, _ = open_run(run)
    pixels = torch.from_numpy(load_once(data_source(with_other_data(opened(run)).data)).test.pixels.copy())
    assert pixels.shape == (1000, 3, 32, 32)
    model = model.float32_on_cpu()
    for form in ("onnx", "torch"):
        assert export(model, tmp_path / form, form, {}, pixels) <= TOLERANCE


@pytest.mark.pictures
@pytest.mark.parametrize("kind", ["zca-crop_flip", "pca-none"])
def test_evaluation_and_prediction_see_real_pictures_alike(on_real_pictures, kind, command, tmp_path):
    run = on_real_pictures[kind]
    cache = str(run.parents[2] / "cache")
    assert command("-m", "cnnlab", "evaluate", str(run), CNNLAB_CACHE=cache).returncode == 0
    summary = RunDirectory(run).summary()
    found = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert (found["acc"], found["loss"]) == (summary["metrics"]["test/acc"], summary["metrics"]["test/loss"])
    labels, _, confidence = RunDirectory(run).predictions()
    result = command("-m", "cnnlab", "predict", str(run), str(run.parents[2] / "root" / "test"), "--format", "json")
    answers = json.loads(result.stdout)
    assert [one["label"] for one in answers] == [summary["data"]["classes"][label] for label in labels]
    assert [one["probability"] for one in answers] == pytest.approx(confidence.tolist(), abs=1e-3)
