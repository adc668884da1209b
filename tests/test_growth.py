"""How cost grows is measured; what comes out is for the benchmark to say."""

import importlib

import matplotlib
from conftest import ROOT
from PIL import Image


def test_how_cost_grows(command):
    result = command(str(ROOT / "benchmarks" / "growth.py"), "--smoke", timeout=900)
    assert result.returncode == 0, result.stderr
    printed = [line.partition(":")[0] for line in result.stdout.splitlines()]
    assert [name for name in printed if name != "skipped"] == ["batch", "images", "sweep", "report"]


def test_the_picture_of_whatever_was_measured(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    growth = importlib.import_module("growth")
    points = {
        "batch": [{"size": size, "cnnlab": size, "limit": 2 * size} for size in (32, 64)],
        "images": [{"size": size, "seconds": size, "bytes": size} for size in (10, 100)],
        "sweep": [{"size": size, "seconds": 1 + size} for size in (1, 10)],
        "report": [{"size": size, "seconds": 2} for size in (1, 10)],
    }
    pictures = []
    for found in (points, {"report": points["report"]}):
        growth.draw(tmp_path / "growth.png", found)
        pictures.append(Image.open(tmp_path / "growth.png").tobytes())
    assert pictures[0] != pictures[1]
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "text.usetex": True}):  # a user's own style
        growth.draw(tmp_path / "growth.png", found)
    assert Image.open(tmp_path / "growth.png").tobytes() == pictures[1]
