"""How cost grows is measured; what comes out is for the benchmark to say."""

from conftest import ROOT


def test_how_cost_grows(command):
    result = command(str(ROOT / "benchmarks" / "growth.py"), "--smoke", timeout=900)
    assert result.returncode == 0, result.stderr
    assert [line.partition(":")[0] for line in result.stdout.splitlines()] == ["batch", "images", "sweep", "report"]
