#!/usr/bin/env python3
"""Put what benchmarks/swap.py has measured into docs/swap.md, between marker comments.

Examples:
    python docs/write_swap.py
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from videoattn.cli.run_tool import run_tool
from videoattn.files import atomic_write

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/swap.md"
RESULTS = ROOT / "benchmarks/results/swap_cpu.json"
MARKED = re.compile(r"(<!-- table: (swap_\w+)[^\n]*-->\n).*?(<!-- end of table -->)", re.DOTALL)
TASKS = {
    "divided_short": "divided, short clips, along time",
    "divided_long": "divided, long clips, along time",
    "joint_short": "joint, short clips",
}


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    text = fill(PAGE.read_text(encoding="utf-8"), json.loads(RESULTS.read_text()))
    with atomic_write(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"written: {PAGE}")


def fill(page: str, results: dict[str, Any]) -> str:
    """Return the page with its tables made anew from the results."""
    return MARKED.sub(lambda match: f"{match[1]}{TABLES[match[2]](results['runs'])}\n{match[3]}", page)


def swapped_table(runs: Sequence[dict[str, Any]]) -> str:
    """Return top-1 without gradients, as a mean over seeds, and the points lost in the worst of them."""
    titles = ["model", "method", "dense", "no dense heads", "a quarter", "half"]
    rows = []
    for task, title in TASKS.items():
        own = [run for run in runs if run["task"] == task]
        for method in dict.fromkeys(point["method"] for run in own for point in run["points"]):
            cells = []
            for budget in (0.0, 0.25, 0.5):
                points = [find(run["points"], method, budget)["calibrated"] for run in own]
                lost = max(run["dense"] - top1 for run, top1 in zip(own, points, strict=True))
                cells.append(f"{show(mean(points))} (worst: -{100 * max(lost, 0):.2f})")
            rows.append([title, method, show(mean(run["dense"] for run in own)), *cells])
    return markdown(titles, rows)


def controls_table(runs: Sequence[dict[str, Any]]) -> str:
    """Return top-1 with attention that mixes nothing, or all tokens alike, in place of the swapped one."""
    rows = []
    for task, title in TASKS.items():
        own = [run for run in runs if run["task"] == task]
        cells = [show(mean(run["controls"][name]["calibrated"] for run in own)) for name in ("self only", "uniform")]
        rows.append([title, ", ".join(show(run["dense"]) for run in own), *cells])
    return markdown(["model", "dense, by seed", "self only", "uniform"], rows)


def tuned_table(runs: Sequence[dict[str, Any]]) -> str:
    """Return top-1 by seed after a tenth of the training's steps."""
    rows = []
    for task, title in TASKS.items():
        own = [run for run in runs if run["task"] == task and "fine_tuned" in run]
        cells = [
            ", ".join(show(find(run["fine_tuned"], method, budget)["top1"]) for run in own)
            for method, budget in (("dense", 0.0), ("fibonacci, mean_logit", 0.0), ("fibonacci, mean_logit", 0.25))
        ]
        rows.append([title, ", ".join(show(run["dense"]) for run in own), *cells])
    return markdown(
        ["model", "dense before", "dense, trained on", "fibonacci, no dense heads", "a quarter dense"], rows
    )


TABLES: dict[str, Callable[[Sequence[dict[str, Any]]], str]] = {
    "swap_points": swapped_table, "swap_controls": controls_table, "swap_tuned": tuned_table,
}  # fmt: skip


def find(points: Sequence[dict[str, Any]], method: str, budget: float) -> dict[str, Any]:
    return next(point for point in points if point["method"] == method and point["budget"] == budget)


def show(share: float) -> str:
    return f"{100 * share:.2f}"


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [titles, ["---"] * len(titles), *rows])


if __name__ == "__main__":
    sys.exit(run_tool(main))
