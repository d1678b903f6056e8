"""The demo: it runs, its recipe is done well before its end, and the pages state what was measured."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from videoattn.config.load import changed_keys, dump_config, load_config

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benchmarks/results/motion_temporal.json").read_text())
RECIPE, SPACE_ONLY = "configs/Motion/demo.yaml", "configs/Motion/demo_space_only.yaml"


def runs_of(config: str) -> list[dict[str, Any]]:
    return [run for run in RESULTS["runs"] if run["config"] == config]


def percent(runs: list[dict[str, Any]]) -> tuple[str, str]:
    """The lowest and the highest top-1."""
    shares = [run["top1"] for run in runs]
    return f"{100 * min(shares):.1f}", f"{100 * max(shares):.1f}"


def test_five_seeds_are_above_95_percent_after_half_of_the_epochs() -> None:
    runs = runs_of(RECIPE)
    assert sorted(run["seed"] for run in runs) == [0, 1, 2, 3, 4]
    epochs = load_config(ROOT / RECIPE).solver.max_epoch
    for run in runs:
        assert len(run["top1_by_epoch"]) == epochs
        assert min([run["top1"], *run["top1_by_epoch"][(epochs + 1) // 2 - 1 :]]) > 0.95


def test_without_attention_along_time_the_recipe_stays_near_chance() -> None:
    runs = runs_of(SPACE_ONLY)
    assert runs and max(run["top1"] for run in runs) < RESULTS["chance"] + 0.05
    cfg, twin = (load_config(ROOT / path) for path in (RECIPE, SPACE_ONLY))
    changed = {key.split(".TIME")[0] for key in changed_keys(dump_config(cfg), dump_config(twin))}
    assert changed <= {"TIMESFORMER.ATTENTION_TYPE", "ATTENTION", "OUTPUT_DIR"}


@pytest.mark.parametrize("page", ["README.md", RECIPE])
def test_pages_state_the_range_that_was_measured(page: str) -> None:
    low, high = percent(runs_of(RECIPE))
    text = re.sub(r"\n#?\s*", " ", (ROOT / page).read_text(encoding="utf-8"))
    assert f"{low} to {high} %" in text
    assert RESULTS["machine"]["processor"] in text


@pytest.mark.parametrize("page", ["README.md", SPACE_ONLY])
def test_pages_state_what_the_recipe_without_attention_along_time_reached(page: str) -> None:
    low, high = percent(runs_of(SPACE_ONLY))
    text = re.sub(r"\n#?\s*", " ", (ROOT / page).read_text(encoding="utf-8"))
    assert f"{low} to {high} %" in text


@pytest.mark.slow
def test_the_quick_demo_runs_and_says_where_its_results_are(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tools/demo.py", "--quick", "--data", tmp_path / "clips", "--folder", tmp_path]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Top-1 on 8 validation videos" in done.stdout
    for path in re.findall(rf"^  .* ({re.escape(str(tmp_path))}\S+)$", done.stdout, re.MULTILINE):
        assert Path(path).exists()
