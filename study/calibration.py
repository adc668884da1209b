"""Which single change of the baseline is most like the report's figure 3, by what the report says about that figure.

The network overfits from a little before epoch 20, and its test accuracy flattens near epoch 15. For every seed of a
candidate, the distance is the number of epochs that the onset of overfitting lies from ONSET, plus the number of epochs
that the flattening lies from FLATTENING; what does not happen counts as the epoch after the last, so that its distance
is a lower bound. The candidate with the smallest mean distance is nearest. No other figure, and no accuracy, is used.
"""

import math
from statistics import fmean

from cnnlab.config.options import UserError
from cnnlab.report.statistics import estimate
from study import measures
from study.results import Results, Run
from study.variants import BASELINE, CALIBRATED, CANDIDATES, candidate
from study.verdicts import in_words

ONSET = 17  # "a little before epoch 20"
FLATTENING = 15
RULE = (
    " ".join((__doc__ or "").split("\n\n", 1)[1].split())
    .replace("ONSET", str(ONSET))
    .replace("FLATTENING", str(FLATTENING))
)


def epochs_of(run: Run) -> tuple[int, int]:
    """The onset of overfitting and the flattening of a run; the epoch after the last for what does not happen."""
    never = len(run.rows) + 1
    return measures.onset(run) or never, measures.flattens(measures.accuracy(run)) or never


def distance(run: Run) -> float:
    """In epochs; infinite for a training that diverged."""
    onset, flattening = epochs_of(run)
    return math.inf if measures.diverges(run) else abs(onset - ONSET) + abs(flattening - FLATTENING)


def distances(results: Results) -> dict[str, list[float]]:
    """Over seeds, of every candidate that has been run."""
    keys = {change: candidate(change) for change in CANDIDATES}
    return {change: list(map(distance, results[key].values())) for change, key in keys.items() if key in results}


def nearest(results: Results) -> str | None:
    """The candidate with the smallest mean distance; None while one of them has fewer than two seeds."""
    found = distances(results)
    told = len(found) == len(CANDIDATES) and min(map(len, found.values())) > 1
    return min(found, key=lambda change: (fmean(found[change]), change != CALIBRATED)) if told else None


def check(results: Results) -> None:
    """Raises: UserError if the runs say that another candidate than CALIBRATED is nearest."""
    if (found := nearest(results)) and found != CALIBRATED:
        one, other = (fmean(distances(results)[change]) for change in (found, CALIBRATED))
        raise UserError(
            f"{BASELINE} with {found} is nearer to the report's figure 3 ({one:.1f} epochs) than with {CALIBRATED} "
            f'({other:.1f}). Set CALIBRATED = "{found}" in study/variants.py and run the study again.'
        )


def table(results: Results) -> list[list[str]]:
    """The baseline as stated and the candidates: onset, flattening and distance, as means with their intervals."""
    rows = [["baseline", "overfits from epoch", "flattens at epoch", "distance, epochs", "n"]]
    for change, key in {"as stated": BASELINE, **{change: candidate(change) for change in CANDIDATES}}.items():
        if runs := list(results.get(key, {}).values()):
            cells = ["diverged"] * 3
            if not any(map(measures.diverges, runs)):
                columns = (*zip(*map(epochs_of, runs), strict=True), tuple(map(distance, runs)))
                cells = [in_words(estimate(values), form=".1f") for values in columns]
                never = [sum(epochs > len(runs[0].rows) for epochs in values) for values in columns[:2]]
                cells[:2] = [
                    cell + f" (never in {num} of {len(runs)})" * bool(num)
                    for cell, num in zip(cells, never, strict=False)
                ]
            rows.append([change + ", chosen" * (change == CALIBRATED), *cells, str(len(runs))])
    return rows
