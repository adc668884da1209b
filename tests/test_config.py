"""A run is its configuration: the same choices, the same directory. Every file in conf/ fits the class it names, and
no other class is ever made."""

import ast
import functools
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from cnnlab.augment import Augmentation
from cnnlab.config.check import check
from cnnlab.config.identity import NOT_IDENTITY, changes, configuration, differences, identity, run_id, targets
from cnnlab.config.limits import PREDICATES, check_value
from cnnlab.config.objects import filled, instantiate
from cnnlab.config.options import (
    CONF,
    UserError,
    _content,
    _targets,
    allowed_targets,
    files,
    leaves,
    limits_of_file,
    option_file,
)
from cnnlab.config.shape import Shape
from cnnlab.config.values import job_config, plain
from cnnlab.data.images import DataSet, Images
from cnnlab.data.pipeline import ImageData
from cnnlab.launch.job import Job
from cnnlab.launch.sweep import WAYS
from cnnlab.normalize import Normalization, Unchanged
from cnnlab.train.optimizers import schedule


@functools.cache
def composed(*typed: str) -> DictConfig:
    """The whole configuration, with its `hydra` node, for what is typed after train.py."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", list(typed), return_hydra_config=True)


# ---------------------------------------------------------------------------------------------------- run identity

SAME = {
    "order": ("optim=adam aug=crop_flip seed=1", "seed=1 aug=crop_flip optim=adam"),
    "defaults typed out": ("", "optim=sgd optim.lr=0.01 seed=0 batch_size=128 trainer.max_epochs=20 aug=none"),
    "default list typed out": ("optim=adam", "optim=adam optim.betas=[0.9,0.999] model.channels=[32,64,64]"),
    "notation of a number": ("optim.lr=0.001", "optim.lr=1e-3"),
    "one option or a list of one": ("aug=crop_flip", "aug=[crop_flip]"),
    "order of a list of options": ("aug=[crop_flip,cutmix]", "aug=[cutmix,crop_flip]"),
    "none in a list of options": ("aug=[none,crop_flip]", "aug=crop_flip"),
    "whole default": ("optim.weight_decay=0", ""),
    "whole number": ("optim.lr=1", "optim.lr=1.0"),
    "whole number in a list": ("optim=adam optim.betas=[0,0.999]", "optim=adam optim.betas=[0.0,0.999]"),
}


@pytest.mark.parametrize(("first", "second"), SAME.values(), ids=SAME)
def test_the_same_choices_have_the_same_directory(first, second):
    assert run_id(composed(*first.split())) == run_id(composed(*second.split()))


@pytest.mark.parametrize(
    "typed",
    [
        "name=other",
        "output_dir=elsewhere",
        "rerun=true",
        "resident=host",
        "logger=none",
        "logger=[csv,tensorboard]",
        "trainer=cpu",
        "trainer=gpu",
        "trainer=ddp",
        "trainer.accelerator=gpu",
        "trainer.devices=4",
        "trainer.num_nodes=2",
        "trainer.strategy=fsdp",
        "data.cache_dir=/elsewhere",
        "data.sources=[https://example.org/a]",
        "data.timeout=5.0",
    ],
)
def test_where_a_run_computes_and_how_it_logs_does_not_change_its_directory(typed):
    assert run_id(composed(typed)) == run_id(composed())


DIFFERENT = {  # what is typed, and how it shows in the name
    "seed=1": "-seed=1-",
    "batch_size=64": "-batch_size=64-",
    "val_fraction=0.2": "-val_fraction=0.2-",
    "num_train_images=500": "-num_train_images=500-",
    "trainer.max_epochs=3": "-max_epochs=3-",
    "trainer.precision=bf16-mixed": "-precision=bf16-mixed-",
    "optim.lr=0.1": "-lr=0.1-",
    "optim=adam": "-adam-",
    "norm=standard": "-standard-",
    "sched=exponential": "-exponential-",
    "aug=crop_flip": "-crop_flip-",
    "aug=pad_crop_flip": "-pad_crop_flip-",
    "aug=[crop_flip,cutmix]": "-crop_flip-cutmix-",
    "model.dropout=0.5": "-dropout=0.5-",
    "model.channels=[8,16,32]": "-channels=_8_16_32",
    "data=shapes": "shapes-",
    "data=image_folder data.root=/a": "image_folder-",
    "data=image_folder data.root=/a data.unreadable=skip": "-unreadable=skip-",
}


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        *DIFFERENT.items(),
        pytest.param("model.batch_norm=true", "-batch_norm=true-"),
        pytest.param("callbacks=early_stopping", "-early_stopping-"),
    ],
)
def test_what_changes_the_result_shows_in_the_name(typed, shown):
    assert shown in run_id(composed(*typed.split()))


def test_large_whole_numbers_differ_in_every_digit():
    seeds = (1_700_000_000_123_456_789, 1_700_000_000_123_456_788)  # of `date +%s%N`
    assert len({identity(composed("data=shapes", f"data.drawing_seed={seed}")) for seed in seeds}) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [("'1'", "1"), ("'true'", "true"), ("'None'", "null"), ("'1e+20'", "1e20"), ("['']", "[]"), ("['a,b']", "[a,b]")],
)
def test_text_is_not_taken_for_another_value(first, second):
    assert identity(composed(f"+optim.what={first}")) != identity(composed(f"+optim.what={second}"))


def test_what_changes_the_result_changes_the_hash():
    hashes = [identity(composed(*typed.split())) for typed in ("", *DIFFERENT, "callbacks=early_stopping")]
    assert len(set(hashes)) == len(hashes)


ANOTHER_PROCESS = """
import sys
from cnnlab.config.identity import configuration
print(configuration(sys.argv[1:]).hydra.run.dir, end="")
"""


def test_a_sweep_and_a_single_run_share_directories_whichever_process_asks(command):
    config = composed("optim=adam", "seed=3", "name=mine")
    assert config.hydra.run.dir == f"outputs/mine/{run_id(config)}"
    assert f"{config.hydra.sweep.dir}/{config.hydra.sweep.subdir}" == config.hydra.run.dir
    elsewhere = command("-c", ANOTHER_PROCESS, "name=mine", "seed=3", "optim=adam", PYTHONHASHSEED="7")
    assert elsewhere.stdout == config.hydra.run.dir


LONG = (
    "aug=[crop_flip,cutmix] aug.crop_flip.size=24 aug.cutmix.alpha=0.3 optim=adam optim.lr=0.03 optim.eps=1e-7 seed=5"
)


@pytest.mark.parametrize(
    "typed",
    [
        "",
        LONG + " batch_size=64 val_fraction=0.2 model.hidden=77 model.dropout=0.25 trainer.max_epochs=7",
        "data=image_folder data.root=/a data.background='a name, with:odd|signs'",
        pytest.param("data=image_folder data.root=/a data.background='圖片'"),
        pytest.param(f"data=image_folder data.root=/a data.background='{'圖' * 120}'"),
    ],
    ids=["baseline", "many", "path", "other script", "long path in another script"],
)
def test_a_name_has_at_most_120_safe_characters(typed):
    config = composed(*re.split(r" (?=\w+[.\w]*=)", typed) if typed else ())
    assert re.fullmatch(r"[a-z][A-Za-z0-9_.=+-]{0,110}-[0-9a-f]{8}", run_id(config))
    assert run_id(config).endswith(f"-{identity(config)[:8]}")


def test_names_that_are_cut_alike_differ_in_their_hash():
    long = "model.channels=[" + "8," * 60
    first, second = (run_id(composed(f"{long}{last}]")) for last in "12")
    assert first[:111] == second[:111]
    assert first != second


CHANGES = {
    "nothing": ("", {}),
    "defaults typed out": ("optim.lr=0.01 seed=0 trainer.max_epochs=20 model.channels=[32,64,64]", {}),
    "options": ("data=shapes optim=adam aug=[crop_flip,cutmix] sched=exponential callbacks=early_stopping", {}),
    "knob": ("optim.lr=0.1 optim.momentum=0.0", {"optim.lr": 0.1}),
    "knob that has the default of another option": ("optim=adam optim.lr=0.01", {"optim.lr": 0.01}),
    "knob of a listed option": ("aug=crop_flip aug.crop_flip.size=24", {"aug.crop_flip.size": 24}),
    "knob of no option": ("seed=3", {"seed": 3}),
    "deleted": ("~optim.lr", {"optim.lr": "deleted"}),
    "deleted, another changed": ("~optim.lr optim.momentum=0.9", {"optim.lr": "deleted", "optim.momentum": 0.9}),
    "deleted from a listed option": ("aug=crop_flip ~aug.crop_flip.size", {"aug.crop_flip.size": "deleted"}),
    "list": ("model.channels=[8,8]", {"model.channels": [8, 8]}),
    "inherited": ("trainer=ddp trainer.max_epochs=3", {"trainer.max_epochs": 3}),
    "where data lie": ("data=image_folder data.root=/a", {}),
    "not of the result": ("trainer=ddp trainer.devices=4 logger=csv name=a data.cache_dir=/a resident=host", {}),
    "overlay": (
        "debug=one_batch",
        {
            f"trainer.{knob}": 1
            for knob in ("max_epochs", *(f"limit_{part}_batches" for part in ("train", "val", "test")))
        },
    ),
}


@pytest.mark.parametrize(("typed", "expected"), CHANGES.values(), ids=CHANGES)
def test_changes_are_the_knobs_that_differ_from_the_files(typed, expected):
    assert changes(composed(*typed.split())) == expected


def test_a_deleted_argument_shows_wherever_a_run_is_described():
    config = composed("~optim.lr")
    assert "lr=deleted" in run_id(config)
    assert differences(config)["optim.lr"] == "deleted"


@pytest.mark.parametrize(
    "typed",
    ["hydra.run.dir=.", "hydra.run.dir=x", "hydra.sweep.subdir=x", "hydra.sweep.subdir=${seed}", "hydra.run={dir:x}"],
)
def test_a_directory_that_the_run_does_not_name_is_refused(typed):
    with pytest.raises(UserError, match="is not the run's own directory"):
        check(composed("data=shapes", typed))


@pytest.mark.parametrize("typed", ["hydra.run.dir='x/${cnnlab.run_id:}'", "hydra.sweep.dir=x"])
def test_the_runs_own_directory_may_be_elsewhere(typed):
    check(composed("data=shapes", typed))


ESCAPED = ["name='\\${seed}'", "model.hidden='\\${oc.env:HOME}'", "+model.x='\\${oc.create:{_target_: intruder.call}}'"]


@pytest.mark.parametrize("typed", [*ESCAPED, "+model._args_=[1]", "+model._recursive_=false", "+norm._convert_=object"])
def test_what_would_be_resolved_after_the_check_is_refused(typed):
    with pytest.raises(UserError, match="is not allowed"):
        check(composed("data=shapes", typed))


def test_a_class_of_another_group_is_refused():
    with pytest.raises(UserError, match=r"only what the file of an option names"):
        check(composed("data=shapes", "model._target_=torch.optim.SGD"))


def test_a_job_is_resolved_and_plain_whoever_does_it(monkeypatch):
    monkeypatch.setenv("CNNLAB_CACHE", "here")
    job = Job.of(composed("data=shapes", "sched=onecycle", "optim.lr=0.03"))
    monkeypatch.setenv("CNNLAB_CACHE", "elsewhere")
    assert (job.config.cache_dir, job.config.sched.max_lr) == ("here", 0.03)
    assert not re.search(r"\$\{", json.dumps([job.content["config"], job.content["files"]["config.yaml"]]))
    assert yaml.safe_load(job.content["files"]["config.yaml"]) == job.content["config"] == plain(job.config)


# ---------------------------------------------------------------------------------------------------------- conf/

# What cnnlab ships. A fork may put more into conf/, for which its own tests are.
SHIPPED = {
    "aug": "affine blur color crop_flip cutmix cutout mixup noise none pad_crop_flip rotate scale translate "
    "trivial_augment",
    "callbacks": "early_stopping ema none",
    "data": "arrays cifar10 cifar100 fashion_mnist huggingface image_folder mnist shapes stl10 svhn torchvision",
    "debug": "one_batch overfit profile",
    "experiment": "best fast resnet18 speednet",
    "launcher": "local ray slurm",
    "logger": "csv mlflow none tensorboard wandb",
    "loss": "bce cross_entropy focal hinge",
    "metrics": "acc auroc balanced_acc calibration_error f1 none top5",
    "model": "bow cnn fully_convolutional linear resnet18 speednet timm torchvision",
    "module": "classifier distillation",
    "norm": "minmax none pca robust standard zca",
    "optim": "adadelta adafactor adagrad adam adamw lion muon nadam radam rmsprop sgd sgd_momentum timm",
    "sched": "constant cosine exponential onecycle plateau step",
    "trainer": "auto cpu ddp gpu",
}
FIGURES = [f"fig{number:02}" for number in range(1, 14)]
FILES = sorted(
    CONF / group / f"{option}.yaml"
    for group, names in SHIPPED.items()
    for option in names.split() + FIGURES * (group == "experiment")
)
OVERLAYS = ("experiment", "debug")
NEEDED = {  # what an option cannot do without
    "data=image_folder": ["data.root=pictures"],
    "data=huggingface": ["data.root=pictures"],
    "data=arrays": ["data.train=arrays.npz"],
    "data=torchvision": ["data.dataset=MNIST"],
    "model=timm": ["model.model_name=resnet10t"],
    "model=torchvision": ["model.name=squeezenet1_1"],
    "module=distillation": ["module.teacher=run"],
    "optim=timm": ["optim.opt=nadamw"],
}
LISTS = ("aug", "metrics", "logger", "callbacks")
RESERVED = {"_target_", "_partial_"}

every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}={file.stem}")


def with_option(file: Path) -> DictConfig:
    """The configuration in which the option of this file is chosen."""
    option = f"{file.parent.name}={file.stem}"
    return composed(option, *NEEDED.get(option, []))


@functools.cache
def own_node(file: Path) -> dict[str, Any]:
    """What the option of this file puts below its group; nothing for an overlay."""
    group, option = file.parent.name, file.stem
    if group in OVERLAYS:
        return {}
    node = job_config(with_option(file))[group]
    return node.get(option, {}) if group in LISTS else node


def nodes_with_target(node: Any) -> Iterator[dict[str, Any]]:
    """Every mapping that names a class, however deep."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node
        for value in node.values():
            yield from nodes_with_target(value)
    elif isinstance(node, list):
        for value in node:
            yield from nodes_with_target(value)


def arguments_of(node: Mapping[str, Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(hydra.utils.get_object(node["_target_"])).parameters


@every_file
def test_every_key_is_an_argument_of_its_class_letter_for_letter(file):
    nodes = list(nodes_with_target(job_config(with_option(file))))
    assert len(nodes) >= 6
    for node in nodes:
        arguments = arguments_of(node)
        if not any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values()):
            assert node.keys() - RESERVED - arguments.keys() == set(), node["_target_"]


@pytest.mark.parametrize("target", sorted(target for target in allowed_targets() if target.startswith("cnnlab.")))
def test_defaults_in_conf_are_those_of_the_constructor(target):
    """Of several options of one class, one has its defaults; all have values of the defaults' types."""
    nodes = (node for file in FILES for node in nodes_with_target(own_node(file)))
    options = [
        {key: value for key, value in node.items() if not str(value).startswith("data.")}
        for node in nodes
        if node["_target_"] == target
    ]
    defaults = {
        name: list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        for name, parameter in arguments_of(options[0]).items()
        if parameter.default is not inspect.Parameter.empty
    }
    differences = [{k: v for k, v in node.items() if k in defaults and v != defaults[k]} for node in options]
    if target != "cnnlab.augment.Affine":  # whose defaults leave an image as it is
        assert {} in differences
    for node in options:
        assert {k: type(v) for k, v in node.items() if k in defaults} == {
            k: type(defaults[k]) for k in node if k in defaults
        }


@every_file
def test_an_option_as_it_is_has_no_changes_and_passes_the_checks(file):
    config = with_option(file)
    if file.parent.name not in OVERLAYS:
        needed = {word.partition("=")[0] for word in NEEDED.get(f"{file.parent.name}={file.stem}", [])}
        assert changes(config).keys() <= needed
    if file.stem in ("image_folder", "huggingface", "arrays", "distillation"):  # whose files are not there
        with pytest.raises(UserError, match=r"pictures|arrays\.npz|teacher=run"):
            check(config)
    else:
        check(config)


def makes_optimizer(partial: Callable[..., Any]) -> None:
    assert isinstance(partial([torch.nn.Parameter(torch.zeros(1))]), torch.optim.Optimizer)


def makes_scheduler(partial: Callable[..., Any]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    assert schedule(partial, optimizer, num_steps=10, monitor="val/acc")["scheduler"].optimizer is optimizer


def makes_a_scalar(loss: Callable[..., torch.Tensor]) -> None:
    logits, labels = torch.randn(4, 10), torch.arange(4)
    for given in (labels, torch.nn.functional.one_hot(labels, 10).float()):
        assert loss(logits, given).shape == ()


def offers_images(source: Any) -> None:
    assert all(callable(getattr(source, verb)) for verb in ("digest", "load"))


def counts(metric: Any) -> None:
    metric.update(torch.eye(10), torch.arange(10))
    assert float(metric.compute()) == pytest.approx(float(metric.higher_is_better))


def is_a_module(kind: Callable[..., Any]) -> None:
    assert issubclass(kind, LightningModule)


MADE: dict[str, type | Callable[[Any], None]] = {
    "data": offers_images,
    "norm": Normalization,
    "aug": Augmentation,
    "model": torch.nn.Module,
    "loss": makes_a_scalar,
    "metrics": counts,
    "optim": makes_optimizer,
    "sched": makes_scheduler,
    "trainer": Trainer,
    "logger": Logger,
    "callbacks": Callback,
}
FACTS = Shape(10, 3, 32, 32).facts()
KNOWN = {
    "data": FACTS | {"num_train": 45_000},
    "run": {"test_flips": False, "test_shifts": 0, "warmup_epochs": 0.0, "val_fraction": 0.1},
}
GIVEN = {  # what the run adds; the tests' machine has a processor
    "trainer": {"accelerator": "cpu", "precision": "32-true", "logger": False, "enable_checkpointing": False},
    "logger": {"save_dir": "run"},
}


@every_file
def test_every_option_makes_what_its_group_is_for(file):
    group, node = file.parent.name, own_node(file)
    if not node:
        assert file.stem == "none" or group in OVERLAYS
        return
    if group == "launcher":  # what cnnlab.launch.sweep reads; it makes no object
        assert node["way"] in WAYS
        return
    if group == "module":  # which is made of all the others
        is_a_module(hydra.utils.get_object(node["_target_"]))
        return
    made = instantiate(filled(node, FACTS) | GIVEN.get(group, {}))
    assert isinstance(made, functools.partial) == (group in ("optim", "sched"))
    if isinstance(kind := MADE[group], type):
        assert isinstance(made, kind)
    else:
        kind(made)


# -------------------------------------------------------------------------------------------------------- targets


def raw(file: Path) -> Any:
    return yaml.safe_load(file.read_text()) or {}


def test_allowed_are_the_classes_that_conf_names():
    named = {node["_target_"] for file in files("*").values() for node in nodes_with_target(raw(file))}
    assert allowed_targets() == named
    assert {"torch.optim.SGD", "cnnlab.augment.CutMix", "lightning.pytorch.Trainer"} <= named


def test_targets_within_lists_and_braces_are_named_too(tmp_path):
    file = tmp_path / "option.yaml"
    file.write_text(
        "_target_: a.A\nact: {_target_: b.B, size: {_target_: 'c.C'}}\nlayers:\n  - _target_: d.D\n"
        "  - [{_target_: e.E}]  # _target_: f.F\n"
    )
    assert _targets(file) == ("a.A", "b.B", "c.C", "d.D", "e.E")


@pytest.fixture
def module(tmp_path, monkeypatch) -> Iterator[str]:
    """The name of a module that leaves a file when it is imported, and another when its function is called."""
    (tmp_path / "intruder.py").write_text(
        "from pathlib import Path\n\nPath('imported').touch()\n\n\ndef call(**_):\n    Path('called').touch()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "intruder"
    sys.modules.pop("intruder", None)


def test_the_module_tells_when_it_is_imported_and_called(module):
    hydra.utils.instantiate({"_target_": f"{module}.call"})
    assert Path("imported").exists()
    assert Path("called").exists()


def folder_with(**knobs: Any) -> dict[str, Any]:
    return {"_target_": "cnnlab.data.folder.ImageFolder", "root": ".", "cache_dir": "."} | knobs


INTRUDER = {"_target_": "intruder.call"}


@pytest.mark.parametrize(
    "node",
    [
        INTRUDER,
        INTRUDER | {"_partial_": True},
        folder_with(image_size=INTRUDER),
        folder_with(image_size={"deeper": INTRUDER}),
        pytest.param(folder_with(image_size=[INTRUDER])),
        pytest.param(folder_with(image_size=[[{"a": [INTRUDER]}]])),
    ],
    ids=["itself", "partial", "argument", "deeper", "in a list", "deep in lists"],
)
def test_another_class_is_neither_imported_nor_called(node, module):
    with pytest.raises(UserError, match=r"intruder\.call is not allowed"):
        instantiate(OmegaConf.create(node))
    assert not Path("imported").exists()
    assert not Path("called").exists()


def test_a_mistyped_class_is_answered_with_the_right_one():
    with pytest.raises(UserError, match=r"Did you mean torch\.optim\.SGD\?"):
        instantiate({"_target_": "torch.optim.SGDD"})


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ({"_target_": "cnnlab.augment.CutMix", "alpha": -1.0}, "alpha=-1"),
        ({"_target_": "cnnlab.augment.CutMix", "alfa": 1.0}, "alfa"),
        ({"_target_": "torch.optim.SGD", "_partial_": True, "lrr": 1.0}, "lrr"),
    ],
    ids=["value", "name", "name of a partial"],
)
def test_what_a_class_refuses_is_a_mistake_of_the_user(node, said):
    with pytest.raises(UserError, match=rf"^Invalid arguments for {re.escape(node['_target_'])}: .*{said}"):
        instantiate(node)


# ---------------------------------------------------------------------------------------------------------- checks


def leaves_of(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every knob with its dotted path."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from leaves_of(value, (*path, key))
    else:
        yield ".".join(path), node


def shipped() -> list[tuple[str, Any]]:
    """Every knob that a file in conf/ sets, by the path under which it is typed, with its value."""
    knobs = []
    for file in (CONF / "train.yaml", *FILES):
        group, content = file.parent.name, {key: value for key, value in raw(file).items() if key != "hydra"}
        prefix = () if file.parent == CONF or group in OVERLAYS else (group,)
        knobs += leaves_of(content, (*prefix, file.stem) if group in LISTS else prefix)
    return knobs


def limits() -> dict[str, str]:
    """What the values of all files must satisfy, by the path under which they are typed."""
    found = dict(limits_of_file("train"))
    for file in FILES:
        group, option = file.parent.name, file.stem
        if group not in OVERLAYS:
            prefix = f"{group}.{option}." if group in LISTS else f"{group}."
            found |= {f"{prefix}{path}": limit for path, limit in limits_of_file(f"{group}/{option}").items() if limit}
    return found


@pytest.mark.parametrize("name", sorted(files("*")))
def test_a_limit_is_about_its_value(name):
    for path, limit in limits_of_file(name).items() if not name.startswith(OVERLAYS) else ():
        names = [node for node in ast.walk(ast.parse(limit)) if isinstance(node, ast.Name)]
        inner = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        inner |= {"len", "all", "min", "max", "isinstance", "int", *(test.__name__ for test in PREDICATES)}
        used, beside = {node.id for node in names} - inner, set(option_file(name)) | {"data", "run"}
        assert path.rpartition(".")[2] in used or not limit
        assert used <= beside


def test_nothing_dead_is_left_out_of_the_identity():
    paths = [f"{path}." for path, _ in shipped()]
    assert [left_out for left_out in NOT_IDENTITY if not any(path.startswith(f"{left_out}.") for path in paths)] == []


@pytest.mark.parametrize("name", ["train", *sorted(files("*"))])
def test_every_default_keeps_its_limit(name):
    content = dict(leaves(option_file(name)))
    for path, limit in limits_of_file(name).items() if not name.startswith(OVERLAYS) else ():
        if limit and path in content and not str(value := content[path]).startswith(("$", "???")):
            beside = {other.rpartition(".")[2]: of for other, of in content.items()}
            check_value(path, value, value, limit, beside | KNOWN)


BOUNDARIES: dict[str, tuple[Sequence[Any], Sequence[Any]]] = {  # knob: allowed, refused
    "optim.lr": ([1e-9, 10.0], [0.0, -0.1, float("nan")]),
    "optim.momentum": ([0.0, 0.999], [-0.1, 1.0]),
    "optim.betas": ([[0.0, 0.999]], [[0.9], [0.9, 1.0], [-0.1, 0.9], [0.9, 0.99, 0.999], ["a", "b"]]),
    "optim.weight_decay": ([0.0], [-1e-9]),
    "sched.gamma": ([1.0, 0.01], [0.0, 1.01]),
    "model.dropout": ([0.0, 0.99], [1.0, -0.01]),
    "model.kernel_size": ([1, 3], [0, -1, 2, 4]),
    "model.channels": ([[1]], [[], [8, 0], ["a"]]),
    "aug.crop_flip.padding_mode": (["reflect", "constant"], ["black", ""]),
    "data.unreadable": (["stop", "skip"], ["ignore", ""]),
    "data.num_train": ([10], [9]),
    "trainer.max_epochs": ([1], [0, -1]),
    "batch_size": ([1], [0]),
    "val_fraction": ([0.0, 0.5], [-0.1, 0.51]),
    "seed": ([0, 2**32 - 1], [-1, 2**32]),
    "resident": (["device", "host"], ["gpu"]),
    "name": (["a", "a/b"], ["/a", "a/", "../a", ".."]),
    "num_train_images": ([1, None], [0, "few"]),
    "trainer.limit_train_batches": ([1, 20, 0.5, None], [0, 1.0, 2.5]),  # to a hash, 1.0 is 1; to Lightning, all
    "trainer.limit_val_batches": ([1, 0.5, None], [1.0]),
    "trainer.limit_test_batches": ([1, 0.5, None], [1.0]),
}


@pytest.mark.parametrize(("path", "allowed", "refused"), [(path, *values) for path, values in BOUNDARIES.items()])
def test_the_bounds_of_a_knob(path, allowed, refused):
    for value in allowed:
        check_value(path, value, None, limits()[path], KNOWN)
    for value in refused:
        with pytest.raises(UserError, match=rf"^{re.escape(path)}=.* is not allowed; it must satisfy "):
            check_value(path, value, None, limits()[path], KNOWN)


TYPES: dict[str, tuple[Any, Sequence[Any], Sequence[Any]]] = {  # default, accepted, refused
    "true or false": (False, [True, False], [0, 1, 1.0, "true", "yes", None, [True]]),
    "a whole number": (3, [0, -7, 2**40], [2.5, 2.0, True, "3", None, [3]]),
    "number": (0.5, [0.25, -1.0, 2], [True, "0.5", "half", None, [0.5]]),
    "a list": ([1, 2], [[], [3], [0.5, 1]], [1, 0.5, "12", True, None]),
}


@pytest.mark.parametrize(
    ("expected", "default", "accepted", "refused"), [(expected, *values) for expected, values in TYPES.items()]
)
def test_a_value_has_the_type_of_its_default(expected, default, accepted, refused):
    for value in accepted:
        check_value("group.knob", value, default, "")
    for value in refused:
        with pytest.raises(UserError) as caught:
            check_value("group.knob", value, default, "")
        typed = re.escape(str(default).lower().replace(" ", ""))
        assert re.search(rf"^group\.knob=\S+ is not .*{expected}.* group\.knob={typed}, its default", str(caught.value))


def test_numbers_in_files_are_read_as_hydra_reads_them(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text("lr: 1e-3\n")
    monkeypatch.setenv("CNNLAB_CONF", str(tmp_path))
    assert option_file("mine") == {"lr": 0.001}


def test_a_name_may_be_a_number():
    check_value("name", 2024, "runs", limits()["name"])


@pytest.mark.parametrize(
    "limit",
    [
        "all(knob <= x for x in [1, 2])",
        "knob < 2 or run.metrics.f1.average == 'x'",
        "knob < 2 or run.metrics.f1.average.startswith('x')",
    ],
)
def test_a_limit_may_use_all_of_python(limit):
    known = {"run": {"metrics": {"f1": {"average": "y"}}}}
    check_value("group.knob", 1, None, limit, known)
    with pytest.raises(UserError, match=r"group\.knob=3 is not allowed"):
        check_value("group.knob", 3, None, limit, known)
    with pytest.raises(UserError, match=r"has .knob of table 2., which is no condition"):
        check_value("group.knob", 3, None, "knob of table 2", known)


@pytest.mark.parametrize("condition", ["widht >= 1", "width >= least", "width < min(run.batch_size, widht)"])
def test_a_limit_with_an_unknown_name_is_refused(tmp_path, monkeypatch, condition):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    file = tmp_path / "conf" / "model" / "mine.yaml"
    file.write_text(f"_target_: cnnlab.resnet.ResNet\nwidth: 8 # of the first stage [{condition}]\n")
    monkeypatch.setenv("CNNLAB_CONF", str(tmp_path / "conf"))
    name = "least" if "least" in condition else "widht"
    with pytest.raises(UserError, match=rf"^The comment on model.width .* there is no {name}\."):
        check(composed("data=shapes", "model=mine"))


def test_half_an_image_is_refused():
    with pytest.raises(UserError, match=r"num_train_images=12\.5"):
        check_value("num_train_images", 12.5, None, limits()["num_train_images"])


def test_a_fraction_that_holds_out_no_image_is_refused():
    images = Images(np.zeros((8, 3, 8, 8), np.uint8), np.arange(8) % 2, ("cat", "dog"))  # 0.1 of 4 is rounded to 0
    with pytest.raises(UserError, match=r"val_fraction=0\.1"):
        ImageData(DataSet(images, images, ""), Unchanged(), {}, batch_size=4, val_fraction=0.1)


def test_more_images_than_there_are_left_to_train_on_are_refused():
    images = Images(np.zeros((40, 3, 8, 8), np.uint8), np.arange(40) % 2, ("cat", "dog"))
    data, options = DataSet(images, images, ""), {"batch_size": 4, "val_fraction": 0.1}
    assert len(ImageData(data, Unchanged(), {}, num_train_images=36, **options).train_index) == 36
    with pytest.raises(
        UserError, match="num_train_images=37 is more than the 36 training images that are not held out"
    ):
        ImageData(data, Unchanged(), {}, num_train_images=37, **options)


BLOCKS = """_target_: own.networks.Stack
blocks:
  - _target_: own.blocks.Wide
    width: 8
  - [{_target_: own.blocks.Deep, act: {_target_: torch.nn.ReLU}}]
"""


@pytest.fixture
def stack(tmp_path, monkeypatch) -> Callable[[str], DictConfig]:
    """Composes a run of the option model=stack, whose classes within lists are in the module of that name."""
    (tmp_path / "conf" / "model").mkdir(parents=True)
    monkeypatch.setenv("CNNLAB_CONF", str(tmp_path / "conf"))

    def configured(module: str, *typed: str) -> DictConfig:
        (tmp_path / "conf" / "model" / "stack.yaml").write_text(BLOCKS.replace("own.blocks", module))
        _content.cache_clear()
        return configuration(["data=shapes", "model=stack", *typed])

    yield configured
    _content.cache_clear()


def test_classes_within_lists_are_among_those_of_the_run(stack):
    assert {"own.networks.Stack", "own.blocks.Wide", "own.blocks.Deep", "torch.nn.ReLU"} <= targets(stack("own.blocks"))


@pytest.mark.parametrize("width", ["8", "16"])
def test_a_class_within_a_list_can_be_moved(stack, width):
    def typed(module: str) -> str:
        deep = f"[{{_target_:{module}.Deep,act:{{_target_:torch.nn.ReLU}}}}]"
        return f"model.blocks=[{{_target_:{module}.Wide,width:{width}}},{deep}]"

    before, after = (run_id(stack(module, typed(module))) for module in ("own.blocks", "other"))
    assert before == after != run_id(stack("other", typed("other").replace("Wide", "Deep", 1)))
    assert (before == run_id(stack("own.blocks"))) == (width == "8")


def test_numbers_within_lists_of_dictionaries_do_not_depend_on_their_notation():
    ids = [identity(composed(f"lr_scale=[{{fc: {number}}}]")) for number in ("10", "10.0", "1e1", "11")]
    assert len(set(ids[:3])) == 1 < len(set(ids))


def test_an_option_inherits_dictionaries_key_by_key(stack, tmp_path):
    """As Hydra composes it, so that only what differs from both files is a change; keys may be quoted."""
    text = '"_target_": own.networks.Tall\ndefaults: [stack, _self_]\nact: {size: 3}\n'
    stacked = "_target_: own.networks.Stack\nact: {size: 2, kind: relu}\n"
    (tmp_path / "conf" / "model" / "stack.yaml").write_text(stacked)
    (tmp_path / "conf" / "model" / "tall.yaml").write_text(text)
    _content.cache_clear()
    config = configuration(["data=shapes", "model=tall", "model.act.kind=gelu"])
    assert changes(config) == {"model.act.kind": "gelu"}
    assert option_file("model/tall")["act"] == {"size": 3, "kind": "relu"}
    assert "own.networks.Tall" in allowed_targets("model")
