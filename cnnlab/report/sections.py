"""The sections of a report, from which its HTML, Markdown and LaTeX forms are written."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from cnnlab.report import charts, figures, run_figures, tables
from cnnlab.report.answer import answer, method, notes, protocol
from cnnlab.report.document import Block, Document, Figure, Lines, Link, Section, Table, Text
from cnnlab.report.runs import Setting
from cnnlab.report.sweep import Sweep
from cnnlab.report.trials import importances, is_search, without_result
from cnnlab.runs.readers import MEGABYTE, BrokenFileError, read_bytes

MAX_CELLS = 400  # of the heat map
MAX_COMMANDS = 40
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def document(sweep: Sweep, folder: Path = Path()) -> Document:
    """The report. folder: where it will be written; links are relative to it."""
    lead: list[Block] = [Text(warning, "strong")] if (warning := protocol(sweep)) else []
    lead.append(Text(answer(sweep), "answer"))
    if sweep.ranking:
        shared = [f"{name} {value}" for name, value in sweep.groups[0].settings.items() if name not in sweep.axes]
        lead.append(Text(f"Fixed: {', '.join(shared)}."))
    sections = list(_results(sweep)) if sweep.ranking else []
    return Document(sweep.question(), lead, [*sections, *_runs(sweep, folder)])


def _results(sweep: Sweep) -> Iterator[Section]:
    axes = [axis for axis in sweep.axes if len(sweep.values(axis)) > 1]
    several = any(place.score.num > 1 for place in sweep.ranking)
    shown = f" The best {charts.MAX_SETTINGS} of {len(sweep.ranking)} settings."
    shown *= len(sweep.ranking) > charts.MAX_SETTINGS
    caption = f"Mean {sweep.name} with its 95% interval; ticks are seeds." if several else f"{sweep.name.capitalize()}."
    ranked = [_figure("ranking", caption + shown, charts.ranking(sweep))] if len(sweep.ranking) > 1 else []
    yield Section("Ranking", [*ranked, Table(tables.ranking_table(sweep), filters=(*axes, "verdict"))])
    yield Section("Which images and which epoch", [Lines("items", notes(sweep))])
    if lines := method(sweep):
        yield Section("How settings are compared", [Lines("items", lines)])

    held_out = "test" if sweep.ranking[0].setting.held_out == "test" else "held-out"
    caption = f"Solid: {held_out} images; dashed: training."
    settings = [(sweep.label(place.setting), place.setting) for place in sweep.ranking]
    caption += " Lines are means over seeds; bands span all seeds." * several + _early(settings) + shown
    chart = charts.curves(sweep.measure, settings, sweep.measure.partition("/")[2])
    yield Section("Curves", [_figure("curves", caption, chart)])
    for title, text, table in tables.effect_sections(sweep):
        yield Section(title, [*([Text(text)] if text else []), Table(table)])
    if len(sweep.axes) == 2 and math.prod(len(sweep.values(axis)) for axis in sweep.axes) <= MAX_CELLS:
        caption = f"Mean {sweep.name} of every combination."
        yield Section("Interaction", [_figure("interaction", caption, charts.heat_map(sweep))])
    for number, axis in enumerate(filter(sweep.is_numeric, sweep.axes), start=1):
        yield Section(f"Values of {axis}", _by_value(sweep, axis, number))
    if len(sweep.axes) > 2 or is_search(sweep):
        num, drawn = len(sweep.ranking), charts.MAX_LINES
        which = f"one of the best {drawn} of {num} settings" if num > drawn else "a setting"
        caption = f"Every line is {which}, ending at its {sweep.name}. On the page, drag along an axis to select."
        caption += _left_out(sweep)
        yield Section("Parallel coordinates", [_figure("parallel", caption, charts.parallel(sweep))])
    if is_search(sweep):
        yield from _search(sweep)
    yield from _classes(sweep)


def _early(settings: Sequence[tuple[str, Setting]]) -> str:
    """For the caption of curves: where they end if the seeds of a setting stopped at different epochs."""
    uneven = any(len({len(run.rows) for run in setting.runs}) > 1 for _, setting in settings)
    return " A line ends where the first of its seeds stopped." * uneven


def _left_out(sweep: Sweep) -> str:
    """For a caption: how many settings have no finished run."""
    num = len(sweep.empty)
    return f" Left out: {num} setting{'s' * (num > 1)} without a finished run." * (num > 0)


def _figure(name: str, caption: str, chart: dict[str, object]) -> Figure:
    return Figure(name, caption, chart, partial(figures.png, chart))


def _by_value(sweep: Sweep, axis: str, number: int) -> list[Block]:
    """The score against the values of a numeric axis, and its curves over epochs, all else as in the best setting."""
    alike = sweep.alike(axis)
    rest = "all else is as in the best setting" if len(alike) > 1 else "all settings"
    caption = f"{sweep.name.capitalize()} against {axis}; {rest}.{_left_out(sweep)}"
    blocks: list[Block] = [_figure(f"axis-{number}", caption, charts.by_value(sweep, axis))]
    if len(alike) > 1:
        settings = [(f"{axis}={group.value(axis)}", group) for group in alike]
        chart = charts.curves(sweep.measure, settings, "loss")
        first = str(chart["metrics"][0]["name"])  # not the loss if none was logged
        caption = (
            f"{first[0].upper()}{first[1:]} over epochs for every value of {axis}. Solid: held-out images; dashed: "
        )
        caption += f"training.{_early(settings)}"
        blocks.append(_figure(f"axis-{number}-curves", caption, chart))
    return blocks


def _search(sweep: Sweep) -> Iterator[Section]:
    text = f"The {sweep.superlative} {sweep.name} to expect from fewer trials (J. Dodge et al., 2019)."
    worst, others = without_result(sweep)
    text += " Diverged and pruned trials count as the worst of the others." * (worst > 0)
    if others:
        text += (
            f" Without a result and not counted: {', '.join(f'{num} {outcome}' for outcome, num in others.items())}."
        )
    chart = _figure("best-of", text, charts.best_of_trials(sweep))
    yield Section("Expected best by the number of trials", [chart])
    found = importances(sweep)
    if found is None:
        blocks: list[Block] = [Text("Not computed: Optuna is not installed (pip install optuna).")]
    else:
        text = (
            "By Optuna's PED-ANOVA evaluator: how much each hyperparameter decides whether a trial is among the best "
            f"tenth. With few trials this is a rough guide.{_left_out(sweep)}"
        )
        rows = [[axis, f"{share:.1%}"] for axis, share in found.items()]
        blocks = [Text(text), Table([["hyperparameter", "importance"], *rows])]
    yield Section("Importance of hyperparameters", blocks)


def _classes(sweep: Sweep) -> Iterator[Section]:
    blocks: list[Block] = []
    counts, runs = sweep.confusion(), sweep.ranking[0].setting.runs
    if counts.size:
        classes = runs[0].summary["data"]["classes"]
        few = len(classes) <= run_figures.MAX_CLASSES
        shown = run_figures.drawable(classes) if few else []
        numbered = [f"#{at} is {name}" for at, name in enumerate(classes) if few and shown[at] == f"#{at}" != name]
        blocks += [
            Table(tables.per_class_table(sweep)),
            Figure(
                "confusion",
                "Confusion matrix in percent, row-normalized, pooled over seeds.",
                charts.confusion(counts, classes) if few else None,
                partial(figures.confusion_png, counts, classes),
                f"Classes whose names cannot be drawn with this font: {', '.join(numbered)}." if numbered else "",
            ),
        ]
    for run in runs:
        with suppress(FileNotFoundError, BrokenFileError):
            content = read_bytes(run.path / "mistakes.png", MEGABYTE // 2)
            if content.startswith(PNG_SIGNATURE):
                text = f"The most confident mistakes of seed {run.seed}."
                blocks.append(Figure("mistakes", text, None, partial(bytes, content)))
                break
    if blocks:
        yield Section("Classes on test images, with the best setting", blocks)


def _runs(sweep: Sweep, folder: Path) -> Iterator[Section]:
    if sweep.runs:
        text = "Every run, with a link to its directory. All settings and metrics (accuracies as fractions) are in "
        table = Table(tables.run_rows(sweep, folder), filters=("status", *sweep.axes))
        yield Section("Runs", [Text(text, link=Link("runs.csv", "runs.csv")), table])
    if lines := tables.left_out(sweep):
        yield Section("Not in the averages", [Lines("items", lines)])
    if sweep.ranking:
        found = tables.commands(sweep)
        more = [Text(f"These train the first {MAX_COMMANDS} of {len(found)} settings.")] * (len(found) > MAX_COMMANDS)
        yield Section("Commands", [*more, Lines("commands", found[:MAX_COMMANDS])])
        yield Section("Provenance", [Table(tables.provenance(sweep), wraps=True)])
