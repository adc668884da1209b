"""What people try first: each ends in a run, or in one sentence that says what to use instead."""

import json
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from zygote import only_run, said

from cnnlab.config.identity import configuration, identity, run_id
from cnnlab.config.objects import instantiate
from cnnlab.config.options import UserError
from cnnlab.runs.directory import RunDirectory
from cnnlab.train.trainer import make_callbacks, make_logger
from cnnlab.use.trained import open_run

SMALL = (
    *(
        "data=shapes",
        "data.num_train=60",
        "data.num_test=20",
        "data.image_size=16",
        "batch_size=20",
        "val_fraction=0.2",
    ),
    *("trainer.max_epochs=1", "trainer.accelerator=cpu", "logger=none", "norm=standard"),
)

WORKS = [  # what is typed
    "model=resnet18 model.width=8",
    "model=speednet model.widths=[8,8] optim.lr=0.1",
    "model=timm model.model_name=resnet10t data.image_size=32",
    "model=torchvision model.name=squeezenet1_1 data.image_size=32",
    "model=linear optim=lion",
    "model=linear optim=timm optim.opt=lamb +optim.eps=1e-5",
    "model=linear optim=nadam sched=cosine",
    "model=linear loss=focal metrics=[acc,balanced_acc,calibration_error,top5]",
    "model=linear loss=bce metrics=[f1,auroc] select_on=val/f1 test_flips=true test_shifts=1",
    "model=linear loss.class_weights=[1,1,1,1,1,1,1,1,1,5] aug=crop_flip aug.crop_flip.size=16 "
    "aug.crop_flip.alternating_flips=true",
    "model=resnet18 model.width=8 lr_scale=[conv:0,fc:10,stage4.0:0.5]",
]

REFUSED = {  # what is typed, and what the answer says
    "model=timm model.model_name=resnet10t trainer.precision=bf16-mixed": [
        "The input of the layer layer4.0.conv1 is so small",
        "trainer.precision=32-true",
    ],
    "model=vit": ["there is no 'vit'", "model=timm model.model_name=VALUE", "model=torchvision model.name=VALUE."],
    "model=resnet50": ["Did you mean model=resnet18?", "Others by name: model=timm model.model_name=VALUE"],
    "model=timm": ["model.model_name must be given", "model.model_name=VALUE"],
    "model=timm model.model_name=resnet19": ["timm.create_model (model_name=resnet19): Unknown model"],
    "model=torchvision model.name=resnet19": ["get_model (name=resnet19): Unknown model resnet19"],
    "model=timm model.model_name=resnet18 model.pretrained=true": ["pretrained=true is not allowed"],
    "model=torchvision model.name=resnet18 model.weights=DEFAULT": ["weights=DEFAULT", "weights is None"],
    "optim=adan": ["there is no 'adan'", "optim=timm optim.opt=VALUE."],
    "model=linear optim=timm optim.opt=foo": ["Optimizer foo not found in registry"],
    "model=linear optim=timm optim.opt=lion +optim.foo=1": ["got an unexpected keyword argument 'foo'"],
    "loss=ce": ["there is no 'ce'", "The group loss offers bce, cross_entropy, focal, hinge"],
    "loss.class_weights=[1,2]": ["class_weights=[1,2]", "len(class_weights) == data.num_classes"],
    "metrics=accuracy": ["there is no 'accuracy'", "The group metrics offers acc, auroc, balanced_acc"],
    "metrics=top5 metrics.top5.top_k=11": ["top_k=11", "1 <= top_k <= data.num_classes"],
    "callbacks=swa": ["there is no 'swa'", "early_stopping, ema, none"],
    "logger=neptune": ["there is no 'neptune'", "csv, mlflow, none, tensorboard, wandb"],
    "logger=wandb": ["wandb:", "Use wandb login, or logger.wandb.offline=true"],
    "weights=resnet18.pth": ["weights=resnet18.pth is neither a file nor a run directory."],
    "lr_scale=0.1": ["lr_scale=0.1 is not a list"],
    "lr_scale=[head:10]": ["no weight's name begins with head", "conv1, conv2, conv3, fc4, fc5"],
    "sched=linear": ["there is no 'linear'", "cosine", "onecycle"],
    "test_shifts=9": ["test_shifts=9", "0 <= test_shifts <= 8"],
    "norm=pca test_shifts=1": ["run.test_shifts=1"],
    "aug=crop_flip aug.crop_flip.alternating_flips=true aug.crop_flip.flip_probability=0.3": ["flip_probability=0.3"],
}
if not torch.accelerator.is_available():
    for typed, instead in {
        "trainer.accelerator=gpu": "trainer=auto.",
        "trainer.accelerator=mps": "trainer=auto.",
        "trainer.devices=-1": "trainer.devices=1,",
        "trainer.precision=16-mixed": "trainer.precision=auto.",
    }.items():
        REFUSED[typed] = [f"{typed}: this machine has no GPU that torch can use. Use {instead}"]


def words(typed: str) -> tuple[str, ...]:
    return tuple(typed.split())


@pytest.mark.parametrize("typed", WORKS)
def test_it_trains_and_its_run_can_be_used(zygote, tmp_path, typed):
    output = tmp_path / "outputs"
    assert zygote.run(output, command=(*SMALL, *words(typed)))["status"] == 0, said(output)
    model, _, summary = open_run(only_run(output))
    assert summary["metrics"]["test/loss"] > 0
    assert model.logits(torch.zeros(2, 3, *model.stored.size, dtype=torch.uint8)).isfinite().all()


@pytest.mark.parametrize(("typed", "answer"), REFUSED.items())
def test_one_sentence_says_what_to_use(zygote, tmp_path, typed, answer):
    output = tmp_path / "outputs"
    nobody = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_API_KEY": ""}
    small = [word for word in SMALL if not (word.startswith("norm=") and "norm=" in typed)]
    assert zygote.run(output, command=(*small, *words(typed)), environment=nobody)["status"] == 2, said(output)
    paragraph = said(output).strip().splitlines()[-1]
    assert [part for part in answer if part not in paragraph] == []
    assert "Traceback" not in said(output)


@pytest.mark.parametrize(
    ("option", "package"), [("logger=wandb", "wandb"), ("logger=mlflow", "mlflow"), ("optim=lion", "timm")]
)
def test_a_package_that_is_not_there_is_told_with_the_command_that_installs_it(option, package, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as Python has it for a module that is not to be found
    config = configuration(["data=shapes", option])

    def made():
        logs = option.startswith("logger")
        return make_logger(config.logger[package], RunDirectory(Path("run"))) if logs else instantiate(config.optim)

    with pytest.raises(UserError, match=rf"(?s)needs the package {package}, .* Use pip install {package}"):
        made()


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("torch.nn.CrossEntropyLos", "torch.nn has no CrossEntropyLos. Did you mean CrossEntropyLoss?"),
        ("cnnlab.networkz.CNN", "cnnlab has no networkz. Did you mean networks?"),
        ("torch.nn.Linear.fcn", "torch.nn.Linear has no fcn."),
    ],
)
def test_a_misspelled_class_of_an_installed_package_is_no_missing_package(target, answer, tmp_path, monkeypatch):
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "mine.yaml").write_text(f"_target_: {target}\n")
    monkeypatch.setenv("CNNLAB_CONF", str(tmp_path / "conf"))
    with pytest.raises(UserError) as error:
        instantiate(OmegaConf.create({"_target_": target}))
    assert str(error.value) == f"{target}: {answer}"


@pytest.mark.parametrize(
    ("kind", "instead"),
    [
        ("StochasticWeightAveraging", "callbacks=ema"),
        ("LearningRateFinder", "-m optim.lr=A,B"),
        ("BatchSizeFinder", "-m batch_size=A,B"),
    ],
)
def test_callbacks_that_would_make_it_another_run_are_refused_with_what_to_use(kind, instead, tmp_path, monkeypatch):
    target, more = f"lightning.pytorch.callbacks.{kind}", {"swa_lrs": 0.1} if kind.startswith("S") else {}
    (tmp_path / "conf" / "callbacks").mkdir(parents=True)
    (tmp_path / "conf" / "callbacks" / "mine.yaml").write_text(f"_target_: {target}\n")
    monkeypatch.setenv("CNNLAB_CONF", str(tmp_path / "conf"))
    config = OmegaConf.create({"callbacks": {"mine": {"_target_": target} | more}})
    with pytest.raises(UserError, match=rf"^callbacks=mine is not supported: .* Use {instead}"):
        make_callbacks(config, RunDirectory(tmp_path / "run"))


def test_a_run_begins_with_the_weights_of_another_one_and_is_named_by_what_they_are(zygote, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    net = ("model=resnet18", "model.width=8", "model.blocks=[1,1]")
    assert zygote.run(first, command=(*SMALL, *net))["status"] == 0, said(first)
    run = only_run(first)
    frozen = (*SMALL, *net, f'weights="{run}"', "lr_scale=[conv:0,norm:0,stage1:0,stage2:0]", "seed=1")
    assert zygote.run(second, command=frozen)["status"] == 0, said(second)
    assert f"38 of 38 tensors loaded from {run}" in said(second)
    before, after = (
        torch.load(path / "checkpoints" / name, weights_only=True)["state_dict"]
        for path, name in ((run, "best.ckpt"), (only_run(second), "last.ckpt"))
    )
    changed = [name for name, values in after.items() if not values.equal(before[name])]
    assert changed == ["network.fc.weight", "network.fc.bias"]  # statistics of batch norm are as they were, too

    moved = run.rename(tmp_path / "moved")
    summary = json.loads((only_run(second) / "summary.json").read_text())
    asked = [*frozen[:-3], f'weights="{moved}"', *frozen[-2:]]
    assert identity(configuration(asked)) == summary["identity"]
    assert run_id(configuration(asked)) == only_run(second).name
    digest = moved / "checkpoints" / "best.ckpt.sha256"
    digest.write_text(f"{'0' * 64}  best.ckpt\n")
    assert identity(configuration(asked)) != summary["identity"]
