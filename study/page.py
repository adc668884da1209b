"""The study's page out of its CSV files: README.md with a picture for every figure of the report. Takes no torch."""

import io
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np
from matplotlib.ticker import MaxNLocator
from PIL import Image

from cnnlab.config import CONF
from cnnlab.records import atomic_path, write_text
from cnnlab.report.page import COLORS, markdown_table
from cnnlab.report.statistics import estimate
from study import measures
from study.claims import CLAIMS, DOUBLE, FAILS, HOLDS, NEAR, SAME, UNKNOWN, Claim, Finding, in_words
from study.results import Results, Run, by_variant
from study.variants import CURVES, SEARCH, variants

MOST = 3.0  # where the loss axis ends; guessing has 2.3
QUICK = "**The quick form: few images and epochs. It shows that everything works; its verdicts mean nothing.**"
PICTURES = {
    "image_folder": "JPEG copies of the CIFAR-10 pictures, not the official pixels",
    "shapes": "pictures drawn by code",
    "cifar10": "CIFAR-10, the official pixels",
}


def write(folder: Path, runs: Iterable[Run], quick: bool) -> Path:
    """Write figures and page into a folder; return the path of the page."""
    results = by_variant(runs)
    findings = [(claim, claim.way.find(results)) for claim in CLAIMS]
    shown = {figure: curves for figure in CURVES if (curves := curves_of(results, CURVES[figure]))}
    if best := results.get("best"):
        shown["best"] = {"": list(best.values())}
    for figure, curves in shown.items():
        draw(folder / f"{figure}.png", curves, f"{heading(figure)} ({num_seeds(curves)})")
    text = [*head(results, quick), FORMULAS, *claims_table(findings), *summary_table(results), *search_table(results)]
    text += ["## The figures", "", "Lines are means over seeds, bands reach from the lowest to the highest.", ""]
    for figure, curves in shown.items():
        text += section(figure, curves, [pair for pair in findings if pair[0].figure == figure])
    write_text(folder / "README.md", "\n".join(text).rstrip() + "\n")
    return folder / "README.md"


def curves_of(results: Results, keys: Mapping[str, str]) -> dict[str, list[Run]]:
    """Label -> runs over seeds, of what has been run."""
    return {label: list(results[key].values()) for label, key in keys.items() if key in results}


# -------------------------------------------------------------------------------------------------------------- figures


def draw(path: Path, curves: Mapping[str, Sequence[Run]], title: str) -> None:
    """Loss and accuracy over epochs in the report's form: training dashed, held-out solid.

    A colour for each of several labels; for a single one, a colour for each part.
    """
    figure = matplotlib.figure.Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, metric, name in zip(axes, ("loss", "acc"), ("cross-entropy", "accuracy"), strict=True):
        for place, (label, runs) in enumerate(curves.items()):
            held_out = "test" if any(run.curve("test/acc") for run in runs) else "val"
            for number, (part, dashes) in enumerate((("train", "--"), (held_out, "-"))):
                color = COLORS[place if len(curves) > 1 else number]
                said = {"train": "training", "test": "test", "val": "held-out"}[part]
                table = over_epochs(runs, f"{part}/{metric}")
                epochs = range(1, table.shape[1] + 1)
                axis.plot(
                    epochs, np.nanmean(table, axis=0), dashes, color=color, lw=1.5, label=f"{label} {said}".strip()
                )
                if len(runs) > 1:
                    axis.fill_between(epochs, np.nanmin(table, 0), np.nanmax(table, 0), color=color, alpha=0.2, lw=0)
        axis.set(xlabel="epoch", ylabel=name)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0, min(axes[0].get_ylim()[1], MOST))
    axes[1].set_ylim(0, 1)
    figure.suptitle(title, fontsize=10)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=max(len(curves), 2), fontsize=8
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    with atomic_path(path) as partial:  # of few colours: a third of the bytes
        Image.open(buffer).convert("RGB").quantize(256).save(partial, "png", optimize=True)


def over_epochs(runs: Sequence[Run], metric: str) -> np.ndarray:
    """(runs, epochs); not a number where a run ended earlier."""
    table = np.full((len(runs), max(len(run.rows) for run in runs)), np.nan)
    for place, run in enumerate(runs):
        table[place, : len(run.rows)] = run.curve(metric)
    return table


def num_seeds(curves: Mapping[str, Sequence[Run]]) -> str:
    found = sorted({len(runs) for runs in curves.values()})
    return f"n = {' to '.join(map(str, found[:: len(found) - 1 or 1]))}"


def heading(figure: str) -> str:
    """Figure 3: what the experiment's file says that it is."""
    if figure == "best":
        return "The best recipe found"
    first = (CONF / "experiment" / f"{figure}.yaml").read_text().splitlines()[1]
    what = re.sub(r".*figure \d+: ", "", first).split(". ")[0].rstrip(".")
    return f"Figure {int(figure[3:])}: {what}"


# ----------------------------------------------------------------------------------------------------------------- text


def head(results: Results, quick: bool) -> list[str]:
    """What was run, on what, and how to run it again."""
    runs = [run for seeds in results.values() for run in seeds.values()]

    redone = [run for run in runs if not run.facts["variant"].startswith((SEARCH, "best"))] or runs

    def said(name: str) -> str:
        return ", ".join(sorted({run.facts[name] for run in redone}))

    data = next((word[5:] for word in runs[0].facts["settings"].split() if word.startswith("data=")), "cifar10")
    words = {"cifar10": "", "image_folder": " data=image_folder data.root=FOLDER"}.get(data, f" data={data}")
    wanted = [variant.key for variant in variants() if not (quick and variant.key.startswith(SEARCH))]
    missing = [key for key in wanted if key not in results]
    diverged = [f"{run.facts['variant']} (seed {run.facts['seed']})" for run in runs if run.failed]
    text = [
        "# The lab report's figures, redone",
        "",
        *([QUICK, ""] * quick),
        wrapped(
            f"Runs: {len(runs)}. Pictures: {PICTURES.get(data, data)} (fingerprint {said('fingerprint')}); "
            f"{said('num_train')} for training, {said('num_test')} for testing. Device: {said('device')}; precision: "
            f"{said('precision')}; torch {said('torch')}; commit {said('commit')} (+: with changes). Epochs: "
            f"{', '.join(sorted({str(len(run.rows)) for run in redone}, key=int))}."
        ),
        "",
        f"    python -m study{' --quick' * quick}{words}",
        "",
        wrapped(
            "runs what is missing and writes this page; with `--page` it trains nothing. Every number here is computed "
            "from [runs.csv](runs.csv), a row for every run, and [epochs.csv](epochs.csv), a row for every epoch. n "
            "counts seeds. Figures 1 to 13 have the report's protocol: nothing held out, the test images evaluated "
            "after every epoch."
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


FORMULAS = f"""## What the words mean

a(e) is the test accuracy after epoch e, in points (percent of the images).

- **Faster**: fewer epochs to the target, {measures.TARGET:g} times the smaller of the two settings' best a, seed by
  seed, so that both reach it; interpolated between epochs.
- **Steadier**: less rough in the second half of the epochs. Roughness is the mean over epochs of
  |a(e) - (a(e-1) + a(e+1)) / 2|: nothing for a straight line, whether it rises or not. Unsteady early: rougher in the
  first half of the epochs than the baseline.
- **Overfits**: a gap, training minus test accuracy of the last weights, both on images as they are, without crops,
  flips, mixed labels or dropout. Where the baseline begins to overfit: the first epoch whose training accuracy,
  measured as it trains, is more than {measures.GAP:g} points above the test accuracy. Delayed: a later epoch of the
  lowest test loss.
- **Has flattened**: from the first epoch after which a gains less than {measures.FLAT:g} point; if that is one of the
  last {measures.RISING}, the curve is still rising. Near epoch 15: within {NEAR}.
- **Better**: a higher a at the last epoch, which is not chosen by the test images, as the best one is.
- **Alike**: a difference within {SAME:g} point. **Nearly twice**: more than {DOUBLE:g} times. Seconds are those of the
  runs, whatever else the machine did; for a ratio of times, trust the paired ones in [benchmarks](../../benchmarks).
- **Diverges**: fails as its loss is no longer finite, or ends with a below {measures.CHANCE:g} (guessing has 10).
  **Crawls**, or does not converge: ends below {measures.CRAWL:g} times the a of the setting that it is compared with.

Intervals are 95%, by Student's t over seeds; differences are taken seed by seed. A claim **holds** if the whole
interval is on its side, **does not hold** if it is all on the other side, and otherwise **cannot be told**, as with one
seed. What is seen or not seen in a run holds if every seed shows it, and does not if none does (seeds that differ are
listed). Nothing is corrected for the number of claims: of twenty such intervals, about one misses.
"""


def claims_table(findings: Sequence[tuple[Claim, Finding]]) -> list[str]:
    rows = [
        f"| {int(claim.figure[3:])} | {claim.place} | {claim.says} | {claim.way.measured} "
        f"| {found.number} | {found.num} | {found.verdict * bool(found.num)} |"
        for claim, found in findings
    ]
    verdicts = Counter(found.verdict for _, found in findings if found.num)
    counted = ", ".join(f"**{verdict}**: {verdicts[verdict]}" for verdict in (HOLDS, FAILS, UNKNOWN))
    told = wrapped(f"Of {len(rows)} statements, {sum(verdicts.values())} are measured here; {counted}.")
    head = ["| fig. | in the report | it says that | measured here | found | n | |", "|---|---|---|---|---|---|---|"]
    return ["## The report's claims", "", told, "", *head, *rows, ""]


def summary_table(results: Results) -> list[str]:
    text = [
        "## All settings",
        "",
        wrapped(
            "Test accuracies in points, mean ± half of the 95% interval. Gap: training minus test accuracy at the last "
            "epoch. The best epoch is chosen by the test images; that of `best` by held-out ones, as its gap is."
        ),
        "",
        "| | changed against the defaults | last epoch | best epoch | it is epoch | gap | s/epoch | n |",
        "|---|---|---|---|---|---|---|---|",
    ]
    in_order = dict.fromkeys([*(key for curves in CURVES.values() for key in curves.values()), *results])
    for variant in (key for key in in_order if key in results and not key.startswith(SEARCH)):
        runs = list(results[variant].values())
        epochs = sorted({run.facts["best_epoch"] for run in runs if not run.failed}, key=int)
        cells = (
            spread([measures.final(run) for run in runs if not run.failed], 2) or "diverged",
            spread([measures.at_best(run) for run in runs if not run.failed], 2),
            " to ".join(epochs[:: len(epochs) - 1 or 1]),
            spread([value for run in runs if (value := measures.gap(run)) is not None], 1),
            spread([value for run in runs if (value := run.number("epoch_seconds")) is not None], 1),
        )
        changed = re.sub(r"data\S* |val_fraction=0.0", "", runs[0].facts["settings"]).strip()
        failed = sum(run.failed for run in runs)
        text.append(
            f"| {variant} | {changed} | {' | '.join(cells)} | {len(runs)}{f' ({failed} diverged)' * bool(failed)} |"
        )
    return [*text, ""]


def search_table(results: Results) -> list[str]:
    """How the best recipe was found."""
    found = {key: run for key in results if key.startswith(SEARCH) for run in results[key].values() if not run.failed}
    if not found:
        return []
    accuracy = {key: 100 * run.curve("val/acc")[-1] for key, run in found.items()}
    rows = [
        [
            key.removeprefix(SEARCH).strip() or "(none)",
            f"{accuracy[key]:.2f}",
            f"{100 * found[key].curve('train/acc')[-1]:.2f}",
            f"{found[key].number('epoch_seconds'):.1f}",
        ]
        for key in sorted(found, key=lambda key: -accuracy[key])
    ]
    return [
        "## The search for the best recipe",
        "",
        wrapped(
            "What each change of `experiment=search` does to the accuracy on held-out training images at the last "
            "epoch, in points, with one seed. What is best is chosen by these numbers; test images have no part in it."
        ),
        "",
        *markdown_table([["change", "held-out images", "training images, as trained", "s/epoch"], *rows]).splitlines(),
        "",
    ]


def spread(values: Sequence[float], digits: int) -> str:
    return in_words(estimate(values), form=f".{digits}f") if values else ""


def section(figure: str, curves: Mapping[str, Sequence[Run]], findings: Sequence[tuple[Claim, Finding]]) -> list[str]:
    """A figure, what the report says of it, and what is seen here."""
    said = "; ".join(
        f"*{claim.says}*: {found.number}" + f" (n = {found.num}), **{found.verdict}**" * bool(found.num)
        for claim, found in findings
    )
    at, accuracy = f"at the last epoch, in points ({num_seeds(curves)})", measures.final
    if figure == "best":
        at, accuracy = at.replace("last", "best (by held-out images)"), measures.at_best
    ends = []
    for label, runs in curves.items():
        gaps = spread([gap for run in runs if (gap := measures.gap(run)) is not None], 1)
        above = f" (gap {gaps})" if gaps else ""
        ends.append(f"{label}{': ' * bool(label)}{spread([accuracy(run) for run in runs], 2)}{above}")
    return [
        f"### {heading(figure)}",
        "",
        f"![Loss and accuracy over epochs]({figure}.png)",
        "",
        *([wrapped(f"The report says: {said}."), ""] if said else []),
        wrapped(f"Test accuracy {at}: {'; '.join(ends)}."),
        "",
    ]


def wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)
