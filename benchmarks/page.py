"""Fills the tables of docs/speed.md with what benchmarks/results holds: `python benchmarks/page.py`.

A table stands below its mark, up to the next empty line:

    <!-- ratios: NAME NAME ... -->    every ratio of `table.py`, a column for each of the results
    <!-- median: NAME NAME ... -->    the same, with median and range over the results in their place
    <!-- rates: NAME NAME ... -->     images per second of cnnlab, the limit and the peers, a column for each
"""

import json
import re
from collections.abc import Callable, Sequence
from statistics import median

from table import ROOT, ROWS, Numbers

from cnnlab.report.page import markdown_table
from cnnlab.runs.files import write_text

PAGES = (ROOT / "docs" / "speed.md",)


def ratios(results: Sequence[Numbers]) -> list[list[str]]:
    table = [["", *map(heading, results), "aim"]]
    for _, name, _, *aims in ROWS:
        values = [result["ratios"].get(name) for result in results]
        table.append([name, *("" if of is None else f"{median(of):.3g}" for of in values), aims[on_gpu(results)]])
    return table


def medians(results: Sequence[Numbers]) -> list[list[str]]:
    table = [["", "median", "range", "aim"]]
    for _, name, _, *aims in ROWS:
        values = [median(result["ratios"][name]) for result in results if name in result["ratios"]]
        spread = f"{min(values):.3g} to {max(values):.3g}"
        table.append([name, f"{median(values):.3g}", spread, aims[on_gpu(results)]])
    return table


def rates(results: Sequence[Numbers]) -> list[list[str]]:
    found = [{name: rate(result, name) for name in result["rounds"]["training"][0]} for result in results]
    return [
        ["images/s", *map(heading, results)],
        *([name, *(f"{column[name]:,.0f}" for column in found)] for name in found[0]),
    ]


def rate(result: Numbers, name: str) -> float:
    """Images per second: the median over rounds of that over epochs."""
    return median(median(of_round[name]) for of_round in result["rounds"]["training"])


def on_gpu(results: Sequence[Numbers]) -> bool:
    return results[0]["device"] != "cpu"


def heading(result: Numbers) -> str:
    return result["finished"][:16].replace("T", " ")


KINDS: dict[str, Callable[[Sequence[Numbers]], list[list[str]]]] = {
    "ratios": ratios,
    "median": medians,
    "rates": rates,
}


def filled(text: str) -> str:
    """A page's text with its tables as they should be."""

    def table(mark: re.Match[str]) -> str:
        folder = ROOT / "benchmarks" / "results"
        results = [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in mark["names"].split()]
        return f"{mark[0].splitlines()[0]}\n{markdown_table(KINDS[mark['kind']](results))}\n"

    return re.sub(r"<!-- (?P<kind>\w+): (?P<names>[^>]+) -->\n(?:\|.*\n)*", table, text)


def main() -> None:
    for path in PAGES:
        write_text(path, filled(path.read_text(encoding="utf-8")))
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
