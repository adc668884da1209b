"""A mistake is answered at once, by one paragraph that says what to type: exit status 2, no traceback, nothing left.

Every wrong input runs as a user would run it. What only asks about the configuration never imports torch.
"""

from pathlib import Path
from subprocess import CompletedProcess

import pytest
from PIL import Image

from cnnlab.config.options import UserError
from cnnlab.data.folder import ImageFolder

# What is typed after `python train.py`, and what the answer must contain: what was given, what to type.
MISTAKES = {
    # names
    "unknown per": ("norm=pca norm.per=image", ["norm.per=image", "('channel', 'pixel')"]),
    "too many components": (
        "norm=pca norm.num_components=3073 data=shapes",
        ["num_components=3073", "data.channels=3", "per=pixel"],
    ),
    "warm-up longer than the training": ("warmup_epochs=5 trainer.max_epochs=5", ["warmup_epochs=5", "max_epochs=5"]),
    "warm-up of onecycle": ("sched=onecycle warmup_epochs=1", ["sched.pct_start=0.3", "with run.warmup_epochs=1"]),
    "mirrored components": ("norm=pca test_flips=true", ["norm.per=pixel", "with run.test_flips=true"]),
    "smoothing of everything": ("loss.label_smoothing=1", ["loss.label_smoothing=1", "label_smoothing < 1"]),
    "scales from large to small": ("aug=scale aug.scale.scale=[1.2,0.8]", ["[1.2,0.8]", "scale[0] <= scale[1]"]),
    "crop larger than the image, padded": (
        "aug=pad_crop_flip aug.pad_crop_flip.size=36",
        ["aug.pad_crop_flip.size=36", "with data.height=32, data.width=32"],
    ),
    "filter larger than the image": (
        "aug=blur aug.blur.kernel_size=65",
        ["kernel_size=65", "kernel_size < 2 * min(data.height, data.width)", "data.height=32"],
    ),
    "half a channel": ("model.channels=[1.5,2]", ["model.channels=[1.5,2]", "c % 1 == 0"]),
    "average of more than everything": ("optim=rmsprop optim.alpha=99", ["optim.alpha=99", "alpha < 1"]),
    "knob of an option that was not chosen": ("+aug.cutmix.alpha=0.5", ["aug.cutmix", "aug offers", "cutmix"]),
    "augmentation from nowhere": ("+aug.x=5", ["aug.x", "crop_flip"]),
    "schedule without a class": ("~sched._target_", ["sched", "cosine"]),
    "search that is no sweep": ("hydra/sweeper=optuna", ["-m hydra/sweeper=optuna"]),
    "no checkpoint": ("checkpoint=null", ["checkpoint.every_n_steps"]),
    "knob of checkpoints that there is none of": (
        "+checkpoint.every_n_hours=1",
        ["every_n_hours", "checkpoint.every_n_minutes", "--help"],
    ),
    "a network that downloads weights": (
        "model=torchvision model.name=deeplabv3_resnet50",
        ["model.name=deeplabv3_resnet50 is not allowed", "not name.startswith"],
    ),
    "two nodes, alone": ("trainer.num_nodes=2", ["num_nodes=2", "launcher=slurm", "torchrun"]),
    "more words than images": ("model=bow model.num_words=9001 data=shapes", ["num_words=9001", "9000"]),
    "option in another spelling": ("data=FashionMNIST", ["Did you mean data=fashion_mnist?"]),
    "even filter": ("aug=blur aug.blur.kernel_size=4", ["kernel_size=4", "kernel_size % 2 == 1"]),
    "patch larger than the image": ("model=bow model.patch_size=33 data=shapes", ["patch_size=33", "32"]),
    "mistyped precision": ("trainer.precision=bf16-mxed", ["precision=bf16-mxed", "'bf16-mixed'"]),
    "mistyped accelerator": ("trainer.accelerator=gpuu", ["accelerator=gpuu", "'gpu'"]),
    "mistyped strategy": ("trainer.strategy=dpp", ["strategy=dpp", "'ddp'"]),
    "mistyped mode": ("callbacks=early_stopping callbacks.early_stopping.mode=maxx", ["mode=maxx", "'max'"]),
    "metric that there is none of": (
        "data=shapes data.num_train=200 callbacks=early_stopping callbacks.early_stopping.monitor=val/accuracy",
        ["monitor=val/accuracy", "val/acc"],
    ),
    "other batches than it says": ("+trainer.overfit_batches=1", ["overfit_batches", "debug=overfit"]),
    "no end of an epoch": ("+trainer.max_steps=4", ["max_steps", "trainer.max_epochs"]),
    "no evaluation": ("trainer.limit_val_batches=0", ["limit_val_batches=0", "limit_val_batches > 0"]),
    "two sweeps": ("-m experiment=fig01,fig03", ["experiment=fig01 is a sweep of its own", "optim.lr=0.0001,0.001"]),
    "a schedule's own refusal": ("data=shapes sched=plateau sched.factor=1", ["Factor should be < 1.0"]),
    "unknown option": (
        "optim=sdg",
        ["optim=sdg", "adamw, lion, muon, nadam, radam, rmsprop, sgd", "Did you mean optim=sgd?"],
    ),
    "unknown option in a list": ("aug=[crop_flip,cutmx]", ["aug=cutmx", "crop_flip", "Did you mean aug=cutmix?"]),
    "mistyped key": ("optim.lrr=1", ["optim.lrr", "lr, momentum", "Did you mean optim.lr?"]),
    "mistyped key in a sweep": ("-m optim.lrr=1,2", ["optim.lrr", "lr, momentum", "Did you mean optim.lr?"]),
    "mistyped top-level key": ("batchsize=8", ["batchsize", "seed, batch_size", "Did you mean batch_size?"]),
    "name in another program": (
        "ckpt_path=last.ckpt",
        ["ckpt_path", "Did you mean weights? To resume a run, use the same command again."],
    ),
    "argument that no file lists": ("trainer.min_epochs=1", ["min_epochs", "use +trainer.min_epochs=VALUE"]),
    "knob without its group": ("lr=0.1", ["lr", "Did you mean optim.lr?"]),
    "added key": ("+color=red", ["color", "python train.py --help"]),
    "momentum for Adam": ("optim=adam optim.momentum=0.9", ["optim.momentum", "lr, betas, eps"]),
    "no option": ("optim=null", ["optim=null", "adamw, lion, muon, nadam, radam, rmsprop, sgd"]),
    "deleted group": ("~optim", ["optim", "adamw, lion, muon, nadam, radam, rmsprop, sgd"]),
    # values
    "text for a number": ("optim.lr=fast", ["optim.lr=fast", "number", "optim.lr=0.01"]),
    "text for a bool": ("rerun=maybe", ["rerun=maybe", "true or false", "rerun=false"]),
    "float for an int": ("batch_size=12.5", ["batch_size=12.5", "a whole number", "batch_size=128"]),
    "number for a hash": ("data.sha256=5", ["data.sha256=5", "64 hexadecimal digits"]),
    "missing value": ("optim.lr=", ["optim.lr=", "number", "optim.lr=0.01"]),
    "unparsable": ("optim=[sgd]x", ["optim=[sgd]x", "cannot be parsed", "'key=[a,b]'"]),
    "a bracket that is not closed": ("optim=[sgd", ["optim=[sgd: a closing ] is missing"]),
    "a space after a comma": ("optim=sgd, adam", ["optim=sgd, ends with a comma", "without spaces: key=a,b"]),
    "several values without -m": ("optim.lr=0.1,0.2", ["optim.lr=0.1,0.2", "-m"]),
    "a range without -m": ("seed=range(3)", ["seed=range(3) has several values. Use python train.py -m"]),
    "a range to search in, in a grid": ("-m optim.lr=interval(0.1,1)", ["interval(0.1,1)", "hydra/sweeper=optuna"]),
    "weights from nowhere": ("weights=/nope.pt", ["weights=/nope.pt is neither a file nor a run directory."]),
    "half a size": (
        "data=image_folder data.root=/x data.image_size=1.5",
        ["image_size=1.5 is not a whole number from 1"],
    ),
    "an option that is chosen twice": ("optim=sgd optim=adam", ["optim=sgd and optim=adam: the second would replace"]),
    "help on nothing": ("--help foo", ["there is no group or option foo. Use an option or one of data, norm, aug"]),
    "negative rate": ("optim.lr=-1", ["optim.lr=-1", "lr > 0", "optim.lr=0.01"]),
    "infinite rate": ("optim.lr=inf", ["optim.lr=", "number", "optim.lr=0.01"]),
    "dropout": ("model.dropout=1.5", ["model.dropout=1.5", "0 <= dropout < 1", "model.dropout=0.0"]),
    "even kernel": ("model.kernel_size=4", ["model.kernel_size=4", "kernel_size % 2 == 1", "model.kernel_size=5"]),
    "val_fraction": ("val_fraction=0.9", ["val_fraction=0.9", "<= 0.5", "val_fraction=0.1"]),
    "no devices": ("trainer.devices=0", ["trainer.devices=0", "trainer.devices=1"]),
    "growing constant": ("sched.factor=2", ["sched.factor=2", "factor <= 1", "sched.factor=1.0"]),
    # values that do not fit together
    "a last step that is too small": (
        "data=shapes +trainer.accumulate_grad_batches=4 trainer.limit_train_batches=6",
        ["trainer.limit_train_batches=6", "not a multiple of trainer.accumulate_grad_batches=4"],
    ),
    "views larger than the image": (
        "data=shapes data.image_size=8 model.channels=[8,8] test_shifts=8",
        ["test_shifts=8 is too large for images of 3x8x8"],
    ),
    "no whole step": (
        "data=shapes data.num_train=400 +trainer.accumulate_grad_batches=4",
        ["needs 512 images for a step; 360 are trained on"],
    ),
    "batch larger than the data": (
        "data=shapes data.num_train=100",
        ["batch_size=128", "the 90 images", "batch_size=90"],
    ),
    "crop larger than the image": (
        "aug=crop_flip aug.crop_flip.size=40",
        ["aug.crop_flip.size=40 is not small enough for the images with data.height=32", "size=28"],
    ),
    "too small for three poolings": (
        "data=shapes data.image_size=7",
        ["model.channels=[32,64,64]", "2 ** len(channels) <= ", "data.height=7"],
    ),
    "two crops": (
        "data=shapes data.num_train=200 aug=[crop_flip,pad_crop_flip]",
        ["Several crops", "crop_flip, pad_crop_flip"],
    ),
    "batch that devices cannot share": (
        "trainer=ddp trainer.devices=3",
        ["batch_size=128", "equally by 3", "a multiple of 3"],
    ),
    "Nesterov without momentum": ("optim.nesterov=true", ["optim.nesterov=true", "momentum > 0", "with momentum=0.0"]),
    "early stopping on nothing": ("callbacks=early_stopping val_fraction=0", ["val/acc", "val_fraction"]),
    # what must not be done
    "target": ("optim._target_=os.system", ["optim._target_=os.system", "optim/my_option.yaml"]),
    "http source": ("data.sources=[http://example.org/x]", ["http://example.org/x", "https://"]),
    # accepted once, and meaningless
    "mapping for a number": ("optim.lr={a:1}", ["optim.lr={a:1}", "a finite number", "optim.lr=0.01"]),
    "argument that the class does not take": (
        "+optim.foo=1",
        ["optim.foo", "torch.optim.SGD takes no argument foo", "lr,"],
    ),
    "argument that Lightning does not take": ("+trainer.foo=1", ["trainer.foo", "takes no argument foo"]),
    "logger of the trainer": ("+trainer.logger=false", ["trainer.logger", "Use logger= instead"]),
    "plugins of the trainer": ("+trainer.plugins=[]", ["trainer.plugins is set by cnnlab"]),
    "optimizer for a logger": ("+logger.foo={_target_:torch.optim.SGD}", ["logger.foo._target_=torch.optim.SGD"]),
    "strategy that there is none of": ("trainer.strategy=ddp_foo", ["strategy=ddp_foo", "'ddp'"]),
    "name that is empty": ("name=", ["name=", "Use name=FOLDER"]),
    "output that is nowhere": ("output_dir=null", ["output_dir=null", "Use output_dir=FOLDER"]),
    "file for an option": ("model=cnn.yaml", ["cnn.yaml is a file", "Use model=cnn"]),
    "options as a mapping": ("optim={lr:0.1}", ["optim={lr:0.1}", "Use optim="]),
    "trainer as a mapping": ("trainer={}", ["trainer={}", "Use trainer="]),
    "noise beyond everything": ("data=shapes data.noise=1e308", ["data.noise=1e+308", "noise <= 1"]),
    "scale beyond everything": ("aug=scale aug.scale.scale=[1,1e300]", ["[1,1e+300]", "scale[1] <= 100"]),
    "square beyond everything": (
        "aug=cutout aug.cutout.size=1000000000",
        ["cutout.size=1000000000", "size < 2 * max(data.height, data.width)"],
    ),
    "loss that is to rise": (
        "data=shapes data.num_train=200 callbacks=early_stopping callbacks.early_stopping.monitor=val/loss",
        ["monitor=val/loss with mode=max", "Use mode=min"],
    ),
    "cache that is nowhere": ("cache_dir=", ["cache_dir", "CNNLAB_CACHE"]),
    "no augmentation in a list": ("-m aug=[]", ["aug=[]", "none"]),
    "choice of nothing": ("-m optim.lr=choice(null,1.0)", ["optim.lr"]),
    # data on disk
    "missing data.root": ("data=image_folder", ["data.root must be given", "data.root="]),
    "root that does not exist": ("data=image_folder data.root=/nowhere", ["data.root=/nowhere", "/nowhere/train/<"]),
    # one wrong job is enough for none to start
    "last job of a sweep": ("-m optim.lr=0.1,0.2,-1", ["optim.lr=-1", "lr > 0"]),
    "last pair of a sweep": (
        "-m optim=sgd,adam batch_size=16,50000",
        ["batch_size=50000", "the 45000 images", "batch_size=45000"],
    ),
}


@pytest.fixture(autouse=True)
def nothing_to_download(tmp_path: Path) -> None:
    """An archive of CIFAR-10 that is refused: a mistake that is overlooked ends there, without a network."""
    archive = tmp_path / "cache" / "cifar10" / "cifar-10-python.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"not the archive")


def assert_refused(result: CompletedProcess[str], *said: str) -> None:
    """One paragraph on stderr that contains `said`, exit status 2, no traceback, and no run directory."""
    assert "Traceback" not in result.stdout + result.stderr
    paragraphs = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(paragraphs) == 1, result.stderr
    assert paragraphs[0].startswith("cnnlab: ")
    assert [words for words in said if words not in paragraphs[0]] == [], paragraphs[0]
    assert result.returncode == 2
    assert list(Path("outputs").rglob("*")) == []
    assert {entry.name for entry in Path().iterdir()} <= {"cache", "outputs", "pictures"}


@pytest.mark.parametrize(("typed", "said"), MISTAKES.values(), ids=MISTAKES)
def test_one_paragraph_says_what_to_type(command, typed, said):
    assert_refused(command("train.py", *typed.split()), *said)


def write_pictures(layout: dict[str, int], size: int = 9) -> Path:
    """A folder with so many pictures in each of its sub-folders; every picture is another shade of gray."""
    root = Path("pictures").absolute()
    for folder, num in layout.items():
        (root / folder).mkdir(parents=True)
        for number in range(num):
            Image.new("RGB", (size, size), (10 * number,) * 3).save(root / folder / f"{number}.png")
    return root


GOOD = {"train/cat": 10, "train/dog": 10, "test/cat": 2, "test/dog": 2}

FOLDERS = {
    "no train folder": ({"test/cat": 1, "test/dog": 1}, ["has no folder train/", "train/<class>/"]),
    "no test folder": ({"train/cat": 1, "train/dog": 1}, ["has no folder test/", "test/<class>/"]),
    "one class only": ({"train/cat": 2, "test/cat": 1}, ["train has only the class cat", "two or more"]),
    "empty class": (GOOD | {"train/cow": 0, "test/cow": 1}, ["train/cow has no image", ".png", "delete"]),
    "other classes in test": (GOOD | {"train/cow": 1, "test/hen": 1}, ["differ: cow, hen", "the same classes"]),
    "fewer than a batch": (GOOD, ["batch_size=128", "the 18 images", "batch_size=18"]),
}


@pytest.mark.parametrize(("layout", "said"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_cannot_be_trained_on(command, layout, said):
    root = write_pictures(layout)
    assert_refused(command("train.py", "data=image_folder", f"data.root={root}"), *said)


def corrupt(picture: Path) -> Path:
    """Cut the file off before its end."""
    content = picture.read_bytes()
    picture.write_bytes(content[:-25])
    return picture


def test_a_corrupt_picture_among_good_ones_is_named(command):
    root = write_pictures(GOOD, size=64)
    picture = corrupt(root / "train" / "dog" / "3.png")
    result = command("train.py", "data=image_folder", f"data.root={root}", "batch_size=4")
    assert_refused(result, str(picture), "cannot be read as an image", "data.unreadable=skip")


def test_corrupt_pictures_are_skipped_and_counted(capsys):
    root = write_pictures(GOOD, size=64)
    for number in (3, 7):
        corrupt(root / "train" / "dog" / f"{number}.png")
    data = ImageFolder(str(root), "cache", image_size=64, unreadable="skip").load()
    assert f"{root}/train: 2 unreadable images skipped." in capsys.readouterr().out
    cats = list(range(10))
    dogs = [number for number in range(10) if number not in (3, 7)]
    assert data.train.pixels[:, 0, 0, 0].tolist() == [10 * number for number in cats + dogs]
    assert data.train.targets.tolist() == [0] * 10 + [1] * 8
    assert data.test.targets.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("num", [1, 3])
def test_a_class_of_which_every_picture_is_corrupt_is_refused(num):
    root = write_pictures(GOOD | {"train/cow": num, "test/cow": 1}, size=64)
    for picture in (root / "train" / "cow").iterdir():
        corrupt(picture)
    with pytest.raises(UserError, match="train/cow"):
        ImageFolder(str(root), "cache", unreadable="skip").load()


# What is typed, exit status, and words of the answer.
QUESTIONS = {
    "help": (
        "--help",
        0,
        [
            "Usage: python train.py",
            "optim=OPTION",
            "  adam          Adam",
            "optim.lr=0.01",
            "batch_size=128",
        ],
    ),
    "configuration": ("--cfg job optim=adam seed=7", 0, ["_target_: torch.optim.Adam", "seed: 7", "batch_size: 128"]),
    "info": ("--info", 0, ["Hydra"]),
    "completion of options": (
        "-sc query=bash",
        0,
        ["optim=adam optim=adamw", "optim=sgd"],
    ),
    "mistyped option": ("optim=sdg", 2, ["Did you mean optim=sgd?"]),
    "range": ("optim.lr=-1", 2, ["lr > 0"]),
    "range in a sweep": ("-m optim.lr=0.1,-1", 2, ["lr > 0"]),
}


@pytest.mark.parametrize(("typed", "status", "said"), QUESTIONS.values(), ids=QUESTIONS)
def test_a_question_about_the_configuration_is_answered_without_torch(command, typed, status, said):
    completion = {"COMP_LINE": "train.py optim=", "COMP_POINT": "15"}
    result = command("-X", "importtime", "train.py", *typed.split(), **completion)
    assert result.returncode == status
    assert [words for words in said if words not in result.stdout + result.stderr] == []
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    packages = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "hydra" in packages  # the list is there
    assert packages & {"torch", "torchvision", "torchmetrics", "lightning", "tensorboard", "matplotlib"} == set()
