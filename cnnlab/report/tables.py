"""The tables of a report."""

from __future__ import annotations

import math
import re
import shlex

from cnnlab.report.sweep import Sweep, with_interval

MOST_CLASSES = 40  # in a table


def ranking_table(sweep: Sweep) -> list[list[str]]:
    """Head and rows: the settings, best first."""
    head = [*sweep.axes, sweep.name, "95% interval", "n", "behind the best", "best epoch", "seconds"]
    rows = [head]
    for place in sweep.ranking:
        score = place.score
        interval = f"{score.low:.4f} to {score.high:.4f}" if score.num > 1 else "one run"
        behind = ""
        if place.to_best:
            gap = place.to_best.estimate
            behind = f"{gap.mean:.4f}" + (f" ± {gap.half_width:.4f}" if math.isfinite(gap.half_width) else "")
            behind += "" if place.to_best.distinguishable or score.num < 2 else " (not told apart)"
        values = [place.setting.value(axis) for axis in sweep.axes]
        last = (str(score.num), behind, place.best_epochs(), f"{place.seconds():.0f}")
        rows.append([*values, f"{score.mean:.4f}", interval, *last])
    return rows


def effects_table(sweep: Sweep, axis: str) -> list[list[str]]:
    rows = [[axis, f"mean {sweep.name}", "difference to the first", "p"]]
    for effect in sweep.effects(axis):
        change, p_value = "", ""
        if effect.to_first:
            gap = effect.to_first.estimate
            change = f"{gap.mean:+.4f}" + (f" ± {gap.half_width:.4f}" if math.isfinite(gap.half_width) else "")
            p_value = f"{effect.to_first.p_value:.2g}" if math.isfinite(effect.to_first.p_value) else "-"
        rows.append([effect.value, with_interval(effect.score), change, p_value])
    return rows


def runs_table(sweep: Sweep) -> list[list[str]]:
    """Every run, in any state."""
    names = list(dict.fromkeys(name for run in sweep.runs for name in run.settings))
    metrics = list(dict.fromkeys(name for run in sweep.runs for name in run.summary.get("metrics", {})))
    rest = ("best_epoch", "epochs_done", "train_seconds", "images_per_second", "num_weights")
    rows = [["run", "status", "seed", *names, *metrics, *rest]]
    for run in sweep.runs:
        summary = run.summary
        rows.append(
            [
                str(summary["run"]),
                str(summary["status"]),
                str(run.seed),
                *(run.settings.get(name, "") for name in names),
                *(str(summary.get("metrics", {}).get(name, "")) for name in metrics),
                *(str(summary.get(name, "")) for name in rest),
            ]
        )
    return rows


def per_class_table(sweep: Sweep) -> list[list[str]]:
    """For the best setting: the accuracy of each class, the worst MOST_CLASSES, and what it is confused with."""
    matrix = sweep.confusion().tolist()
    classes = sweep.ranking[0].setting.runs[0].summary["data"]["classes"]
    rows = []
    for true, counts in enumerate(matrix):
        wrong = [(count, other) for other, count in enumerate(counts) if other != true]
        count, other = max(wrong)
        taken = f"{classes[other]} ({count / max(sum(counts), 1):.1%})" if count else "-"
        rows.append((counts[true] / max(sum(counts), 1), classes[true], taken))
    return [
        ["class", "accuracy", "most often confused with"],
        *([name, f"{acc:.4f}", taken] for acc, name, taken in sorted(rows)[:MOST_CLASSES]),
    ]


NOT_AGAIN = ("seed", "launcher", "rerun", "plan", "on_busy")  # words that do not belong to a setting


def commands(sweep: Sweep) -> list[str]:
    """What trains each setting again, with all its seeds."""
    found = []
    for place in sweep.ranking:
        runs = place.setting.runs
        words = [word for word in runs[0].summary.get("overrides", []) if re.split(r"[.=]", word)[0] not in NOT_AGAIN]
        seeds = ",".join(str(seed) for seed in sorted(run.seed for run in runs))
        sweeping = ["-m"] if len(runs) > 1 else []
        found.append(" ".join(["python train.py", *sweeping, *map(shlex.quote, words), f"seed={seeds}"]))
    return found


def facts(sweep: Sweep) -> list[list[str]]:
    """Versions, devices, commits and data of the runs."""
    rows = [["what", "of the runs"]]
    for title, part, keys in (
        ("", "environment", ("device", "precision", "num_devices", "python", "torch", "lightning", "commit", "dirty")),
        ("data ", "data", ("fingerprint", "num_train", "num_held_out", "num_test", "input_size")),
    ):
        for key in keys:
            values = {str(run.summary.get(part, {}).get(key, "-")) for run in sweep.runs if run.done}
            rows.append([f"{title}{key}", ", ".join(sorted(values))])
    rows.append(["code digest", ", ".join(sorted({str(run.summary.get("code_digest"))[:16] for run in sweep.runs}))])
    return rows


def outside(sweep: Sweep) -> list[str]:
    """What is not in the averages, and why."""
    lines = []
    for run in sweep.unfinished:
        status = {"running": "not finished (running, or killed)"}.get(run.summary["status"], run.summary["status"])
        error = run.summary.get("error", {})
        reason = f": {error.get('type', 'error')}: {error.get('message', '')}" if error else ""
        lines.append(f"{run.path.name}: {status}{reason}")
    return lines + [f"{path}: left out: {reason}" for path, reason in sweep.left_out]
