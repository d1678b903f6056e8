"""docs/swap.md: its tables are what benchmarks/swap.py has measured."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))

import write_swap as writer  # noqa: E402


def test_the_tables_are_those_of_the_results() -> None:
    page, results = writer.PAGE.read_text(encoding="utf-8"), json.loads(writer.RESULTS.read_text())
    assert {match[2] for match in writer.MARKED.finditer(page)} == set(writer.TABLES)
    assert writer.fill(page, results) == page


def test_the_results_have_three_seeds_of_each_model() -> None:
    runs = json.loads(writer.RESULTS.read_text())["runs"]
    assert {(run["task"], run["seed"]) for run in runs} == {(task, seed) for task in writer.TASKS for seed in range(3)}
