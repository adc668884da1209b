"""What is kept of the study's runs: a row for every run in runs.csv, one for every epoch in epochs.csv.

The files grow from session to session and from machine to machine: the run directories need not survive. Everything on
the page is computed from them. Does not import torch.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from cnnlab.config.options import UserError
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.files import atomic_path
from cnnlab.runs.readers import Row

FACTS = (  # columns of runs.csv
    "variant",
    "seed",
    "run",  # the end of its directory's name: the hash of its configuration
    "status",  # done, or diverged: that is a result too
    "settings",  # what differs from train.py's defaults, except the seed and where the images are
    "commit",  # ending in + if files differed from it
    "code",
    "device",
    "precision",
    "torch",
    "num_train",
    "num_test",
    "fingerprint",
    "epochs_done",
    "best_epoch",
    "best_test_acc",
    "last_test_acc",
    "reevaluated_train_loss",  # of the last weights, images as they are; an epoch's row is the mean as weights change
    "reevaluated_train_acc",
    "train_seconds",
    "epoch_seconds",  # median
    "started",
)
MEASURED = (
    *("train/loss", "train/acc", "val/loss", "val/acc", "test/loss", "test/acc"),
    *("lr", "epoch_seconds", "images_per_second"),
)  # columns of epochs.csv after variant, seed and epoch


@dataclass(frozen=True)
class Run:
    """One run as the files have it.

    Attributes:
        facts: a row of runs.csv; what was not measured is empty.
        rows: the run's rows of epochs.csv, in order; what was not measured is left out.
    """

    facts: Mapping[str, str]
    rows: list[Row] = field(repr=False)

    @property
    def key(self) -> tuple[str, int]:
        return self.facts["variant"], int(self.facts["seed"])

    @property
    def failed(self) -> bool:
        """Whether the training ended because the loss was no longer a finite number."""
        return self.facts["status"] == "diverged"

    def curve(self, metric: str) -> list[float]:
        """A metric over the epochs that have it."""
        return [row[metric] for row in self.rows if metric in row]

    def number(self, name: str) -> float | None:
        """A fact as a number, if it was measured."""
        return float(self.facts[name]) if self.facts[name] else None


Results = dict[str, dict[int, Run]]  # variant, seed
ONE = ("fingerprint", "code", "precision", "torch")  # what all runs of a folder share


def has_result(path: Path) -> bool:
    """Whether the run of a directory has come to an end that stands: it is done, or the training diverged."""
    summary = RunDirectory(path).summary()
    return summary.get("status") == "done" or summary.get("error", {}).get("type") == "DivergedError"


def identity(path: Path) -> str:
    """What a run directory's name ends in. The rest of it may name a folder of the machine."""
    return path.name.rpartition("-")[2]


def collected(variant: str, settings: str, path: Path, reevaluated: tuple[float, float] | None) -> Run:
    """What is kept of a run directory whose run has a result.

    reevaluated: loss and accuracy on the training images with the last weights, where measured.
    """
    directory = RunDirectory(path)
    summary = directory.summary()
    rows = directory.metrics() if (path / "metrics.csv").exists() else []
    metrics, data, environment = summary.get("metrics", {}), summary["data"], summary["environment"]
    facts = {
        "variant": variant,
        "seed": summary["seed"],
        "run": identity(path),
        "status": "done" if summary["status"] == "done" else "diverged",
        "settings": settings,
        "commit": environment.get("commit", "")[:12] + "+" * environment.get("dirty", False),
        "code": summary["code_digest"][:12],
        **{name: environment[name] for name in ("device", "precision", "torch")},
        **{name: data[name] for name in ("num_train", "num_test")},
        "fingerprint": data["fingerprint"][:16],
        "epochs_done": len(rows),
        "best_epoch": summary.get("best_epoch", ""),
        "best_test_acc": metrics.get("test/acc", ""),
        "last_test_acc": metrics.get("last/test/acc", ""),
        "train_seconds": summary.get("train_seconds", ""),
        "epoch_seconds": median(row["epoch_seconds"] for row in rows) if rows else "",
        "started": summary["started"],
    }
    if reevaluated:
        facts |= dict(zip(("reevaluated_train_loss", "reevaluated_train_acc"), reevaluated, strict=True))
    return Run({name: _text(facts.get(name, "")) for name in FACTS}, rows)


def read(folder: Path) -> dict[tuple[str, int], Run]:
    """The runs of a folder's files, by variant and seed; none if there are no files."""
    try:
        with open(folder / "runs.csv", encoding="utf-8", newline="") as file:
            facts = list(csv.DictReader(file))
        with open(folder / "epochs.csv", encoding="utf-8", newline="") as file:
            epochs = list(csv.DictReader(file))
    except FileNotFoundError:
        return {}
    rows: dict[tuple[str, str], list[Row]] = {}
    for row in epochs:
        values = {name: float(row[name]) for name in ("epoch", *MEASURED) if row[name]}
        rows.setdefault((row["variant"], row["seed"]), []).append(values)
    runs = (Run(row, rows.get((row["variant"], row["seed"]), [])) for row in facts)
    return {run.key: run for run in runs}


def refuse_mixed(runs: Iterable[Run], folder: Path) -> None:
    """As reports of cnnlab do, average only over runs of the same code; and never over two commits.

    The device may differ: it decides times, which are compared on one device only. Raises: UserError.
    """
    runs = list(runs)
    groups = [(name, "", runs) for name in ONE]
    groups += [("commit", f" of {key}", list(seeds.values())) for key, seeds in by_variant(runs).items()]
    for name, setting, group in groups:
        found = {run.facts[name].rstrip("+") or "unknown": run for run in group}
        if len(found) > 1:
            told = ", ".join(f"{run.facts['variant']} seed {run.key[1]}: {value}" for value, run in found.items())
            raise UserError(
                f"{folder / 'runs.csv'} would average over runs{setting} that differ in {name} ({told}). Use --out "
                "FOLDER output_dir=FOLDER for a study of its own, or delete the rows and the run directories of either."
            )


def write(folder: Path, runs: Iterable[Run]) -> None:
    """Write both files by rename; runs.csv last, as it says what is there. Raises: UserError for `refuse_mixed`."""
    ordered = sorted(runs, key=lambda run: run.key)
    refuse_mixed(ordered, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "epochs.csv") as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("variant", "seed", "epoch", *MEASURED))
        for run in ordered:
            for row in run.rows:
                values = (_text(row[name]) if name in row else "" for name in MEASURED)
                writer.writerow((*run.key, int(row["epoch"]), *values))
    with atomic_path(folder / "runs.csv") as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, FACTS, lineterminator="\n")
        table.writeheader()
        table.writerows(run.facts for run in ordered)


def by_variant(runs: Iterable[Run]) -> Results:
    results: Results = {}
    for run in sorted(runs, key=lambda run: run.key):
        variant, seed = run.key
        results.setdefault(variant, {})[seed] = run
    return results


def _text(value: object) -> str:
    """Numbers with at most five significant digits, so that the files stay small."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
