"""The benchmarks run; what they measure is for them to say."""

from conftest import ROOT


def test_throughput_runs(command):
    result = command(str(ROOT / "benchmarks" / "throughput.py"), "--smoke")
    assert result.returncode == 0, result.stderr
    assert "cnnlab / bare loop" in result.stdout
    assert "cnnlab / template" in result.stdout


def test_at_once_runs(command):
    result = command(str(ROOT / "benchmarks" / "at_once.py"), "--smoke")
    assert result.returncode == 0, result.stderr
    assert "at once / in turn" in result.stdout


def test_whitening_runs(command):
    result = command(str(ROOT / "benchmarks" / "whitening.py"), "--smoke")
    assert result.returncode == 0, result.stderr
    assert "zca / standard" in result.stdout
