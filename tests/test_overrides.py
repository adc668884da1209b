"""What is typed for a group is an option of it, and no mistake there is a traceback of Hydra's."""

import re

import pytest
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from cnnlab.config.check import check
from cnnlab.config.errors import explain
from cnnlab.config.help import print_help
from cnnlab.config.identity import configuration
from cnnlab.config.options import GROUPS, VARIABLE, UserError, description, options
from cnnlab.config.overrides import check_flags, check_overrides, flags_last

REFUSED = {
    "=1": "nothing before the equals sign",
    "optim=1": "1 is not the name of an option. Use optim= and one of adadelta",
    "model=true": "True is not the name",
    "optim={lr:0.1}": "is not the name",
    "optim=sgd,2": "2 is not the name",
    "optim=range(3)": "0 is not the name",
    "hydra/sweeper=1": "Use hydra/sweeper= and one of grid, optuna",
    "aug=[]": "leaves no aug, and a run needs one. Use aug= and one of",
    "aug=[null]": "leaves no aug",
    "aug=none,[]": "leaves no aug",
    "logger=null": "leaves no logger",
    "~trainer": "leaves no trainer",
    "~optim=sgd": "leaves no optim",
    "launcher=local,null": "all runs of a sweep have the same launcher",
    "launcher=local,slurm": "all runs of a sweep have the same launcher",
    "experiment=best,null": "Leave experiment out, in a command of its own",
    f"model={'a' * 300}": "there is no such option. Use model= and one of",
    "debug=null": "Leave debug out, which is the same",
    "aug=[[crop_flip]]": "['crop_flip'] is not the name of an option",
    "hydra.output_subdir=/home/me": "the run writes its configuration itself",
    "++hydra.output_subdir=../..": "the run writes its configuration itself",
}


@pytest.mark.parametrize("word", REFUSED)
def test_refused(word):
    with pytest.raises(UserError) as error:
        check_overrides(["--config-dir", "somewhere", "-m", word])
    assert str(error.value).startswith(word[:60])
    assert REFUSED[word] in str(error.value)


@pytest.mark.parametrize(
    "word",
    [
        *("optim=sgd", "optim=sgd,adam", "optim='sgd'", "aug=[crop_flip,cutmix]", "aug=none,[crop_flip,cutmix]"),
        *("optim=glob(s*)", "optim=choice(sgd,adam)", "optim.lr=1", "seed=range(3)", "~seed", "+debug=one_batch"),
        *("launcher=local", "~experiment", "optim=[sgd", "--cfg", "name=1"),
    ],
)
def test_left_to_hydra(word):
    check_overrides([word])


def test_null_in_parentheses():
    with pytest.raises(HydraException) as error:
        OverridesParser.create().parse_overrides(["model.dropout=choice(null,0.5)"])
    assert "null is not allowed in parentheses. Use the list alone, key=null,1.0" in explain(error.value)


TRANSLATED = {
    "+optim.lr=1": "+optim.lr: optim.lr has a value already. Use optim.lr=VALUE; or ++optim.lr=VALUE in a sweep",
    "+optim=adam": "+optim: an option of optim is chosen already. Use optim=OPTION",
    "~optim.foo": "~optim.foo: there is no optim.foo to remove",
    "~optim.lr=3": "~optim.lr=3: its value is 0.01. Use ~optim.lr.",
    "aug.cutmix.alpha=1": "aug=cutmix is not chosen. Use 'aug=[cutmix]' as well.",
}


@pytest.mark.parametrize("word", TRANSLATED)
def test_what_hydra_says_is_translated(word):
    with pytest.raises(HydraException) as error:
        configuration([word])
    assert TRANSLATED[word] in explain(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-m", "seed=range(0)"), "seed=range(0) has no values"),
        (("-m", "seed=glob(*)"), "seed=glob(*) has no values"),
        (("-m", "rerun=true,false"), "rerun=true,false belongs to the whole sweep. Use one value."),
        (("-m", "hydra/sweeper=optuna", "select_on=val/acc,val/loss"), "belongs to the whole sweep. Use one value."),
        (("-m", "seed=range(1,9,0)"), "seed=range(1,9,0) is not a list of values: range() arg 3 must not be zero"),
        (("-m", "optim.lr=range(0.1,9,1e-9)"), "optim.lr=range(0.1,9,1e-9) has more than 10,000 values"),
        (
            ("sched=step", "optim=adam", "optim.momentum=0.9"),
            "belongs to optim=muon,rmsprop,sgd,sgd_momentum,timm; in",
        ),
        (("--config-dir", "nowhere"), "nowhere is not a folder of options"),  # wherever it is typed
        (("hydra.run.dir=/dev/null/x",), "hydra.run.dir=/dev/null/x is not the run's own directory"),
        (("-m", "aug=[]"), "leaves no aug"),
        (("~batch_size",), "~batch_size leaves no batch_size, and a run needs one"),
        (("norm.foo=1",), "norm has no values."),
        (("output_dir=/proc/x",), "/proc/x cannot be written"),
        (("+trainer.benchmark=maybe",), "trainer.benchmark=maybe is not true or false"),
        (("+trainer.min_epochs=few",), "trainer.min_epochs=few is not a whole number"),
        (("+trainer.model_registry=1",), "trainer.model_registry is set by cnnlab and cannot be changed"),
        (("trainer.limit_train_batches=0.0001",), "trainer.limit_train_batches=0.0001 is not allowed"),
    ],
    ids=lambda words: words[-1] if isinstance(words, tuple) else "",
)
def test_commands(command, words, said):
    result = command("train.py", "data=shapes", "plan=true", *words)
    assert result.returncode == 2, result.stdout
    assert said in result.stderr
    assert "Traceback" not in result.stderr


FILES = {
    "a byte order mark": (b"\xef\xbb\xbf# @package _global_\nseed: 3\n", "begins with a byte order mark"),
    "Latin-1": (b"# @package _global_\n# caf\xe9\nseed: 3\n", "is not YAML in UTF-8: 'utf-8' codec"),
    "a tab": (b"# @package _global_\nseed:\t3\n\tx: 1\n", "is not YAML in UTF-8: while scanning"),
    "a list": (b"- 1\n", "has no keys"),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("plus", ["", "+"])
def test_an_experiment_that_cannot_be_read_is_named(tmp_path, monkeypatch, name, plus):
    """And harms nothing while it is not chosen."""
    content, said = FILES[name]
    file = tmp_path / "conf" / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "conf"))
    check(configuration(["data=shapes", f"cache_dir={tmp_path}"]))
    with pytest.raises(UserError, match=re.escape(f"{file} {said}")):
        check_overrides([f"{plus}experiment=mine"])


FLAGS = {
    "--epochs 3": "Use trainer.max_epochs=3.",
    "--max-epochs=3": "Use trainer.max_epochs=3.",
    "--lr=0.1": "Use optim.lr=0.1.",
    "--batch-size 64": "Use batch_size=64.",
    "--optimizer adam": "Use optim=adam.",
    "--data": "Use data=VALUE.",
    "--seed -m": "Use seed=VALUE.",
    "--hidden optim=sgd": "Use model.hidden=VALUE.",
    "--quux 1": "Use python train.py --help",
}


@pytest.mark.parametrize("typed", FLAGS)
def test_flags_of_other_programs_are_translated(typed):
    with pytest.raises(UserError) as error:
        check_flags(typed.split())
    assert FLAGS[typed] in str(error.value)


def test_flags_of_hydra_are_left_to_it():
    for words in (["--cfg", "job"], ["--multirun", "-m"], ["--info=config"], ["--resolve", "-c", "job"]):
        check_flags(["--config-dir", "x", *words, "seed=1"])


@pytest.mark.parametrize("words", [("aug=cutmix", "aug=mixup"), ("-m", "aug=cutmix,mixup", "aug=[crop_flip]")])
def test_a_list_that_is_set_twice_is_not_half_obeyed(words):
    with pytest.raises(UserError, match=r"the second would replace the first. Use 'aug=\[cutmix,"):
        check_overrides(list(words))


@pytest.mark.parametrize(
    ("first", "second"),
    [("optim=sgd", "optim=adam"), ("optim=sgd,adam", "++optim=lion"), ("+experiment=best", "experiment=fast")],
)
def test_an_option_that_is_chosen_twice_is_refused(first, second):
    with pytest.raises(UserError) as error:
        check_overrides(["-m", first, "seed=1", second])
    assert str(error.value).startswith(f"{first} and {second}: the second would replace the first.")


@pytest.mark.parametrize("words", [("aug=cutmix", "aug=cutmix"), ("aug=cutmix", "aug=none"), ("seed=1", "seed=2")])
def test_what_replaces_without_loss_may_be_typed_twice(words):
    check_overrides(list(words))


def test_a_value_that_is_set_twice_is_said(command):
    words = ("+trainer.benchmark=true", "seed=0", "optim.lr=0.1", "seed=1", "++optim.lr=0.1")
    result = command("train.py", "data=shapes", "plan=true", *words)
    assert (result.returncode, result.stdout.count("seed=1")) == (0, 1)
    assert result.stderr == (
        "cnnlab: seed=0 and seed=1: the second replaces the first. Use -m 'seed=0,1' to train a run for each.\n"
    )


def test_several_values_without_m_is_said_in_our_words(command):
    result = command("train.py", "data=shapes", "aug=cutmix,crop_flip")
    assert result.returncode == 2
    assert result.stderr == (
        "cnnlab: aug=cutmix,crop_flip has several values. Use python train.py -m to train a run for each, or "
        "'aug=[cutmix,crop_flip]' for all of them in one run.\n"
    )


def test_help_lists_every_option_and_the_arguments_of_what_is_chosen(capsys):
    print_help(["optim=adam", "optim.lr=0.3"])
    said = capsys.readouterr().out
    for group in GROUPS:
        for option in options(group):
            assert option in said, option
    assert "optim.lr=0.3" in said
    assert "optim.betas=[0.9,0.999]" in said
    assert "momentum" not in said[said.index("Arguments of optim=adam") :]
    assert "aug=OPTION: several at once as 'aug=[a,b]'" in said
    assert max(map(len, said.splitlines())) <= 100


def test_help_on_one_group(capsys):
    print_help(["sched"])
    said = capsys.readouterr().out
    assert "Arguments of sched=exponential" in said
    assert "optim" not in said.replace("optim.lr", "")


@pytest.mark.parametrize("width", [80, 120])
def test_help_has_one_line_for_every_option_and_argument(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    print_help([])
    said = capsys.readouterr().out.splitlines()
    assert max(map(len, said)) <= min(width, 100)
    for group in GROUPS:
        start = next(number for number, line in enumerate(said) if line.startswith(f"{group}=OPTION")) + 1
        assert [line[2:].split()[0] for line in said[start : start + len(options(group))]] == options(group)
    assert next(line for line in said if "cifar10 " in line).endswith("\N{HORIZONTAL ELLIPSIS}")
    arguments = said[said.index("Arguments of the run itself") + 1 :]
    assert [line.split("=")[0] for line in arguments[:3]] == ["  seed", "  batch_size", "  num_train_images"]


def test_help_on_one_option_has_its_whole_text(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    print_help(["timm", "ema"])
    said = capsys.readouterr().out
    assert [said.count(name) for name in ("\nmodel=timm\n", "\noptim=timm\n", "\ncallbacks=ema\n")] == [1, 1, 1]
    assert "OPTION" not in said
    monkeypatch.setenv("COLUMNS", "100")
    print_help(["muon", "run", "cifar10"])
    said = " ".join(capsys.readouterr().out.split())
    assert "35 s on one that emulates it. Arguments of optim=muon" in said
    assert "0: the test images are evaluated after every epoch [0 <= val_fraction <= 0.5]" in said
    assert "tried in turn, https only [changes nothing]" in said


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_says_what_it_is(group):
    assert [option for option in options(group) if not description(f"{group}/{option}").endswith((".", ")", ":"))] == []


@pytest.mark.parametrize(
    "words",
    [
        ("seed=1", "--cfg", "job", "optim=sgd"),
        ("--cfg", "job", "seed=1", "optim=sgd"),
        ("seed=1", "optim=sgd", "--cfg", "job"),
        ("seed=1", "-m", "optim=sgd", "~debug", "--resolve", "--info"),
        ("seed=1", "--cfg=job", "-m", "+x=1"),
    ],
)
def test_flags_may_stand_anywhere(words):
    """Hydra's own parser takes overrides in one piece."""
    parsed = get_args_parser().parse_args(flags_last(words))
    assert parsed.overrides == [word for word in words if word[0] != "-" and word != "job"]
    assert (parsed.cfg, parsed.multirun) == ("job" if any("--cfg" in word for word in words) else None, "-m" in words)


def test_flags_that_exclude_each_other():
    with pytest.raises(UserError, match=r"^--cfg and --multirun: a command can have only one of these"):
        check_flags(["seed=1", "-m", "--cfg=job"])


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Option files of one's own; they name classes of ours."""
    files = {
        "model/deep/net": "_target_: cnnlab.networks.Linear\n",
        "metrics/deep/top1": "# @package metrics.top1\n_target_: cnnlab.metrics.Accuracy\n",
        "metrics/placeless": "_target_: cnnlab.metrics.Accuracy\n",
        "metrics/copied": "# @package metrics.acc\n_target_: cnnlab.metrics.Accuracy\n",
        "experiment/deep/net": "# @package _global_\n# Deep.\ndefaults:\n  - override /model: deep/net\n",
        "experiment/deep/acc": "# @package _global_\n# Deep.\ndefaults:\n  - override /metrics: [acc, placeless]\n",
        "experiment/deep/seed": "# @package _global_\n# Deep.\nseed: 3\n",
    }
    for name, text in files.items():
        (tmp_path / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / f"{name}.yaml").write_text(text)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "conf"))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model=deep/net", r"model=deep/net: .* Move the file to conf/model/net\.yaml"),
        ("metrics=[acc,deep/top1]", r"metrics=deep/top1: .* Move the file to conf/metrics/top1\.yaml"),
        ("metrics=[acc,placeless]", r"placeless\.yaml must begin with .*# @package metrics\.placeless$"),
        ("metrics=copied", r"copied\.yaml must begin with .*# @package metrics\.copied$"),
    ],
)
def test_an_option_file_in_another_place_is_refused(own, word, said):
    with pytest.raises(UserError, match=said):
        check_overrides([word])


@pytest.mark.parametrize("word", ["experiment=deep/net", "experiment=deep/acc", "model=deep/net", "metrics=deep/top1"])
def test_wherever_it_is_chosen(own, word, tmp_path):
    if "acc" not in word:
        (tmp_path / "conf" / "metrics" / "placeless.yaml").unlink()
        (tmp_path / "conf" / "metrics" / "copied.yaml").unlink()
    with pytest.raises(UserError, match=r"Move the file|must begin with"):
        check(configuration(["data=shapes", word]))


def test_experiments_in_folders_are_like_others(own, capsys):
    check(config := configuration(["data=shapes", "experiment=deep/seed"]))
    assert (config.seed, options("experiment")[:2]) == (3, ["best", "deep/acc"])
    print_help(["experiment"])
    assert re.search(r"deep/seed +Deep\.", capsys.readouterr().out)
    with pytest.raises(HydraException) as caught:
        configuration(["experiment=deep/seeds"])
    assert re.match(
        r"experiment=deep/seeds: there is no .deep/seeds.* Did you mean experiment=deep/seed\?", explain(caught.value)
    )
