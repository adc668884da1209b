"""Whether two versions of the code train the same to the last bit: every option, two epochs of a few drawn images.

    git worktree add /tmp/before HEAD~1
    python benchmarks/bits.py /tmp/before .

Prints what differs, and ends with status 1 if something does. What was meant to change numbers is to be named in the
commit; everything else is a refactoring, and must come out the same.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TIMES = ("epoch_seconds", "images_per_second")
NEW_GROUPS = ("metrics", "module")  # which older versions have not got
SMALL = (
    *("data=shapes", "data.num_train=400", "data.num_test=100", "batch_size=20", "trainer.max_epochs=2"),
    *("trainer.accelerator=cpu", "logger=none"),
)
SWEEPS = (
    "norm=none,standard,minmax,robust,pca,zca",
    "aug=affine,blur,color,crop_flip,cutmix,cutout,mixup,noise,pad_crop_flip,rotate,scale,translate,trivial_augment",
    "norm=standard optim=adadelta,adagrad,adam,adamw,rmsprop,sgd_momentum sched=constant,onecycle",
    "sched=cosine,exponential,plateau,step warmup_epochs=0,1",
    "model=fully_convolutional,linear",
    "model=bow model.num_words=20 loss=hinge,cross_entropy",
    "loss=cross_entropy,hinge loss.label_smoothing=0,0.1",
    "callbacks=ema,early_stopping decay_all=true,false",
    "aug=[pad_crop_flip,cutout,cutmix,mixup] test_flips=true,false val_fraction=0,0.1",
    "norm=standard model.batch_norm=true model.dropout=0.3,0.4 trainer.precision=bf16-mixed num_train_images=200",
)


def trained(checkout: Path, folder: Path) -> dict[str, Any]:
    """What came out, by what was chosen and changed."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "CNNLAB_CACHE": str(folder.parent / "cache")}
    for words in SWEEPS:
        command = [sys.executable, "train.py", "-m", *SMALL, *words.split(), f"output_dir={folder}"]
        result = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        print(f"{checkout}: {words}: status {result.returncode}", flush=True)
    found = {}
    for file in sorted(folder.rglob("summary.json")):
        summary = json.loads(file.read_text())
        choices = {group: option for group, option in summary["choices"].items() if group not in NEW_GROUPS}
        with open(file.with_name("metrics.csv"), encoding="utf-8", newline="") as table:
            rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(table)]
        rows = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
        key = json.dumps([choices, summary["changes"]], sort_keys=True)
        found[key] = [summary["status"], rows, summary.get("metrics")]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before, after = (
            trained(getattr(arguments, name).absolute(), Path(folder, name)) for name in ("before", "after")
        )
    different = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    for key in sorted(different):
        print(f"{key}\n  before: {before.get(key)}\n  after:  {after.get(key)}")
    print(f"{len(before)} runs before, {len(after)} after, {len(different)} different")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
