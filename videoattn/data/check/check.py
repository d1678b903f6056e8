"""Check of all videos of some lists before training, which finds in one pass what would fail or mislead there.

Training reads videos as they come, so a bad one is met late, and again in every epoch. `check_lists` probes every file
in worker processes (`probe.py`), keeps the results in OUT/probes.jsonl for the next run, derives the problems from them
(`table.py`) and writes the report (`report.py`).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videoattn.data.check.checked_list import CheckedList, Lengths, stated_lengths
from videoattn.data.check.probe import Probe, ProbeOptions, Prober, read_probe
from videoattn.data.check.report import Summary, summarize, write_results
from videoattn.data.check.table import ERRORS, CheckTable
from videoattn.data.workers.worker_pool import Failed, map_with_timeout

LOG_NAME = "probes.jsonl"


@dataclass(frozen=True)
class CheckOptions:
    """Options of a check: `fatal` kinds of problems make a video unusable; a file that exceeds `limit_seconds` hangs.

    `tolerance` is the share of its stated length by which a video may deviate; `lengths` says where lengths are stated.
    """

    probe: ProbeOptions = ProbeOptions()
    num_workers: int = 1
    limit_seconds: float = 60.0
    lengths: Lengths = "names"
    tolerance: float = 0.05
    fatal: frozenset[str] = field(default=frozenset(ERRORS))


def check_lists(
    lists: Sequence[CheckedList],
    folder: str | os.PathLike[str],
    options: CheckOptions = CheckOptions(),
    *,
    progress: bool = False,
) -> Summary:
    """Check the videos of all lists, write the results into `folder`, and return the summary.

    Files that an earlier check into the same folder probed with the same options, size and time of change are not
    opened again. Raises AnnotationError if a list does not state lengths as the options say.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with closing(CheckTable(options.fatal)) as table:
        for checked in lists:
            table.add_list(checked, stated_lengths(checked, options.lengths))
        table.add_probes(earlier_probes(folder / LOG_NAME, options.probe))
        probe_all(table, folder / LOG_NAME, options, progress)
        for checked in lists:
            table.find_problems(checked, in_frames=options.lengths == "frames", tolerance=options.tolerance)
        summary = summarize(table, lists, decode=options.probe.decode, backend=options.probe.decoding.backend)
        write_results(table, lists, summary, folder)
    return summary


def earlier_probes(log: Path, options: ProbeOptions) -> Iterator[Probe]:
    """Yield the probes of an earlier check, perhaps a stopped one; skip cut-off lines and those of other options."""
    if not log.exists():
        return
    with open(log, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            probe = read_probe(line)
            if probe is not None and probe.options == str(options):
                yield probe


def probe_all(table: CheckTable, log: Path, options: CheckOptions, progress: bool) -> None:
    """Probe files that are new or changed; each answer is logged before the next one is awaited."""
    from tqdm import tqdm

    number, tasks = table.tasks()
    answers = map_with_timeout(
        Prober(options.probe), tasks, num_workers=options.num_workers, limit_seconds=options.limit_seconds
    )
    num_bad = 0
    with (
        closing(answers),
        open_log(log) as lines,
        tqdm(total=number, desc="checking", unit="video", disable=not progress) as bar,
    ):
        for task, answer in answers:
            if isinstance(answer, Failed):
                # without a size: next time the disk may answer, or the memory suffice
                problem = "hangs" if answer.kind == "hangs" else "crashes"
                answer = Probe(task.path, str(options.probe), problem=problem, detail=answer.reason)
            if answer is not None:
                lines.write(answer.to_json() + "\n")
                table.add_probes([answer])
                num_bad += bool(answer.problem)
                bar.set_postfix(unusable=num_bad, refresh=False)
            bar.update()


def open_log(log: Path) -> Any:
    """Open the log for appending whole lines; a last line that was cut off is ended first."""
    was_cut = False
    if log.exists() and log.stat().st_size:
        with open(log, "rb") as stream:
            stream.seek(-1, os.SEEK_END)
            was_cut = stream.read(1) != b"\n"
    lines = open(log, "a", encoding="utf-8", buffering=1)
    if was_cut:
        lines.write("\n")
    return lines
