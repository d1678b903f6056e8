"""The benchmark of attention runs, and its page says what was measured."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
import torch

from tests.programs import run_program
from videoattn.kernels.offsets import is_compiled

ROOT = Path(__file__).parents[2]


def run(*arguments: str, script: str = "attention.py") -> subprocess.CompletedProcess[str]:
    return run_program(f"benchmarks/{script}", *arguments)


@pytest.mark.slow
@pytest.mark.skipif(not is_compiled(), reason="no C++ compiler on this machine")
def test_contenders_take_turns_and_are_written_down(tmp_path: Path) -> None:
    out = tmp_path / "attention.json"
    chosen = ["compiled", "masked", "multiplied", "compiled, zero_logit", "in place"]
    done = run("--lengths", "196", "--frames", "8", "--contenders", *chosen, "--rounds", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert figures["joint"]["196"].keys() == {"dense", "masked", "multiplied", "compiled", "compiled, zero_logit"}
    assert figures["time"]["8"].keys() == {"dense", "in place", "compiled"}
    assert figures["joint"]["196"]["dense"]["train"]["times_as_fast"] == 1
    assert figures["joint"]["196"]["compiled"]["ran"] == "videoattn::offset_attention"
    assert all(row["forward"]["ms"] > 0 for row in figures["joint"]["196"].values())


def test_wrong_arguments_are_answered_in_one_line() -> None:
    done = run("--rounds", "0")
    assert done.returncode == 2 and "expect 1 or more, got 0" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_tuning_says_that_it_needs_a_gpu() -> None:
    done = run(script="tune_triton.py")
    assert done.returncode == 2 and "needs a GPU" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.gpu
def test_tuning_names_the_fastest_launch_of_each_kernel(tmp_path: Path) -> None:
    out = tmp_path / "tune.json"
    done = run("--lengths", "196", "--out", str(out), script="tune_triton.py")
    assert done.returncode == 0, done.stderr
    best = json.loads(out.read_text())["best"]["196"]
    assert best.keys() == {"forward", "by_query", "by_key"}
    assert all(0 < row["fastest"]["ms"] <= row["in use"]["ms"] for row in best.values())


def test_the_page_has_what_was_measured() -> None:
    spec = importlib.util.spec_from_file_location("write_performance", ROOT / "docs/write_performance.py")
    assert spec is not None and spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    assert writer.fill(page) == page
    assert all(len(line) <= 120 or line.startswith("|") for line in page.splitlines())
    with pytest.raises(ValueError, match="no results"):
        writer.fill("<!-- table: tpu_forward -->\n<!-- end of table -->")
