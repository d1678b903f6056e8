"""A run writes strict JSON lines, and errors where the run's other lines are."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from videoattn.cli.run_tool import INTERRUPTED, USER_ERROR, run_tool
from videoattn.engine.log import RunLog, set_up_logging


def refuse(constant: str) -> Any:
    raise AssertionError(f"{constant} is not JSON")


def test_numbers_that_json_does_not_have_are_null_and_named_beside(tmp_path: Path) -> None:
    log = RunLog(tmp_path, tensorboard=True)
    nan, inf = math.nan, math.inf
    log.write("train", step=3, loss=nan, grad_norm=inf, lr=0.5, laps=[1.0, -inf], best={"top1": nan})
    log.close()
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    event = json.loads(line, parse_constant=refuse)
    assert (event["loss"], event["grad_norm"], event["lr"]) == (None, None, 0.5)
    assert (event["laps"], event["best"]) == ([1.0, None], {"top1": None})
    assert event["non_finite"] == {"loss": "nan", "grad_norm": "inf", "laps.1": "-inf", "best.top1": "nan"}
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_line_of_finite_numbers_has_no_further_field(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write("epoch", step=1, top1=None, loss=1.5)
    log.close()
    event = json.loads((tmp_path / "log.jsonl").read_text())
    assert event.keys() == {"event", "time", "step", "top1", "loss"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_names_the_log_and_closing_it_says_no_more(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    log = RunLog(tmp_path)
    with pytest.raises(OSError, match=r"can't write .*log\.jsonl: No space left"):
        log.write("train", step=1)
    log.close()


@pytest.mark.parametrize(
    "error, status, line",
    [
        (ValueError("no such key"), USER_ERROR, "error: no such key"),
        (OSError("disk full"), USER_ERROR, "error: disk full"),
        (FloatingPointError("diverged"), USER_ERROR, "error: diverged"),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_ends_a_tool_stands_in_its_run_log(
    tmp_path: Path, error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: Sequence[str] | None) -> None:
        set_up_logging(tmp_path)
        raise error

    assert run_tool(main) == status
    assert (tmp_path / "run.log").read_text().rstrip().endswith(line)
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", f"{line}\n")


def test_a_fault_of_the_program_keeps_its_traceback_and_stands_in_the_run_log(tmp_path: Path) -> None:
    def main(argv: Sequence[str] | None) -> None:
        set_up_logging(tmp_path)
        {}["key"]  # noqa: B018

    with pytest.raises(KeyError):
        run_tool(main)
    assert "KeyError: 'key'" in (tmp_path / "run.log").read_text()


def test_a_tool_does_not_write_into_the_log_of_the_one_before(tmp_path: Path) -> None:
    def first(argv: Sequence[str] | None) -> None:
        set_up_logging(tmp_path)

    def second(argv: Sequence[str] | None) -> None:
        raise ValueError("mine")

    assert (run_tool(first), run_tool(second)) == (0, USER_ERROR)
    assert (tmp_path / "run.log").read_text() == ""
