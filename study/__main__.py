"""python -m study [--quick] [--plan] [--page] [--seeds N] [words for train.py]: the lab report's figures, redone.

Trains the runs that are missing, as train.py -m would and with any launcher, keeps their results in docs/study/runs.csv
and epochs.csv, and writes the page, docs/study/README.md, from these files alone. Run the same command again to resume.
Exit status: as train.py's; a run that diverges is a result.
"""

import argparse
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, open_dict

from cnnlab.config.check import check
from cnnlab.config.errors import refusing
from cnnlab.config.identity import configuration, run_path, targets
from cnnlab.config.options import UserError
from cnnlab.launch.job import Job
from cnnlab.launch.sweep import WAYS
from cnnlab.runs.directory import RunDirectory
from cnnlab.runs.provenance import code_digest
from study import calibration, results
from study.variants import BASELINE, CANDIDATES, Variant, candidate, settings, variants

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "docs" / "study"
QUICK = ("num_train_images=8000", "trainer.max_epochs=5")
OURS = ("seed", "name", "experiment", "val_fraction", "hydra", "plan", "rerun")  # the study chooses these itself
FIRST = (BASELINE, *map(candidate, CANDIDATES))  # they decide whether the others are worth training
TRAINED_ON = 50_000  # images, if not told otherwise: CIFAR-10's


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

    @property
    def num_images(self) -> int:
        """How many images it trains on, over all epochs; an estimate."""
        num = min(self.config.num_train_images or TRAINED_ON, TRAINED_ON)
        return round(num * (1 - self.config.val_fraction)) * self.config.trainer.max_epochs


def plan(chosen: Sequence[Variant], words: Sequence[str], seeds: int) -> list[Planned]:
    """The runs in their order: all seeds of a setting, then the next; what decides about the others first.

    Raises: UserError.
    """
    planned = []
    for variant in sorted(chosen, key=lambda variant: variant.key not in FIRST):
        config = configuration([*words, *variant.words])
        check(config)
        for seed in range(seeds):
            own = deepcopy(config)
            own.seed = seed
            with open_dict(own.hydra.overrides):
                own.hydra.overrides.task.append(f"seed={seed}")
            planned.append(Planned(variant, seed, own, run_path(own), settings(config)))
    return planned


def reevaluated(run: Planned) -> tuple[float, float] | None:
    """Loss and accuracy on the unchanged training images with the last weights; None if these are gone."""
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
    return found.metrics["loss"], found.metrics["acc"]


def collect(planned: Sequence[Planned], folder: Path) -> dict[tuple[str, int], results.Run]:
    """Add new results to the files of a folder; return all that it holds.

    Raises: UserError if it holds runs of another study, or of other code.
    """
    held = results.read(folder)
    new = [run for run in planned if results.has_result(run.path) and not is_held(run, held)]
    refuse_others(new, held, folder)
    found = held | {run.key: results.collected(run.variant.key, run.settings, run.path, None) for run in new}
    results.refuse_mixed(found.values(), folder)  # before the work of evaluating them
    for run in new:
        found[run.key] = results.collected(run.variant.key, run.settings, run.path, reevaluated(run))
    if new:
        results.write(folder, found.values())
    return results.read(folder)  # with the digits that are kept


def is_held(run: Planned, held: dict[tuple[str, int], results.Run]) -> bool:
    """Whether the files hold what the run directory does."""
    facts = held[run.key].facts if run.key in held else {}
    found = results.identity(run.path), RunDirectory(run.path).summary().get("started")
    return found == (facts.get("run"), facts.get("started"))


def refuse_others(new: Sequence[Planned], held: dict[tuple[str, int], results.Run], folder: Path) -> None:
    """Raises: UserError if new runs would stand beside runs of the same setting's name with other settings."""
    ours = {run.variant.key: run.settings for run in new}
    for (key, seed), run in held.items():
        if run.facts["settings"] != ours.get(key, run.facts["settings"]):
            raise UserError(
                f"{folder / 'runs.csv'} holds {key}, seed {seed}, with other settings ({run.facts['settings']}, not "
                f"{ours[key]}). Use --out FOLDER for a study of its own, or delete those rows."
            )


def refuse_old_code(missing: Sequence[Planned], held: dict[tuple[str, int], results.Run], folder: Path) -> None:
    """Raises: UserError if what is about to be trained could not be averaged with what is there."""
    today = code_digest(targets(missing[0].config))[:12] if missing else ""
    for (key, seed), run in held.items():
        if missing and run.facts["code"] != today:
            raise UserError(
                f"{folder / 'runs.csv'} holds {key}, seed {seed}, of other code ({run.facts['code']}, now {today}), "
                "and runs of different code are not averaged. Use --out FOLDER output_dir=FOLDER for a study of its "
                "own, or delete the rows."
            )


def train(missing: Sequence[Planned]) -> None:
    """Do the runs here in turn, or where launcher=... says. Ends the process if a signal stops them."""
    settings = missing[0].config.get("launcher", {})
    way = WAYS[settings.get("way", "in_turn")]
    way.ready()
    jobs = [Job.of(run.config) for run in missing]
    way.do(settings, jobs, jobs)


def study(options: argparse.Namespace) -> int:
    """Train what is missing, keep what came out, write the page; return the exit status."""
    words = [f"name=study{'-quick' * options.quick}", *(QUICK if options.quick else ()), *options.words]
    known = {variant.key: variant for variant in variants()}
    for word in options.words:
        if word.lstrip("+~").partition("=")[0].partition(".")[0].partition("/")[0] in OURS:
            raise UserError(f"{word}: the study chooses this itself. Use --seeds N for seeds, --only for settings.")
    if unknown := [key for key in options.only if key not in known]:
        raise UserError(f"--only {unknown[0]}: there is no such setting. Use some of {','.join(known)}.")
    if options.seeds < 1:
        raise UserError(f"--seeds {options.seeds} is not allowed. Use a number from 1.")
    planned = plan([known[key] for key in options.only or known], words, options.seeds)
    folder = options.out or (Path(planned[0].config.output_dir, "study-quick", "page") if options.quick else KEPT)
    held = collect(planned, folder) if not options.plan else results.read(folder)
    if not options.page:
        refuse_others(planned, held, folder)
    missing = [run for run in planned if run.key not in held and not results.has_result(run.path)]
    million = sum(run.num_images for run in missing) / 1e6
    print(f"study: {len(planned)} runs, {len(missing)} to train, on {million:.1f} million images in all", flush=True)
    if options.plan:
        return 0
    failed = []
    if not options.page:
        refuse_others(missing, held, folder)
        refuse_old_code(missing, held, folder)
        for is_first in (True, False):
            if part := [run for run in missing if (run.variant.key in FIRST) is is_first]:
                train(part)
                held = collect(planned, folder)
                if not options.quick:
                    calibration.check(results.by_variant(held.values()))
        failed = [run for run in missing if run.key not in held]
        for run in failed:
            print(f"study: {run.variant.key}, seed {run.seed} has failed: {run.path}", file=sys.stderr)
    if not held and not failed:
        raise UserError(
            f"{folder} holds no runs, and there is none in {planned[0].path.parent}. Run it without --page first."
        )
    if held:
        from study import page

        print(page.write(folder, held.values(), quick=options.quick))
        if folder == KEPT:
            page.write_heads(held.values())
    return int(bool(failed))


def main() -> None:
    parser = argparse.ArgumentParser("python -m study", description="The lab report's figures, redone; claims checked.")
    parser.add_argument("words", nargs="*", help="for train.py: data=image_folder data.root=FOLDER, launcher=local")
    parser.add_argument("--quick", action="store_true", help="few images and epochs: to see that it works")
    parser.add_argument("--seeds", type=int, help="of every setting; 3, with --quick 2")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="fig03,fig04,...: only these")
    parser.add_argument("--plan", action="store_true", help="print how many runs there are, and train nothing")
    parser.add_argument("--page", action="store_true", help="collect results and write the page, and train nothing")
    parser.add_argument("--out", type=Path, help="the folder of page and files; docs/study")
    options = parser.parse_intermixed_args()
    if options.seeds is None:
        options.seeds = 2 if options.quick else 3
    with refusing():
        sys.exit(study(options))


if __name__ == "__main__":
    main()
