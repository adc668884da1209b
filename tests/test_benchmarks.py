"""The benchmarks run; what they measure is for them to say."""

from conftest import ROOT


def test_the_table(command):
    result = command(str(ROOT / "benchmarks" / "table.py"), "--smoke", timeout=900)
    assert result.returncode == 0, result.stderr
    for row in ("over the limit", "over kornia", "with norm=pca", "first step", "four runs", "two runs at once"):
        assert row in result.stdout
