"""Predicting the labels of image files, or numbers, with a trained run."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from cnnlab.data.decode import UNREADABLE, read_image
from cnnlab.terminal import Table
from cnnlab.text import csv_cell, printable
from cnnlab.use.trained import Trained

CHUNK = 500  # images that are in memory at once

# multiclass: {"path": ..., "label": ..., "probability": ..., "top": [[label, probability], ...]}
# multilabel: {"path": ..., "labels": [[label, probability], ...]}, those that are more probable than not
# regression: {"path": ..., "numbers": {name: number, ...}}
Prediction = dict[str, Any]


def predict(model: Trained, paths: Iterable[str], top: int = 3) -> Iterator[Prediction | tuple[str, str]]:
    """A prediction for every image; for one that cannot be read, its path and the reason."""
    remaining = iter(paths)
    while some := list(islice(remaining, CHUNK)):
        images: dict[str, np.ndarray] = {}
        failed: dict[str, str] = {}
        for path in some:
            try:
                images[path] = read_image(path, model.stored.size, model.background, model.stored.channels).pixels
            except UNREADABLE as error:
                failed[path] = f"{type(error).__name__}: {error}"
        if images:
            pixels = torch.from_numpy(np.stack(list(images.values()))).permute(0, 3, 1, 2)
            found = dict(zip(images, model.probabilities(pixels).tolist(), strict=True))
        for path in some:
            yield (path, failed[path]) if path in failed else {"path": path} | prediction(model, found[path], top)


def prediction(model: Trained, values: Sequence[float], top: int = 3) -> Prediction:
    """What `Trained.probabilities` returns for one image, (K,), as a prediction without a path."""
    named = list(zip(model.classes, values, strict=True))
    if model.stored.task == "regression":
        return {"numbers": {name: float(f"{number:.7g}") for name, number in named}}
    # stable: equal logits, which are common in bfloat16, are ranked as in evaluation
    ranked = sorted(named, key=lambda one: one[1], reverse=True)
    if model.stored.task == "multilabel":
        return {"labels": [[label, round(share, 4)] for label, share in ranked if share > 0.5]}
    best = [[label, round(share, 4)] for label, share in ranked[:top]]
    return {"label": best[0][0], "probability": best[0][1], "top": best}


def in_words(one: Prediction) -> str:
    """A prediction in a line of text: "cat, 0.912", "cat 0.912, dog 0.641", "none" or "age 41.3, weight 82.99"."""
    if "numbers" in one:
        return ", ".join(f"{name} {number:.5g}" for name, number in one["numbers"].items())
    if "labels" in one:
        return ", ".join(f"{label} {share:.3f}" for label, share in one["labels"]) or "none"
    return f"{one['label']}, {one['probability']:.3f}"


def print_predictions(model: Trained, predictions: Sequence[Prediction], form: str) -> None:
    """Print a table, CSV or JSON."""
    if form == "json":
        print(json.dumps(list(predictions), indent=1))
        return
    last = "top" if form == "csv" else "others"
    heads = {"multiclass": ("label", "probability", last), "multilabel": ("labels",), "regression": model.classes}
    columns = heads[model.stored.task]
    rows = [(one["path"], *_cells(one, form == "csv")) for one in predictions]
    if form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        for row in (("path", *columns), *rows):
            writer.writerow(csv_cell(cell) if isinstance(cell, str) else cell for cell in row)
        return
    table = Table()
    table.add_column("image", overflow="fold")
    for name in columns:
        is_number = name == "probability" or columns is model.classes
        table.add_column(printable(name), justify="right" if is_number else "left")
    for row in rows:
        table.add_row(*row)
    table.show()


def _cells(one: Prediction, exact: bool) -> list[Any]:
    """What follows the path. exact: for CSV, numbers with all digits, and lists as LABEL=SHARE LABEL=SHARE."""
    if "numbers" in one:
        return [number if exact else f"{number:.5g}" for number in one["numbers"].values()]
    ranked = " ".join(f"{label}={share}" for label, share in one["labels" if "labels" in one else "top"])
    if "labels" in one:
        return [ranked if exact else in_words(one)]
    others = ", ".join(f"{label} {share:.3f}" for label, share in one["top"][1:])
    return [one["label"], one["probability"], ranked] if exact else [one["label"], f"{one['probability']:.3f}", others]
