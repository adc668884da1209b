"""The study's page out of its CSV files: README.md with every figure of the report. Does not import torch."""

import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cnnlab.config.options import CONF
from cnnlab.report.page import markdown_table
from cnnlab.report.statistics import estimate
from cnnlab.runs.files import write_text
from study import calibration, measures
from study.claims import AS_STATED, Claim, Judgment, judge
from study.figures import draw, draw_settings
from study.results import Results, Run, by_variant, refuse_mixed
from study.terms import NOT_MEASURED, NOTES, QUICK, READING, TERMS
from study.variants import BASELINE, CALIBRATED, CURVES, ONE_EPOCH, candidate, variants
from study.verdicts import FAILS, HOLDS, NOT_COMPARABLE, UNKNOWN, after, in_words

OUTCOME = "\n#\n# Test accuracy"  # what an experiment's file says about its outcome begins so
IMAGES = {"image_folder": "of a folder", "shapes": "drawn by code", "cifar10": "CIFAR-10, the official pixels"}
COPIES = {"0f1b308902af7238": "JPEG copies of the CIFAR-10 images, not the official pixels"}  # by fingerprint


def write(folder: Path, runs: Iterable[Run], quick: bool) -> Path:
    """Write figures and page into a folder; return the path of the page.

    Raises: UserError for runs that cannot be averaged over, or if another calibrated baseline is nearer.
    """
    runs = list(runs)
    refuse_mixed(runs, folder)
    results = by_variant(runs)
    if not quick:
        calibration.check(results)
    judgments = judge(results)
    shown = figures_of(results)
    for figure, curves in shown.items():
        alone = figure in ("fig01", "fig02", BASELINE)
        beside = {"figure 3, test": BASELINE, f"figure 3 with {CALIBRATED}, test": candidate(CALIBRATED)}
        draw(
            folder / f"{figure}.png",
            curves,
            {} if alone else curves_of(results, beside),
            f"{heading(figure)} ({num_seeds(curves)})",
        )
    in_figure = {key: list(results[key].values()) for key in in_order(results) if key != ONE_EPOCH}
    draw_settings(folder / "settings.png", in_figure)
    said, asked = ([one for one in judgments if one.claim.asked_here is here] for here in (False, True))
    text = [
        *head(results, quick),
        *summary(said),
        *calibration_section(results, quick),
        *claims_table("The report's claims", "the report says that", said),
        *NOT_MEASURED.split("\n"),
        *claims_table("Further questions", "question", asked),
        TERMS,
        *settings_table(results),
    ]
    text += ["## The figures", "", "Lines are means over seeds; bands reach from the lowest to the highest seed.", ""]
    for figure, curves in shown.items():
        text += section(figure, curves, [one for one in judgments if one.claim.figure == figure])
    write_text(folder / "README.md", "\n".join(text).rstrip() + "\n")
    return folder / "README.md"


def write_heads(runs: Iterable[Run]) -> None:
    """Say what came out at the head of every experiment's file, too."""
    for figure, curves in figures_of(by_variant(runs)).items():
        path = CONF / "experiment" / f"{figure}.yaml"
        head, rest = path.read_text(encoding="utf-8").split("\n\n", 1)
        said = textwrap.indent(wrapped(outcome(figure, curves), 118), "# ")
        write_text(path, f"{head.partition(OUTCOME)[0]}\n#\n{said}\n\n{rest}")


def figures_of(results: Results) -> dict[str, dict[str, list[Run]]]:
    """Figure -> label -> runs over seeds, of what has been run."""
    return {figure: curves for figure, keys in CURVES.items() if (curves := curves_of(results, keys))}


def curves_of(results: Results, keys: Mapping[str, str]) -> dict[str, list[Run]]:
    """Label -> runs over seeds, of what has been run."""
    return {label: list(results[key].values()) for label, key in keys.items() if key in results}


def num_seeds(curves: Mapping[str, Sequence[Run]]) -> str:
    found = sorted({len(runs) for runs in curves.values()})
    return f"n = {' to '.join(map(str, found[:: len(found) - 1 or 1]))}"


def heading(figure: str) -> str:
    """Figure 3: what the experiment's file says that it is."""
    first = (CONF / "experiment" / f"{figure}.yaml").read_text(encoding="utf-8").splitlines()[1]
    what = re.sub(r".*figure \d+: ", "", first).split(". ")[0].rstrip(".")
    return f"Figure {int(figure[3:])}: {what}"


def head(results: Results, quick: bool) -> list[str]:
    """What was run, on what, and how to run it again."""
    runs = [run for seeds in results.values() for run in seeds.values()]

    def said(name: str) -> str:
        return ", ".join(sorted({run.facts[name] for run in runs}))

    data = next((word[5:] for word in runs[0].facts["settings"].split() if word.startswith("data=")), "cifar10")
    images = COPIES.get(runs[0].facts["fingerprint"], IMAGES.get(data, data))
    words = {"cifar10": "", "image_folder": " data=image_folder data.root=FOLDER"}.get(data, f" data={data}")
    missing = [variant.key for variant in variants() if variant.key not in results]
    hours = sum(run.number("train_seconds") or 0 for run in runs) / 3600
    diverged = [f"{run.facts['variant']} (seed {run.facts['seed']})" for run in runs if run.failed]
    text = [
        "# The lab report's figures, redone",
        "",
        *([QUICK, ""] * quick),
        wrapped(
            f"{len(runs)} runs. Images: {images} (fingerprint {said('fingerprint')}); {said('num_train')} for "
            f"training, {said('num_test')} for testing. Device: {said('device')}; precision: {said('precision')}; "
            f"torch {said('torch')}; code {said('code')}; commit {said('commit')}"
            f"{' (+: with uncommitted changes)' * ('+' in said('commit'))}. "
            f"Epochs: {', '.join(sorted({str(len(run.rows)) for run in runs if run.rows}, key=int))}. "
            f"Training took {hours:.1f} hours in total, wall-clock time; the machine may have been shared."
        ),
        "",
        f"    python -m study{' --quick' * quick}{words}",
        "",
        *READING.split("\n"),
    ]
    if len({run.facts["device"] for run in runs}) > 1:
        text += ["Runs on different devices are compared with each other here, except for their times.", ""]
    if missing:
        text += [wrapped(f"Not run yet: {', '.join(missing)}."), ""]
    if diverged:
        text += [wrapped(f"Failed because the loss was not a finite number: {', '.join(diverged)}."), ""]
    return text


def summary(said: Sequence[Judgment]) -> list[str]:
    """How many of the report's claims hold, before and after correction for their number."""
    corrections = ("uncorrected", "Benjamini-Hochberg", "Holm")
    counts = {
        (baseline, place): Counter(
            after(one.finding, place) for one in said if one.baseline == baseline and one.finding.num
        )
        for baseline in (AS_STATED, CALIBRATED)
        for place in range(len(corrections))
    }
    rows = [["verdict", *(f"{baseline}: {corrections[place]}" for baseline, place in counts)]]
    rows += [[verdict, *(str(count[verdict]) for count in counts.values())] for verdict in VERDICTS]
    without = sum(one.finding.num > 0 and one.finding.p is None for one in said)
    text = wrapped(
        f"The report's claims, judged against the baseline as stated and, from figure 4 on, against the baseline with "
        f"{CALIBRATED}. After correction a claim holds, or does not, only if its corrected p-value is below 0.05, too. "
        f"{without} verdicts have no p-value and stay as they are: each is what every seed shows, or cannot be told."
    )
    return ["## Summary", "", text, "", *markdown_table(rows).splitlines(), ""]


VERDICTS = (HOLDS, FAILS, UNKNOWN, NOT_COMPARABLE)


def calibration_section(results: Results, quick: bool) -> list[str]:
    """The candidates for a baseline like the report's, and the rule by which one was chosen."""
    told = calibration.nearest(results)
    text = f"The report's network overfits, and figure 3 as it is stated here may not. {calibration.RULE} "
    text += f"Chosen: {CALIBRATED}" + ("." if told == CALIBRATED else "; the candidates have not all been run yet.")
    if quick and told:
        text = f"{text.rpartition(' Chosen')[0]} Chosen: {CALIBRATED}, whatever the quick form's runs say."
    table = markdown_table(calibration.table(results)).splitlines()
    return ["## The calibrated baseline", "", wrapped(text), "", *table, ""]


def claims_table(title: str, says: str, judgments: Sequence[Judgment]) -> list[str]:
    of_report = not judgments[0].claim.asked_here
    rows = [["fig.", *["in the report"] * of_report, says, "baseline", "measured here", "found", "n", "verdict", "p"]]
    rows[0] += ["BH", "Holm"] * of_report
    for one in judgments:
        claim, found = one.claim, one.finding
        corrected = [p_value(found.corrected and found.corrected[place]) for place in (0, 1)]
        rows.append(
            [
                *(str(int(claim.figure[3:])), *[claim.place] * of_report, claim.says, one.baseline),
                *(claim.way.measured, found.number, str(found.num), found.verdict * bool(found.num)),
                *(p_value(found.p), *corrected * of_report),
            ]
        )
    return [f"## {title}", "", *markdown_table(rows).splitlines(), ""]


def p_value(p: float | None) -> str:
    return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def settings_table(results: Results) -> list[str]:
    text = wrapped(
        "Test accuracies in points, mean ± half of the 95% interval; a dot in the figure is a seed. Gap: training "
        "minus test accuracy at the last epoch. The best epoch is chosen by the test images."
        + " An empty gap was not measured: the last weights were not kept."
        * any(measures.gap(run) is None and not run.failed for runs in results.values() for run in runs.values())
    )
    rows = [["", "changed", "last epoch", "best epoch", "at epoch", "gap", "n"]]
    for variant in in_order(results):
        everyone = list(results[variant].values())
        runs = [run for run in everyone if not run.failed]
        epochs = sorted({run.facts["best_epoch"] for run in runs}, key=int)
        diverged = f" ({len(everyone) - len(runs)} diverged)" * (len(runs) < len(everyone))
        rows.append(
            [
                variant,
                changed(results[variant]),
                spread(map(measures.final, runs), 2) or "diverged",
                spread(map(measures.at_best, runs), 2),
                " to ".join(epochs[:: len(epochs) - 1 or 1]),
                spread(map(measures.gap, runs), 1),
                f"{len(everyone)}{diverged}",
            ]
        )
    figure = "![Test accuracy at the last epoch of every setting](settings.png)"
    return ["## All settings", "", text, "", figure, "", *markdown_table(rows).splitlines(), ""]


def in_order(results: Results) -> list[str]:
    """The settings that were run, in the order of the figures."""
    order = dict.fromkeys([*(key for curves in CURVES.values() for key in curves.values()), *results])
    return [key for key in order if key in results]


def changed(seeds: Mapping[int, Run]) -> str:
    """What a setting changes against the defaults, without what all have."""
    settings = next(iter(seeds.values())).facts["settings"]
    return re.sub(r"data\S* |val_fraction=0\.0\b", "", settings).strip()


def spread(values: Iterable[float | None], digits: int) -> str:
    """Mean and half of the interval over those that were measured."""
    measured = [value for value in values if value is not None]
    return in_words(estimate(measured), form=f".{digits}f") if measured else ""


def section(figure: str, curves: Mapping[str, Sequence[Run]], judgments: Sequence[Judgment]) -> list[str]:
    """A figure, what it shows, and what became of the report's claims about it."""
    verdicts: dict[Claim, list[str]] = {}
    for one in judgments:
        found = one.finding
        verdicts.setdefault(one.claim, []).append(f"**{found.verdict if found.num else found.number}**")
    return [
        f"### {heading(figure)}",
        "",
        f"![Loss and accuracy over epochs]({figure}.png)",
        "",
        wrapped(outcome(figure, curves)),
        "",
        *([wrapped(NOTES[figure]), ""] if figure in NOTES else []),
        *(f"- {claim.says}: {f'; with {CALIBRATED}: '.join(found)}" for claim, found in verdicts.items()),
        "",
    ]


def outcome(figure: str, curves: Mapping[str, Sequence[Run]]) -> str:
    """The accuracies that a figure ends with."""
    ends = []
    for label, everyone in curves.items():
        runs = [run for run in everyone if not run.failed]
        gaps = spread(map(measures.gap, runs), 1)
        end = spread(map(measures.final, runs), 2) or "diverged"
        ends.append(f"{label}: {end}{f' (gap {gaps})' * bool(gaps)}")
    devices = " and ".join(sorted({run.facts["device"] for runs in curves.values() for run in runs}))
    return (
        f"Test accuracy at the last epoch, in points ({num_seeds(curves)}), and its gap to training accuracy: "
        f"{'; '.join(ends)}. Device: {devices}."
    )


def wrapped(text: str, width: int = 120) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
