"""What is run: every curve of every figure as words for train.py. Does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from omegaconf import DictConfig

from cnnlab.config.identity import differences

BASELINE = "fig03"
CANDIDATES = ("optim.momentum=0.5", "optim.momentum=0.9", "optim.lr=0.02", "batch_size=64")  # single changes of it
CALIBRATED = "batch_size=64"  # the one with which it is most like the report's figure 3: study/calibration.py checks
RATES = ("0.0001", "0.001", "0.01", "0.1", "0.3", "1", "3")
LARGE = RATES[3:]  # raised until training breaks
SIZES = ("16", "32", "64", "128", "256")
ADAM_RATES = ("0.001", "0.01")
LONGER = "longer"  # the baseline for three times as many epochs
ZCA, BY_CHANNEL = "zca", "pca-by-channel"  # what else may be meant by PCA whitening
HIGHER = "fig09-higher"  # a falling rate that starts twice as high, and is 0.0075 in the last epoch
ONE_EPOCH = "one-epoch"
# What is compared with the baseline, as the report states it.
STATED: Mapping[str, tuple[str, ...]] = {
    **{f"fig{number:02}": (f"experiment=fig{number:02}",) for number in range(3, 14)},
    ZCA: ("experiment=fig05", "norm=zca"),
    BY_CHANNEL: ("experiment=fig05", "norm.per=channel"),
    HIGHER: ("experiment=fig09", "optim.lr=0.02"),
    **{f"adam-lr={rate}": ("experiment=fig10", f"optim.lr={rate}") for rate in ADAM_RATES},
}


@dataclass(frozen=True)
class Variant:
    """One setting.

    Attributes:
        key: its name in the files.
        words: for train.py.
    """

    key: str
    words: tuple[str, ...]


def candidate(change: str) -> str:
    """The key of the baseline with a change."""
    return f"{BASELINE}+{change}"


def calibrated(key: str) -> str:
    """The key of a stated setting with the calibrated baseline's change. Adam keeps its own rate and momentum."""
    own_optimizer = STATED[key][0] == "experiment=fig10" and CALIBRATED.startswith("optim")
    return key if own_optimizer else f"{key}+{CALIBRATED}"


# The curves of every figure, named by what is set besides experiment=figNN.
# What figures 1 and 2 share with others is one run: a run is its configuration.
FURTHER: Mapping[str, Mapping[str, str]] = {
    "fig03": {**{change: candidate(change) for change in CANDIDATES}, "trainer.max_epochs=60": LONGER},
    "fig05": {"norm=zca": ZCA, "norm.per=channel": BY_CHANNEL},
    "fig09": {"optim.lr=0.02": HIGHER},
    "fig10": {f"optim.lr={rate}": f"adam-lr={rate}" for rate in ADAM_RATES},
}
OF_SIZE = {"32": "lr=0.01", "64": candidate("batch_size=64"), "128": BASELINE}
CURVES: Mapping[str, Mapping[str, str]] = {
    "fig01": {rate: f"lr={rate}" for rate in RATES},
    "fig02": {size: OF_SIZE.get(size, f"batch={size}") for size in SIZES},
    **{
        figure: {"as stated": figure, CALIBRATED: calibrated(figure), **FURTHER.get(figure, {})}
        for figure in STATED
        if (f"experiment={figure}",) == STATED[figure]
    },
}


def variants() -> list[Variant]:
    """All of them, in the order in which they are run."""
    found = {
        **STATED,
        **{candidate(change): ("experiment=fig03", change) for change in CANDIDATES},
        **{calibrated(key): (first, CALIBRATED, *rest) for key, (first, *rest) in STATED.items()},
        **STATED,  # again, for what has its own optimizer
        **{f"lr={rate}": ("experiment=fig01", f"optim.lr={rate}") for rate in RATES},
        **{f"batch={size}": ("experiment=fig02", f"batch_size={size}") for size in SIZES if size not in OF_SIZE},
        LONGER: (f"experiment={BASELINE}", "trainer.max_epochs=60"),
        ONE_EPOCH: ("experiment=fig01", "optim.lr=0.01", "trainer.max_epochs=1"),
    }
    return [Variant(key, words) for key, words in found.items()]


def settings(config: DictConfig) -> str:
    """What a configuration changes, as words, without seed, data folder and trainer: "norm=pca val_fraction=0.0".

    config: with its `hydra` node.
    """
    different = differences(config).items()
    return " ".join(f"{name}={value}" for name, value in different if name not in ("seed", "data.root", "trainer"))
