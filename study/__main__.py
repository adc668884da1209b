"""python -m study [--quick] [--seeds N] [--page] [words for train.py]: the lab report's figures, redone.

Runs what is missing by train.py, keeps what came out in docs/study/runs.csv and epochs.csv, and writes the page,
docs/study/README.md, from these files alone. Typed again, it goes on where it was. Exit status: as train.py's; a run
that diverges is a result.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from signal import SIGTERM

from omegaconf import DictConfig

from cnnlab.config.check import check
from cnnlab.config.errors import refusing
from cnnlab.config.identity import configuration, run_path
from cnnlab.config.options import UserError
from cnnlab.launch.children import die_with_parent
from cnnlab.runs.directory import RunDirectory
from study import results
from study.variants import BEST, SEARCH, Variant, settings, variants

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "docs" / "study"
QUICK = ("num_train_images=8000", "trainer.max_epochs=5")
OURS = ("seed", "name", "experiment", "hydra", "plan", "rerun")  # words that the study chooses itself


@dataclass(frozen=True)
class Planned:
    """A run that belongs to the study.

    Attributes:
        config: composed, with its `hydra` node.
        path: its run directory.
    """

    variant: Variant
    seed: int
    config: DictConfig
    path: Path
    settings: str

    @property
    def key(self) -> tuple[str, int]:
        return self.variant.key, self.seed


def plan(chosen: Sequence[Variant], words: Sequence[str], seeds: int, everything: bool) -> list[Planned]:
    """The runs in their order: one seed of everything, further seeds where a claim hangs on a difference, the search.

    everything: with further seeds of all but the search. Raises: UserError.
    """
    composed = {variant: configuration([*words, *variant.words]) for variant in chosen}
    for config in composed.values():
        check(config)
    planned = []
    for seed in range(seeds):
        for variant, config in composed.items():
            if seed == 0 or variant.over_seeds or (everything and not variant.key.startswith(SEARCH)):
                own = deepcopy(config)
                own.seed = seed
                planned.append(Planned(variant, seed, own, run_path(own), settings(config)))
    return sorted(planned, key=lambda run: run.variant.key.startswith((SEARCH, BEST)))


def commands(planned: Sequence[Planned], words: Sequence[str]) -> Iterator[list[str]]:
    """Words for train.py: a sweep for neighbours that have the seed and all but the last word's value in common."""

    def shared(run: Planned) -> tuple[int, Sequence[str], str]:
        *rest, last = run.variant.words
        return run.seed, rest, last.partition("=")[0]

    for (seed, rest, axis), group in groupby(planned, shared):
        values = ",".join(run.variant.words[-1].partition("=")[2] for run in group)
        yield ["-m", *words, *rest, f"{axis}={values}", f"seed={seed}"]


def train(words: Sequence[str]) -> int:
    """Run train.py and return its exit status. It is told to save and stop when this process ends."""
    print(f"study: python train.py {shlex.join(words)}", flush=True)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words], preexec_fn=lambda: die_with_parent(SIGTERM)
    )
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # it has had the same one, and saves
            pass


def reevaluated(run: Planned) -> tuple[float, float] | None:
    """Loss and accuracy on the training images, as they are, with the last weights; None if these are gone."""
    path, config = run.path, run.config
    if not (path / "checkpoints" / "last.ckpt").exists() or RunDirectory(path).summary().get("status") != "done":
        return None
    from cnnlab.config.objects import data_source
    from cnnlab.data.images import Images, load_once
    from cnnlab.train.parts import make_data
    from cnnlab.use.evaluation import evaluate
    from cnnlab.use.trained import open_run

    model, _, _ = open_run(path, "last")
    data = load_once(data_source(config.data))
    index = make_data(config, data).train_index.numpy()
    found = evaluate(model, Images(data.train.pixels[index], data.train.targets[index], data.train.classes))
    return found.metrics["loss"], found.accuracy


def collect(planned: Sequence[Planned], folder: Path) -> dict[tuple[str, int], results.Run]:
    """Take the results that are new into the files of a folder; return all that it holds.

    Raises: UserError if it holds runs of another study.
    """
    held = results.read(folder)
    new = [run for run in planned if results.has_result(run.path) and not is_held(run, held)]
    refuse_others(new, planned, held, folder)
    for run in new:
        held[run.key] = results.collected(run.variant.key, run.settings, run.path, reevaluated(run))
    if new:
        results.write(folder, held.values())
    return results.read(folder)  # with the digits that are kept


def is_held(run: Planned, held: dict[tuple[str, int], results.Run]) -> bool:
    """Whether the files hold what the run directory does."""
    facts = held[run.key].facts if run.key in held else {}
    found = results.identity(run.path), RunDirectory(run.path).summary().get("started")
    return found == (facts.get("run"), facts.get("started"))


def refuse_others(
    new: Sequence[Planned], planned: Sequence[Planned], held: dict[tuple[str, int], results.Run], folder: Path
) -> None:
    """Raises: UserError if new runs would stand beside runs of other settings."""
    ours = {run.variant.key: run.settings for run in planned}
    for (key, seed), run in held.items():
        if new and run.facts["settings"] != ours.get(key, run.facts["settings"]):
            raise UserError(
                f"{folder / 'runs.csv'} holds {key}, seed {seed}, with other settings ({run.facts['settings']}, not "
                f"{ours[key]}). Type --out FOLDER for a study of its own, or take those rows out."
            )


def study(options: argparse.Namespace) -> int:
    """Train what is missing, keep what came out, write the page; return the exit status."""
    words = [f"name=study{'-quick' * options.quick}", *(QUICK if options.quick else ()), *options.words]
    known = {variant.key: variant for variant in variants()}
    for word in options.words:
        if word.lstrip("+~").partition("=")[0].partition(".")[0].partition("/")[0] in OURS:
            raise UserError(f"{word}: the study chooses this itself. Type --seeds N for seeds, --only for figures.")
    if unknown := [key for key in options.only if key not in known]:
        raise UserError(f"--only {unknown[0]}: there is no such variant. Type some of {','.join(known)}.")
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds} is not allowed. Type a number from 1.")
    everything = [key for key in known if not (options.quick and key.startswith(SEARCH))]
    chosen = [known[key] for key in options.only or everything]
    planned = plan(chosen, words, options.seeds, options.all)
    folder = options.out or (Path(planned[0].config.output_dir, "study-quick", "page") if options.quick else KEPT)
    held = collect(planned, folder)
    failed = []
    if not options.page:
        missing = [run for run in planned if run.key not in held and not results.has_result(run.path)]
        refuse_others(missing, planned, held, folder)
        for command in commands(missing, words):
            status = train(command)
            if status not in (0, 1):
                return status
            held = collect(planned, folder)
        failed = [run for run in missing if run.key not in held]
        for run in failed:
            print(f"study: {run.variant.key}, seed {run.seed} has failed: {run.path}", file=sys.stderr)
    if not held and not failed:
        raise UserError(
            f"{folder} holds no runs, and there is none in {planned[0].path.parent}. Type it without --page."
        )
    if held:
        from study import page

        print(page.write(folder, held.values(), quick=options.quick))
        if folder == KEPT:
            page.write_heads(held.values())
    return int(bool(failed))


def main() -> None:
    parser = argparse.ArgumentParser("python -m study", description="The lab report's figures, redone; claims checked.")
    parser.add_argument("words", nargs="*", help="for train.py: data=image_folder data.root=FOLDER, output_dir=FOLDER")
    parser.add_argument(
        "--quick", action="store_true", help="few images and epochs, half an hour: to see that it works"
    )
    parser.add_argument("--seeds", type=int, help="for what hangs on a difference; 3, with --quick 2")
    parser.add_argument("--all", action="store_true", help="all seeds of figures 1 and 2 and of Adam's rates too")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="fig03,fig04,...: these alone")
    parser.add_argument("--page", action="store_true", help="train nothing")
    parser.add_argument("--out", type=Path, help="the folder of page and files; docs/study")
    options = parser.parse_intermixed_args()
    if options.seeds is None:
        options.seeds = 2 if options.quick else 3
    with refusing():
        sys.exit(study(options))


if __name__ == "__main__":
    main()
