"""TensorBoard itself, started over a sweep: what its pages ask for is there, and they open in a browser."""

import html
import json
import os
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import BROWSER
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from test_report import make_run
from test_resume import Zygote, said

from cnnlab.train.board import TensorBoard
from cnnlab.use.board import link, links_to_runs

COMMAND = (
    *("-m", "data=shapes", "data.num_train=400", "data.num_test=60", "batch_size=40", "model.channels=[8,8,8]"),
    *("optim=sgd,adam", "aug=crop_flip", "norm=standard", "trainer.max_epochs=3", "trainer.accelerator=cpu"),
)


def record(content: bytes) -> bytes:
    """As event files have them."""

    def checked(part: bytes) -> bytes:
        return part + struct.pack("<I", masked_crc32c(part))

    return checked(struct.pack("<Q", len(content))) + checked(content)


WHOLE = record(
    Event(wall_time=1.0, summary=Summary(value=[Summary.Value(tag="rate", simple_value=1)])).SerializeToString()
)
DAMAGED = {
    "text": b"hello",
    "cut": WHOLE + WHOLE[:-3],
    "no event": WHOLE + record(b"\xff" * 4),
    "a record of 2**60 bytes": WHOLE + struct.pack("<QI", 2**60, masked_crc32c(struct.pack("<Q", 2**60))),
    "a record of 2**64 bytes": WHOLE + struct.pack("<QI", 2**64 - 1, masked_crc32c(struct.pack("<Q", 2**64 - 1))),
    "fifo": None,
}


ABOUT = {"selected_on": "val/loss", "select_mode": "min", "overrides": ["data=shapes", "run.note=two words"]}


def tags_and_values(folder: Path) -> list[tuple[str, int, float]]:
    """The scalars in the only event file of a folder."""
    [events] = folder.glob("events.out.tfevents.*")
    return [
        (value.tag, event.step, value.simple_value)
        for event in LegacyEventFileLoader(str(events)).Load()
        for value in event.summary.value
        if value.HasField("simple_value")
    ]


def test_a_resumed_run_has_every_point_once_and_keeps_those_of_callbacks(tmp_path):
    rows = [{"val/loss": loss, "lr": 0.1, "epoch_seconds": 1.0} for loss in (3.0, 1.0, 2.0)]
    saved = 0.0
    for written in (2, 3):  # killed before its summary was written, and resumed from an earlier checkpoint
        logger = TensorBoard(str(tmp_path))
        logger.open_run(ABOUT, "val", ("loss",))
        logger.go_on(saved, {"val/loss", "lr", "epoch_seconds"})
        for epoch, row in enumerate(rows[:written], 1):
            logger.log_metrics(row, epoch)
        if written == 2:
            logger.log_metrics({"val/rate": 7.0, "rate/test": 8.0}, 1)
        saved = time.time()
        logger.close_run({"optim": "sgd"}, {"val/loss": 1.0, "test/loss": 1.5, "last/test/loss": 1.6}, written)
    found = tags_and_values(tmp_path)
    assert sorted(found) == [
        *[("loss/best_val", epoch, best) for epoch, best in ((1, 3.0), (2, 1.0), (3, 1.0))],
        *[("loss/test", epoch, 1.5) for epoch in (1, 3)],
        *[("loss/val", epoch, row["val/loss"]) for epoch, row in enumerate(rows, 1)],
        *[("lr", epoch, pytest.approx(0.1)) for epoch in (1, 2, 3)],
        ("rate/test", 1, 8.0),  # not in a row of metrics.csv
        *[("speed/epoch_seconds", epoch, 1.0) for epoch in (1, 2, 3)],
        ("val/rate", 1, 7.0),
    ]


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_event_files_that_are_damaged_end_no_run(tmp_path, content):
    file = tmp_path / "events.out.tfevents.1"
    if content is None:
        os.mkfifo(file)
    else:
        file.write_bytes(content)
    logger = TensorBoard(str(tmp_path))
    logger.open_run(ABOUT, "val", ("loss",))
    logger.go_on(2.0, {"val/loss"})
    logger.finalize("failed")
    [new] = [path for path in tmp_path.glob("events.out.tfevents.*") if path != file]
    kept = [value.tag for event in LegacyEventFileLoader(str(new)).Load() for value in event.summary.value]
    assert kept.count("rate") == (content is not None and content.startswith(WHOLE))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    zygote = Zygote(folder)
    assert zygote.run(folder / "outputs", command=COMMAND)["status"] == 0, said(folder / "outputs")
    zygote.process.communicate()
    return folder / "outputs"


@pytest.fixture(scope="module")
def board(sweep) -> Iterator[str]:
    """The address of a TensorBoard over the sweep."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    links = sweep.parent / "links"
    links.mkdir()
    words = [sys.executable, "-m", "cnnlab", "board", str(sweep), "--port", str(port)]
    process = subprocess.Popen(words, env=os.environ | {"TMPDIR": str(links)}, stderr=subprocess.PIPE, text=True)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            try:
                if len(json.loads(urllib.request.urlopen(f"{address}/data/runs").read())) == 2:
                    break
            except OSError:
                pass
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.communicate()
        assert (process.returncode, list(links.iterdir())) == (143, [])


def asked(address: str, path: str, body: dict | None = None):
    request = urllib.request.Request(f"{address}/{path}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


def test_scalars_of_training_and_held_out_images_share_a_chart(board, sweep):
    runs = asked(board, "data/runs")
    assert sorted(runs) == ["optim=adam", "optim=sgd"]  # what differs
    tags = asked(board, "data/plugin/scalars/tags")
    for run in runs:
        accuracies, losses = (
            ["acc/best_val", "acc/test", "acc/train", "acc/val"],
            ["loss/test", "loss/train", "loss/val"],
        )
        speeds = ["speed/epoch_seconds", "speed/images_per_second"]
        assert sorted(tags[run]) == [*accuracies, *losses, "lr", *speeds]  # sorted as on the page
        points = asked(board, f"data/plugin/scalars/scalars?run={run}&tag=acc/val")
        assert [step for _, step, _ in points] == [1, 2, 3]
        for tag in tags[run]:
            assert len(asked(board, f"data/plugin/scalars/scalars?run={run}&tag={tag}")) > 1, "a chart of a single dot"
    layout = asked(board, "data/plugin/custom_scalars/layout")
    charts = {chart["title"]: chart["multiline"]["tag"] for chart in layout["category"][0]["chart"]}
    assert charts == {"loss": ["loss/train", "loss/val"], "accuracy": ["acc/train", "acc/val"]}


def test_the_command_and_the_whole_configuration_are_text(board):
    for run in asked(board, "data/runs"):
        [command] = asked(board, f"data/plugin/text/text?run={run}&tag=command/text_summary")
        assert "python train.py data=shapes data.num_train=400 " in command["text"]
        assert "'model.channels=[8,8,8]'" in html.unescape(command["text"])
        [config] = asked(board, f"data/plugin/text/text?run={run}&tag=config/text_summary")
        assert "num_train: 400" in config["text"]


def test_choices_and_final_metrics_of_every_run(board, sweep):
    found = asked(board, "experiment/defaultExperimentId/data/plugin/hparams/experiment", {})
    names = {info["name"] for info in found["hparamInfos"]}
    assert {"optim", "aug", "optim.lr", "seed", "model.channels", "trainer.accelerator"} <= names
    assert "model._target_" not in names
    first = [info["name"] for info in found["hparamInfos"][:2]]
    assert first == ["optim", "optim.lr"]  # what differs
    assert [info["name"]["tag"] for info in found["metricInfos"]][:2] == ["acc/best_val", "acc/test"]
    groups = asked(
        board,
        "experiment/defaultExperimentId/data/plugin/hparams/session_groups",
        {"colParams": [], "startIndex": 0, "sliceSize": 10, "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN"]},
    )
    assert {group["hparams"]["optim"] for group in groups["sessionGroups"]} == {"sgd", "adam"}
    links = links_to_runs(sweep)
    for group in groups["sessionGroups"]:
        summary = json.loads((links[group["name"]] / "summary.json").read_text())
        shown = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
        assert shown["acc/best_val"] == pytest.approx(summary["metrics"]["val/acc"])
        assert shown["acc/test"] == pytest.approx(summary["metrics"]["test/acc"])


def test_pictures(board):
    tags = asked(board, "data/plugin/images/tags")
    for run, pictures in tags.items():
        assert {"samples", "weights/filters", "results/confusion", "results/mistakes", "results/curves"} == set(
            pictures
        )
        assert min(pictures) > "lr"  # after accuracies and losses
        shown = asked(board, f"data/plugin/images/images?run={run}&tag=weights/filters&sample=0")
        assert [picture["step"] for picture in shown] == [1, 2, 3]


def test_runs_are_named_by_what_differs_and_by_the_hash_where_that_is_not_enough(tmp_path):
    for folder, digest in (("a", "0123abcd"), ("b", "4567abcd")):
        make_run(tmp_path / folder, 0, 0.5).rename(tmp_path / folder / f"shapes-{digest}")
    assert set(links_to_runs(tmp_path / "a")) == {"shapes"}
    make_run(tmp_path, 0, 0.5, {"optim": "adam"})
    make_run(tmp_path, 0, 0.5, {"optim": "nadam"}, changes={"weights": "a/b.pt"})
    assert sorted(links_to_runs(tmp_path)) == [
        "optim=adam weights=-",
        "optim=nadam weights=a_b.pt",
        "optim=sgd weights=- 0123abcd",
        "optim=sgd weights=- 4567abcd",
    ]


def test_a_port_that_cannot_be_used_is_one_paragraph(tmp_path, command):
    make_run(tmp_path, 0, 0.5)
    result = command("-m", "cnnlab", "board", str(tmp_path), "--port", "99999")
    assert result.returncode == 2
    assert result.stderr.endswith("TensorBoard cannot bind to port 99999 > 65535. Use another --port or --host.\n")


@pytest.mark.browser
@pytest.mark.parametrize("page", ["timeseries", "scalars", "images", "custom_scalars", "hparams"])
def test_pages_open_in_a_browser(board, page, tmp_path):
    """Without an error; the page's own part is there."""
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1400, "height": 1000})
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(f"{board}/#{page}")
        tab.wait_for_load_state("networkidle", timeout=120_000)
        tab.screenshot(path=tmp_path / "page.png")
        browser.close()
    assert errors == []
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_links_that_are_right_stay(tmp_path):
    """TensorBoard, which reads the folder at any time, would drop a run whose link is missing."""
    link(tmp_path, {"a": Path("/1"), "b": Path("/2")})
    kept = (tmp_path / "a").lstat().st_ino
    link(tmp_path, {"a": Path("/1"), "b": Path("/3"), "c": Path("/4")})
    assert {path.name: str(path.readlink()) for path in tmp_path.iterdir()} == {"a": "/1", "b": "/3", "c": "/4"}
    link(tmp_path, {"a": Path("/1")})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").lstat().st_ino == kept
