"""The study's page out of its CSV files: README.md with a picture for every figure of the report. Takes no torch."""

import io
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import matplotlib.figure
import numpy as np
from PIL import Image

from cnnlab.config.options import CONF
from cnnlab.report.charts import COLORS
from cnnlab.report.page import markdown_table
from cnnlab.report.run_figures import STYLE
from cnnlab.report.runs import over_epochs
from cnnlab.report.statistics import estimate
from cnnlab.runs.files import atomic_path, write_text
from study import measures
from study.claims import (
    CLAIMS,
    DOUBLE,
    FAILS,
    HOLDS,
    MUCH,
    MUCH_LATER,
    NEAR,
    SAME,
    UNKNOWN,
    Claim,
    Finding,
    in_words,
)
from study.results import Results, Run, by_variant
from study.variants import BASELINE, BEST, CURVES, MOMENTUM, ONE_EPOCH, SEARCH, WITH_MOMENTUM, variants

MOST = 2.4  # where the loss axis ends; guessing has 2.3
OUTCOME = "\n#\n# Test accuracy"  # what an experiment's file says of its outcome begins so
QUICK = "**The quick form: few images and epochs. It shows that everything works; its verdicts mean nothing.**"
PICTURES = {"image_folder": "of a folder", "shapes": "drawn by code", "cifar10": "CIFAR-10, the official pixels"}
COPIES = {"0f1b308902af7238": "JPEG copies of the CIFAR-10 pictures, not the official pixels"}  # by fingerprint
NOTES = {
    "fig03": "The report names neither the number of its epochs (here 20) nor a momentum. What it sees here, and says "
    "of crops, a falling rate and dropout, is about a network that overfits; so the baseline is also run for 60 "
    "epochs, and figures 7, 8, 9 and 11 with momentum 0.9, compared with the baseline that has it.",
    "fig05": "The report does not say what is whitened, and there are three ways to read it. As stated, all values of "
    "an image are one vector, of which PCA whitening leaves components instead of a picture; norm=zca turns them back "
    "into one; norm.per=channel whitens the three values of every pixel. Each is fitted and applied once, before the "
    "first epoch; what the report found to take twice the time may be just that, and is in no epoch's seconds here.",
    "fig06": "The pictures' values reach from 0 to 1 already, and scaling them to that changes nothing: this is figure "
    "3 once more.",
    "fig08": "The report shows this figure and says nothing of it: what is asked of CutMix is ours.",
    "fig09": "The report does not say how fast the rate falls: here it is 0.95 times as large after every epoch.",
    "fig13": "Of what came before it leaves out Adam, CutMix and whitening, each of which stands for another of these.",
    BEST: "The training loss is of smoothed labels, crops and mirror images, the held-out one is not. Held-out images "
    "so few choose among the last epochs by chance.",
}


def write(folder: Path, runs: Iterable[Run], quick: bool) -> Path:
    """Write figures and page into a folder; return the path of the page."""
    results = by_variant(runs)
    findings = [(claim, claim.way.find(results)) for claim in CLAIMS]
    shown = figures_of(results)
    for figure, curves in shown.items():
        alone = figure in ("fig01", "fig02", BASELINE, BEST)
        beside = {"figure 3, test": BASELINE, "with momentum, test": MOMENTUM if figure in WITH_MOMENTUM else ""}
        draw(
            folder / f"{figure}.png",
            curves,
            {} if alone else curves_of(results, beside),
            f"{heading(figure)} ({num_seeds(curves)})",
        )
    draw_settings(folder / "settings.png", results)
    said, asked = ([pair for pair in findings if pair[0].asked_here is here] for here in (False, True))
    text = [
        *head(results, quick),
        *claims_table("The report's claims", "it says that", said),
        *NOT_MEASURED.split("\n"),
        *claims_table("What else was asked", "is it so that", asked),
        FORMULAS,
        *summary_table(results),
        *search_table(results),
    ]
    text += ["## The figures", "", "Lines are means over seeds, bands reach from the lowest to the highest.", ""]
    for figure, curves in shown.items():
        text += section(figure, curves, [pair for pair in findings if pair[0].figure == figure])
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
    figures = {**CURVES, BEST: {"": BEST}}
    return {figure: curves for figure, keys in figures.items() if (curves := curves_of(results, keys))}


def curves_of(results: Results, keys: Mapping[str, str]) -> dict[str, list[Run]]:
    """Label -> runs over seeds, of what has been run."""
    return {label: list(results[key].values()) for label, key in keys.items() if key in results}


# -------------------------------------------------------------------------------------------------------------- figures


@matplotlib.rc_context(STYLE)
def draw(path: Path, curves: Mapping[str, Sequence[Run]], beside: Mapping[str, Sequence[Run]], title: str) -> None:
    """Loss and accuracy over epochs in the report's form: training dashed, held-out solid.

    A colour for each of several labels; for a single one, a colour for each part. beside: what it is compared with,
    whose test curves are drawn in grey.
    """
    figure = matplotlib.figure.Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, metric, name in zip(axes, ("loss", "acc"), ("cross-entropy", "accuracy"), strict=True):
        for place, (label, runs) in enumerate(curves.items()):
            held_out = "test" if any(run.curve("test/acc") for run in runs) else "val"
            for number, (part, dashes) in enumerate((("train", "--"), (held_out, "-"))):
                color = COLORS[place if len(curves) > 1 else number]
                said = {"train": "training", "test": "test", "val": "held-out"}[part]
                table = over_epochs([run.rows for run in runs], f"{part}/{metric}")
                epochs = range(1, table.shape[1] + 1)
                name_of_line = ", ".join(filter(None, (label, said)))
                axis.plot(epochs, np.nanmean(table, axis=0), dashes, color=color, lw=1.5, label=name_of_line)
                if len(runs) > 1:
                    axis.fill_between(epochs, np.nanmin(table, 0), np.nanmax(table, 0), color=color, alpha=0.2, lw=0)
        for (label, runs), dashes in zip(beside.items(), ("-", ":"), strict=False):
            middle = np.nanmean(over_epochs([run.rows for run in runs], f"test/{metric}"), axis=0)
            axis.plot(range(1, len(middle) + 1), middle, dashes, color="0.6", lw=1.2, zorder=1, label=label)
        axis.set(xlabel="epoch", ylabel=name)
        most = max(len(run.rows) for runs in curves.values() for run in runs)
        axis.set_xticks([1, *range(max(most // 4, 2), most + 1, max(most // 4, 2))])
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0, MOST)
    axes[1].set_ylim(0, 1)
    figure.suptitle(title, fontsize=10)
    figure.legend(
        *axes[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=max(len(curves) + len(beside), 2),
        fontsize=8,
    )
    save(figure, path)


@matplotlib.rc_context(STYLE)
def draw_settings(path: Path, results: Results) -> None:
    """Test accuracy at the last epoch of every setting but that of one epoch: a dot for a seed, a line at the mean."""
    shown = [key for key in in_order(results) if key != ONE_EPOCH]
    figure = matplotlib.figure.Figure(figsize=(9, 1 + 0.22 * len(shown)), layout="constrained")
    axis = figure.subplots()
    for place, variant in enumerate(shown):
        values = [measures.final(run) for run in results[variant].values()]
        axis.plot(values, [place] * len(values), "o", color=COLORS[0], ms=4, alpha=0.7)
        axis.plot([fmean(values)] * 2, [place - 0.35, place + 0.35], "-", color=COLORS[1], lw=1.5)
    labels = [f"experiment={BEST}" if key == BEST else changed(results[key]) or "the baseline" for key in shown]
    axis.set_yticks(range(len(shown)), [textwrap.fill(label, 50) for label in labels], fontsize=8)
    axis.set(xlabel="test accuracy at the last epoch, in points", ylim=(len(shown) - 0.4, -0.6))
    axis.grid(alpha=0.3)
    save(figure, path)


def save(figure: matplotlib.figure.Figure, path: Path) -> None:
    """As a PNG of few colours: a third of the bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    with atomic_path(path) as partial:
        Image.open(buffer).convert("RGB").quantize(256).save(partial, "png", optimize=True)


def num_seeds(curves: Mapping[str, Sequence[Run]]) -> str:
    found = sorted({len(runs) for runs in curves.values()})
    return f"n = {' to '.join(map(str, found[:: len(found) - 1 or 1]))}"


def heading(figure: str) -> str:
    """Figure 3: what the experiment's file says that it is."""
    if figure == BEST:
        return "The best recipe found"
    first = (CONF / "experiment" / f"{figure}.yaml").read_text(encoding="utf-8").splitlines()[1]
    what = re.sub(r".*figure \d+: ", "", first).split(". ")[0].rstrip(".")
    return f"Figure {int(figure[3:])}: {what}"


# ----------------------------------------------------------------------------------------------------------------- text


def head(results: Results, quick: bool) -> list[str]:
    """What was run, on what, and how to run it again."""
    runs = [run for seeds in results.values() for run in seeds.values()]

    redone = [run for run in runs if not run.facts["variant"].startswith((SEARCH, BEST))] or runs

    def said(name: str) -> str:
        return ", ".join(sorted({run.facts[name] for run in redone}))

    data = next((word[5:] for word in runs[0].facts["settings"].split() if word.startswith("data=")), "cifar10")
    pictures = COPIES.get(runs[0].facts["fingerprint"], PICTURES.get(data, data))
    words = {"cifar10": "", "image_folder": " data=image_folder data.root=FOLDER"}.get(data, f" data={data}")
    wanted = [variant.key for variant in variants() if not (quick and variant.key.startswith(SEARCH))]
    missing = [key for key in wanted if key not in results]
    hours = sum(run.number("train_seconds") or 0 for run in runs) / 3600
    diverged = [f"{run.facts['variant']} (seed {run.facts['seed']})" for run in runs if run.failed]
    text = [
        "# The lab report's figures, redone",
        "",
        *([QUICK, ""] * quick),
        wrapped(
            f"Runs: {len(runs)}. Pictures: {pictures} (fingerprint {said('fingerprint')}); "
            f"{said('num_train')} for training, {said('num_test')} for testing. Device: {said('device')}; precision: "
            f"{said('precision')}; torch {said('torch')}; commit {said('commit')} (+: with changes). Epochs: "
            f"{', '.join(sorted({str(len(run.rows)) for run in redone}, key=int))}. Training took {hours:.1f} hours in "
            "sum, whatever else ran beside it."
        ),
        "",
        f"    python -m study{' --quick' * quick}{words}",
        "",
        wrapped(
            "runs what is missing and writes this page; with `--page` it trains nothing. Every result here is computed "
            "from [runs.csv](runs.csv), a row for every run, and [epochs.csv](epochs.csv), a row for every epoch. n "
            "counts seeds. Figures 1 to 13 have the report's protocol: nothing held out, the test images evaluated "
            "after every epoch."
        ),
        "",
        wrapped(
            "fig03 is the run of `experiment=fig03`, figure 3 as the report states it; momentum is the same with "
            "`optim=sgd_momentum`, fig07-momentum that of figure 7, and so on: [all settings](#all-settings). 'fig04 "
            "minus fig03' is the number that fig04 has minus the one of fig03. There is nothing to measure where runs "
            "do not have what a claim is about, as overfitting that could become less."
        ),
        "",
    ]
    if len({run.facts["device"] for run in runs}) > 1:
        text += ["Runs on different devices are compared with each other here, but for their times.", ""]
    if missing:
        text += [wrapped(f"Not run yet: {', '.join(missing)}."), ""]
    if diverged:
        text += [f"Failed as the loss was no longer a finite number: {', '.join(diverged)}.", ""]
    return text


NOT_MEASURED = """\
Not measured: what the report gives as the cause of the unsteady curves of figures 7 (small images) and 12 (statistics
of the first batches), what it expects of small learning rates besides (more precise convergence, less overfitting), and
that a dropout of 0.5 would under-fit in figure 13.
"""
FORMULAS = f"""## What the words mean

a(e) is the test accuracy after epoch e, in points (percent of the images).

- s(e) is a without its noise: at every epoch, the parabola fitted to {measures.WINDOW} epochs around it (Savitzky and
  Golay).
- **Faster**: fewer epochs until s reaches the target, {measures.TARGET:g} times the smaller best s of the two settings,
  seed by seed, so that both reach it; interpolated between epochs.
- **Steadier**: less rough in the second half of the epochs, where neither crawls: what hardly learns is steady, too.
  Roughness is the mean over epochs of |a(e) - s(e)|, little for a smooth curve, whether it rises or not. Unsteady
  early: rougher in the first half of the epochs than the baseline. Settles: less rough in the second half.
- **Overfits**: a gap above {measures.GAP:g} points, training minus test accuracy of the last weights, both on images as
  they are, without crops, flips, mixed labels or dropout. Less: a smaller gap than
  the setting that it is compared with, which overfits.
- **Begins to overfit**: the first epoch whose training accuracy, measured as it trains, is more than {measures.GAP:g}
  points above the test accuracy: images as they are were evaluated at the end alone. What has dropout cannot be seen
  so. **Much later**: the lowest test loss is more than {MUCH_LATER} epochs later, where that of the baseline rises
  again before the last {measures.RISING} epochs.
- **Has flattened**: from the first epoch after which a gains less than {measures.FLAT:g} point; if that is one of the
  last {measures.RISING}, the curve is still rising. Near epoch 15: within {NEAR}.
- **Goes on rising**: the training accuracy gains more than {measures.FLAT:g} point from epochs 14 to 16 until the last
  three, as means.
- **Better**: a higher a at the last epoch, which is not chosen by the test images, as the best one is. **By much**: by
  more than {MUCH:g} points.
- **Alike**: a difference within {SAME:g} point. **Nearly twice**: more than {DOUBLE:g} times, by the fastest epochs.
  Seconds per epoch are of the fastest one: whatever else a machine does makes epochs slower and never faster.
- **Diverges**: fails as its loss is no longer finite, or ends with a below {measures.CHANCE:g} (guessing has 10).
  **Crawls**, or does not converge: ends below {measures.CRAWL:g} times the a of the setting that it is compared with.

Intervals are 95%, by Student's t over seeds; differences are taken seed by seed. A claim **holds** if the whole
interval is on its side, **does not hold** if it is all on the other side, and otherwise **cannot be told**, as with one
seed. What is seen or not seen in a run holds if every seed shows it, and does not if none does (seeds that differ are
listed). Batch sizes, one seed of each, are in an order if p is below 0.05, which takes all five in the right one; the
report speaks of the steadiness of training steps, measured here is that of epochs. Nothing is corrected for the number
of claims: of twenty such intervals, about one misses.
"""


def claims_table(title: str, says: str, findings: Sequence[tuple[Claim, Finding]]) -> list[str]:
    rows = [
        [
            str(int(claim.figure[3:])),
            *([] if claim.asked_here else [claim.place]),
            *(claim.says, claim.way.measured, found.number, str(found.num), found.verdict * bool(found.num)),
        ]
        for claim, found in findings
    ]
    verdicts = Counter(found.verdict for _, found in findings if found.num)
    counted = ", ".join(f"**{verdict}**: {verdicts[verdict]}" for verdict in (HOLDS, FAILS, UNKNOWN))
    told = f"Of {len(rows)} statements, {sum(verdicts.values())} are measured here; {counted}."
    places = [] if findings[0][0].asked_here else ["in the report"]
    heads = ["fig.", *places, says, "measured here", "found", "n", "verdict"]
    return [f"## {title}", "", told, "", *markdown_table([heads, *rows]).splitlines(), ""]


def summary_table(results: Results) -> list[str]:
    text = wrapped(
        "Test accuracies in points, mean ± half of the 95% interval; a dot of the picture is a seed. Gap: training "
        "minus test accuracy at the last epoch. The best epoch is chosen by the test images; that of "
        "`best` by held-out ones."
    )
    rows = [
        ["", "changed against the defaults", "last epoch", "best epoch", "at epoch", "gap", "fastest epoch, s", "n"]
    ]
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
                f"{min(seconds):.1f}" if (seconds := [s for run in runs for s in run.curve("epoch_seconds")]) else "",
                f"{len(everyone)}{diverged}",
            ]
        )
    picture = "![Test accuracy at the last epoch of every setting](settings.png)"
    return ["## All settings", "", text, "", picture, "", *markdown_table(rows).splitlines(), ""]


def in_order(results: Results) -> list[str]:
    """The settings that were run, but for the search, in the order of the figures."""
    order = dict.fromkeys([*(key for curves in CURVES.values() for key in curves.values()), *results])
    return [key for key in order if key in results and not key.startswith(SEARCH)]


def changed(seeds: Mapping[int, Run]) -> str:
    """What a setting changes against the defaults, without what all have."""
    settings = next(iter(seeds.values())).facts["settings"]
    return re.sub(r"data\S* |val_fraction=0\.0\b", "", settings).strip()


def search_table(results: Results) -> list[str]:
    """How the best recipe was found."""
    found = {key: list(runs.values()) for key, runs in results.items() if key.startswith(SEARCH)}
    if not found:
        return []
    rows = [["change", "held-out images", "training images, as trained", "s/epoch", "n"]]
    for key in sorted(found, key=lambda key: fmean(map(held_out, found[key])), reverse=True):
        runs = [run for run in found[key] if not run.failed]
        rows.append(
            [
                key.removeprefix(SEARCH).strip() or "(none)",
                spread(map(held_out, runs), 2) or "diverged",
                spread((measures.accuracy(run, "train")[-1] for run in runs), 2),
                spread((run.number("epoch_seconds") for run in runs), 1),
                str(len(found[key])),
            ]
        )
    text = wrapped(
        "What each change of `experiment=search` does to the accuracy on held-out training images at the last epoch, "
        "in points. What is best is chosen by these numbers; test images have no part in it. With 10,000 held-out "
        "images the standard error of an accuracy of 85 points is 0.36 points: smaller differences say little. "
        "`experiment=best` takes test_flips, dropout=0 and label_smoothing=0.1 together, holds out 2% instead of 20%, "
        "and trains for 100 epochs instead of 30; whether these add up was not tried before the test images were "
        "evaluated."
    )
    return ["## The search for the best recipe", "", text, "", *markdown_table(rows).splitlines(), ""]


def held_out(run: Run) -> float:
    """Accuracy on held-out training images at the last epoch, in points; nothing of a training that failed."""
    return 0.0 if run.failed else measures.accuracy(run, "val")[-1]


def spread(values: Iterable[float | None], digits: int) -> str:
    """Mean and half of the interval over those that were measured."""
    measured = [value for value in values if value is not None]
    return in_words(estimate(measured), form=f".{digits}f") if measured else ""


def section(figure: str, curves: Mapping[str, Sequence[Run]], findings: Sequence[tuple[Claim, Finding]]) -> list[str]:
    """A figure, what it shows, and what became of what the report says of it."""
    return [
        f"### {heading(figure)}",
        "",
        f"![Loss and accuracy over epochs]({figure}.png)",
        "",
        wrapped(outcome(figure, curves)),
        "",
        *([wrapped(NOTES[figure]), ""] if figure in NOTES else []),
        *(f"- {claim.says}: **{found.verdict if found.num else found.number}**" for claim, found in findings),
        "",
    ]


def outcome(figure: str, curves: Mapping[str, Sequence[Run]]) -> str:
    """The accuracies that a figure ends with, and how long one training took."""
    ends = []
    for label, everyone in curves.items():
        runs = [run for run in everyone if not run.failed]
        gaps = spread(map(measures.gap, runs), 1)
        end = spread(map(measures.final, runs), 2) or "diverged"
        ends.append(f"{label}{': ' * bool(label)}{end}{f' (gap {gaps})' * bool(gaps)}")
        if figure == BEST:
            ends.append(f"at the epoch that is best by held-out images: {spread(map(measures.at_best, runs), 2)}")
    everyone = [run for runs in curves.values() for run in runs]
    minutes = [round(seconds / 60) for run in everyone if (seconds := run.number("train_seconds"))]
    took = " to ".join(map(str, sorted({min(minutes), max(minutes)}))) if minutes else ""
    devices = " and ".join(sorted({run.facts["device"] for run in everyone}))
    return (
        f"Test accuracy at the last epoch, in points ({num_seeds(curves)}): {'; '.join(ends)}."
        + f" A training took {took} minutes on {devices}, whatever else this did." * bool(took)
    )


def wrapped(text: str, width: int = 120) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
