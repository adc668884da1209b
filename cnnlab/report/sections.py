"""What a report says, in order: the one list of sections that html, Markdown and LaTeX are written from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from cnnlab.report import charts, figures, pictures
from cnnlab.report.answer import answer, method, notes, protocol
from cnnlab.report.document import Block, Commands, Document, Figure, Items, Link, Section, Table, Text
from cnnlab.report.sweep import Sweep
from cnnlab.report.tables import (
    best_of_table,
    commands,
    effect_sections,
    outside,
    per_class_table,
    provenance,
    ranking_table,
    run_rows,
)
from cnnlab.report.trials import importances, is_search
from cnnlab.runs.readers import MEGABYTE, BrokenFileError, read_bytes

MOST_CELLS = 400  # of the heat map
MOST_COMMANDS = 40
PNG = b"\x89PNG\r\n\x1a\n"  # how such a file begins
BEST_OF = "Expected best by the number of trials"


def document(sweep: Sweep, folder: Path = Path()) -> Document:
    """The report. folder: where it is going to be, to which links are relative."""
    lead: list[Block] = [Text(warning, "strong")] if (warning := protocol(sweep)) else []
    lead.append(Text(answer(sweep), "answer"))
    if sweep.ranking:
        lead.append(Text(f"Fixed: {', '.join(f'{name} {value}' for name, value in sweep.held.items())}."))
    if sweep.apart:
        lead.append(
            Text(
                f"The runs differ in more than their settings ({'; '.join(sweep.apart)}); such runs are not averaged "
                f"with each other.",
                "strong",
            )
        )
    sections = list(_results(sweep)) if sweep.ranking else []
    sections += list(_runs(sweep, folder))
    return Document(sweep.question(), lead, sections)


def _results(sweep: Sweep) -> Iterator[Section]:
    axes = [axis for axis in sweep.axes if len(sweep.values(axis)) > 1]
    several = any(place.score.num > 1 for place in sweep.ranking)
    shown = f"Mean {sweep.name} with its 95% interval; ticks are seeds." if several else f"{sweep.name.capitalize()}."
    shown += _best_of(sweep)
    ranked = [_figure("ranking", shown, charts.ranking(sweep))] if len(sweep.ranking) > 1 else []
    yield Section("Ranking", [*ranked, Table(ranking_table(sweep), filters=(*axes, "verdict"))])
    yield Section("Which images and which epoch", [Items(notes(sweep))])
    if lines := method(sweep):
        yield Section("How settings are compared", [Items(lines)])
    yield Section("Curves", [_curves(sweep)])
    for title, text, table in effect_sections(sweep):
        yield Section(title, [*([Text(text)] if text else []), Table(table)])
    if len(sweep.axes) == 2 and math.prod(len(sweep.values(axis)) for axis in sweep.axes) <= MOST_CELLS:
        text = f"Mean {sweep.name} of every combination."
        yield Section("Interaction", [_figure("interaction", text, charts.heat_map(sweep))])
    for number, axis in enumerate(filter(sweep.is_numeric, sweep.axes), start=1):
        yield Section(f"Values of {axis}", _by_value(sweep, axis, number))
    if len(sweep.axes) > 2 or is_search(sweep):
        text = f"Every line is a setting; the last axis is its {sweep.name}. On the page, drag along an axis to select."
        yield Section("Parallel coordinates", [_figure("parallel", text, charts.parallel(sweep))])
    if is_search(sweep):
        yield from _search(sweep)
    yield from _classes(sweep)


def _figure(name: str, caption: str, chart: dict[str, object]) -> Figure:
    return Figure(name, caption, chart, partial(figures.png, chart))


def _best_of(sweep: Sweep) -> str:
    """What a chart leaves out."""
    return f" The best {charts.MOST} of {len(sweep.ranking)} settings." if len(sweep.ranking) > charts.MOST else ""


def _curves(sweep: Sweep) -> Figure:
    held_out = "test" if sweep.ranking[0].setting.held_out == "test" else "held-out"
    text = f"Solid: {held_out} images; dashed: training."
    if any(place.score.num > 1 for place in sweep.ranking):
        text += " Lines are means over seeds, and bands span all seeds."
    text += _best_of(sweep)
    settings = [(sweep.label(place.setting), place.setting) for place in sweep.ranking]
    return _figure("curves", text, charts.curves(sweep, settings, sweep.measure.partition("/")[2]))


def _by_value(sweep: Sweep, axis: str, number: int) -> list[Block]:
    """What is reported against the numbers of an axis, and losses over epochs, the rest as in the best setting."""
    alike = sweep.alike(axis)
    rest = "the rest is as in the best setting" if len(alike) > 1 else "all settings"
    caption = f"{sweep.name.capitalize()} against {axis}; {rest}."
    blocks: list[Block] = [_figure(f"axis-{number}", caption, charts.by_value(sweep, axis))]
    if len(alike) > 1:
        settings = [(f"{axis}={group.value(axis)}", group) for group in alike]
        text = f"Loss over epochs for every value of {axis}. Solid: held-out images; dashed: training."
        blocks.append(_figure(f"axis-{number}-curves", text, charts.curves(sweep, settings, "loss")))
    return blocks


def _search(sweep: Sweep) -> Iterator[Section]:
    text = f"The {sweep.superlative} {sweep.name} to expect from fewer trials (J. Dodge et al., 2019)."
    chart = _figure("best-of", text, charts.best_of_trials(sweep))
    yield Section(BEST_OF, [chart, Table(best_of_table(sweep))])
    title = "Importance of hyperparameters"
    found = importances(sweep)
    if found is None:
        yield Section(title, [Text("Not computed: Optuna is not installed (pip install optuna).")])
        return
    said = (
        "By Optuna's evaluator (PED-ANOVA): how much each hyperparameter decides whether a trial is among the best "
        "tenth. With few trials this is a rough guide."
    )
    rows = [["hyperparameter", "importance"], *([axis, f"{share:.1%}"] for axis, share in found.items())]
    yield Section(title, [Text(said), Table(rows)])


def _classes(sweep: Sweep) -> Iterator[Section]:
    blocks: list[Block] = []
    counts = sweep.confusion()
    if counts.size:
        classes = sweep.ranking[0].setting.runs[0].summary["data"]["classes"]
        few = len(classes) <= pictures.NAMED
        shown = pictures.drawable(classes) if few else []
        numbered = [f"#{at} is {name}" for at, name in enumerate(classes) if few and shown[at] == f"#{at}" != name]
        blocks += [
            Table(per_class_table(sweep)),
            Figure(
                "confusion",
                "Confusion matrix, in percent of each true class, summed over seeds.",
                charts.confusion(counts, classes) if few else None,
                partial(figures.confusion_png, counts, classes),
                f"Classes whose names the font does not have: {', '.join(numbered)}." if numbered else "",
            ),
        ]
    for run in sweep.ranking[0].setting.runs:
        with suppress(FileNotFoundError, BrokenFileError):
            content = read_bytes(run.path / "mistakes.png", MEGABYTE // 2)
            if content.startswith(PNG):
                text = f"The most confident mistakes of seed {run.seed}."
                blocks.append(Figure("mistakes", text, None, partial(bytes, content)))
                break
    if blocks:
        yield Section("Classes on test images, with the chosen setting", blocks)


def _runs(sweep: Sweep, folder: Path) -> Iterator[Section]:
    if sweep.runs:
        text = "Every run, with a link to its directory. All settings and metrics, as fractions, are in "
        table = Table(run_rows(sweep, folder), filters=("status", *sweep.axes))
        yield Section("Runs", [Text(text, link=Link("runs.csv", "runs.csv")), table])
    if lines := outside(sweep):
        yield Section("Not in the averages", [Items(lines)])
    if sweep.ranking:
        found = commands(sweep)
        more = [Text(f"These train the best {MOST_COMMANDS} of {len(found)} settings.")] * (len(found) > MOST_COMMANDS)
        yield Section("Commands", [*more, Commands(found[:MOST_COMMANDS])])
        yield Section("Provenance", [Table(provenance(sweep), wraps=True)])
