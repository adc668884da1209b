"""What `import cnnlab` offers, the names of runs, and docs/python.md as it is written."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT
from omegaconf import open_dict
from PIL import Image
from test_report import make_run

import cnnlab
from cnnlab import testing
from cnnlab.config.identity import identity
from cnnlab.data.decode import read_image
from cnnlab.python import overrides_of
from cnnlab.report.plan import past_speeds
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.named import named

WORDS = (
    "data=shapes data.num_train=200 data.num_test=50 batch_size=20 norm=standard model.channels=[8,8,8] "
    "model.hidden=32 aug=crop_flip trainer.max_epochs=2 trainer.accelerator=cpu logger=none"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with outputs/runs: two finished runs, of two seeds and two rates."""
    folder, before = tmp_path_factory.mktemp("python"), Path.cwd()
    os.chdir(folder)
    os.environ["CNNLAB_CACHE"] = str(folder / "cache")
    try:
        config = cnnlab.compose(WORDS)
        first = cnnlab.train(config)
        config.seed, config.optim.lr = 1, 0.02
        second = cnnlab.train(config)
    finally:
        os.chdir(before)
    return folder, first, second


@pytest.fixture
def here(trained, monkeypatch):
    folder, first, second = trained
    monkeypatch.chdir(folder)
    return first, second


def test_nothing_is_imported_before_it_is_used(here):
    code = """
import sys, cnnlab
assert not {"torch", "hydra", "numpy", "pandas"} & set(sys.modules)
cnnlab.compose("data=shapes optim=adam")
assert len(cnnlab.runs()) == 2
cnnlab.report(out="report")
assert "torch" not in sys.modules
import cnnlab.launch.job, cnnlab.report.page, cnnlab.runs.files
assert all(map(callable, (cnnlab.train, cnnlab.report, cnnlab.runs)))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert set(cnnlab.__all__) == {name for name in cnnlab.__all__ if hasattr(cnnlab, name)}
    with pytest.raises(AttributeError, match="no attribute 'evaluate'"):
        _ = cnnlab.evaluate


def test_runs_that_cannot_be_read_are_named(tmp_path):
    for seed in (0, 1, 2):
        run = make_run(tmp_path / "runs", seed, 0.8)
    (run / "metrics.csv").write_text("")
    with pytest.warns(UserWarning, match=re.escape(f"cannot be read: {run}: metrics.csv has no rows")) as caught:
        assert list(cnnlab.runs(tmp_path / "runs").seed) == [0, 1]
    assert caught[0].filename == __file__
    report = cnnlab.report(tmp_path / "runs", out=tmp_path / "report")
    assert f"{run.name}: left out: metrics.csv has no rows" in report.path.with_name("report.md").read_text()
    with pytest.raises(cnnlab.UserError, match=r"There is no run in .* cannot be read: .* metrics.csv has no rows"):
        cnnlab.runs(run)


def test_a_folder_of_options_that_is_not_there_leaves_no_trace():
    with pytest.raises(cnnlab.UserError, match="nowhere"):
        cnnlab.compose("data=shapes", config_dir="nowhere")
    assert cnnlab.compose("data=shapes").optim.lr == 0.01


def test_data_that_have_changed_are_other_data(tmp_path):
    words = f"data=arrays data.train={tmp_path}/a.npz"
    digests = []
    for value in (0, 1):
        images, labels = np.full((400, 8, 8, 1), value, np.uint8), np.arange(400) % 2
        np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        digests.append(identity(cnnlab.compose(f"{words} model=linear")))
    assert digests[0] != digests[1]


def test_a_run_is_that_of_the_command_line(here, capsys):
    first, second = here
    assert first.path.name != second.path.name
    assert "lr=0.02" in second.path.name
    again = cnnlab.train([*WORDS.split(), "seed=1", "optim.lr=0.02"])
    assert again == second
    assert "already finished" in capsys.readouterr().out
    assert json.loads((second.path / "summary.json").read_text()) == second.summary
    assert f"{second.metrics['test/acc']:.4f}" in second._repr_html_()
    assert second.summary["metric_modes"] == {"acc": "max"}
    assert second.summary["overrides"] == [*WORDS.split(), "optim.lr=0.02", "seed=1"]


def test_what_was_changed_in_a_configuration_is_typed():
    config = cnnlab.compose("data=shapes optim.lr=0.02 model.hidden=7 +optim.maximize=true")
    config.optim.lr, config.model.channels, config.sampling, config.num_train_images = 0.5, [1, 2], "balanced", None
    config.cache_dir = "it's {here} \\"
    with open_dict(config):
        config.optim.foreach = False
        del config.optim.momentum
    words = overrides_of(config)
    assert words[:3] == ["data=shapes", "model.hidden=7", "+optim.maximize=true"]
    same = cnnlab.compose(words)
    assert same.cache_dir == "it's {here} \\"
    assert (same.optim.lr, same.model.channels, same.sampling, same.optim.maximize) == (0.5, [1, 2], "balanced", True)
    assert (same.optim.foreach, "momentum" in same.optim) == (False, False)
    assert identity(same) == identity(config)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("modle=cnn", "modle"),
        ("model=cn", "Did you mean model=cnn"),
        ("optim.lr=-1", "optim.lr=-1 is not allowed"),
        ("lr=1", "Did you mean optim.lr"),
        ("-m", "-m cannot be parsed"),
        ("optim=sgd,adam", "sgd,adam"),
        ("launcher=local", "launcher=local is for sweeps"),
        ("hydra/sweeper=optuna", "A search has many runs"),
        ("plan=true", "plan=true shows"),
        ("name='a", "cannot be split into words"),
        ("cache_dir=[a]", "is not the path of a folder"),
        ("hydra=null", "hydra=null: Hydra's settings cannot be replaced"),
        ("num_train_images={a:1}", "num_train_images={a:1} is not allowed"),
        ("weights={a:1}", "weights={a:1} is neither a file nor a run directory"),
        ("+trainer.max_steps=0", "trainer.max_steps is not supported"),
        ("+trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 is not a whole number"),
    ],
)
def test_what_cannot_work_is_a_sentence(words, said):
    with pytest.raises(cnnlab.UserError) as error:
        cnnlab.train(f"data=shapes {words}")
    assert said in str(error.value) or said in cnnlab.config.errors.explain(error.value)
    assert not list(Path.cwd().rglob("summary.json"))


def test_it_fails_and_is_interrupted_as_on_the_command_line():
    with pytest.raises(cnnlab.RunFailedError, match=r"DivergedError: .*train\.log"):
        cnnlab.train(f"{WORDS} optim.lr=1e30")
    with testing.stopped_after(3) as reached, pytest.raises(KeyboardInterrupt, match="stopped by SIGTERM"):
        cnnlab.train(WORDS)
    assert reached == [3]
    assert cnnlab.runs()["status"].tolist() == ["diverged", "not finished"]
    [speed] = past_speeds(Path("outputs")).values()  # of three steps
    assert speed > 0
    assert cnnlab.train(WORDS).summary["epochs_done"] == 2


def test_a_model_takes_pixels_and_pictures(here, tmp_path):
    first, _ = here
    model = cnnlab.load(first)
    test = cnnlab.load(first.path.name).pixels(np.zeros((1, 3, 32, 32), np.uint8))  # by name
    assert test.shape == (1, 3, 32, 32)
    from cnnlab.config.objects import data_source
    from cnnlab.data.images import load_once

    images = load_once(data_source(cnnlab.compose(WORDS).data)).test
    predicted, _, confidence = RunDirectory(first.path).predictions()
    probabilities = model.probabilities(images.pixels)
    assert model.labels(torch.from_numpy(images.pixels)) == [images.classes[label] for label in predicted]
    assert torch.allclose(probabilities.max(1)[0], torch.from_numpy(confidence).float(), atol=0.01)
    picture = Image.fromarray(np.arange(50 * 40 * 4, dtype=np.uint8).reshape(50, 40, 4))
    picture.save(tmp_path / "picture.png")
    pixels = read_image(tmp_path / "picture.png", (32, 32)).pixels.transpose(2, 0, 1)[None]
    assert model.pixels([picture, picture])[1:].equal(torch.from_numpy(pixels.copy()))
    assert model.pixels(picture).equal(torch.from_numpy(pixels.copy()))
    assert picture.mode == "RGBA"
    features, last = model.features(images.pixels), list(model.network.modules())[-1]
    assert features.shape == (50, 32)
    assert torch.allclose(last(features), model.logits(images.pixels), atol=0.05)
    for epoch in ("best", "last"):
        saved = torch.load(first.path / "checkpoints" / f"{epoch}.ckpt", weights_only=True)["state_dict"]
        weights = cnnlab.load(first, epoch=epoch).network.state_dict()
        assert all(saved[f"network.{name}"].equal(value.cpu()) for name, value in weights.items()), epoch
    for wrong in (images.pixels[0], images.pixels.astype(np.float32), images.pixels[:, :, :30]):
        with pytest.raises(cnnlab.UserError, match=r"The run takes \(N, 3, 32, 32\) uint8"):
            model.logits(wrong)
    with pytest.raises(cnnlab.UserError, match="Use best or last"):
        cnnlab.load(first, epoch="first")


def test_tables_have_a_row_for_each_run_and_for_each_epoch(here):
    first, second = here
    table = cnnlab.runs().set_index("run")
    assert table.loc[second.path.name, "optim.lr"] == 0.02
    assert table.loc[first.path.name, "optim.lr"] == 0.01  # its default, from the kept configuration
    assert table["optim.lr"].dtype == float
    assert sorted(table["seed"]) == [0, 1]
    assert table.loc[first.path.name, "test/acc"] == first.metrics["test/acc"]
    epochs = cnnlab.runs("outputs/runs", epochs=True)
    assert epochs.groupby("run")["epoch"].apply(list).tolist() == [[1, 2], [1, 2]]
    assert epochs["epoch"].dtype.kind == "i"
    assert epochs["val/loss"].notna().all()
    assert len(cnnlab.runs([first, second.path.name])) == 2
    Path("nothing").mkdir()
    with pytest.raises(cnnlab.UserError, match="There is no run in nothing"):
        cnnlab.runs("nothing")


def test_a_report_of_some_rows_is_shown_in_a_cell(here):
    table = cnnlab.runs()
    shown = cnnlab.report(table[table["optim.lr"] == 0.02], out="of_one")
    assert shown.path == Path("of_one/report.html")
    assert "optim.lr=0.02" in shown.path.read_text()
    assert "report.html" in str(shown.path)
    assert re.fullmatch('<iframe srcdoc="[^"]*"[^>]*></iframe>', shown._repr_html_())


# ---------------------------------------------------------------------------------------------------------------- names


def made(folder: Path, value: float = 0.5, status: str = "done", data: str = "f") -> Path:
    """A run directory of which there is only a summary."""
    summary = {
        "run": folder.name,
        "choices": {"data": "shapes"},
        "changes": {},
        "seed": 0,
        "status": status,
        "metrics": {"val/acc": value},
        "selected_on": "val/acc",
        "select_mode": "max",
        "best_epoch": 1,
        "train_seconds": 1.0,
        "images_per_second": 1.0,
        "data": {"classes": ["a", "b"], "fingerprint": data},
    }
    RunDirectory(folder).write_summary(summary)
    return folder


def test_a_run_is_named_in_five_ways(tmp_path):
    one = made(Path("outputs/runs/cnn-sgd-12345678"), 0.7)
    two = made(Path("outputs/demo/cnn-adam-1234abcd"), 0.6)
    made(Path("outputs/runs/cnn-sgd-12345678.old1"), 0.9)
    made(Path("outputs/runs/cnn-sgd-aaaaaaaa"), 0.9, status="running")
    os.utime(two / "summary.json", (2e9, 2e9))
    for name in ("outputs/runs/cnn-sgd-12345678", "cnn-sgd-12345678", "12345", "12345678", "best", one.absolute()):
        assert named(name).resolve() == one.resolve(), name
    for name in ("latest", "1234a", "cnn-adam-1234abcd"):
        assert named(name) == two, name
    assert named("best", Path("outputs/demo")) == two
    wrong = {
        "1234": "1234 names 2 runs: outputs/demo/cnn-adam-1234abcd, outputs/runs/cnn-sgd-12345678. Use the path",
        "123": "123 names no run",
        "cnn-sgd": "cnn-sgd names no run",
        "cnn-sgd-12345678.old1": "names no run",
    }
    for name, said in wrong.items():
        with pytest.raises(cnnlab.UserError, match=re.escape(said)):
            named(name)
    with pytest.raises(cnnlab.UserError, match="there is no folder elsewhere"):
        named("best", Path("elsewhere"))
    made(Path("outputs/runs/cnn-sgd-bbbbbbbb"), data="others")
    with pytest.raises(cnnlab.UserError, match="different data"):
        named("best")
    running = Path("outputs/runs/cnn-sgd-aaaaaaaa")
    (running / "metrics.csv").touch()
    os.utime(running / "metrics.csv", (3e9, 3e9))  # written after every epoch
    assert named("latest") == running
    made(Path("unfinished/runs/cnn-sgd-12345678"), status="failed")
    with pytest.raises(cnnlab.UserError, match="no run in unfinished is done"):
        named("best", Path("unfinished"))


def test_every_verb_takes_a_name(here, verb, tmp_path):
    first, second = here
    Image.new("RGB", (9, 9)).save(tmp_path / "image.png")
    for words, said in (
        (("evaluate", first.path.name[-8:]), "50 images"),
        (("predict", first.path.name, tmp_path / "image.png"), "image.png"),
        (("export", "best", "--format", "torch"), "differ from the run's"),
        (("show", "latest", "--picture", tmp_path / "image.png"), "occlusion.png"),
        (("ls", "latest"), second.path.name),
        (("status", first.path.name), "1 done"),
        (("report", first.path.name[-8:], "--out", tmp_path / "report"), "report.html"),
        (("compare", first.path.name, second.path.name, "--out", tmp_path / "compare.png"), "Would other seeds"),
    ):
        result = verb(*words)
        assert result.returncode == 0, result.stderr
        assert said in result.stdout, words
    unknown = verb("evaluate", "0000", "--runs", "outputs/runs")
    assert (unknown.returncode, "no run in outputs/runs has that name" in unknown.stderr) == (2, True)


def test_the_page_is_true(monkeypatch, capsys):
    """All the code of docs/python.md, in order, in an empty folder."""
    blocks = re.findall("^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) > 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert len(names["table"]) == 4  # the first run is one of the four
    mine, saved = names["mine"], names["saved"]
    assert mine.network is names["network"]
    for key, values in mine.state_dict().items():
        assert values.equal(saved[key]), key


def test_the_notebook_is_executed(tmp_path, monkeypatch):
    """In a kernel of its own; progress, tables, curves and the report are shown."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # which verbs of this process have set
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    assert not [cell for cell in notebook.cells if cell.get("outputs")]  # a diff of it can be read
    nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.get("text", "") + output.get("data", {}).get("text/plain", "") for output in outputs)
    shown = [output["data"] for output in outputs if "data" in output]
    assert text.count("done: test accuracy") == 4
    ends = [data for data in shown if re.fullmatch(r"\d+\.\d s", data.get("text/plain", ""))]
    assert len(ends) == 4, "of the progress bars"
    assert sum("image/png" in data for data in shown) == 2, "matplotlib's backend is still the notebook's"
    assert any("<iframe" in data.get("text/html", "") for data in shown)
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert "[300, 32]" in text


@pytest.mark.skipif(
    sys.platform == "darwin", reason="GOMP_SPINCOUNT is GNU OpenMP's; torch on macOS is built with LLVM's"
)
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
    ids=["default", "count", "policy"],
)
def test_threads_wait_for_a_short_time_unless_the_environment_says_otherwise(given, spins):
    """As OpenMP itself says when torch loads it."""
    own = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    command = [sys.executable, "-c", "import cnnlab, torch"]
    environment = own | given | {"OMP_DISPLAY_ENV": "VERBOSE"}
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in shown
