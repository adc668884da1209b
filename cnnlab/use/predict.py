"""Predicting the labels of image files with a trained run."""

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
from cnnlab.text import csv_cell
from cnnlab.use.trained import Trained

CHUNK = 500  # images that are in memory at once

Prediction = dict[str, Any]  # {"path": ..., "label": ..., "probability": ..., "top": [[label, probability], ...]}


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
            # stable: equal logits, which are common in bfloat16, are ranked as in evaluation
            values, labels = torch.sort(model.probabilities(pixels), dim=1, descending=True, stable=True)
            shares, labels = values[:, :top], labels[:, :top]
            ranked = dict(zip(images, zip(shares.tolist(), labels.tolist(), strict=True), strict=True))
        for path in some:
            if path in failed:
                yield path, failed[path]
            else:
                best = [[model.classes[label], round(share, 4)] for share, label in zip(*ranked[path], strict=True)]
                yield {"path": path, "label": best[0][0], "probability": best[0][1], "top": best}


def print_predictions(predictions: Sequence[Prediction], form: str) -> None:
    """Print a table, CSV or JSON."""
    if form == "json":
        print(json.dumps(list(predictions), indent=1))
    elif form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("path", "label", "probability", "top"))
        for one in predictions:
            others = " ".join(f"{label}={share}" for label, share in one["top"])
            writer.writerow((csv_cell(one["path"]), csv_cell(one["label"]), one["probability"], csv_cell(others)))
    else:
        table = Table()
        table.add_column("image", overflow="fold")
        table.add_column("label")
        table.add_column("probability", justify="right")
        table.add_column("others")
        for one in predictions:
            others = ", ".join(f"{label} {share:.3f}" for label, share in one["top"][1:])
            table.add_row(one["path"], one["label"], f"{one['probability']:.3f}", others)
        table.show()
