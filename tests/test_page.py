"""The forms of a report: what is in each of them, what strangers cannot do to them, and the page in Chromium."""

import base64
import hashlib
import html.parser
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BROWSER
from PIL import Image
from test_report import make_run, sweep_of

from cnnlab.report import charts, page
from cnnlab.report.figures import DRAW
from cnnlab.report.runs import find
from cnnlab.report.sections import document
from cnnlab.report.trials import importances
from cnnlab.runs.files import write_text


def grid(folder: Path, **more: Any) -> Path:
    """Two by two settings with three seeds; adam is better by 10 points, cutmix worse by 5."""
    for seed, noise in enumerate((0.0, 0.01, -0.01)):
        for optim, gain in (("sgd", 0.0), ("adam", 0.1)):
            for aug, loss in (("none", 0.0), ("cutmix", 0.05)):
                make_run(folder, seed, 0.6 + gain - loss + noise, {"optim": optim, "aug": aug}, **more)
    best = next(path for path in find([folder]) if "none-adam" in path.name)
    Image.fromarray(np.zeros((30, 80, 3), dtype=np.uint8)).save(best / "mistakes.png")
    return folder


def search(folder: Path, num: int = 12) -> Path:
    """Trials over a rate, which matters, a dropout, which does not, and an optimizer."""
    for trial in range(num):
        lr, dropout = 10 ** (-4 + 3 * trial / num), round(0.05 * (trial * 7 % num), 2)
        changes = {"optim.lr": float(f"{lr:.3g}"), "model.dropout": dropout}
        make_run(folder, 0, 0.5 + 0.4 * trial / num, {"optim": ("sgd", "adam")[trial % 2]}, changes=changes)
    return folder


class Parsed(html.parser.HTMLParser):
    """Elements of a page by their name, each with its attributes and the text that follows its start."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}", {}, ""))

    def handle_data(self, data: str) -> None:
        if self.elements:
            tag, attributes, text = self.elements[-1]
            self.elements[-1] = tag, attributes, text + data

    def named(self, *tags: str) -> list[tuple[str, dict[str, str | None], str]]:
        return [element for element in self.elements if element[0] in tags]


# --------------------------------------------------------------------------------------------------------------- forms


def test_files_of_a_report(tmp_path):
    written = page.write_beside(sweep_of(grid(tmp_path)), list(find([tmp_path])), latex=True)
    folder = written.parent
    assert re.fullmatch("report-aug=cutmix[+]none-optim=adam[+]sgd-[0-9a-f]{8}", folder.name)
    assert folder.parent == tmp_path
    assert (tmp_path / "latest").readlink() == Path(folder.name)
    markdown, tex = (folder / "report.md").read_text(), (folder / "report.tex").read_text()
    assert "| none | adam | 70.00 |" in markdown
    assert r"none & adam & 70.00" in tex
    assert "python train.py -m data=shapes norm=none aug=none optim=adam seed=0,1,2" in markdown
    shown = re.findall(r"!\[[\w-]+\]\((.*?)\)", markdown)
    assert shown == ["ranking.png", "curves.png", "interaction.png", "confusion.png", "mistakes.png"]
    assert re.findall(r"\\includegraphics\[width=\\linewidth\]\{(.*?)\}", tex) == shown
    for name in shown:
        with Image.open(folder / name) as image:
            assert min(image.size) >= 30
    rows = (folder / "runs.csv").read_text().splitlines()
    assert len(rows) == 13
    assert rows[0].startswith("run,status,seed,data,norm,aug,optim")
    assert len(list(find([tmp_path]))) == 12  # a report is no run


def test_all_forms_have_the_same_sections_tables_and_figures(tmp_path):
    made = document(sweep_of(grid(tmp_path)))
    titles = [section.title for section in made.sections]
    parsed = Parsed(page.html(made))
    assert [text for *_, text in parsed.named("h2")] == titles
    assert re.findall("^## (.*)$", page.markdown(made), re.MULTILINE) == titles
    assert re.findall(r"^\\subsection\*\{(.*)\}$", page.tex(made), re.MULTILINE) == titles
    assert titles[:3] == ["Ranking", "Which images and which epoch", "How settings are compared"]
    assert {"Interaction", "Runs", "Commands", "Provenance"} <= set(titles)
    tables = [block for section in made.sections for block in section.blocks if block.kind == "table"]
    assert len(parsed.named("table")) == page.markdown(made).count("| --- |\n") == page.tex(made).count(r"\toprule")
    assert len(parsed.named("table")) == len(tables)
    assert len(parsed.named("figcaption")) == len(made.figures())


def test_the_page_is_one_file_that_asks_for_nothing_else(tmp_path):
    text = page.html(document(sweep_of(grid(tmp_path))))
    assert len(text) < 2_000_000
    parsed = Parsed(text)
    loaded = [attributes.get("src") for *_, attributes, _ in parsed.named("img", "script")]
    assert all(source is None or source.startswith("data:image/png;base64,") for source in loaded)
    assert len([source for source in loaded if source]) == 1  # the mistakes
    links = [attributes["href"] for *_, attributes, _ in parsed.named("a", "link")]
    assert all(re.match(r"#section-|data:|runs\.csv$|[\w.]", link) and ":" not in link[5:] for link in links)
    [policy] = [a["content"] for *_, a, _ in parsed.named("meta") if "content" in a and "http-equiv" in a]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    for *_, attributes, script in parsed.named("script"):
        if "type" not in attributes:
            assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy


def test_the_plotting_library_is_the_published_one():
    file = page.TEMPLATES / "echarts" / "echarts.min.js"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == page.ECHARTS_SHA256
    text = file.read_text()
    assert "Licensed to the Apache Software Foundation (ASF)" in text[:100]
    assert f'.version="{page.ECHARTS_VERSION}"' in text
    assert "Apache License" in (file.parent / "LICENSE").read_text()
    assert "Apache Software Foundation" in (file.parent / "NOTICE").read_text()


def test_the_folder_of_a_long_comparison_names_only_what_is_varied_and_latest_moves_on(tmp_path):
    first = page.write_beside(sweep_of(grid(tmp_path)), list(find([tmp_path])))
    for seed in range(3):
        make_run(tmp_path, seed, 0.7, {"optim": "../" + "x" * 80, "aug": "none"}, changes={"optim.lr": 0.5})
    second = page.write_beside(sweep_of(tmp_path), list(find([tmp_path])))
    assert second.parent.name.startswith("report-aug-optim-lr-")
    assert first.parent != second.parent
    assert (tmp_path / "latest").resolve() == second.parent
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()  # not ours
    page.write_beside(sweep_of(tmp_path), list(find([tmp_path])))
    assert list((tmp_path / "latest").iterdir()) == []


def test_a_file_system_without_links_goes_without(tmp_path, monkeypatch):
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    page.write_beside(sweep_of(grid(tmp_path)), list(find([tmp_path])))
    assert not [path.name for path in tmp_path.iterdir() if "latest" in path.name]


def test_a_search_has_parallel_coordinates_and_importances(tmp_path):
    sweep = sweep_of(search(tmp_path))
    made = document(sweep)
    figures = {figure.name: figure.chart for figure in made.figures()}
    chart = figures["parallel"]
    assert chart is not None
    assert [part["name"] for part in chart["axes"]] == ["optim", "optim.lr", "model.dropout"]
    assert "10^" not in labels(figures["axis-1"])
    assert chart["lines"][0][1] == float(sweep.ranking[0].setting.value("optim.lr"))
    assert chart["lines"][0][3] == pytest.approx(100 * (0.5 + 0.4 * 11 / 12), rel=1e-4)
    found = importances(sweep)
    assert found is not None
    assert max(found, key=lambda axis: found[axis]) == "optim.lr"
    assert sum(found.values()) == pytest.approx(1)
    assert f"| optim.lr | {found['optim.lr']:.1%} |" in page.markdown(made)


def test_a_search_without_optuna_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert "Not computed: Optuna is not installed" in page.markdown(document(sweep_of(search(tmp_path))))


def test_long_tables_are_cut_in_text_and_whole_on_the_page(tmp_path):
    for number in range(page.MAX_ROWS + 40):
        make_run(tmp_path, 0, 0.5 + 1e-4 * number, changes={"optim.lr": 0.01 + 0.001 * number})
    made = document(sweep_of(tmp_path))
    num = page.MAX_ROWS + 40
    assert page.markdown(made).count(f"The first {page.MAX_TEXT_ROWS} of {num} rows; ") == 3
    parsed = Parsed(page.html(made))
    more = [json.loads(text) for *_, attributes, text in parsed.named("script") if attributes.get("class") == "more"]
    assert [len(rows) for rows in more] == [40] * 3
    [curves] = [figure.chart for figure in made.figures() if figure.name == "curves"]
    assert curves is not None
    assert len(curves["lines"]) == charts.MAX_SETTINGS
    assert sum(line["on"] for line in curves["lines"]) == charts.NUM_SHOWN


# ----------------------------------------------------------------------------------------------------------- strangers

HOSTILE = "</script><script>alert(1)</script>\u2028<img src=x onerror=alert(1)>${x}`|\\[a](http://x)*%\x1b[31m"


def hostile(folder: Path) -> Path:
    """Runs whose every text is an attack."""
    for seed in (0, 1):
        for number in (1, 2, 3):
            name = f"{HOSTILE}{number}".replace("/", "_")
            path = make_run(
                folder,
                seed,
                0.5 + 0.1 * number,
                changes={f"optim.{HOSTILE}": f"{HOSTILE}{number}", "model.x": number},
                overrides=[f"x={HOSTILE}"],
                data={"classes": [HOSTILE, "dog"], "task": "multiclass", "fingerprint": HOSTILE, "num_train": 90},
                run=f"{name}-{seed}",
            )
            path.rename(path.with_name(f"{name}-{seed}".replace("/", "_")))
    make_run(folder, 9, 0.1, status="failed", error={"type": HOSTILE, "message": HOSTILE}, metrics={})
    return folder


@pytest.mark.parametrize("rows_at_first", [page.MAX_ROWS, 1])
def test_text_of_strangers_is_text_in_every_form(tmp_path, monkeypatch, rows_at_first):
    monkeypatch.setattr(page, "MAX_ROWS", rows_at_first)
    made = document(sweep_of(hostile(tmp_path)), tmp_path / "report")
    text = page.html(made)
    parsed = Parsed(text)
    assert not [attributes for _, attributes, _ in parsed.elements if "onerror" in attributes]
    more = [content for *_, attributes, content in parsed.named("script") if attributes.get("class") == "more"]
    assert len(parsed.named("script")) == 1 + len(more) + len(page.SCRIPTS)
    assert (bool(more), "\\u001b" in "".join(more)) == (rows_at_first == 1, False)
    assert "alert(1)</script>" not in text
    assert "\u2028" not in text
    assert json.loads(parsed.named("script")[0][2])
    links = [attributes["href"] for *_, attributes, _ in parsed.named("a")]
    assert not [link for link in links if link and re.match(r"\s*[a-z]+:", link)]
    markdown = page.markdown(made)
    no_code = re.sub(r"^    .*$", "", markdown, flags=re.MULTILINE)
    assert not re.search(r"(?<!\\)<(script|img)", no_code)
    assert not re.search(r"(?<!\\)\]\(http", no_code)
    assert "\x1b" not in text + markdown + page.tex(made)
    assert not re.search(
        r"(?<!\\)[%$#_]", re.sub(r"^%.*$|\.png|[\\]includegraphics.*$", "", page.tex(made), flags=re.M)
    )


def test_a_file_that_is_no_picture_is_not_embedded(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("root:x:0:0")
    folder = grid(tmp_path / "runs")
    for path in find([folder]):
        (path / "mistakes.png").unlink(missing_ok=True)
        (path / "mistakes.png").symlink_to(secret)
    made = document(sweep_of(folder))
    assert "mistakes" not in {figure.name for figure in made.figures()}
    for path in find([folder]):
        (path / "mistakes.png").unlink()
        (path / "mistakes.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(2**20))  # too large
    assert "mistakes" not in {figure.name for figure in document(sweep_of(folder)).figures()}


# ------------------------------------------------------------------------------------------------------------- browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def shown(chromium: Any) -> Iterator[Any]:
    """Opens a page; at the end, nothing was said on the console and nothing was asked for but the file itself."""
    said: list[str] = []
    asked: list[str] = []
    contexts = []

    def show(path: Path, **settings: Any) -> Any:
        context = chromium.new_context(**({"viewport": {"width": 1200, "height": 900}} | settings))
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: said.append(dialog.message))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri())
        return tab

    yield show
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == len(contexts)


def labels(chart: dict[str, Any]) -> str:
    """What is written at the axis of a figure as PNG."""
    figure = DRAW[chart["kind"]](chart)
    figure.savefig(io.BytesIO())
    return " ".join(label.get_text() for label in figure.axes[0].get_xticklabels(which="both"))


def opened(runs: Path, folder: Path) -> Path:
    """The page of these runs, without the files beside it."""
    folder.mkdir()
    written = folder / "report.html"
    write_text(written, page.html(document(sweep_of(runs), folder)))
    return written


@pytest.fixture(scope="module")
def grid_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    return opened(grid(folder / "runs"), folder / "report")


def column(tab: Any, table: str, number: int) -> list[str]:
    return tab.locator(f"{table} tbody tr td:nth-child({number})").all_inner_texts()


@pytest.mark.browser
def test_tables_are_sorted_filtered_and_searched(grid_page, shown):
    tab = shown(grid_page)
    settings = "section:has(h2:text-is('Ranking'))"
    assert column(tab, settings, 3) == ["70.00", "65.00", "60.00", "55.00"]
    head = tab.locator(f"{settings} th", has_text="validation accuracy")
    head.locator("button").focus()
    tab.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(tab, settings, 3) == ["55.00", "60.00", "65.00", "70.00"]
    tab.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(tab, settings, 3)[0] == "70.00"
    tab.locator(f"{settings} .tools label", has_text="optim").locator("select").select_option("sgd")
    assert column(tab, settings, 2) == ["sgd", "sgd"]
    assert tab.locator(f"{settings} output").inner_text() == "2 of 4 rows"
    runs = "section:has(h2:text-is('Runs'))"
    assert len(column(tab, runs, 1)) == 12
    tab.locator(f"{runs} input[type=search]").fill("cutmix ADAM")
    assert set(column(tab, runs, 3)) == {"cutmix"}
    assert len(column(tab, runs, 1)) == 3
    link = tab.locator(f"{runs} tbody a").first.get_attribute("href")
    assert (grid_page.parent / link / "summary.json").exists()


@pytest.mark.browser
def test_charts_answer_the_mouse_and_their_controls(grid_page, shown):
    tab = shown(grid_page)
    curves = tab.locator(".chart.curves")
    assert tab.locator(".chart svg").count() == 4  # ranking, curves, interaction, confusion
    assert curves.locator("svg text", has_text="accuracy (%)").count() == 1

    def num_lines() -> int:
        return curves.locator("svg path[fill=none][stroke-width='1.8']").count()

    assert num_lines() == 8  # four settings, training and held out
    curves.get_by_label("training").uncheck()
    assert num_lines() == 4
    curves.locator(".key input").first.uncheck()
    assert num_lines() == 3
    curves.get_by_role("button", name="none").click()
    assert num_lines() == 0
    curves.get_by_role("button", name="all").click()
    curves.get_by_label("metric").select_option("loss")
    assert curves.locator("svg text", has_text="loss").count() == 1
    curves.get_by_label("log scale").check()
    assert num_lines() == 4
    box = curves.locator(".plot").bounding_box()
    curves.locator(".plot").hover(position={"x": box["width"] / 2, "y": 150})
    assert re.match(r"epoch 2\n", curves.locator(".tip").inner_text())
    assert "1.0000 (1.0000 to 1.0000)" in curves.locator(".tip").inner_text()
    heat = tab.locator(".chart.heat").first
    heat.locator("svg text", has_text="70.0").first.hover(force=True)
    assert "aug: none, optim: adam" in heat.locator(".tip").inner_text()


@pytest.mark.browser
def test_a_search_is_drawn_and_long_tables_grow(tmp_path, shown):
    tab = shown(opened(search(tmp_path / "runs", 240), tmp_path / "report"))
    lines = tab.locator(".chart.parallel svg path[stroke-opacity='0.7']")
    assert lines.count() == 240
    start = re.match(r"M([\d.]+) ([\d.]+)L", lines.first.get_attribute("d"))
    tab.locator(".chart.parallel .plot").hover(position={"x": float(start[1]) + 1, "y": float(start[2])})
    assert "model.dropout" in tab.locator(".chart.parallel .tip").inner_text()
    runs = "section:has(h2:text-is('Runs'))"
    assert len(column(tab, runs, 1)) == page.MAX_ROWS
    tab.locator(f"{runs} input[type=search]").fill("adam")
    assert tab.locator(f"{runs} output").inner_text() == "120 of 240 rows"
    assert len(column(tab, runs, 1)) == 120
    tab.locator(f"{runs} input[type=search]").fill("")
    tab.locator(f"{runs} .more-rows").click()
    assert len(column(tab, runs, 1)) == 240


@pytest.mark.browser
def test_a_long_table_without_filters_grows_too(tmp_path, shown):
    for place in range(210):
        make_run(tmp_path / "runs", 0, 0.5 + place / 1000, changes={"optim.lr": (place + 1) / 1000})
    tab, effect = shown(opened(tmp_path / "runs", tmp_path / "report")), "section:has(h2:text-is('Effect of optim.lr'))"
    assert len(column(tab, effect, 1)) == page.MAX_ROWS
    tab.locator(f"{effect} .more-rows").click()
    assert len(column(tab, effect, 1)) == 210


@pytest.mark.browser
def test_a_command_is_copied(grid_page, shown):
    tab = shown(grid_page, permissions=["clipboard-read"])
    command = tab.locator(".commands li").first
    command.get_by_role("button").click()
    command.get_by_role("button", name="Copied").wait_for()
    assert tab.evaluate("navigator.clipboard.readText()") == command.locator("code").inner_text()


@pytest.mark.browser
def test_the_page_fits_a_phone_the_dark_and_paper(grid_page, shown):
    phone = shown(grid_page, viewport={"width": 390, "height": 844})
    assert phone.evaluate("document.documentElement.scrollWidth") == 390
    dark = shown(grid_page, color_scheme="dark")
    assert dark.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 28)"
    cells = dark.locator(".chart.heat").last.locator("svg path[fill^=rgb]")
    assert min(min(map(int, re.findall(r"\d+", cells.nth(at).get_attribute("fill")))) for at in range(4)) < 60
    paper = shown(grid_page, color_scheme="dark")
    paper.evaluate("dispatchEvent(new Event('beforeprint'))")  # as the browser does, before it lays out the pages
    assert paper.locator(".chart.curves svg").get_attribute("width") == "660"
    assert paper.locator(".chart.curves svg text").first.get_attribute("fill") == "#1b1b1b"
    paper.evaluate("dispatchEvent(new Event('afterprint'))")
    assert paper.locator(".chart.curves svg text").first.get_attribute("fill") == "#e6e6e6"
    pdf = paper.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert len(pdf) > 20_000
    paper.emulate_media(media="print", color_scheme="light")
    assert not paper.locator(".tools").first.is_visible()
    assert paper.evaluate("getComputedStyle(document.querySelector('.swatch')).printColorAdjust") == "exact"


@pytest.mark.browser
def test_no_script_of_a_stranger_runs(tmp_path, shown):
    tab = shown(opened(hostile(tmp_path / "runs"), tmp_path / "report"))
    assert tab.locator("img[src=x]").count() == 0
    box = tab.locator(".chart.curves .plot").bounding_box()
    tab.locator(".chart.curves .plot").hover(position={"x": box["width"] / 2, "y": 150})
    assert "<img src=x onerror" in tab.locator(".chart.curves .tip").inner_text()
    assert tab.locator("img[src=x]").count() == 0
