"""The verbs of `cnnlab VERB`, other than training. Imports torch only where it must."""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cnnlab.config.check import check, check_values
from cnnlab.config.identity import chosen, configuration
from cnnlab.config.objects import checked_source, data_source, filled, instantiate
from cnnlab.config.options import UserError
from cnnlab.console import announce
from cnnlab.runs.named import find, named, names_a_run
from cnnlab.terminal import Table
from cnnlab.text import say
from cnnlab.use.opened import OpenedRun, opened, with_other_data

SHEET = 40  # training images that `show` draws, unless told otherwise
LONGEST_NAME = 100  # of the folder with the results of an evaluation


def fetch(arguments: argparse.Namespace) -> None:
    """Download or decode a data set now, for jobs that will run without network access."""
    config = configuration(arguments.overrides)
    check_values(config, "data")
    data = checked_source(config).load()
    for part, images in (("training", data.train), ("test", data.test)):
        num, channels, height, width = images.pixels.shape
        print(f"{num:,} {part} images of {height}x{width}x{channels} in {len(images.classes)} classes")
    print(f"fingerprint {data.fingerprint}")


def anatomy(arguments: argparse.Namespace) -> None:
    """Print a network layer by layer: sizes, weights, multiply-adds, receptive fields."""
    config = configuration(arguments.overrides)
    check(config)
    announce("Importing torch")
    from cnnlab.augment.base import in_order, output_size
    from cnnlab.data.images import load_once
    from cnnlab.train.parts import make_augmentations, make_network
    from cnnlab.use.anatomy import layers

    source = data_source(config.data)
    shape = getattr(source, "shape", None) or load_once(source).shape
    shape = shape.resized(output_size(in_order(make_augmentations(config.aug, shape)), shape.size))
    network = make_network(config.model, shape)
    parts = layers(network, shape)

    table = Table(title=f"{config.model._target_}, images of {shape}")
    for name in ("layer", "kind", "output"):
        table.add(name, number=False)
    for rank, name in enumerate(("weights", "multiply-adds", "stride", "receptive field", "fully connected"), -1):
        table.add(name, max(rank, 0))
    for layer in parts:
        size = " x ".join(map(str, layer.output))
        fields = ("-" if value is None else str(value) for value in (layer.stride, layer.receptive_field))
        counts = (f"{layer.weights:,}", f"{layer.multiply_adds:,}", *fields, f"{layer.fully_connected:,}")
        table.add_row(layer.name, layer.kind, size, *counts)
    total = sum(values.numel() for values in network.parameters())
    if others := total - sum(layer.weights for layer in parts):
        table.add_row("elsewhere", "", "", f"{others:,}", "", "", "", "")
    table.add_section()
    multiply_adds = sum(layer.multiply_adds for layer in parts)
    dense = sum(layer.fully_connected for layer in parts)
    table.add_row("all", "", "", f"{total:,}", f"{multiply_adds:,}", "", "", f"{dense:,}")
    table.show()
    if "fully connected" in (str(column.header) for column in table.columns):  # the terminal is wide enough
        same = "a fully connected layer with the same input and output sizes"
        say(f"fully connected: weights that {same} would have (no biases)")


def show(arguments: argparse.Namespace) -> None:
    """Draw training images before and after augmentation or, for a run, what it has learned."""
    if len(arguments.overrides) == 1 and names_a_run(arguments.overrides[0], arguments.runs):
        if arguments.num is not None or arguments.out:
            raise UserError("--num and --out are for training images. The figures of a run are in its directory.")
        run, file = opened(named(arguments.overrides[0], arguments.runs)), arguments.picture
        pixels = None if file is None else pixels_of(file, run)
        announce("Importing torch")
        from cnnlab.use.show import show_run

        show_run(run, file, pixels)
        return
    from_1("--num", arguments.num)
    if arguments.picture:
        raise UserError("--picture is for a run. Use cnnlab show RUN --picture FILE.")
    config = configuration(arguments.overrides)
    check(config)
    announce("Importing torch")
    from cnnlab.data.images import load_once
    from cnnlab.data.loaders import samples
    from cnnlab.report import run_figures
    from cnnlab.train.parts import make_data

    name = "-".join("+".join(chosen(config)[group]) or "none" for group in ("data", "aug"))
    path = Path(arguments.out or Path(config.output_dir, "show", f"{name}.png"))
    path.parent.mkdir(parents=True, exist_ok=True)
    run_figures.sheet(path, *samples(make_data(config, load_once(data_source(config.data))), arguments.num or SHEET))
    say(path)


def from_1(option: str, value: int | None) -> None:
    """Raises: UserError for a number below 1."""
    if value is not None and value < 1:
        raise UserError(f"{option} {value} is not allowed. Use a number from 1.")


def pixels_of(file: Path, run: OpenedRun) -> Any:
    """The pixels of an image file, decoded as the run's own images: (H, W, C) uint8. Raises: UserError."""
    from cnnlab.data.decode import UNREADABLE, read_image

    run.check_decoding()
    try:
        return read_image(file, run.stored.size, run.background, run.stored.channels).pixels
    except UNREADABLE as error:
        raise UserError(f"{file} cannot be read as an image ({type(error).__name__}: {error}).") from error


def evaluate(arguments: argparse.Namespace) -> None:
    """Evaluate a trained run on its test images, or on others of the same classes, and plot its mistakes."""
    overrides, path = arguments.overrides, named(arguments.run, arguments.runs)
    run = opened(path)
    config = with_other_data(run, overrides)
    source = checked_source(config)
    wanted, shape = run.stored, getattr(source, "shape", None) or run.stored
    if (shape.channels, shape.size) != (wanted.channels, wanted.size):
        raise UserError(f"The run takes images of {wanted}, but these are {shape}. Use data of {wanted}.")
    announce("Importing torch")
    import torch

    from cnnlab.data.images import for_evaluation, load_once
    from cnnlab.data.loaders import pixel_batches
    from cnnlab.data.split import training_split
    from cnnlab.report import run_figures
    from cnnlab.runs.files import write_text
    from cnnlab.use import evaluation
    from cnnlab.use.trained import open_run

    model, _, summary = open_run(path)
    data = load_once(source)
    same_data = data.fingerprint == summary["data"].get("fingerprint")
    evaluation.check_fits(model, data.test)
    if any(word.startswith("norm") for word in overrides):
        model.norm = instantiate(filled(config.norm, wanted.facts()))
        index = None  # all training images of other data
        if same_data:
            split = (config.val_fraction, config.num_train_images, config.seed)
            index = torch.from_numpy(training_split(data.train.targets, *split)[0])
        batches = pixel_batches(for_evaluation(data.train), 1000, index)
        model.norm.fit(torch.cat([model.cropped(some) for some in batches]))
        model.norm.to(model.device)
    model.test_flips, model.test_shifts = config.test_flips, config.test_shifts
    found = evaluation.evaluate(model, data.test)
    evaluation.print_evaluation(found, model.classes)
    if same_data and not overrides and (differ := evaluation.disagreement(found, summary)):
        say(f"cnnlab: {differ}", file=sys.stderr)
    folder = arguments.out or path / result_folder(overrides)
    folder.mkdir(parents=True, exist_ok=True)
    result = evaluation.as_dictionary(found, model.classes) | {"fingerprint": data.fingerprint, "overrides": overrides}
    if found.confusion is not None:
        run_figures.confusion(folder / "confusion.png", found.confusion, model.classes)
        run_figures.reliability(folder / "reliability.png", found.reliability(), found.calibration_error)
        evaluation.write_confusion(folder / "confusion.csv", found, model.classes)
    write_text(folder / "evaluation.json", json.dumps(result, indent=1) + "\n")
    say(f"Files: {folder}")


def result_folder(overrides: Sequence[str]) -> str:
    """The name of the folder of an evaluation: a long one is cut, and a hash keeps it distinct."""
    name = re.sub(r"[^\w.=-]+", "_", "-".join(["evaluation", *overrides]), flags=re.ASCII)
    if len(name) > LONGEST_NAME:
        name = f"{name[:LONGEST_NAME]}-{hashlib.sha256(' '.join(overrides).encode()).hexdigest()[:8]}"
    return name


def predict(arguments: argparse.Namespace) -> None:
    """Predict the labels of images, or of all images in folders, with a trained run."""
    from_1("--top", arguments.top)
    from cnnlab.data.decode import described, images_in

    run = opened(named(arguments.run, arguments.runs))
    if arguments.top and run.stored.task != "multiclass":
        raise UserError(
            f"--top {arguments.top}: the run is for {run.stored.task} data and ranks no classes. Leave it out."
        )
    run.check_decoding()
    paths, others = images_in(arguments.paths)
    if others:
        say(f"cnnlab: {described(others)} and were left out.", file=sys.stderr)
    announce("Importing torch")
    from cnnlab.use import predict
    from cnnlab.use.trained import open_run

    model, _, _ = open_run(run.path)
    results = list(predict.predict(model, paths, arguments.top or 3))
    predict.print_predictions(model, [result for result in results if isinstance(result, dict)], arguments.format)
    failed = [result for result in results if isinstance(result, tuple)]
    for path, reason in failed:
        say(f"cnnlab: {path} cannot be read as an image ({reason}); skipped.", file=sys.stderr)
    if failed:
        sys.exit(1)


def export(arguments: argparse.Namespace) -> None:
    """Export a trained run to one file for other programs, and verify it."""
    run = opened(named(arguments.run, arguments.runs))

    announce("Importing torch")
    from cnnlab.data.images import load_once
    from cnnlab.data.loaders import pixel_batches
    from cnnlab.use.export import export
    from cnnlab.use.trained import open_run

    model, _, summary = open_run(run.path)
    path = arguments.out or run.path / {"onnx": "model.onnx", "torch": "model.pt2"}[arguments.format]
    path.parent.mkdir(parents=True, exist_ok=True)
    test = load_once(checked_source(with_other_data(run))).test
    about = {"run": summary["run"], "test/acc": summary.get("metrics", {}).get("test/acc"), **summary["environment"]}
    pixels = next(pixel_batches(test, 1000))
    difference = export(model.float32_on_cpu(), path, arguments.format, about, pixels)
    say(f"{path}: on {len(pixels):,} test images its logits differ from the run's by at most {difference:.1e}.")


def report(arguments: argparse.Namespace) -> None:
    """Write the report of runs: which setting is best, and how certain that is."""
    from cnnlab.report import page
    from cnnlab.report.answer import answer, protocol
    from cnnlab.report.listing import no_runs
    from cnnlab.report.runs import read
    from cnnlab.report.sweep import Sweep

    paths = list(find(named(place) for place in arguments.folders))
    if not paths:
        raise no_runs(arguments.folders[0])
    sweep = Sweep(*read(paths))
    for path, reason in sweep.left_out:
        say(f"{path}: left out: {reason}")
    say(f"{protocol(sweep)} {answer(sweep)}".lstrip())
    if arguments.out:
        say(page.write(sweep, arguments.out, arguments.latex))
    else:
        say(page.write_beside(sweep, paths, arguments.latex))


def compare(arguments: argparse.Namespace) -> None:
    """Say in three lines whether one setting is better than another, and plot their curves."""
    from cnnlab.report import charts, compare, figures
    from cnnlab.runs.files import atomic_path

    settings = [compare.chosen(what, arguments.runs) for what in (arguments.first, arguments.second)]
    say("\n".join(compare.compare(*settings)))
    measure, labels = settings[0].runs[0].measure, compare.names(*settings)
    chart = charts.curves(measure, list(zip(labels, settings, strict=True)), "loss")
    chart |= {"title": "Means over seeds; solid: held-out images, dashed: training; bands span all seeds"}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(arguments.out) as partial:
        partial.write_bytes(figures.png(chart))
    say(f"Curves: {arguments.out}")


def ls(arguments: argparse.Namespace) -> None:
    """List runs, newest first or best first by a metric."""
    from_1("--num", arguments.num)
    from cnnlab.report.listing import print_list

    print_list(named(arguments.folder), arguments.by, arguments.num)


def status(arguments: argparse.Namespace) -> None:
    """Show the progress of a sweep: which runs are queued, running, done or failed."""
    from cnnlab.report.listing import print_status

    print_status(named(arguments.folder))
