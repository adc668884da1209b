"""A run directory of a stranger, of a crash, of a slip: it runs nothing, hangs nothing, and hides no other run."""

import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from cnnlab.config.identity import configuration
from cnnlab.config.options import UserError, leaves, limits_of_file, option_file, options
from cnnlab.launch.job import Job
from cnnlab.report import listing, page
from cnnlab.report.answer import answer
from cnnlab.report.runs import find, read
from cnnlab.report.sections import document
from cnnlab.report.sweep import Sweep
from cnnlab.report.tables import runs_table
from cnnlab.runs.directory import CheckpointError, RunDirectory
from cnnlab.train import checkpoint
from cnnlab.use.bounded import bounded
from cnnlab.use.opened import OURS, not_words, opened, with_other_data
from cnnlab.use.trained import open_run

SMALL = (
    *(
        "data=shapes",
        "data.num_train=100",
        "val_fraction=0.2",
        "data.num_test=20",
        "batch_size=20",
        "model.channels=[4,4]",
    ),
    *("model.hidden=8", "trainer=cpu", "trainer.max_epochs=1", "logger=none", "aug=crop_flip", "norm=standard"),
)
FILES = (
    *("summary.json", ".hydra/config.yaml", "metrics.csv", "predictions.npz", ".holder", ".queued"),
    *("checkpoints/best.ckpt", "checkpoints/best.ckpt.sha256"),
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("original"))
        patch.setenv("CNNLAB_CACHE", "cache")
        job = Job.of(configuration([*SMALL]))
        assert job.do() == 0
        return job.path.resolve()


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(original, tmp_path / "outputs" / "runs" / original.name))


Verb = Callable[..., subprocess.CompletedProcess[str]]


def refused(result: subprocess.CompletedProcess[str]) -> bool:
    """Whether it ended with one paragraph."""
    return result.returncode == 2 and result.stderr.startswith("cnnlab: ") and len(result.stderr.splitlines()) == 1


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """Nothing here takes long, whatever it is given; a process that hangs in a system call is woken."""
    signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(int(os.environ.get("CNNLAB_FUZZ", "0")) + 60)
    yield
    signal.alarm(0)


def change_config(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = run / ".hydra" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    change(config)
    file.write_text(yaml.safe_dump(config))


def change_summary(folder: Path, **keys: Any) -> None:
    file = folder / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


# ---------------------------------------------------------------------------------------- no code, nothing resolved

CALL = "{_target_: intruder.call}"
INTRUDER = {"_target_": "intruder.call"}
ATTACKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "partial": lambda c: c["norm"].update(INTRUDER | {"_partial_": True}),
    "argument": lambda c: c["model"].update(hidden=INTRUDER),
    "in lists": lambda c: c["model"].update(channels=[[{"a": [INTRUDER]}]]),
    "positional": lambda c: c["model"].update(_args_=[INTRUDER]),
    "not recursive": lambda c: c["model"].update(_recursive_=False),
    "converted": lambda c: c["model"].update(_convert_="object"),
    "created": lambda c: c["model"].update(hidden=f"${{oc.create:{CALL}}}"),
    "created when escaped": lambda c: c["model"].update(hidden=f"\\${{oc.create:{CALL}}}"),
    "created when escaped twice": lambda c: c["model"].update(hidden=f"\\\\\\${{oc.create:{CALL}}}"),
    "created in an augmentation": lambda c: c["aug"].update(more=f"\\${{oc.create:{CALL}}}"),
    "created in a list": lambda c: c["model"].update(channels=[4, [f"\\${{oc.create:{CALL}}}"]]),
    "decoded": lambda c: c["model"].update(hidden=f"\\${{oc.decode:'{CALL}'}}"),
    "environment": lambda c: c["norm"].update(eps="${oc.env:SECRET}"),
    "another value": lambda c: c["model"].update(hidden="${batch_size}"),
    "resolver of ours": lambda c: c["model"].update(hidden="${cnnlab.run_id:}"),
    "missing": lambda c: c["model"].update(hidden="???"),
    "key that is a number": lambda c: c["model"].update({7: 1}),
    "path as a group": lambda c: c.update({"aug": {"/tmp/x": INTRUDER}}),
    "no mapping": lambda c: c.update(aug=[INTRUDER]),
    "key that is no name": lambda c: c["model"].update({"(": 1}),
    "key that is a slow expression": lambda c: c["model"].update({r"(.|\w|[^x])*!": 1}),
    "key with dots": lambda c: c["norm"].update(eps={"a.b": 1}),
    "file to read": lambda c: c["model"].update(weights="/dev/zero"),
    "address to read": lambda c: c["model"].update(batch_norm=["https://evil.example"]),
    "far too large": lambda c: c["model"].update(hidden=10**12),
}


# What our own files of the options say is instantiated, whatever class the configuration names.
DISREGARDED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "itself": lambda c: c["model"].update(INTRUDER),
    "class of another group": lambda c: c["model"].update(_target_="cnnlab.data.folder.ImageFolder"),
    "class that is a mapping": lambda c: c["model"].update(_target_=INTRUDER),
}


@pytest.fixture
def intruder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """A module that tells when it is imported or called."""
    (tmp_path / "intruder.py").write_text(
        "from pathlib import Path\n\nPath('noticed').touch()\n\n\ndef call(**_):\n    Path('noticed').touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SECRET", "do not tell")
    yield (tmp_path / "noticed").exists
    sys.modules.pop("intruder", None)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_a_configuration_of_a_stranger_runs_nothing_and_is_refused(run, attack, verb, intruder, tmp_path):
    change_config(run, attack)
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    for words in (("predict", run, "image.png"), ("evaluate", run), ("show", run), ("export", run)):
        result = verb(*words)
        assert refused(result), result.stderr
        assert "do not tell" not in result.stderr
    assert not intruder()
    assert "1 of 1 runs" in verb("ls", "outputs").stdout  # a table resolves nothing


@pytest.mark.parametrize("attack", DISREGARDED.values(), ids=DISREGARDED)
def test_a_class_that_a_configuration_names_is_none_of_ours_to_make(run, attack, verb, intruder):
    change_config(run, attack)
    result = verb("evaluate", run)
    assert result.returncode == 0, result.stderr
    assert not intruder()


LOADER = """
_target_: torch.hub.load
repo_or_dir: ours/models
model: small # or large
where: ??? # [where.startswith('/data/')]
"""


def test_a_configuration_chooses_words_and_numbers_and_what_an_option_says(run, tmp_path, monkeypatch):
    """An option may name a function that loads code from wherever it is told."""
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "loader.yaml").write_text(LOADER)
    monkeypatch.setenv("CNNLAB_CONF", str(tmp_path / "conf"))
    change_summary(run, choices=json.loads((run / "summary.json").read_text())["choices"] | {"model": "loader"})
    sound = {"repo_or_dir": "ours/models", "model": "large", "where": "/data/x", "depth": 3, "pretrained": True}
    change_config(run, lambda c: c.update(model=sound))
    assert opened(run).config.model == sound | {"_target_": "torch.hub.load"}
    for evil in (
        *({"repo_or_dir": "evil/models"}, {"model": "../x"}, {"model": "~"}, {"model": "a\nb"}, {"where": "/home/x"}),
        *({"more": "hub:evil"}, {"more": {"a": [{"/b": 1}]}}),
    ):
        change_config(run, lambda c, evil=evil: c.update(model=sound | evil))
        with pytest.raises(UserError, match=r"may name a file or an address|is not allowed"):
            opened(run)


def test_classes_within_arguments_are_those_of_today(run, tmp_path, monkeypatch):
    """If no file names the run's any more: they have moved."""
    (tmp_path / "conf" / "model").mkdir(parents=True)
    today = {"act": {"_target_": "new.Act"}, "blocks": [{"_target_": "new.Block", "width": 8}]}
    (tmp_path / "conf" / "model" / "stack.yaml").write_text(yaml.safe_dump({"_target_": "new.Stack"} | today))
    monkeypatch.setenv("CNNLAB_CONF", str(tmp_path / "conf"))
    change_summary(run, choices=json.loads((run / "summary.json").read_text())["choices"] | {"model": "stack"})
    block = {"_target_": "old.Block", "width": 16}
    change_config(run, lambda c: c.update(model={"act": {"_target_": "old.Act"}, "blocks": [block]}))
    found = opened(run).config.model
    assert (found.act._target_, found.blocks) == ("new.Act", [{"_target_": "new.Block", "width": 16}])
    change_config(run, lambda c: c["model"]["blocks"].append(dict(block)))
    with pytest.raises(UserError, match=r"model\.blocks\.1\._target_=old\.Block is not allowed"):
        opened(run)


def test_every_path_of_our_options_says_that_it_may_be_one():
    """Or a run with another path could not be evaluated."""
    for group in ("data", "norm", "aug", "model", "loss", "metrics"):
        for option in options(group):
            limits = limits_of_file(f"{group}/{option}")
            for knob, value in leaves(option_file(f"{group}/{option}")):
                if knob.rpartition(".")[2] not in (*OURS, "_target_") and next(not_words(value), "") and value != "???":
                    assert limits.get(knob), f"conf/{group}/{option}.yaml: {knob} needs [{knob}] after its comment"


LAUGHS = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))
YAMLS = {
    "python": "model: !!python/object/apply:os.system [touch noticed]",
    "tag": "model: !x {}",
    "a billion laughs": f"a0: &a0 [x]\n{LAUGHS}",
    "megabytes of aliases": "a: &a [1]\nb: [" + "*a, " * 250_000 + "1]",
    "deep": "[" * 10_000,
    "deep blocks": "\n".join(" " * n + f"{n}:" for n in range(1000)),
    "wide": "\n".join(f"k{n}: 1" for n in range(60_000)),
    "large": "#" * 2_000_000,
    "binary": "\0\1\2",
    "a list": "[1, 2]",
    "empty": "",
    "a date": "model: 2024-01-01",
    "not YAML": "{",
    "a number without end": "seed: " + "9" * 100_000,
}


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
def test_a_file_that_is_no_configuration_is_refused_at_once(run, text, verb, intruder):
    (run / ".hydra" / "config.yaml").write_text(text)
    assert refused(verb("predict", run, "image.png"))
    assert verb("status", "outputs").returncode == 0
    assert not intruder()


def test_a_run_as_it_was_written_passes(run, verb):
    assert verb("evaluate", run).returncode == 0
    text = (run / ".hydra" / "config.yaml").read_text()
    assert "${" not in text
    assert yaml.safe_load(text)["cache_dir"] == "cache"  # as the environment said when the job was made


def test_a_strangers_run_decides_neither_what_is_downloaded_nor_where_it_is_kept(run):
    evil = {"sources": ["https://evil.example"], "sha256": "0" * 64, "cache_dir": "/tmp/evil", "timeout": 1e9}
    ours = option_file("data/cifar10")
    change_config(run, lambda c: c.update(data={"_target_": ours["_target_"]} | evil))
    change_summary(run, choices=json.loads((run / "summary.json").read_text())["choices"] | {"data": "cifar10"})
    made = with_other_data(opened(run))
    assert list(made.data.sources) == ours["sources"]
    assert (made.data.sha256, made.data.timeout) == (ours["sha256"], ours["timeout"])
    assert made.data.cache_dir == os.environ["CNNLAB_CACHE"]
    assert list(with_other_data(opened(run), ["data.sources=[https://mine]"]).data.sources) == ["https://mine"]
    change_summary(run, choices={"data": "../../evil", "norm": "none"})
    with pytest.raises(UserError, match="there is no such option here"):
        with_other_data(opened(run))


# ---------------------------------------------------------------------------------------- files that are broken


def fifo(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def device(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to("/dev/zero")


def folder(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [fifo, device, folder])
def test_only_regular_files_are_read(run, verb, harm, name):
    harm(run / name)
    if name in ("metrics.csv", "predictions.npz", ".holder", ".queued"):
        assert verb("status", "outputs").returncode == 0 or name == "metrics.csv"
        assert name != "predictions.npz" or "Image by image: not known" in verb("compare", run, run).stdout
    else:
        assert refused(verb("evaluate", run))


SUMMARIES = {
    "empty": b"",
    "half": b'{"run": "x", "sta',
    "foreign": b'{"a": 1}',
    "binary": bytes(range(256)),
    "a number": b"7",
    "deep": b"[" * 10_000,
    "status of another kind": b'{"run": "x", "choices": {}, "changes": {}, "seed": 0, "status": ["done"]}',
    "done without results": b'{"run": "x", "choices": {}, "changes": {}, "seed": 0, "status": "done"}',
}


@pytest.mark.parametrize("content", SUMMARIES.values(), ids=SUMMARIES)
def test_a_broken_summary_is_named_and_hides_no_other_run(original, run, verb, content):
    broken = Path(shutil.copytree(original, run.with_name("broken")))
    (broken / "summary.json").write_bytes(content)
    for words in (("ls", "outputs"), ("status", "outputs")):
        result = verb(*words)
        assert result.returncode == 0, result.stderr
        assert "outputs/runs/broken: left out: summary.json" in result.stdout
    assert "1 of 1 runs" in verb("ls", "outputs").stdout
    assert "outputs/runs/broken: left out" in page.markdown(document(Sweep(*read(find([Path("outputs")])))))
    assert not listing.print_table([run, broken])
    assert refused(verb("evaluate", broken))


@pytest.mark.parametrize("name", ["empty", "foreign", "binary"])
def test_a_sweep_sets_a_broken_summary_aside_and_goes_on_from_the_checkpoint(run, capsys, name):
    before = RunDirectory(run).summary()
    (run / "summary.json").write_bytes(SUMMARIES[name])
    job = Job.of(configuration([*SMALL]))
    assert job.path.resolve() == run
    assert job.do() == 0
    assert "it is kept as summary.json.damaged" in capsys.readouterr().out
    assert (run / "summary.json.damaged").read_bytes() == SUMMARIES[name]
    assert RunDirectory(run).summary()["metrics"] == before["metrics"]
    assert job.do() == 0
    assert "already finished" in capsys.readouterr().out


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("rerun", [False, True])
def test_a_run_in_the_place_of_another_is_neither_returned_nor_moved(original, tmp_path, capsys, rerun):
    job = Job.of(configuration([*SMALL, "optim.lr=0.5", f"rerun={rerun}"]))
    shutil.copytree(original, job.path)
    before = snapshot(job.path)
    assert job.do() == 2
    assert "contains another run" in capsys.readouterr().err
    assert snapshot(job.path).items() >= before.items()
    assert [path.name for path in job.path.parent.iterdir()] == [job.path.name]


@pytest.mark.parametrize("words", [["hydra.run.dir=."], ["hydra.run.dir=.", "rerun=true"], ["hydra.run={dir:.}"]])
def test_a_project_is_not_a_run_directory(tmp_path, words):
    files = ("train.log", ".hydra/config.yaml", ".lock", "thesis.tex")
    for file in files:
        (tmp_path / "project" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / file).write_text("mine")
    result = subprocess.run(
        [sys.executable, ROOT / "train.py", *SMALL, *words], cwd=tmp_path / "project", capture_output=True, text=True
    )
    assert refused(result), result.stderr
    assert snapshot(tmp_path / "project") == dict.fromkeys(files, b"mine")
    assert [path.name for path in tmp_path.iterdir()] == ["project"]


def test_a_run_whose_name_has_old_in_it_is_found_and_an_archived_one_is_not(original, tmp_path):
    for name in ("my.older-12345678", "x.old-87654321", "x-12345678.old1", "x-12345678.old12"):
        shutil.copytree(original, tmp_path / "outputs" / name)
    found = [path.name for path in find([tmp_path / "outputs"])]
    assert found == ["my.older-12345678", "x.old-87654321"]


def written(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def bomb() -> bytes:
    """3 GB of labels in 3 MB."""
    file, header = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (3 * 10**9,)})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("predicted", "labels", "confidence"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(header.getvalue())
                for _ in range(5):
                    member.write(bytes(10**7))
    return file.getvalue()


def headed(text: bytes) -> bytes:
    """An archive of arrays whose header is this text."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("predicted", "labels", "confidence"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    return file.getvalue()


N = 20
GOOD = {
    "predicted": np.zeros(N, np.uint8),
    "labels": np.zeros(N, np.uint8),
    "confidence": np.ones(N, np.float16),
}
PREDICTIONS: dict[str, Callable[[], bytes]] = {
    "objects": lambda: written(**GOOD | {"labels": np.array([{}] * N, dtype=object)}),
    "labels out of range": lambda: written(**GOOD | {"predicted": np.full(N, 10, np.uint8)}),
    "negative labels": lambda: written(**GOOD | {"labels": np.full(N, -1, np.int8)}),
    "lengths": lambda: written(**GOOD | {"labels": np.zeros(N - 1, np.uint8)}),
    "two dimensions": lambda: written(**GOOD | {"labels": np.zeros((N, 1), np.uint8)}),
    "probabilities": lambda: written(**GOOD | {"confidence": np.full(N, np.nan, np.float16)}),
    "an array is missing": lambda: written(labels=GOOD["labels"]),
    "text": lambda: b"hello",
    "empty": lambda: b"",
    "cut": lambda: written(**GOOD)[:-30],
    "a header that does not end": lambda: headed(b"{'descr': ("),
    "a header that is no Python": lambda: headed(b"   x\n  y\n z"),
    "a header as deep as no expression": lambda: headed(b"-" * 9000 + b"1"),
    "bomb": bomb,
}


@pytest.mark.parametrize("content", PREDICTIONS.values(), ids=PREDICTIONS)
def test_predictions_that_are_none_are_refused_before_memory_is_taken(run, content):
    assert len(RunDirectory(run).predictions()[0]) == N
    (run / "predictions.npz").write_bytes(content())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"predictions\.npz is not a file of predictions"):
        RunDirectory(run).predictions()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize(
    "text",
    [
        "epoch,lr\none,two\n",
        "epoch\n2\n",
        "epoch,lr\n1,inf\n",
        "epoch\n1,2,3\n",
        "epoch\n\0\n",
        "epoch\n1e999\n",
        "x" * 200_000 + "\n1",
    ],
    ids=["words", "epochs that are none", "infinite", "more cells", "binary", "too large", "a wide cell"],
)
def test_metrics_that_are_no_numbers_are_refused(run, text, verb):
    (run / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match=r"metrics\.csv is not a table of numbers"):
        RunDirectory(run).metrics()
    assert "metrics.csv is not a table of numbers" in verb("status", "outputs").stderr


def changed(**keys: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content | keys


def weight(shape: tuple[int, ...], **more: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda c: c | {"state_dict": c["state_dict"] | {"network.conv1.weight": torch.zeros(shape)}} | more


CHECKPOINTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda content: [1],
    "no weights": lambda content: {key: value for key, value in content.items() if key != "state_dict"},
    "no epoch": lambda content: {key: value for key, value in content.items() if key != "epoch"},
    "an epoch that is text": changed(epoch="x"),
    "another epoch than its records": changed(epoch=10**9),
    "callbacks that are a list": changed(callbacks=[1]),
    "loops that are text": changed(loops="x"),
    "no optimizer": lambda content: {key: value for key, value in content.items() if key != "optimizer_states"},
    "records of nothing": changed(records={}),
    "no records": lambda content: {key: value for key, value in content.items() if key != "records"},
    "weights that are text": changed(state_dict={"network.conv1.weight": "x"}),
    "another shape": weight((9, 3, 5, 5)),
    "a repeated value": lambda c: c | {"ImageData": {"mean": torch.zeros(1).expand(10**6, 10**6)}},
    "statistics of another shape": lambda c: c | {"ImageData": {key: torch.zeros(7) for key in c["ImageData"]}},
    "statistics that are text": lambda c: c | {"ImageData": dict.fromkeys(c["ImageData"], "x")},
    "no statistics": lambda c: c | {"ImageData": {}},
}


def plant(run: Path, content: bytes) -> None:
    """Write a checkpoint with its digest."""
    import hashlib

    best = run / "checkpoints" / "best.ckpt"
    best.write_bytes(content)
    Path(f"{best}.sha256").write_text(f"{hashlib.sha256(content).hexdigest()}  best.ckpt\n")


@pytest.mark.parametrize("change", CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_checkpoints_that_are_none_or_do_not_fit_are_refused(run, change, verb):
    best = run / "checkpoints" / "best.ckpt"
    file = io.BytesIO()
    torch.save(change(torch.load(best, weights_only=True)), file)
    plant(run, file.getvalue())
    result = verb("evaluate", run)
    assert refused(result), result.stderr
    assert "best.ckpt" in result.stderr


def test_checkpoints_that_are_no_archives_are_refused(run, verb):
    best = run / "checkpoints" / "best.ckpt"
    content = best.read_bytes()
    squeezed, cut = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        for file, kind, lost in ((squeezed, zipfile.ZIP_DEFLATED, 0), (cut, zipfile.ZIP_STORED, 4)):
            with zipfile.ZipFile(file, "w", kind) as new:
                for name in old.namelist():  # a tensor that is cut shows only when it is read
                    new.writestr(name, old.read(name)[: -lost if lost and name.endswith("/data/1") else None])
    for planted in (b"", b"hello", content[:-100], squeezed.getvalue(), cut.getvalue()):
        plant(run, planted)
        assert refused(verb("evaluate", run))


@pytest.mark.parametrize("kind", [torch.Tensor, torch.FloatTensor, torch.UntypedStorage, bytearray])
def test_no_checkpoint_takes_memory_by_calling_something(run, verb, kind):
    class Called:
        def __reduce__(self) -> Any:
            return kind, (10**11,)

    file = io.BytesIO()
    torch.save({"state_dict": {}, "records": {"x": Called()}}, file)
    plant(run, file.getvalue())
    result = verb("evaluate", run)
    assert refused(result)
    assert "which has no place in a checkpoint" in result.stderr


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError("Cannot allocate memory")],
)
def test_a_full_memory_is_no_fault_of_a_checkpoint(run, verb, monkeypatch, error):
    def load(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(MemoryError):
        checkpoint.newest(run / "checkpoints")
    assert not list(run.rglob("*.damaged"))
    assert refused(verb("evaluate", run))


# ---------------------------------------------------------------------------------------- networks of any class

COMPUTING = """
import torch
from cnnlab.networks import ConvNet


class Computing(ConvNet):
    def __init__(self, blocks: int = 3, **arguments):
        super().__init__(**arguments)
        self.rates = [rate.item() for rate in torch.linspace(0, 1, blocks)]
"""


def test_a_network_may_compute_when_it_is_made_and_is_no_larger_than_its_weights(run, verb, tmp_path, monkeypatch):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    ours = (ROOT / "conf" / "model" / "cnn.yaml").read_text()
    option = ours.replace("cnnlab.networks.ConvNet", "computing.Computing") + "blocks: 3\n"
    (tmp_path / "conf" / "model" / "computing.yaml").write_text(option)
    (tmp_path / "computing.py").write_text(COMPUTING)
    monkeypatch.setenv("CNNLAB_CONF", str(tmp_path / "conf"))
    monkeypatch.syspath_prepend(tmp_path)
    change_summary(run, choices=json.loads((run / "summary.json").read_text())["choices"] | {"model": "computing"})
    result = verb("evaluate", run)
    assert result.returncode == 0, result.stderr
    change_config(run, lambda c: c["model"].update(blocks=10**12))
    result = verb("evaluate", run)
    assert refused(result)
    assert "takes more than" in result.stderr


READING = """
import torch
from cnnlab.networks import ConvNet


class Reading(ConvNet):
    def __init__(self, how: str = "file", **arguments):
        super().__init__(**arguments)
        if how == "file":
            torch.load("missing.pt")
        elif how == "hub":
            torch.hub.load_state_dict_from_url("https://nowhere.invalid/backbone.pt")
        elif how == "address":
            import urllib.request

            urllib.request.urlopen("http://127.0.0.1:9/backbone.pt")
"""


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("file", "missing.pt"),
        ("hub", "backbone.pt would have to be downloaded"),
        ("address", "127.0.0.1 would have to be downloaded"),
        ("", ""),
    ],
)
def test_a_network_that_reads_or_downloads_when_it_is_made_is_refused(run, verb, tmp_path, monkeypatch, how, said):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    ours = (ROOT / "conf" / "model" / "cnn.yaml").read_text()
    option = ours.replace("cnnlab.networks.ConvNet", "reading.Reading") + "how: file\n"
    (tmp_path / "conf" / "model" / "reading.yaml").write_text(option)
    (tmp_path / "reading.py").write_text(READING)
    monkeypatch.setenv("CNNLAB_CONF", str(tmp_path / "conf"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.syspath_prepend(tmp_path)
    before = torch.hub.download_url_to_file, socket.getaddrinfo
    change_summary(run, choices=json.loads((run / "summary.json").read_text())["choices"] | {"model": "reading"})
    change_config(run, lambda c: c["model"].update(how=how))
    result = verb("evaluate", run)
    assert refused(result) if how else result.returncode == 0, result.stderr
    assert said in result.stderr
    assert ("does not fit" in result.stderr) == bool(how)
    assert (torch.hub.download_url_to_file, socket.getaddrinfo) == before


@pytest.mark.parametrize(
    "metric",
    [
        {"auroc": {"_target_": "torchmetrics.AUROC", "task": "data.task", "num_classes": 10, "thresholds": 10**9}},
        {"calibration_error": {"num_classes": "data.num_classes", "n_bins": 200_000_000}},
    ],
    ids=lambda metric: next(iter(metric)),
)
def test_metrics_take_no_more_memory_than_networks(run, verb, metric):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    change_config(run, lambda c: c.update(metrics=metric))
    assert refused(verb("evaluate", run))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


def test_generated_data_have_a_largest_size(run, verb):
    change_config(run, lambda c: c["data"].update(num_train=10**9))
    result = verb("evaluate", run)
    assert refused(result)
    assert "num_train <= 10000000" in result.stderr


TOO_LARGE: dict[str, Callable[[], Any]] = {
    "a layer": lambda: torch.nn.Linear(10**6, 10**6),
    "a table": lambda: torch.arange(10**5)[:, None] - torch.arange(10**5),
    "a copy": lambda: torch.zeros(1).expand(10**9).clone(),
    "random numbers": lambda: torch.randn(10**9, generator=torch.Generator()),
    "layers": lambda: [torch.zeros(100_000) for _ in range(10_000)],
    "repeated": lambda: torch.ones(10).repeat(10**9),
}


@pytest.mark.parametrize("make", TOO_LARGE.values(), ids=TOO_LARGE)
def test_what_is_made_is_bounded_before_it_takes_memory(make):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with bounded(1000), pytest.raises(ValueError, match="takes more than"):
        make()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


def test_a_constructor_that_loads_a_file_runs_nothing_of_it(tmp_path, intruder):
    class Called:
        def __reduce__(self) -> Any:
            import intruder

            return intruder.call, ()

    torch.save(Called(), tmp_path / "weights.pt")
    Path("noticed").unlink()  # by the import
    with bounded(1000), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "weights.pt", weights_only=False)
    assert not intruder()


def test_sizes_that_fit_nothing_are_refused(run, verb):
    data = json.loads((run / "summary.json").read_text())["data"]
    for size in (0, 10**6, 28):
        for which in ("image_size", "input_size"):
            change_summary(run, data=data | {which: [size, 32]})
            assert refused(verb("predict", run, "image.png")) or (which, size) == ("input_size", 28)


# ---------------------------------------------------------------------------------------- terminal, spreadsheet

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\r"


@pytest.mark.filterwarnings("ignore:Glyph")  # which figures have none for
def test_no_escape_of_a_name_reaches_the_terminal(run, verb, tmp_path):
    evil = run.rename(run.with_name(f"evil{ESCAPES}"))
    summary = json.loads((evil / "summary.json").read_text())
    names = [f"{name}{ESCAPES}" for name in summary["data"]["classes"]]
    change_summary(
        evil,
        run=f"x{ESCAPES}",
        choices={group: f"{option}{ESCAPES}" for group, option in summary["choices"].items()},
        changes={f"optim.lr{ESCAPES}": ESCAPES},
        data=summary["data"] | {"classes": names},
    )
    failed = Path(shutil.copytree(evil, evil.with_name("failed")))
    change_summary(failed, status="failed", error={"type": ESCAPES, "message": ESCAPES})
    (failed / ".holder").write_text(f"process {ESCAPES} on {ESCAPES} since")
    (failed / ".queued").write_text(ESCAPES)
    broken = Path(shutil.copytree(evil, evil.with_name("broken")))
    (broken / "summary.json").write_text(f'{{"{ESCAPES}')
    Image.new("RGB", (32, 32)).save(tmp_path / f"image{ESCAPES}.png")
    (tmp_path / f"text{ESCAPES}.png").write_text("no image")
    said = [
        verb(*words)
        for words in (
            *(("ls", "outputs"), ("status", "outputs"), ("report", "outputs"), ("evaluate", evil), ("show", evil)),
            *(("predict", evil, "."), ("predict", evil, ".", "--format", "csv"), ("compare", evil, evil)),
        )
    ]
    listing.print_table([evil, failed, broken])
    text = "".join(result.stdout + result.stderr for result in said)
    assert r"\x1b]0;owned" in text
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    [report] = tmp_path.rglob("report.md")
    assert "\x1b" not in report.read_text()


def test_no_cell_of_a_table_is_a_formula(run, verb, tmp_path):
    change_summary(run, run='=HYPERLINK("http://x")', changes={"optim.lr": -0.5, "@x": "+1+1"})
    page.write(Sweep(*read(find([run]))), tmp_path / "report")
    text = (tmp_path / "report" / "runs.csv").read_text()
    assert "'=HYPERLINK" in text
    assert "'@x" in text
    assert "'+1+1" in text
    assert ",-0.5," in text  # a number stays one
    data = json.loads((run / "summary.json").read_text())["data"]
    change_summary(run, data=data | {"classes": [f"={name}" for name in data["classes"]]})
    Image.new("RGB", (32, 32)).save(tmp_path / "=1.png")
    line = verb("predict", run, "=1.png", "--format", "csv").stdout.splitlines()[1]
    assert re.match(r"'=1\.png,'=\w+,0\.", line)


# ---------------------------------------------------------------------------------------- fuzzing

NASTY = (
    "",
    "${oc.env:HOME}",
    "\\${x}",
    "../..",
    "\x1b[2J",
    "\ud800",
    "nan",
    "9" * 50,
    "_target_",
    "done",
    "a\nb",
    "???",
)
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.sampled_from(NASTY),
        st.sampled_from([0, -1, 10**6, 10**12, 2**63, 1e308, -0.5]),
        st.text(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=5), st.sampled_from(NASTY)), inner, max_size=3),
    ),
    max_leaves=6,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to everything in nested containers; of a long list to its first entries."""
    yield path
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(min(len(node), 3)):
            yield from places(node[key], (*path, key))


def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = node.copy()
    copy[path[0]] = replaced(node[path[0]], path[1:], value)
    return copy


class Harm(tuple[str, bytes]):
    """The name of a file of a run directory, and what it holds now."""

    def __repr__(self) -> str:
        return f"{self[0]}: {self[1][:2000]!r}"


@st.composite
def damaged(draw: st.DrawFn, original: Path) -> Harm:
    return Harm(harmed(draw, original))


def harmed(draw: st.DrawFn, original: Path) -> tuple[str, bytes]:
    name = draw(st.sampled_from(FILES))
    file = original / name
    content = file.read_bytes() if file.exists() else b"process 1 on host since now"
    how = draw(st.sampled_from(("structure", "structure", "structure", "bytes", "cut", "flip")))
    if how == "bytes":
        return name, draw(st.binary(max_size=64))
    if how == "cut":
        return name, content[: draw(st.integers(0, len(content)))]
    if how == "flip":
        place = draw(st.integers(0, len(content) - 1))
        return name, content[:place] + bytes([content[place] ^ draw(st.integers(1, 255))]) + content[place + 1 :]
    if name in ("summary.json", ".hydra/config.yaml", "checkpoints/best.ckpt"):
        if name.endswith(".ckpt"):
            tree = torch.load(file, weights_only=True)
            parts = {key: tree[key] for key in ("state_dict", "ImageData", "records") if key in tree}
        else:
            tree = parts = json.loads(content) if name == "summary.json" else yaml.safe_load(content)
        path = draw(st.sampled_from(sorted(places(parts), key=str)))
        shapes = st.lists(st.integers(0, 40), max_size=4)
        value = draw(values if not name.endswith(".ckpt") else st.one_of(values, shapes.map(torch.zeros)))
        made = replaced(tree, path, value)
        if name == "summary.json":
            return name, json.dumps(made).encode()
        if name == ".hydra/config.yaml":
            return name, yaml.safe_dump(made).encode()
        saved = io.BytesIO()
        torch.save(made, saved)
        return name, saved.getvalue()
    if name == "predictions.npz":
        kinds = st.sampled_from(["u1", "i2", "f2", "f8", "b1", "U3", "c8", "u8"])
        arrays = {
            key: np.full(draw(st.lists(st.integers(0, 40), max_size=2)), draw(st.integers(0, 90)), draw(kinds))
            for key in draw(st.lists(st.sampled_from(["predicted", "labels", "confidence", "x"]), unique=True))
        }
        return name, written(**arrays)
    cells = st.one_of(st.text(max_size=4), st.floats().map(str), st.integers().map(str))
    rows = draw(st.lists(st.lists(cells, max_size=4).map(",".join), max_size=4))
    header = draw(st.sampled_from(["epoch,val/acc,lr", "epoch", "epoch,epoch", "", "x,train/loss"]))
    return name, "\n".join([header, *rows]).encode(errors="surrogatepass")


FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "os.fork", "pty.spawn")
noticed: list[str] = []
watching = False


def watch(event: str, arguments: Any) -> None:
    if watching and event in FORBIDDEN:
        noticed.append(event)


def use(runs: Path, run: Path, name: str) -> None:
    """All that reads a file of a run directory; what is wrong with one is a UserError or a CheckpointError."""
    found = list(find([runs]))
    sweep = Sweep(*read(found))
    answer(sweep)
    page.markdown(document(sweep))
    page.html(document(sweep))
    runs_table(sweep)
    attempts: list[Callable[[], Any]] = [
        lambda: listing.print_list(runs, None, 50),
        lambda: listing.print_status(runs),
        lambda: listing.print_table(found),
        lambda: RunDirectory(run).predictions(),
        lambda: RunDirectory(run).refuse_other("0" * 64),
        lambda: open_run(run),
        lambda: with_other_data(opened(run)),
    ]
    for attempt in attempts if name in ("summary.json", ".hydra/config.yaml") else attempts[:-1]:
        with suppress(UserError, CheckpointError, FileNotFoundError):
            attempt()


def test_whatever_lies_in_a_run_directory(original, tmp_path, capsys):
    """CNNLAB_FUZZ=2000 tries so many files, and not only a few."""
    global watching
    sys.addaudithook(watch)
    runs = tmp_path / "runs"
    sound, run = (shutil.copytree(original, runs / name) for name in ("sound", "broken"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=int(os.environ.get("CNNLAB_FUZZ", "40")),
        deadline=None,
        database=None,
        phases=[Phase.generate],  # no smaller example is looked for: a large file takes minutes
        derandomize="CNNLAB_FUZZ" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(original))
    def attack(harm: Harm) -> None:
        name, content = harm
        if name.endswith(".ckpt"):
            plant(run, content)
        else:
            (run / name).write_bytes(content)
        try:
            use(runs, run, name)
            assert sound in [one.path for one in read(find([runs]))[0]]
        finally:
            (run / name).unlink()
            for kept in (name, f"{name}.sha256"):
                if (original / kept).exists():
                    shutil.copyfile(original / kept, run / kept)
            capsys.readouterr()

    watching = True
    try:
        attack()
    finally:
        watching = False
    assert not noticed
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
