"""The benchmarks run; what they measure is for them to say."""

import importlib
import json
import sys

import pytest
from conftest import ROOT

from cnnlab.data.cifar import CIFAR10
from cnnlab.data.images import cached_data
from cnnlab.data.shapes import Shapes


def test_the_table(command):
    """Those of its measurements that are more than commands, timed; each of these takes seconds to start."""
    words = ("--smoke", "--only", "pipeline", "start")
    result = command(str(ROOT / "benchmarks" / "table.py"), *words, timeout=900)
    assert result.returncode == 0, result.stderr
    for row in ("input pipeline", "first step"):
        assert row in result.stdout


@pytest.mark.filterwarnings("ignore")  # those of others' code
@pytest.mark.parametrize("name", ["limit", "template", "torchvision", "kornia", "plain"])
def test_a_contender_trains(name, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    data = Shapes(256, 64).load()
    cached_data(CIFAR10([], "0" * 64, str(tmp_path)).prepared, lambda: (data.train, data.test))
    words = (f"--cache-dir={tmp_path}", "--images=256", "--epochs=2", f"--out={tmp_path}/out.json")
    monkeypatch.setattr(sys, "argv", ["contenders.py", name, *words])
    importlib.import_module("contenders").main()
    first, second = json.loads((tmp_path / "out.json").read_text())["ends"]
    assert second > first


def test_two_processes_share_a_training(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    assert importlib.import_module("threads").measured({"OMP_NUM_THREADS": "1"}, "ddp", 4, 0.1) > 0


def test_the_pages_have_the_numbers_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    page = importlib.import_module("page")
    for path in page.PAGES:
        text = path.read_text()
        assert "\n| training, images/s: relative to a bare loop |" in text, path
        assert page.filled(text) == text, "python benchmarks/page.py"
