"""HTML page of a check's summary, small and self-contained: counts, histograms, first problems, classes."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from videoattn.data.check.table import KINDS
from videoattn.data.lists.class_folders import format_counts

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 0.5em 0 1.5em }
td, th { padding: 0.15em 0.8em 0.15em 0; text-align: left; vertical-align: top; border-bottom: 1px solid #ddd }
td.number { text-align: right }
.error { color: #b00020 } .warning { color: #8a5a00 }
svg { font: 12px system-ui, sans-serif } rect { fill: #4a7ebb }
td { overflow-wrap: anywhere }
"""
_MOST_BARS, _BAR_HEIGHT, _LABEL_WIDTH, _BAR_WIDTH = 24, 18, 150, 420


def format_page(summary: Mapping[str, Any]) -> str:
    """Return the page, which is well-formed XML as well; all text from lists or files is escaped."""
    parts = [
        f"<p>{summary['num_errors']} errors, {summary['num_warnings']} warnings; frames decoded: "
        f"{escape(summary['settings']['decode'])}, backend {escape(summary['settings']['backend'])}.</p>"
    ]
    for split, counts in summary["lists"].items():
        parts += _list_section(split, counts, summary["error_kinds"])
    if summary["first_problems"]:
        parts.append(f"<h2>First {len(summary['first_problems'])} problems</h2>")
        parts.append(_table(("list", "kind", "path", "detail"), summary["first_problems"]))
    parts += [
        f"<h2>Classes of {_escape(split)}</h2>{_table(('class', 'name', 'listed', 'clean'), counts['classes'])}"
        for split, counts in summary["lists"].items()
    ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n<title>Check of videos</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>Check of videos</h1>\n{body}\n</body>\n</html>\n"
    )


def _list_section(split: str, counts: Mapping[str, Any], errors: Sequence[str]) -> Iterable[str]:
    yield f"<h2>{_escape(split)}: {counts['listed']} videos, {counts['clean']} clean</h2>"
    yield f"<p>{_escape(counts['source'])}, sha256 {counts['sha256'][:16]}</p>"
    if counts["left_out"]:
        left_out = format_counts(list(counts["left_out"].items()))
        yield f"<p>Left out because of their names or places, so not checked: {_escape(left_out)}.</p>"
    problems = [
        {"kind": kind, "videos": n, "severity": "error" if kind in errors else "warning", "meaning": KINDS[kind]}
        for kind, n in counts["problems"].items()
    ]
    yield _table(("kind", "videos", "severity", "meaning"), problems) if problems else "<p>No problems.</p>"
    yield _bars("Length in seconds", _named_bins(counts["seconds"]))
    yield _bars("Length in frames", _named_bins(counts["frames"]))
    for title, key in (("Width x height", "resolution"), ("Frames per second", "fps"), ("Codec", "codec")):
        yield _bars(title, counts[key])
    yield _bars("Sequential decoding, by reason", counts["sequential"])


def _named_bins(histogram: Sequence[tuple[float, float | None, int]]) -> dict[str, int]:
    """Return bins from the first to the last that is not empty, by name."""
    filled = [index for index, (_, _, number) in enumerate(histogram) if number]
    bins = histogram[filled[0] : filled[-1] + 1] if filled else []
    return {f"{low:g} and more" if high is None else f"{low:g} to {high:g}": n for low, high, n in bins}


def _bars(title: str, counts: Mapping[str, int]) -> str:
    """Return a bar chart of the first values in order, with the rest as one last bar."""
    if not counts:
        return ""
    shown = dict(list(counts.items())[:_MOST_BARS])
    if len(counts) > len(shown):
        shown[f"{len(counts) - len(shown)} others"] = sum(counts.values()) - sum(shown.values())
    most = max(shown.values())
    rows = []
    for place, (name, number) in enumerate(shown.items()):
        y, width = place * _BAR_HEIGHT, _BAR_WIDTH * number / most
        text_y = y + _BAR_HEIGHT - 5
        label = name if len(name) <= 22 else name[:21] + "…"
        rows.append(
            f"<g><title>{_escape(name)}</title>"
            f'<text x="{_LABEL_WIDTH - 6}" y="{text_y}" text-anchor="end">{_escape(label)}</text>'
            f'<rect x="{_LABEL_WIDTH}" y="{y + 2}" width="{width:.1f}" height="{_BAR_HEIGHT - 4}"/>'
            f'<text x="{_LABEL_WIDTH + width + 5:.1f}" y="{text_y}">{number}</text></g>'
        )
    size = f'width="{_LABEL_WIDTH + _BAR_WIDTH + 80}" height="{_BAR_HEIGHT * len(shown)}"'
    return f'<h3>{escape(title)}</h3>\n<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(rows)}</svg>'


def _table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = [f"<tr>{head}</tr>"]
    for row in rows:
        style = f' class="{row["severity"]}"' if "severity" in row else ""
        cells = "".join(_cell(row[column]) for column in columns)
        lines.append(f"<tr{style}>{cells}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _escape(text: str) -> str:
    """Escape a text for XML; most control characters are not allowed there and become Python's escapes."""
    return escape("".join(sign if sign.isprintable() or sign in "\n\t" else ascii(sign)[1:-1] for sign in text))


def _cell(value: object) -> str:
    style = ' class="number"' if isinstance(value, int) else ""
    return f"<td{style}>{_escape(str(value))}</td>"
