#!/usr/bin/env python3
"""Write the tables of docs/attention.md that follow from the code anew, each between its two marker comments.

Examples:
    python docs/write_tables.py
    python docs/write_tables.py --page attention.md

The tables: what works where, the options of each method, how sparse Fibonacci attention is, what whole models cost
(counted, which takes about a minute), and how fast operators are (as benchmarks/operators.py has measured).
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from pydantic.fields import FieldInfo

from videoattn.cli.run_tool import run_tool
from videoattn.config.attention import OPERATOR_SECTIONS, Skip
from videoattn.config.load import load_config
from videoattn.files import atomic_write
from videoattn.grid import TokenGrid
from videoattn.layers.support import render_support
from videoattn.models import build_model
from videoattn.operators import AttentionSite, FibonacciAttention
from videoattn.operators.fibonacci.sets import offset_sets
from videoattn.profiling.profile import Profile, profile

PAGE = Path(__file__).parent / "attention.md"
TIMES = Path(__file__).parents[1] / "benchmarks/results/operators_cpu.json"
MARKED = re.compile(r"(<!-- table: (\w+)[^\n]*-->\n).*?(<!-- end of table -->)", re.DOTALL)
HEADS = 12

# tokens of one attention call, and where so many occur
LENGTHS = {
    8: "8 frames, along time", 32: "32 frames, along time", 196: "224², along space", 784: "448², along space",
    1568: "8×224², joint", 6272: "32×224², joint", 18816: "96×224², joint",
}  # fmt: skip
JOINT = "joint_space_time"
# frames, crop and attention type of the base models whose cost is shown
MODELS = {
    "divided 8×224": (8, 224, "divided_space_time"), "divided 16×448": (16, 448, "divided_space_time"),
    "divided 96×224": (96, 224, "divided_space_time"), "joint 8×224": (8, 224, JOINT),
    "joint 32×224": (32, 224, JOINT), "joint 96×224": (96, 224, JOINT),
}  # fmt: skip
COMPARED = {"divided 8×224": "SPACE", "joint 8×224": "JOINT", "joint 32×224": "JOINT"}
# each method as ATTENTION settings along an axis that {} stands for
METHODS = {
    "dense": "{{}}", "fibonacci": "{{{}: {{NAME: fibonacci}}}}", "lisa": "{{{}: {{NAME: lisa}}}}",
    "focused_linear": "{{{}: {{NAME: focused_linear}}}}", "skipat, leff": "{{SKIP: {{{}: 3-8}}}}",
    "skipat, weights": "{{SKIP: {{{}: 3-8, PHI: weights}}}}",
    "skipat, identity": "{{SKIP: {{{}: 3-8, PHI: identity}}}}",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/attention.md")
    args = parser.parse_args(argv)
    text = args.page.read_text(encoding="utf-8")
    with atomic_write(args.page) as temporary:
        temporary.write_text(fill_tables(text), encoding="utf-8")
    print(f"{args.page}: {len(MARKED.findall(text))} tables")


def fill_tables(text: str) -> str:
    """The page with every marked table made anew. Raises ValueError on a marker of an unknown table, or without end."""
    if not text.count("<!-- table: ") == text.count("<!-- end of table -->") == len(MARKED.findall(text)):
        raise ValueError("expected a line <!-- end of table --> for every line <!-- table: NAME -->")

    def fill(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise ValueError(f"expected a table among {', '.join(TABLES)}, got {match[2]!r}")
        return f"{match[1]}{TABLES[match[2]]()}\n{match[3]}"

    return MARKED.sub(fill, text)


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def options_table(fields: Mapping[str, FieldInfo]) -> str:
    """The options of a settings section: names in capitals as in YAML, defaults, values, descriptions."""
    rows = [
        [f"`{name.upper()}`", show(field.default), values(field), field.description or ""]
        for name, field in fields.items()
        if name not in ("name", "layers")  # these the page explains once
    ]
    return markdown(["option", "default", "values", "what it says"], rows)


def show(default: object) -> str:
    if default == ():
        return "`[]`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def values(field: FieldInfo) -> str:
    if field.annotation is bool:
        return "`true`, `false`"
    literals = [value for value in get_args(field.annotation) if isinstance(value, str)]
    if literals:
        return ", ".join(f"`{value}`" for value in literals)
    return {int: "a whole number", float: "a number"}.get(field.annotation, "blocks, from 0")  # type: ignore[arg-type]


def operator_options(name: str) -> Callable[[], str]:
    return lambda: options_table(OPERATOR_SECTIONS[name].model_fields)


def density_table() -> str:
    rows = []
    for n, where in LENGTHS.items():
        row = [str(n), where]
        for variant, keep_self in (("modified", True), ("wythoff", False)):
            sets = offset_sets(n, HEADS, variant, keep_self)
            pairs = sum((n if s == 0 else 2 * (n - s)) for offsets in sets for s in offsets)
            row += [f"{pairs / n / HEADS:.1f}", f"{100 * pairs / n**2 / HEADS:.2f} %"]
        in_blocks = FibonacciAttention(AttentionSite(grid := TokenGrid(n, 1, 1), grid, HEADS, 64, 0), geometry="block")
        pairs = in_blocks.plan.num_pairs
        rows.append([*row, f"{pairs / n / HEADS:.0f}", f"{100 * pairs / n**2 / HEADS:.1f} %"])
    titles = ["N", "where", "keys per query", "share of pairs", "`wythoff`, `KEEP_SELF: false`: keys", "share"]
    return markdown([*titles, "`GEOMETRY: block`: keys", "share"], rows)


def count(model: str, attention: str = "{}") -> Profile:
    frames, crop, kind = MODELS[model]
    settings: list[Any] = ["DATA.NUM_FRAMES", frames, "DATA.TRAIN_CROP_SIZE", crop, "DATA.TEST_CROP_SIZE", crop]
    settings += ["TIMESFORMER.ATTENTION_TYPE", kind, "MODEL.MODEL_NAME", "timesformer_base", "ATTENTION", attention]
    with torch.device("meta"):
        built = build_model(load_config(None, settings))
    return profile(built, (frames, crop, crop))


def giga(macs: int) -> str:
    return f"{macs / 1e9:.1f}"


def savings_table() -> str:
    rows = []
    for model in MODELS:
        cost = count(model)
        share = f"{100 * cost.attention_needed / cost.macs_needed:.1f} %"
        rows.append([f"TimeSformer base, {model}", giga(cost.macs_needed), giga(cost.attention_needed), share])
    return markdown(["model", "total G", "attention products G", "sparse attention saves at most"], rows)


def methods_table() -> str:
    rows = [
        [name, *(giga(count(model, settings.format(axis)).macs_needed) for model, axis in COMPARED.items())]
        for name, settings in METHODS.items()
    ]
    titles = [f"{model}, along {axis}" if axis != "JOINT" else model for model, axis in COMPARED.items()]
    return markdown(["G multiply-accumulates of a clip", *titles], rows)


def times_table() -> str:
    """Times as fast as dense attention, forward, then forward and backward."""
    sites = json.loads(TIMES.read_text(encoding="utf-8"))["sites"]
    methods = list(dict.fromkeys(method for figures in sites.values() for method in figures))
    rows = []
    for method in methods:
        cells = [
            " / ".join(f"{figures[method][kind]['times_as_fast']:.2g}" for kind in ("forward", "forward and backward"))
            if method in figures
            else "not measured"
            for figures in sites.values()
        ]
        rows.append([method, *cells])
    titles = [f"{length} ({axis})" for axis, length in (name.split() for name in sites)]
    return markdown(["tokens of a call", *titles], rows)


TABLES: dict[str, Callable[[], str]] = {
    "support": render_support,
    "fibonacci_options": operator_options("fibonacci"),
    "lisa_options": operator_options("lisa"),
    "focused_linear_options": operator_options("focused_linear"),
    "skip_options": lambda: options_table(Skip.model_fields),
    "density": density_table,
    "savings": savings_table,
    "methods": methods_table,
    "times": times_table,
}

if __name__ == "__main__":
    sys.exit(run_tool(main))
