"""What README.md and docs/ say can be done: commands are composed and checked, and what they name exists."""

import ast
import functools
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

import cnnlab
from cnnlab import cli
from cnnlab.cli import parser
from cnnlab.config.check import check
from cnnlab.config.errors import explain
from cnnlab.config.identity import configuration
from cnnlab.config.options import CONF, GROUPS, LISTED, OVERLAYS, files, option_file, use_folders
from cnnlab.config.options import leaves as leaves_of
from cnnlab.config.overrides import check_overrides
from cnnlab.launch.job import Job
from cnnlab.project.new import make
from tools import reference

PAGES = [ROOT / "README.md", *(path for path in sorted((ROOT / "docs").rglob("*.md")) if "reference" not in path.parts)]
PAGES = [path for path in PAGES if "example" not in path.parts]  # a report is no text of ours
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in PAGES}
COMMAND = re.compile(r"(?:\w+=\S+ )*(?:python train\.py|(?:python -m )?cnnlab|torchrun \S+ train\.py)(?: |$)")
SCRIPT = re.compile(r"python (?:((?:benchmarks|study|tools)/\w+\.py)|-m (study|tools\.\w+))\b([^`\n]*)")
CHOSEN = (*GROUPS, *OVERLAYS, "trainer", "logger", "launcher", "hydra/sweeper")
BLOCK = re.compile(r'^```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
FILE = re.compile(r"(?:cnnlab|conf|docs|tests|benchmarks|examples|study|tools|hydra_plugins)/[\w./-]*")


def blocks(text: str) -> Iterator[tuple[str, str, str]]:
    """The fenced blocks of a page: language, the file that it is, and what it says."""
    for language, title, content in BLOCK.findall(text):
        named = title or next(iter(re.findall(r"\A# (\S+/\S+\.(?:py|yaml))\n", content)), "")
        yield language, named, content


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^(```.*?^```|    .*?)$", "", text, flags=re.DOTALL | re.MULTILINE)


def spans(text: str) -> list[str]:
    """What stands between backticks, outside blocks."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(text))]


def commands() -> Iterator[tuple[str, str, str]]:
    """Every command of train.py and cnnlab: its page, itself, and what is shown below it, if it begins with a $."""
    for page, text in TEXTS.items():
        lines = [*text.replace("\\\n", " ").splitlines(), ""]
        for line, following in pairwise(lines):
            if line.startswith("    ") and COMMAND.match(found := line.strip().removeprefix("$ ")):
                yield page, found, following.strip() if line.strip().startswith("$ ") else ""
        yield from ((page, span, "") for span in spans(text) if COMMAND.match(span))


COMMANDS = list({(command, answer): (page, command, answer) for page, command, answer in commands()}.values())


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what commands name, and two projects: what README.md shows, and what docs/ shows."""
    folder = tmp_path_factory.mktemp("docs")
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / "FOLDER" / part / name).mkdir(parents=True)
            for number in range(100):
                Image.new("RGB", (32, 32), (number, 0, 0)).save(folder / "FOLDER" / part / name / f"{number}.png")
    for source in ("readme", "docs"):
        for page, text in TEXTS.items():
            for _, named, content in blocks(text) if (page == "README.md") == (source == "readme") else ():
                if named:
                    path = folder / source / named.replace("own/", f"own_{source}/")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(content.replace("own.", f"own_{source}."))
    (folder / "FILE").touch()
    (folder / "resnet18.pt").touch()
    checkpoints = folder / "outputs" / "runs" / "RUN" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "best.ckpt.sha256").write_text(f"{'0' * 64}  best.ckpt\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CNNLAB_CONF", "")
        patch.setattr(sys, "path", [*sys.path])
        confs = [folder / "docs" / "conf", folder / "readme" / "conf", ROOT / "examples" / "own_project" / "conf"]
        confs.append(folder / "my_project" / "conf")
        make(folder / "my_project")
        use_folders([str(conf) for conf in confs])
        yield folder


@pytest.fixture(autouse=True)
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(project)


def compose(overrides: list[str]) -> None:
    """Check what follows train.py as it is checked before training; of a sweep, the first and the last run."""
    check_overrides(overrides)
    overrides = [word for word in overrides if not re.search(r"=(tag|interval|choice)\(", word)]
    parsed = OverridesParser.create().parse_overrides(overrides)
    jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    for job in {tuple(jobs[0]), tuple(jobs[-1])}:
        checked(tuple(job))


@functools.cache
def checked(job: tuple[str, ...]) -> None:
    check(configuration(list(job)))


@pytest.mark.parametrize(("page", "command", "answer"), COMMANDS, ids=lambda value: str(value)[:100])
def test_a_command_is_right(page, command, answer):
    words = shlex.split(command.replace("aug=NAME", "aug=cutmix"), comments=True)
    start = next(number for number, word in enumerate(words) if word in ("train.py", "cnnlab"))
    program, words = words[start], words[start + 1 :]
    if program == "cnnlab" and words[:1] != ["train"]:
        if words in (["VERB"], []) or (len(words) == 1 and words[0] in reference.verbs()):  # only named
            return
        arguments = parser().parse_args(words)
        overrides = getattr(arguments, "overrides", [])
        words = [] if words[0] == "evaluate" or not all("=" in word for word in overrides) else overrides  # a run
    words = words[1:] if program == "cnnlab" and words[:1] == ["train"] else words
    if "--config-dir" in words:
        at = words.index("--config-dir")
        del words[at : at + 2]
    flags = {word for word in words if word.startswith("-")}
    assert flags <= {"-m", "--help", "--cfg"}, f"{page}: {flags}"
    if flags & {"--help", "--cfg"}:
        return
    overrides = [word for word in words if word not in flags]
    if not answer:
        compose(overrides)
        return
    with pytest.raises(Exception) as told:  # noqa: PT011, Hydra's own or ours: what is said is compared
        compose(overrides)
    assert f"cnnlab: {explain(told.value)}".startswith(answer.split("...")[0].rstrip(", "))


def known() -> tuple[dict[str, set[str]], set[str]]:
    """Options by group, and every key that can be set."""
    groups = {group: set(files(group)) for group in CHOSEN}
    keys = {name for name, _ in leaves_of(option_file("train"))}
    for group, names in groups.items():
        for name in names:
            content = option_file(f"{group}/{name}")
            if group in OVERLAYS:
                continue
            prefix = f"{group}.{name}" if group in LISTED else group.replace("/", ".")
            keys |= {f"{prefix}.{key}" for key, _ in leaves_of(content)}
    return groups, keys


@pytest.mark.parametrize("page", TEXTS)
def test_options_that_are_named_exist(page):
    groups, keys = known()
    for span in spans(TEXTS[page]):
        found = re.fullmatch(r"'?\+?([a-z_/]+(?:\.\w+)*)=(\S+?)'?", span)
        if not found:
            continue
        key, value = found.groups()
        if key in groups and key != "metrics":
            names = set(re.split(r"[][,]+", value)) - {"", "NAME", "addam"}
            assert names <= groups[key] | {"null"}, f"{page}: {span}"
        elif key.partition(".")[0] in groups and page != "docs/faults.md":  # whose tests have options of their own
            assert key in keys or span.startswith(("+", "'+")) or key in groups, f"{page}: {span}"


@pytest.mark.parametrize("page", TEXTS)
def test_files_and_targets_that_are_named_exist(page):
    text = TEXTS[page]
    shown = {named for other in TEXTS.values() for _, named, _ in blocks(other)}
    for span in spans(text):
        if FILE.fullmatch(span) and span not in shown:
            assert (ROOT / span).exists() or span.startswith("docs/reference"), f"{page}: {span}"
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        path = ((ROOT / page).parent / link).resolve()
        assert path.exists() or path.parent.name == "reference", f"{page}: {link}"
        assert page == "README.md" or ROOT / "docs" in path.parents, f"{page}: {link} is not part of the site"
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:^    |`)make (\w+)", text, re.MULTILINE)) - {"install"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page}: make {target}"


@pytest.mark.parametrize("page", TEXTS)
def test_other_scripts_have_the_flags_that_are_shown_and_extras_exist(page):
    text = TEXTS[page].replace("\\\n", " ")
    for script, module, words in SCRIPT.findall(text):
        path = ROOT / (script or f"{module.replace('.', '/')}{'/__main__' * (module == 'study')}.py")
        source = path.read_text(encoding="utf-8")
        for flag in re.findall(r"--[\w-]+", words):
            assert f'"{flag}"' in source, f"{page}: {path.name} {flag}"
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for extras in re.findall(r"'(?:cnnlab|\.)\[([\w,]+)\]'", text):
        assert set(extras.split(",")) <= set(offered), f"{page}: {extras}"


def test_every_file_of_the_layout_exists():
    ours = [ROOT, *(ROOT / name for name in ("cnnlab", "tests", "benchmarks", "tools", "study", "hydra_plugins"))]
    for name in re.findall(r"[\w/]+\.py", TEXTS["docs/contributing.md"]):
        assert any([*folder.glob(name), *folder.glob(f"*/{name}")] for folder in ours), name


@pytest.mark.parametrize("page", TEXTS)
def test_code_can_be_read(page):
    for language, named, content in blocks(TEXTS[page]):
        if language == "python":
            ast.parse(content)
        elif language == "yaml":
            assert named, f"{page}: a file without a name"
            assert isinstance(yaml.safe_load(content), dict)


SMALL = "data.num_train=100 data.num_test=20 trainer.accelerator=cpu logger=none batch_size=20 debug=one_batch"
SHOWN = {  # what is trained with the classes that the pages show
    "README.md": "data=shapes model=tiny",
    "docs": "data=noise model=tiny loss=confident metrics=[acc,kappa] aug=invert norm=centered optim=asgd "
    "sched=polynomial callbacks=gradient_norm",
    "docs/howto/module.md": "data=noise module=denoiser model=hourglass metrics=none select_on=val/loss",
}


@pytest.mark.parametrize("source", SHOWN)
def test_the_code_that_is_shown_trains(source, project, tmp_path):
    first = "readme" if source == "README.md" else "docs"
    use_folders([str(project / first / "conf"), str(ROOT / "examples" / "own_project" / "conf")])
    job = Job.of(configuration([*SHOWN[source].split(), *SMALL.split(), f"output_dir={tmp_path}"]))
    assert job.do() == 0
    from cnnlab.runs.directory import RunDirectory

    assert RunDirectory(job.path).summary()["status"] == "done"
    if source == "docs":
        assert "train/grad_norm" in RunDirectory(job.path).metrics()[-1], "a callback of one's own logs a metric"


def test_cnnlab_lists_its_verbs_and_says_its_version(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cnnlab"])
    cli.main()
    assert set(reference.verbs()) <= set(capsys.readouterr().out.split())
    monkeypatch.setattr(sys, "argv", ["cnnlab", "--version"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert (ended.value.code, capsys.readouterr().out) == (0, f"cnnlab {cnnlab.__version__}\n")


def test_native_windows_is_refused_in_one_sentence(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit, match=r"^cnnlab runs on Linux, macOS and WSL, not on native Windows\. [^.]*\.$"):
        runpy.run_path(cnnlab.__file__)


def test_the_reference_has_every_option_and_every_command():
    options = reference.options()
    for path in CONF.rglob("*.yaml"):
        name = f"{path.parent.relative_to(CONF)}={path.stem}"
        assert path.stem == "train" or f"### {name}\n" in options, name
        assert path.stem == "train" or reference.head(path), f"{name} does not begin with a comment"
    assert "`optim.lr`" in options
    assert "`padding_mode in ('reflect', 'constant')`" in options
    verbs = re.findall(r"^## (\w+)$", reference.commands(), re.MULTILINE)
    assert verbs == list(reference.verbs())


def test_the_site_is_built_and_its_links_are_right(tmp_path):
    pytest.importorskip("zensical")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    reference.write(tmp_path / "docs" / "reference")
    result = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "padding_mode" in (tmp_path / "site" / "reference" / "options" / "index.html").read_text()
