"""Printing ends no program, and what is printed to standard error is there at once."""

import subprocess
import sys

import pytest

SCRIPT = """if True:
    import sys
    from cnnlab.console import outlive_terminal
    outlive_terminal()
    for _ in range(20_000):
        print("to standard output")
    print("to standard error", file=sys.stderr)
    open("alive", "w").close()"""


def shell(script: str, command: str) -> subprocess.CompletedProcess[str]:
    words = command.format(python=f"{sys.executable} -c '{script}'")
    return subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "command",
    [
        "{python} | head -1; exit ${{PIPESTATUS[0]}}",
        "{python} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}",
        "{python} > /dev/full",
        "{python} >&-",
        "{python} >&- 2>&- <&-",
        "{python} 2> >(true)",
    ],
    ids=["head", "head, both", "full disk", "closed", "all closed", "no reader of errors"],
)
def test_what_cannot_be_printed_is_dropped_quietly(tmp_path, command):
    result = shell(SCRIPT, command)
    assert result.returncode == 0, result.stderr
    assert set(result.stderr.splitlines()) <= {"to standard error"}
    assert (tmp_path / "alive").exists()


def test_letters_that_the_terminal_has_not_got_are_escaped():
    script = """if True:
        from cnnlab.console import outlive_terminal
        outlive_terminal()
        print(chr(0x732b))"""
    result = shell(script, "PYTHONIOENCODING=ascii {python}")
    assert (result.returncode, result.stdout) == (0, "\\u732b\n")


def test_errors_are_printed_before_a_process_is_killed():
    script = """if True:
        import os, sys
        from cnnlab.console import outlive_terminal
        outlive_terminal()
        print("why", file=sys.stderr)
        os.kill(os.getpid(), 9)"""
    assert shell(script, "{python}").stderr.startswith("why\n")


def test_a_reader_that_is_slow_and_a_pipe_that_does_not_block():
    script = """if True:
        import os
        from cnnlab.console import outlive_terminal
        os.set_blocking(1, False)
        outlive_terminal()
        for _ in range(20_000):
            print("to standard output")"""
    result = shell(script, "{python} | (sleep 1; cat)")
    assert result.stdout.count("\n") == 20_000
