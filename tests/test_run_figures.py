"""The figures of a run can be read alone: titles, captions, and lines that differ without color."""

from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from cnnlab.report import run_figures
from cnnlab.report.run_figures import label
from cnnlab.use import explain


@pytest.fixture
def drawn(monkeypatch) -> list[matplotlib.figure.Figure]:
    """The figures that are saved."""
    figures: list[matplotlib.figure.Figure] = []
    for module in (run_figures, explain):
        monkeypatch.setattr(module, "save", lambda figure, path: figures.append(figure))
    return figures


def test_curves_differ_without_color_and_mark_the_best_epoch(drawn):
    rows = [
        {"epoch": epoch, **{f"{part}/{name}": 0.1 for part in ("train", "val") for name in ("loss", "acc")}}
        for epoch in (1.0, 2.0, 3.0)
    ]
    run_figures.curves(Path("curves.png"), rows, "a run", best_epoch=2)
    [figure] = drawn
    for axis in figure.axes:
        lines = {line.get_label(): line for line in axis.get_lines()}
        assert list(lines) == ["training", "validation", "best epoch, 2"]
        assert [line.get_linestyle() for line in lines.values()] == ["--", "-", ":"]
        assert list(lines["best epoch, 2"].get_xdata()) == [2, 2]


def test_there_is_no_axis_for_a_loss_that_was_not_logged(drawn):
    run_figures.curves(Path("curves.png"), [{"epoch": 1.0, "val/err": 0.1}], "a run", best_epoch=1, metric="err")
    assert [axis.get_ylabel() for axis in drawn[0].axes] == ["err"]


def test_mistakes_name_what_is_true_and_what_was_predicted(drawn):
    labels, predicted, confidence = np.array([0, 1, 1]), np.array([2, 1, 0]), np.array([0.44, 0.9, 0.5])
    images = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    run_figures.mistakes(
        Path("mistakes.png"), lambda at: images[at], labels, predicted, confidence, ["circle", "ring", "triangle"]
    )
    texts = [text.get_text() for text in drawn[0].axes[0].texts]
    assert texts[:2] == ["true ring\npredicted circle (0.50)", "true circle\npredicted triangle (0.44)"]


def test_feature_maps_name_layer_and_channel(drawn):
    maps = np.zeros((13, 4, 4)) + np.arange(13)[:, None, None] * np.eye(4)
    explain.draw_feature_maps(Path("maps.png"), np.zeros((8, 8, 3), dtype=np.uint8), [("conv1", maps)], columns=2)
    titles = [axis.get_title() for axis in drawn[0].axes]
    assert titles == ["the image", "conv1,\nchannel 12", "conv1,\nchannel 11"]
    assert "Feature maps" in drawn[0].get_suptitle()


def test_filters_have_a_title_and_are_not_smoothed(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (32, 5, 5, 3), dtype=np.uint8)
    run_figures.filters(tmp_path / "filters.png", images)
    with Image.open(tmp_path / "filters.png") as file:
        pixels = np.asarray(file.convert("RGB"))
    assert np.array_equal(pixels[30:, : 6 * (8 * 6 + 1)], run_figures.tiled(images))
    assert pixels[:30].min() < 100


@pytest.mark.parametrize(
    ("target", "numbers", "text"),
    [
        (np.int64(1), False, "ring"),
        (np.array([0.375, 0.0, 0.625]), False, "star 0.62\ncircle 0.38"),
        (np.array([0.0, 1.0, 0.0]), False, "ring"),
        (np.array([1.0, 1.0, 1.0]), False, "circle\nring …"),
        (np.array([0.0, 0.0, 0.0]), False, ""),
        (np.array([-3.0, 0.0, 1.0]), True, "circle -3\nring 0 …"),
    ],
)
def test_labels_of_samples(target, numbers, text):
    assert label(target, ["circle", "ring", "star"], numbers) == text
