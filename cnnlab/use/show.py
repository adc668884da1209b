"""What a trained run has learned, drawn into its directory: `cnnlab show RUN`."""

from pathlib import Path

import numpy as np
import torch

from cnnlab.config.objects import checked_source
from cnnlab.data.images import load_once
from cnnlab.networks import first_filters
from cnnlab.report import run_figures
from cnnlab.report.run_figures import drawable
from cnnlab.runs.directory import RunDirectory
from cnnlab.text import say
from cnnlab.use import explain
from cnnlab.use.opened import OpenedRun, with_other_data
from cnnlab.use.predict import in_words, prediction
from cnnlab.use.trained import open_run

FIGURES = ("filters", "feature_maps", "occlusion", "confused")


def show_run(run: OpenedRun, file: Path | None, pixels: np.ndarray | None) -> None:
    """Draw filters, feature maps, occlusion sensitivity and the most confused classes as PNG files.

    file: the image to explain, and its pixels (H, W, C) uint8; None: the first test image.
    """
    model, _, summary = open_run(run.path)
    task, classes, names = model.stored.task, model.classes, drawable(model.classes)
    data = load_once(checked_source(with_other_data(run)))
    name, target, title = file.name if file else "first test image", "", "the image"
    if pixels is None:
        pixels, right = data.test.at([0])[0], data.test.targets[0]
        if task == "multiclass":
            target, title = classes[right], names[right]
        else:
            target = in_words(prediction(model, right.tolist()))
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    values = model.probabilities(image)[0]
    place = 0 if task == "regression" else int(values.argmax())

    folder = run.path / "figures"
    folder.mkdir(exist_ok=True)
    drawn = {figure: folder / f"{figure}.png" for figure in FIGURES}
    for path in drawn.values():  # of an earlier command
        path.unlink(missing_ok=True)
    if (filters := first_filters(model.network)) is not None:
        run_figures.filters(drawn["filters"], filters.numpy())
    if layers := explain.feature_maps(model, image):
        explain.draw_feature_maps(drawn["feature_maps"], pixels, layers)
    lost = explain.occlusion(model, image, place)
    if task == "regression":
        title = f"{title}, predicted {names[place]} {values[place]:.5g}"
        explain.draw_occlusion(drawn["occlusion"], pixels, -lost, title, f"change of {names[place]}")
    else:
        title = f"{title}, predicted as {names[place]}, {values[place]:.3f}"
        explain.draw_occlusion(drawn["occlusion"], pixels, lost, title)
    tested = summary["status"] == "done" and (run.path / "predictions.npz").exists()
    if task == "multiclass" and tested and summary["data"].get("fingerprint") == data.fingerprint:
        predicted, labels, _ = RunDirectory(run.path).predictions()
        explain.draw_confused(drawn["confused"], data.test.at, labels, predicted, classes)
    found = prediction(model, values.tolist())
    if "label" in found:
        answer = f"predicted {found['label']} (p = {found['probability']:.3f})"
    else:
        answer = f"predicted {in_words(found)}"
    say(f"{name}: " + f"true {'class ' * (task == 'multiclass')}{target}, " * bool(target) + answer)
    for path in drawn.values():
        if path.exists():
            say(path)
