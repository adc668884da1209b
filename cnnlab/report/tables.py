"""The tables of a report: head and rows, as text."""

import math
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from cnnlab.report.document import Cell, Link
from cnnlab.report.effects import Effect, mean_effects, reference, shares
from cnnlab.report.statistics import Estimate
from cnnlab.report.sweep import Place, Sweep
from cnnlab.report.units import heading, in_brackets, interval, number
from cnnlab.runs.named import handle

MAX_CLASSES = 40
NOT_SETTINGS = ("seed", "launcher", "rerun", "plan", "on_busy")  # overrides that are left out of commands
NUMBERS = ("best_epoch", "epochs_done", "train_seconds", "images_per_second")  # in a summary


def ranking_table(sweep: Sweep) -> list[list[str]]:
    """The settings, best first, and then those without a finished run."""
    measure, has_test = sweep.measure, any(place.test for place in sweep.ranking)
    head = [*sweep.axes, heading(measure), "95% interval", "n", "behind the best", "verdict"]
    rows = [[*head, *([heading(sweep.tested)] if has_test else []), "best epoch", "seconds"]]
    for place in sweep.ranking:
        runs = place.setting.runs
        behind = "" if place.behind is None else _change(measure, place.behind, "")
        values = [place.setting.value(axis) for axis in sweep.axes]
        found = [number(measure, place.score.mean), _interval(measure, place.score), place.setting.count()]
        test = [_test(sweep, place)] if has_test else []
        epochs = sorted({run.summary["best_epoch"] for run in runs})
        best_epoch = " to ".join(map(str, epochs[:: len(epochs) - 1 or 1]))  # the first and the last
        seconds = f"{sum(run.summary['train_seconds'] for run in runs) / len(runs):.0f}"
        rows.append([*values, *found, behind, place.verdict, *test, best_epoch, seconds])
    for group in sweep.empty:
        values = [group.value(axis) for axis in sweep.axes]
        rows.append([*values, "", "", group.count(), *[""] * (len(rows[0]) - len(values) - 3)])
    return rows


def _interval(measure: str, score: Estimate) -> str:
    return interval(measure, score) or ("one run" if score.num == 1 else "no spread")


def _test(sweep: Sweep, place: Place) -> str:
    """The mean on test images, with its number of runs if some have none."""
    if not place.test:
        return ""
    return number(sweep.tested, place.test.mean) + f" (n = {place.test.num})" * (place.test.num < place.score.num)


def _change(measure: str, change: Estimate, sign: str = "+") -> str:
    """A difference with its interval: "1.20 (0.80 to 1.60)"."""
    return number(measure, change.mean, sign) + in_brackets(measure, change)


def effects_table(sweep: Sweep, axis: str, found: Sequence[Effect]) -> list[list[str]]:
    """The values of an axis and their improvement over the reference.

    Where values were run in different combinations of the other axes, also the reference's mean over the same ones.
    """
    crossed, first = len(sweep.axes) > 1, reference(sweep, axis)
    uneven = len({frozenset(effect.combinations) for effect in found if effect.combinations}) > 1
    head = [axis, f"mean {heading(sweep.measure)}", *[f"mean of {first} there"] * uneven, "n"]
    rows = [head + [f"better than {first} by", "corrected p"] + ["averaged over"] * crossed]
    for effect in found:
        change, p_value = "", ""
        if effect.change:
            change = _change(sweep.measure, effect.change)
            p_value = f"{effect.change.p_value:.2g}" if math.isfinite(effect.change.p_value) else ""
        means = [effect.mean, *[effect.reference] * uneven]
        shown = [number(sweep.measure, mean) if effect.combinations else "" for mean in means]
        rows.append([effect.value, *shown, effect.count, change, p_value] + [effect.over] * crossed)
    return rows


def effect_sections(sweep: Sweep) -> Iterator[tuple[str, str, list[list[str]]]]:
    """Title, text and table: the shares of the variance on a grid, and, unless axes interact, the effect of each."""
    found, text = shares(sweep), ""
    family, by_axis = mean_effects(sweep, found)
    if found:
        said = f"F-test for no interaction: p = {found.p_value:.2g}." if found.p_value >= 0 else ""
        if found.interact:
            said += " The effect of an axis depends on the others, so mean effects would mislead: see the ranking."
        rows = [[name, f"{share:.1%}"] for name, share in found.parts.items()]
        if rows:
            yield "Shares of the variance", said, [["source", "share"], *rows]
        elif found.interact:
            yield "Effects of the axes", said, [["test", "p"], ["interaction", f"{found.p_value:.2g}"]]
        if found.noise:
            text = (
                "Each combination has one run. The intervals treat everything but the mean effects as noise; they are "
                f"95% intervals with a Bonferroni correction for all {family.num_claims} effects."
            )
        elif not rows and sweep.family.residual[1]:
            text = said or "Combinations are missing, too many to test whether the effect depends on the other axes."
    for axis, of_axis in by_axis.items():
        parts = found.parts if found else {}
        caveat = ""
        if parts.get("interaction", 0) > parts.get(axis, 1):
            caveat = (
                "The interaction explains more of the variance than this axis, though it is not significant: the "
                "effect may depend on the other axes."
            )
        yield f"Effect of {axis}", " ".join(filter(None, (text, caveat))), effects_table(sweep, axis, of_axis)


def run_rows(sweep: Sweep, folder: Path) -> list[list[Cell]]:
    """Every run with what is varied, and a link to its directory, relative to a folder."""
    tested = any(run.done and run.tested == sweep.tested for run in sweep.runs)
    metrics = [sweep.measure] + [sweep.tested] * tested
    names = [name.replace("_", " ").replace("train ", "") for name in NUMBERS]
    rows: list[list[Cell]] = [["run", "status", *sweep.axes, "seed", *map(heading, metrics), *names]]
    for run in sweep.runs:
        conditions, values = run.conditions, run.summary.get("metrics", {})
        link = Link(handle(run.path), quote(os.fsencode(os.path.relpath(run.path, folder))))
        found = [number(name, values[name]) if run.done and name in values else "" for name in metrics]
        numbers = [f"{value:.0f}" if (value := run.summary.get(name)) is not None else "" for name in NUMBERS]
        settings = [conditions.get(axis) or run.value(axis) for axis in sweep.axes]
        rows.append([link, run.outcome, *settings, str(run.seed), *found, *numbers])
    return rows


def runs_table(sweep: Sweep) -> list[list[str]]:
    """Every run in any state, with all settings and metrics: runs.csv."""
    names = list(dict.fromkeys(name for run in sweep.runs for name in run.settings))
    metrics = list(dict.fromkeys(name for run in sweep.runs for name in run.summary.get("metrics", {})))
    rest = (*NUMBERS, "num_weights")
    rows = [["run", "status", "seed", *names, *metrics, *rest]]
    for run in sweep.runs:
        summary = run.summary
        settings = [run.value(name, "") for name in names]
        found = [summary.get("metrics", {}).get(name, "") for name in metrics]
        numbers = [summary.get(name, "") for name in rest]
        rows.append([str(cell) for cell in (summary["run"], run.status, run.seed, *settings, *found, *numbers)])
    return rows


def per_class_table(sweep: Sweep) -> list[list[str]]:
    """For the best setting, each class's accuracy and most frequent mistake; the MAX_CLASSES worst classes."""
    classes = sweep.ranking[0].setting.runs[0].summary["data"]["classes"]
    rows = []
    for true, counts in enumerate(sweep.confusion().tolist()):
        num = sum(counts)
        count, other = max(((count, other) for other, count in enumerate(counts) if other != true), default=(0, true))
        mistake = f"{classes[other]} ({count / num:.1%})" if count else "-"
        rows.append((counts[true] / num if num else math.inf, classes[true], mistake))  # without images: last
    return [
        ["class", "accuracy (%)", "most often confused with"],
        *(
            [name, f"{100 * acc:.2f}" if math.isfinite(acc) else "-", mistake]
            for acc, name, mistake in sorted(rows)[:MAX_CLASSES]
        ),
    ]


def commands(sweep: Sweep) -> list[str]:
    """The command that trains each setting again, with all its seeds, also those that did not finish."""
    found = []
    for setting in [*(place.setting for place in sweep.ranking), *sweep.empty]:
        runs = setting.runs + setting.unfinished
        overrides = runs[0].summary.get("overrides", [])
        words = [shlex.quote(word) for word in overrides if re.split(r"[.=]", word.lstrip("+~"))[0] not in NOT_SETTINGS]
        seeds = ",".join(map(str, sorted(run.seed for run in runs)))
        found.append(" ".join(["python train.py", *["-m"] * (len(runs) > 1), *words, f"seed={seeds}"]))
    return found


def provenance(sweep: Sweep) -> list[list[str]]:
    """Versions, devices, commits and data of the runs."""
    rows = [["item", "value"]]
    for title, part, keys in (
        ("", "environment", ("device", "precision", "num_devices", "python", "torch", "lightning", "commit", "dirty")),
        ("data ", "data", ("fingerprint", "num_train", "num_held_out", "num_test", "input_size")),
    ):
        for key in keys:
            values = {str(run.summary.get(part, {}).get(key, "-")) for run in sweep.runs if run.done}
            rows.append([f"{title}{key}", ", ".join(sorted(values))])
    rows.append(["code digest", ", ".join(sorted({str(run.summary.get("code_digest"))[:16] for run in sweep.runs}))])
    return rows


def left_out(sweep: Sweep) -> list[str]:
    """The runs that are not in the averages, and why."""
    lines = []
    for run in (run for run in sweep.runs if not run.done):
        status = {"running": "not finished (running, or killed)"}.get(run.status, run.status)
        error = run.summary.get("error", {})
        reason = f": {error.get('type', 'error')}: {error.get('message', '')}" if error else ""
        lines.append(f"{run.path.name}: {status}{reason}")
    return lines + [f"{path}: left out: {reason}" for path, reason in sweep.left_out]
