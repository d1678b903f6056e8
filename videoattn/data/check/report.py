"""Results of a check as files: clean lists, lists of problems, a summary for programs and one for people."""

import bisect
import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from videoattn.data.check.checked_list import CheckedList, write_clean
from videoattn.data.check.page import format_page
from videoattn.data.check.table import KINDS, CheckTable
from videoattn.data.lists.class_folders import format_counts
from videoattn.files import atomic_write

Summary = dict[str, Any]
NUM_EXAMPLES = 50
_SECONDS = (0, 0.5, 1, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5, 10.5, 12, 15, 20, 30, 60, 120, 300, 600)
_FRAMES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 288, 320, 384, 512, 768, 1024, 2048, 4096)


def summarize(table: CheckTable, lists: Sequence[CheckedList], **settings: str) -> Summary:
    """Return counts of everything, ready for json: problems by kind, lengths, sizes, rates, codecs, classes, by list.

    Histograms are [from, to (null: no end), videos]; they and the other counts are of videos that decode.
    """
    splits = {checked.split: _summarize_list(table, checked) for checked in lists}
    examples = table.rows(
        """SELECT split, path, kind, detail FROM problem
        ORDER BY kind NOT IN (SELECT kind FROM fatal), rowid LIMIT :most""",
        most=NUM_EXAMPLES,
    )
    fatal = [kind for (kind,) in table.rows("SELECT kind FROM fatal")]
    return {
        "settings": settings,
        "num_errors": sum(n for split in splits.values() for kind, n in split["problems"].items() if kind in fatal),
        "num_warnings": sum(n for s in splits.values() for kind, n in s["problems"].items() if kind not in fatal),
        "error_kinds": [kind for kind in KINDS if kind in fatal],
        "lists": splits,
        "first_problems": [dict(zip(("list", "path", "kind", "detail"), row, strict=True)) for row in examples],
    }


def _summarize_list(table: CheckTable, checked: CheckedList) -> Summary:
    split, names = checked.split, checked.videos.class_names or ()
    (num_bad,) = next(
        table.rows(
            "SELECT count(DISTINCT number) FROM problem JOIN fatal USING (kind) WHERE split = :split AND number >= 0",
            split=split,
        )
    )
    problems = dict(table.rows("SELECT kind, count(*) FROM problem WHERE split = :split GROUP BY kind", split=split))
    lengths = "SELECT {} FROM usable WHERE split = :split"
    clean = dict(table.class_counts(split, usable=True))
    return {
        "source": checked.videos.source,
        "sha256": checked.videos.digest(),
        "left_out": dict(checked.videos.left_out),
        "listed": len(checked.videos),
        "clean": len(checked.videos) - num_bad,
        "problems": {kind: problems[kind] for kind in KINDS if kind in problems},
        "seconds": _histogram(table.rows(lengths.format("num_frames / fps"), split=split), _SECONDS),
        "frames": _histogram(table.rows(lengths.format("num_frames"), split=split), _FRAMES),
        "resolution": _counts(table, split, "width || 'x' || height"),
        "fps": _counts(table, split, "round(fps, 2)"),
        "codec": _counts(table, split, "codec"),
        "sequential": _counts(table, split, "sequential_reason"),
        "classes": [
            {"class": label, "name": names[label] if label < len(names) else "", "listed": n,
             "clean": clean.get(label, 0)}
            for label, n in table.class_counts(split, usable=False)
        ],
    }  # fmt: skip


def _counts(table: CheckTable, split: str, value: str) -> dict[str, int]:
    """Return the number of usable videos with each value, most frequent first; an empty value is left out."""
    rows = table.rows(
        f"SELECT {value}, count(*) FROM usable WHERE split = :split AND {value} != '' GROUP BY 1 ORDER BY 2 DESC",
        split=split,
    )
    return {str(value): n for value, n in rows}


def _histogram(values: Iterable[tuple[float]], edges: Sequence[float]) -> list[list[float | None]]:
    counts = [0] * len(edges)
    for (value,) in values:
        counts[max(0, bisect.bisect_right(edges, value) - 1)] += 1
    return [[low, high, n] for low, high, n in zip(edges, [*edges[1:], None], counts, strict=True)]


def write_results(table: CheckTable, lists: Sequence[CheckedList], summary: Summary, folder: Path) -> None:
    """Write clean/, bad_*.csv, summary.json and summary.html, each whole or not at all."""
    for checked in lists:
        write_clean(checked, table.bad_numbers(checked.split), folder / "clean")
        write_bad(table, checked.split, folder / f"bad_{checked.split}.csv")
    texts = {
        "summary.json": json.dumps(summary, indent=1, ensure_ascii=False) + "\n",
        "summary.html": format_page(summary),
    }
    for name, text in texts.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def write_bad(table: CheckTable, split: str, file: Path) -> None:
    """Write every problem of a list."""
    rows = table.rows(
        """SELECT path, kind, iif(kind IN (SELECT kind FROM fatal), 'error', 'warning'), number + 1, detail
        FROM problem WHERE split = :split ORDER BY number""",
        split=split,
    )
    write_problems(rows, file)


def write_problems(rows: Iterable[Sequence[object]], file: Path) -> None:
    """Write rows of path, kind, severity, number and detail; numbers count videos from 1, 0 is the whole list."""
    with atomic_write(file) as temporary, open(temporary, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "kind", "severity", "number", "detail"))
        writer.writerows(rows)


def format_summary(summary: Summary) -> str:
    """Return the counts as lines for a terminal."""
    lines = []
    for split, counts in summary["lists"].items():
        lines.append(f"{split}: {counts['listed']} videos listed, {counts['clean']} clean ({counts['source']})")
        if counts["left_out"]:
            left_out = format_counts(list(counts["left_out"].items()))
            lines.append(f"  left out because of their names or places, so not checked: {left_out}")
        for kind, number in counts["problems"].items():
            severity = "error" if kind in summary["error_kinds"] else "warning"
            lines.append(f"  {number:>7} {kind:<26} {severity:<8} {KINDS[kind]}")
    lines.append(f"{summary['num_errors']} errors, {summary['num_warnings']} warnings")
    return "\n".join(lines)
