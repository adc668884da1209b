"""What is run: every curve of every figure as words for train.py. Takes no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from omegaconf import DictConfig

from cnnlab.config.identity import differences
from cnnlab.config.options import CONF

BASELINE = "fig03"


@dataclass(frozen=True)
class Variant:
    """One setting.

    Attributes:
        key: its name in the files.
        words: for train.py. Neighbours that differ in the last word's value alone are one sweep.
        over_seeds: whether it is run with further seeds, as a difference to it needs; what a single run shows does not.
    """

    key: str
    words: tuple[str, ...]
    over_seeds: bool = True


RATES = ("0.0001", "0.001", "0.01", "0.1")
SIZES = ("16", "32", "64", "128", "256")
ADAM_RATES = ("0.001", "0.01")
LONGER = "longer"  # the baseline for three times as many epochs
MOMENTUM = "momentum"  # the baseline with momentum 0.9, with which it overfits, as the report's does
WITH_MOMENTUM = {
    figure: f"{figure}-{MOMENTUM}" for figure in ("fig07", "fig08", "fig09", "fig11")
}  # and what is to help
ZCA, BY_CHANNEL = "zca", "pca-by-channel"  # what else may be meant by PCA whitening
ONE_EPOCH = "one-epoch"
SEARCH = "search"  # for the best recipe: where it began, and single changes of that
BEST = "best"
CHANGES = {
    "lr=0.2": "optim.lr=0.2",
    "batch_size=64": "batch_size=64",
    "weight_decay=0.001": "optim.weight_decay=0.001",
    "dropout=0": "model.dropout=0.0",
    "label_smoothing=0.1": "loss.label_smoothing=0.1",
    "cutout": "aug=[pad_crop_flip,cutout]",
    "cutmix": "aug=[pad_crop_flip,cutmix]",
    "zca": "norm=zca",
    "test_flips": "test_flips=true",
}

# The curves of every figure, named by what is typed besides experiment=figNN.
# What figures 1 and 2 share with others is one run: a run is its configuration.
CURVES: Mapping[str, Mapping[str, str]] = {
    "fig01": {rate: f"lr={rate}" for rate in RATES},
    "fig02": {size: {"32": "lr=0.01", "128": BASELINE}.get(size, f"batch={size}") for size in SIZES},
    **{f"fig{number:02}": {"": f"fig{number:02}"} for number in range(3, 14)},
    "fig03": {"as stated": BASELINE, "trainer.max_epochs=60": LONGER, "optim=sgd_momentum": MOMENTUM},
    "fig05": {"as stated": "fig05", "norm=zca": ZCA, "norm.per=channel": BY_CHANNEL},
    **{figure: {"as stated": figure, "optim=sgd_momentum": key} for figure, key in WITH_MOMENTUM.items()},
    "fig10": {"as stated": "fig10", **{f"optim.lr={rate}": f"adam-lr={rate}" for rate in ADAM_RATES}},
}


def variants() -> list[Variant]:
    """All of them, in the order in which they are run. `best` is left out while there is no such experiment."""
    return [
        *(Variant(figure, (f"experiment={figure}",)) for figure in list(CURVES)[2:]),
        *(Variant(f"lr={rate}", ("experiment=fig01", f"optim.lr={rate}"), over_seeds=False) for rate in RATES),
        *(
            Variant(key, ("experiment=fig02", f"batch_size={size}"), over_seeds=False)
            for size, key in CURVES["fig02"].items()
            if key.startswith("batch")
        ),
        *(
            Variant(f"adam-lr={rate}", ("experiment=fig10", f"optim.lr={rate}"), over_seeds=False)
            for rate in ADAM_RATES
        ),
        *(
            Variant(key, (f"experiment={figure}", "optim=sgd_momentum"))
            for figure, key in {BASELINE: MOMENTUM, **WITH_MOMENTUM}.items()
        ),
        Variant(LONGER, (f"experiment={BASELINE}", "trainer.max_epochs=60"), over_seeds=False),
        Variant(ZCA, ("experiment=fig05", "norm=zca")),
        Variant(BY_CHANNEL, ("experiment=fig05", "norm.per=channel")),
        Variant(ONE_EPOCH, ("experiment=fig01", "optim.lr=0.01", "trainer.max_epochs=1")),
        Variant(SEARCH, ("experiment=search",), over_seeds=False),
        *(
            Variant(f"{SEARCH} {change}", ("experiment=search", word), over_seeds=False)
            for change, word in CHANGES.items()
        ),
        *([Variant(BEST, (f"experiment={BEST}",))] if (CONF / "experiment" / f"{BEST}.yaml").exists() else []),
    ]


def settings(config: DictConfig) -> str:
    """What a configuration changes, as words, without the seed and the places of things: "norm=pca val_fraction=0.0".

    config: with its `hydra` node.
    """
    different = differences(config).items()
    return " ".join(f"{name}={value}" for name, value in different if name not in ("seed", "data.root", "trainer"))
