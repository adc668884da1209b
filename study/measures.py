"""The terms of the claims, as formulas over a run's rows. Does not import torch.

Accuracies and differences of accuracies are in points: percent of the images. The training accuracy of an epoch is
measured during training, with crops, flips, mixed labels and dropout; so the training images are evaluated once more,
unchanged, with the last weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import cast

import numpy as np
from scipy.signal import savgol_filter

from study.results import Run

TARGET = 0.95  # of a best test accuracy
GAP = 5.0  # points between training and test accuracy that are called overfitting
FLAT = 1.0  # points that a curve that has flattened still gains
RISING = 2  # a curve that flattens only in its last epochs is still rising
WINDOW = 5  # epochs that a smooth curve is fitted to at a time
CHANCE = 15.0  # points: a training that ends below has learned nothing; guessing has 10
CRAWL = 0.5  # a training that ends below this share of the best setting's accuracy has hardly begun


@dataclass(frozen=True)
class Measure:
    """A number that a run has.

    Attributes:
        name: in words.
        unit: "points", "epochs", ... or nothing.
        of: the number; None if the run has none.
        form: how it is written.
    """

    name: str
    unit: str
    of: Callable[[Run], float | None]
    form: str = "+.1f"


def accuracy(run: Run, part: str = "test") -> list[float]:
    """In points, over the epochs."""
    return [100 * value for value in run.curve(f"{part}/acc")]


def final(run: Run) -> float:
    """Test accuracy at the last epoch, in points; that of guessing for a training that diverged."""
    return 10.0 if run.failed else 100 * float(run.facts["last_test_acc"])


def at_best(run: Run) -> float:
    """Test accuracy at the best epoch of a finished run, in points."""
    return 100 * float(run.facts["best_test_acc"])


def gap(run: Run) -> float | None:
    """Training minus test accuracy of the last weights, in points, both on unchanged images."""
    trained = run.number("reevaluated_train_acc")
    return None if trained is None else 100 * trained - final(run)


def onset(run: Run) -> int | None:
    """The first epoch whose training accuracy is more than GAP points above the test accuracy; None: there is none.

    For runs without augmentation and dropout.
    """
    pairs = zip(accuracy(run, "train"), accuracy(run), strict=True)
    return next((epoch for epoch, (train, test) in enumerate(pairs, 1) if round(train - test - GAP, 6) > 0), None)


def smooth(values: Sequence[float]) -> list[float]:
    """A curve without its noise: in the middle of WINDOW epochs, the parabola through them (Savitzky and Golay, 1964).

    As it is, if it is shorter than that.
    """
    if len(values) < WINDOW:
        return list(values)
    return cast(list[float], savgol_filter(values, WINDOW, polyorder=2).tolist())


def roughness(values: Sequence[float]) -> tuple[float, float]:
    """How far a curve is from its smooth one, on the mean, in the first half of the epochs and in the second."""
    off = np.abs(np.subtract(values, smooth(values)))
    half = len(values) // 2
    return float(off[:half].mean()), float(off[half:].mean())


def epochs_to(values: Sequence[float], target: float) -> float | None:
    """When a curve first reaches a target, in epochs, interpolated between the last epoch below and the next.

    At least 1; None if it never does.
    """
    for epoch, value in enumerate(values, 1):
        if value >= target:
            before = values[epoch - 2] if epoch > 1 else value
            return epoch - (value - target) / (value - before) if value > before else float(epoch)
    return None


def lead(first: Run, second: Run) -> float | None:
    """How many epochs the first run needs more than the second to TARGET x the smaller of their best test accuracies.

    By smooth curves; both reach that. None if one has learned nothing.
    """
    if diverges(first) or diverges(second):
        return None
    curves = smooth(accuracy(first)), smooth(accuracy(second))
    target = TARGET * min(map(max, curves))
    one, other = (epochs_to(curve, target) for curve in curves)
    assert one is not None
    assert other is not None
    return one - other


def epochs_to_own_target(run: Run) -> float | None:
    """Epochs to TARGET x the run's own best test accuracy, by its smooth curve; None if it has learned nothing."""
    if diverges(run):
        return None
    curve = smooth(accuracy(run))
    return epochs_to(curve, TARGET * max(curve))


def steps_to_own_target(run: Run, size: int) -> float | None:
    """The same in training steps with batches of this size."""
    epochs = epochs_to_own_target(run)
    return None if epochs is None else epochs * float(run.facts["num_train"]) / size


def flattens(values: Sequence[float]) -> int | None:
    """The first epoch after which a curve gains less than FLAT; None if that is one of the last RISING epochs."""
    flat = (epoch for epoch, value in enumerate(values, 1) if round(max(values[epoch - 1 :]) - value - FLAT, 6) < 0)
    epoch = next(flat, len(values))
    return epoch if epoch <= len(values) - RISING else None


def loss_rise(run: Run) -> tuple[int, float]:
    """The epoch of the lowest test loss, and how much higher the loss is at the last one."""
    losses = run.curve("test/loss")
    lowest = min(losses)
    return losses.index(lowest) + 1, losses[-1] - lowest


def diverges(run: Run) -> bool:
    """Whether a training failed as diverged, or ends with a test accuracy below CHANCE."""
    return run.failed or final(run) < CHANCE


def delay(first: Run, second: Run) -> float | None:
    """How many epochs later the first run's test loss is lowest; None if the second's still falls when it ends."""
    if not (first.rows and second.rows):
        return None
    one, other = (loss_rise(run)[0] for run in (first, second))
    return one - other if other <= len(second.rows) - RISING else None


def gap_where_others_overfit(first: Run, second: Run) -> float | None:
    """The first run's gap; None if it crawls, which leaves nothing to overfit, or the second's gap is not above GAP."""
    return gap(first) if (gap(second) or 0) > GAP and final(first) >= CRAWL * final(second) else None


def smaller_gap(first: Run, second: Run) -> float | None:
    """The first run's gap minus the second's; None if this is not above GAP, or the first crawls."""
    ours, theirs = gap_where_others_overfit(first, second), gap(second)
    return None if ours is None or theirs is None else ours - theirs


def rougher(first: Run, second: Run) -> float | None:
    """The first run's late roughness minus the second's; None if one crawls: what hardly learns is steady."""
    ends, values = sorted(map(final, (first, second))), (ROUGHNESS.of(first), ROUGHNESS.of(second))
    if ends[0] < CRAWL * ends[1] or values[0] is None or values[1] is None:
        return None
    return values[0] - values[1]


def goes_on(run: Run) -> float | None:
    """What the training accuracy gains from epochs 14 to 16 until the last three, as means."""
    values = accuracy(run, "train")
    return fmean(values[-3:]) - fmean(values[13:16]) if len(values) >= 19 else None


def times_slower(first: Run, second: Run) -> float | None:
    """The seconds of one run's fastest epoch over another's; None if they ran on different devices.

    The fastest, as whatever else a machine does makes epochs slower and never faster.
    """
    seconds = [min(run.curve("epoch_seconds"), default=0) for run in (first, second)]
    return seconds[0] / seconds[1] if first.facts["device"] == second.facts["device"] and all(seconds) else None


def averaging(run: Run, metric: str = "loss") -> float | None:
    """The share of what the first epoch's training loss (or accuracy) lacks to the test one that its weights make up.

    The epoch's training loss is the mean over its batches, while the weights change; then it is evaluated once more,
    with the weights of the epoch's end. None if nothing is lacking.
    """
    after = run.number(f"reevaluated_train_{metric}")
    if after is None:
        return None
    during, test = run.curve(f"train/{metric}")[0], run.curve(f"test/{metric}")[0]
    lacking = during > test if metric == "loss" else during < test
    return (during - after) / (during - test) if lacking else None


def rough(name: str, formula: Callable[[tuple[float, float], tuple[float, float]], float]) -> Measure:
    """A formula of the roughness, early and late, of test and training accuracy; None if there are too few epochs."""

    def of(run: Run) -> float | None:
        curves = accuracy(run), accuracy(run, "train")
        return formula(*map(roughness, curves)) if len(run.rows) > WINDOW else None

    return Measure(name, "points", of, "+.2f")


ACCURACY = Measure("test accuracy at the last epoch", "points", final)
ROUGHNESS = rough("roughness of the test accuracy in the second half of the epochs", lambda test, train: test[1])
EARLY_ROUGHNESS = rough("roughness of the test accuracy in the first half of the epochs", lambda test, train: test[0])
UNSTEADIER = rough(
    "roughness in the first half of the epochs, test minus training accuracy", lambda test, train: test[0] - train[0]
)
SETTLES = rough(
    "roughness of the test accuracy, first minus second half of the epochs", lambda test, train: test[0] - test[1]
)
OVERFITTING = Measure("gap at the last epoch", "points", gap)
LAST_LOSS = Measure(
    "test loss at the last epoch", "", lambda run: run.curve("test/loss")[-1] if run.rows else None, form="+.3f"
)
GOES_ON = Measure("gain of the training accuracy from epochs 14 to 16 until the last three", "points", goes_on)
EXCESS = Measure(
    "training minus test loss of epoch 1",
    "",
    lambda run: run.curve("train/loss")[0] - run.curve("test/loss")[0] if run.rows else None,
    form="+.3f",
)
AVERAGING = Measure("share of this difference that is gone with the epoch's last weights", "", averaging, form=".2f")
AVERAGING_ACCURACY = Measure(
    "the same share of test minus training accuracy", "", lambda run: averaging(run, "acc"), form=".2f"
)
