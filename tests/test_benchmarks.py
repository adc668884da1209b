"""The benchmarks run; what they measure is for them to say."""

import importlib

from conftest import ROOT


def test_the_table(command):
    """Those of its measurements that are more than commands, timed; each of these takes seconds to start."""
    words = ("--smoke", "--only", "training", "pipeline", "start")
    result = command(str(ROOT / "benchmarks" / "table.py"), *words, timeout=900)
    assert result.returncode == 0, result.stderr
    for row in ("over the limit", "over kornia", "input pipeline", "first step"):
        assert row in result.stdout


def test_the_pages_have_the_numbers_of_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    page = importlib.import_module("page")
    for path in page.PAGES:
        text = path.read_text()
        assert "\n| training, images/s: over the limit |" in text, path
        assert page.filled(text) == text, "python benchmarks/page.py"
