"""What a terminal shows: tables that fit, and how far a sweep is."""

import io
import json
from pathlib import Path

import pytest

from cnnlab.config.help import print_help
from cnnlab.launch.job import Job
from cnnlab.launch.job_states import differing, report_begin, report_stopped
from cnnlab.runs.directory import RunDirectory
from cnnlab.terminal import Table, terminal_width
from cnnlab.text import say


def shown(width: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    table = Table()
    table.add("optim", number=False)
    table.add("settings", number=False, fold=True)
    table.add("val/acc (%)")
    table.add("seconds", 2)
    table.add("epoch", 1)
    table.add_row("adam", "aug=cutmix lr=0.01 " * 3, "81.25", "12", "7")
    table.show(width=width)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("width", "columns"),
    [(100, ["seconds", "epoch"]), (65, ["epoch"]), (50, [])],
)
def test_a_narrow_terminal_has_fewer_columns_and_all_of_what_matters(width, columns, capsys):
    lines = shown(width, capsys)
    assert max(map(len, lines)) <= width
    assert [name for name in ("seconds", "epoch") if name in lines[1]] == columns
    assert "adam" in lines[3]
    assert "81.25" in lines[3]
    assert "".join(lines).count("lr=0.01") == 3  # folded, not cut


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    typed = (["data=shapes", "optim=sgd", "seed=0"], ["data=shapes", "optim=sgd", "seed=1"])
    return [
        Job(tmp_path / str(number), json.dumps({"about": {"overrides": words}})) for number, words in enumerate(typed)
    ]


def test_a_sweep_says_which_run_it_is_at(jobs, capsys):
    settings = differing(jobs)
    assert list(settings.values()) == ["seed=0", "seed=1"]
    report_begin(jobs[0], 1, 2, settings[jobs[0].path], None)
    run = RunDirectory(jobs[1].path)
    run.write_summary({"run": "1", "status": "interrupted", "choices": {}, "changes": {}, "seed": 1})
    run.write_metrics([{"epoch": 1, "val/acc": 0.5}])
    report_begin(jobs[1], 2, 2, settings[jobs[1].path], 95.0)
    assert capsys.readouterr().out == (
        "\nrun 1 of 2, seed=0\n\nrun 2 of 2, seed=1, resuming after epoch 1, about 1 min 35 s left\n"
    )


def test_a_sweep_that_is_stopped_says_how_to_go_on(jobs, capsys):
    report_stopped(jobs)
    assert capsys.readouterr().out == "0 of 2 runs are done. Run the same command again to resume the sweep.\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lst"], "cnnlab: there is no lst. Did you mean ls? Use one of train, ls, status, board, new, "),
        (["export"], "cnnlab: the following arguments are required: RUN. cnnlab export --help shows how to use it."),
        (["ls", "--num", "x"], "cnnlab: argument --num: invalid int value: 'x'. cnnlab ls --help shows"),
    ],
)
def test_a_wrong_verb_is_answered_by_one_paragraph(verb, words, said):
    result = verb(*words)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(said)
    assert result.stderr.count("\n") == 1


def test_a_column_without_content_is_left_out(capsys):
    table = Table()
    for rank, name in enumerate(("status", "job", "age")):
        table.add(name, rank)
    table.add_row("failed", "", "3 d")
    table.show()
    assert capsys.readouterr().out.split()[:2] == ["status", "age"]


def test_columns_is_obeyed_without_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    print_help(["optim"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    assert terminal_width(100) is None
    monkeypatch.setenv("COLUMNS", "")
    assert terminal_width(100) == 100


def test_a_line_is_wrapped_between_words_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "20")
    path = "outputs/runs/a-path-that-stays-in-one-piece"
    for stream, expected in ((Terminal(), f"two lines of several\nwords:\n{path}\n\nend\n"), (io.StringIO(), None)):
        text = f"two lines of several words: {path}\n\nend"
        say(text, stream)
        assert stream.getvalue() == (expected or f"{text}\n")
