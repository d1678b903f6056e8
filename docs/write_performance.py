#!/usr/bin/env python3
"""Put what benchmarks/attention.py has measured into docs/performance.md: tables between marker comments, and plots.

Examples:
    python docs/write_performance.py
    python docs/write_performance.py --no-plots
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videoattn.cli.run_tool import run_tool
from videoattn.files import atomic_write

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/performance.md"
RESULTS = ROOT / "benchmarks/results"
MARKED = re.compile(r"(<!-- table: ([a-z0-9_]+)[^\n]*-->\n).*?(<!-- end of table -->)", re.DOTALL)
# Speed relative to dense attention that was aimed at, at least and at best, by file, form, pass and tokens.
TARGETS: dict[tuple[str, str, str], dict[int, tuple[float, float]]] = {
    ("cpu", "compiled", "forward"): {196: (6, 7), 392: (10, 12), 1568: (25, 40), 3136: (30, 60), 6272: (50, 100)},
    ("cpu", "compiled", "train"): {196: (5, 7), 392: (8, 12), 1568: (17, 30), 3136: (30, 45), 6272: (40, 70)},
    ("cpu", "gather", "forward"): {196: (1.7, 3), 392: (3.5, 6), 1568: (9, 15), 3136: (15, 25), 6272: (20, 40)},
    ("cuda", "compiled", "forward"): {
        196: (1, 1.5),
        392: (1.3, 2.5),
        1568: (2, 5),
        3136: (3, 8),
        6272: (5, 15),
        18816: (10, 30),
    },
    ("cuda", "compiled", "train"): {
        196: (1, 1.5),
        392: (1.3, 2.5),
        1568: (2.5, 5),
        3136: (3.5, 8),
        6272: (6, 14),
        18816: (12, 28),
    },
}
# The same along time, by frames.
TIME_TARGETS: dict[tuple[str, str, str], dict[int, tuple[float, float]]] = {
    ("cpu", "auto", "forward"): {8: (2.5, 2.5), 16: (2.5, 2.5), 32: (2.5, 2.5)},
    ("cuda", "auto", "forward"): {8: (4, 10), 16: (3, 6), 32: (2, 4), 96: (1.2, 2)},
}
MODEL_PASSES = ("inference", "train")
PASSES = {"forward": "forward", "train": "forward and backward"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-plots", action="store_true", help="write the tables alone")
    args = parser.parse_args(argv)
    text = fill(PAGE.read_text(encoding="utf-8"))
    with atomic_write(PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{PAGE}: {len(MARKED.findall(text))} tables")
    if not args.no_plots:
        for name in sorted(measured().keys() & {"cpu", "cuda"}):
            print(f"written: {plot(name)}")


def measured() -> dict[str, Any]:
    """The results at hand, by device."""
    files = {name: RESULTS / f"attention_{name}.json" for name in ("cpu", "cpu_2_threads", "cpu_bfloat16", "cuda")}
    files |= {f"model_{name}": RESULTS / f"model_{name}.json" for name in ("cpu", "cuda")}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.is_file()}


def fill(text: str) -> str:
    """The page with every marked table made anew; NAME is DEVICE_KIND, as in cpu_forward."""
    results = measured()

    def table(match: re.Match[str]) -> str:
        device, _, kind = match[2].rpartition("_")
        if device not in results and kind != "targets":
            raise ValueError(f"no results for the table {match[2]}: run benchmarks/attention.py")
        makers = {"forward": joint_table, "train": joint_table, "time": time_table, "targets": targets_table,
                  "traffic": traffic_table, "machine": machine,
                  "joint": model_table, "divided": model_table}  # fmt: skip
        return f"{match[1]}{makers[kind](device, results.get(device, {}), kind)}\n{match[3]}"

    return MARKED.sub(table, text)


def joint_table(device: str, result: Mapping[str, Any], kind: str) -> str:
    lengths = list(result["joint"])
    names = list(dict.fromkeys(name for rows in result["joint"].values() for name in rows))
    lines = [["dense, ms", *(number(result["joint"][n]["dense"][kind]["ms"]) for n in lengths)]]
    for name in names:
        if name != "dense":
            cells = (result["joint"][n].get(name, {}).get(kind) for n in lengths)
            lines.append([name, *(f"{times(c['times_as_fast'])}" if c else "-" for c in cells)])
    return markdown(["tokens", *lengths], lines)


def time_table(device: str, result: Mapping[str, Any], kind: str) -> str:
    frames = list(result["time"])
    lines = []
    for kind_, title in PASSES.items():
        for name in next(iter(result["time"].values())):
            cells = [result["time"][t][name][kind_] for t in frames]
            shown = [f"{number(c['ms'])} ms" if name == "dense" else times(c["times_as_fast"]) for c in cells]
            lines.append([title, "rearranged, dense" if name == "dense" else name, *shown])
    return markdown(["", "frames", *frames], lines)


def targets_table(device: str, result: Mapping[str, Any], kind: str) -> str:
    """Return the table of targets and results; in brackets dense attention's median over the quartiles of own time."""
    tables = [_targets(result.get(axis, {}), device, targets, title) for axis, targets, title in (
        ("joint", TARGETS, "tokens"), ("time", TIME_TARGETS, "frames"))]  # fmt: skip
    return "\n\n".join(tables)


def _targets(rows: Mapping[str, Any], device: str, targets: Mapping[Any, Any], title: str) -> str:
    chosen = {(form, passes): aims for (where, form, passes), aims in targets.items() if where == device}
    lengths = sorted({n for aims in chosen.values() for n in aims})
    lines = []
    for (form, passes), aims in chosen.items():
        cells = []
        for n in lengths:
            if n not in aims:
                cells.append("-")
                continue
            least, best = aims[n]
            wanted = f"({least:g} / {best:g})" if best > least else f"({least:g})"
            if str(n) not in rows:
                cells.append(f"not measured {wanted}")
                continue
            own, dense = rows[str(n)][form][passes], rows[str(n)]["dense"][passes]
            reached, spread = own["times_as_fast"], [dense["ms"] / x for x in reversed(own["quartiles_ms"])]
            mark = "**missed**" if reached < least else "aim" if reached >= best else "ok"
            cells.append(f"{times(reached)} [{times(spread[0])}, {times(spread[1])}] {wanted} {mark}")
        lines.append([f"{form}, {PASSES[passes]}", *cells])
    return markdown([f"reached (at least / aim), {title}", *map(str, lengths)], lines)


def traffic_table(device: str, result: Mapping[str, Any], kind: str) -> str:
    """Return the table of least memory traffic (q, k, v in, the output out) per second, and as a share of copying."""
    copy, lengths = result["copy_gb_per_s"], list(result["joint"])
    lines = []
    for name in ("dense", "compiled"):
        rows = [result["joint"][n][name] for n in lengths]
        rates = [row["forward"]["gb_per_s"] for row in rows]
        lines.append([f"{name}: GB/s, share of a copy", *(f"{rate:.2g}, {100 * rate / copy:.0f} %" for rate in rates)])
        for passes, title in PASSES.items():
            lines.append([f"{name}: peak MB, {title}", *(number(row[passes]["peak_mb"]) for row in rows)])
    return markdown(["tokens", *lengths], lines)


def model_table(device: str, result: Mapping[str, Any], kind: str) -> str:
    """Dense time, then how many times as fast others are, inference / train; and the exponents of both."""
    figures, exponents = result["kinds"][kind]["frames"], result["kinds"][kind]["exponents"]
    lines = []
    for name in exponents:
        cells = []
        for rows in figures.values():
            kinds = [rows[name][p] for p in MODEL_PASSES] if name in rows else []
            shown = [number(k["ms"]) + " ms" if name == "dense" else ratio(k["times_as_fast"]) for k in kinds]
            cells.append(" / ".join(shown) or "-")
        lines.append([name, *cells, " / ".join(f"{exponents[name][p]:.2f}" for p in MODEL_PASSES)])
    return markdown(["frames", *figures, "exponent"], lines)


def ratio(value: float | None) -> str:
    return "-" if value is None else times(value)


def machine(device: str, result: Mapping[str, Any], kind: str) -> str:
    about, versions = result["machine"], result["versions"]
    where = ", ".join(f"{key} {value}" for key, value in about.items() if value)
    what = f"{result['model']}, {result['crop']}² pixels, one clip" if "model" in result else result["dtype"]
    copying = f"; copying memory reaches {result['copy_gb_per_s']} GB/s" if "copy_gb_per_s" in result else ""
    return textwrap.fill(
        f"*{result['date']}, {where}; torch {versions.get('torch')}; {what}, {result['threads']} "
        f"thread{'s' * (result['threads'] != 1)}{copying}.*",
        width=120,
    )


def plot(device: str) -> Path:
    """Milliseconds against tokens, both on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    result = measured()[device]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    names = list(dict.fromkeys(name for rows in result["joint"].values() for name in rows))
    lengths = [int(n) for n in result["joint"]]
    for axis, (kind, title) in zip(axes, PASSES.items(), strict=True):
        for number_of, name in enumerate(names):
            points = [(int(n), rows[name][kind]["ms"] * 1568 / per_round(int(n))) for n, rows in result["joint"].items()
                      if kind in rows.get(name, {})]  # fmt: skip
            if points and name != "auto":
                axis.loglog(*zip(*points, strict=True), marker="o", markersize=3, label=name, color=f"C{number_of}")
        axis.set_xticks(lengths, [str(n) for n in lengths])
        axis.minorticks_off()
        axis.set_xlabel("tokens of a sequence")
        axis.set_title(title)
        axis.grid(True, linewidth=0.3)
    axes[0].set_ylabel("ms for 1568 tokens")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    path = ROOT / f"docs/images/attention_{device}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def per_round(length: int) -> int:
    """Tokens of all calls that one step of the benchmark takes."""
    return {196: 8, 392: 4, 784: 2}.get(length, 1) * length


def times(ratio: float) -> str:
    return f"{ratio:.2f}x" if ratio < 2 else f"{ratio:.1f}x" if ratio < 20 else f"{ratio:.0f}x"


def number(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(run_tool(main))
