#!/usr/bin/env python3
"""Write the tables of docs/attention.md that follow from the code anew, each between its two marker comments.

Examples:
    python docs/write_tables.py
    python docs/write_tables.py --page attention.md

The tables: all operators, what works where, the options of each method, how sparse Fibonacci attention is, what whole
models cost (counted, in two to four minutes), and how fast operators are (as benchmarks/operators.py has measured).
A new line in OPERATORS needs nothing here: its operator is in the tables of all operators, and its options stand below
the first of them until the page has a table `NAME_options`.
"""

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
from pydantic.fields import FieldInfo
from torch import nn

from videoattn.cli.run_tool import run_tool
from videoattn.config.attention import OPERATOR_SECTIONS, OperatorSection, Skip
from videoattn.config.load import load_config
from videoattn.files import atomic_write
from videoattn.grid import TokenGrid
from videoattn.layers.support import render_support
from videoattn.models import build_model
from videoattn.operators import OPERATORS, AttentionSite, FibonacciAttention
from videoattn.operators.fibonacci.sets import offset_sets
from videoattn.operators.options import describe_values, options_of
from videoattn.profiling.profile import Profile, profile

PAGE = Path(__file__).parent / "attention.md"
TIMES = Path(__file__).parents[1] / "benchmarks/results/operators_cpu.json"
MARKED = re.compile(r"(<!-- table: (\w+)[^\n]*-->\n).*?(<!-- end of table -->)", re.DOTALL)
HEADS = 12

# tokens of one sequence, and where so many occur
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
# each way to skip attention as ATTENTION settings along AXIS
SKIPPED = {
    "skipat, leff": "{SKIP: {AXIS: 3-8}}",
    "skipat, weights": "{SKIP: {AXIS: 3-8, PHI: weights}}",
    "skipat, identity": "{SKIP: {AXIS: 3-8, PHI: identity}}",
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=PAGE, help="default: docs/attention.md")
    args = parser.parse_args(argv)
    text = args.page.read_text(encoding="utf-8")
    with atomic_write(args.page) as temporary:
        temporary.write_text(fill_tables(text), encoding="utf-8")
    print(f"{args.page}: {len(MARKED.findall(text))} tables")


def fill_tables(text: str, operators: Sequence[str] = tuple(OPERATORS)) -> str:
    """Return the page with every marked table made anew, those of all operators for these `operators`.

    Raises ValueError on a marker of an unknown table, or without end.
    """
    if not text.count("<!-- table: ") == text.count("<!-- end of table -->") == len(MARKED.findall(text)):
        raise ValueError("expected a line <!-- end of table --> for every line <!-- table: NAME -->")
    return MARKED.sub(lambda match: f"{match[1]}{make_table(match[2], text, operators)}\n{match[3]}", text)


def make_table(table: str, text: str, operators: Sequence[str]) -> str:
    """Return the table of that name of the page `text`."""
    if table == "operators":
        return operators_table(operators, [name for name in operators if f"<!-- table: {name}_options" not in text])
    if table in OF_OPERATORS:
        return OF_OPERATORS[table](operators)
    if table not in TABLES:
        raise ValueError(f"expected a table among {', '.join(['operators', *OF_OPERATORS, *TABLES])}, got {table!r}")
    return TABLES[table]()


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def options_table(fields: Mapping[str, FieldInfo]) -> str:
    """The options of a settings section: names in capitals as in YAML, defaults, values, descriptions."""
    rows = [
        [f"`{name.upper()}`", show(field.default), values(field), field.description or ""]
        for name, field in fields.items()
        if name not in OperatorSection.model_fields  # these the page explains once
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
    if field.annotation not in (int, float):
        return "blocks, from 0"
    return describe_values(Annotated[field.annotation, *field.metadata])


def operator_options(name: str) -> Callable[[], str]:
    return lambda: options_table(OPERATOR_SECTIONS[name].model_fields)


def operators_table(operators: Sequence[str], without_own: Sequence[str]) -> str:
    """Return the names and first lines of operators, then the options of those that have no table of their own."""
    titles = ["`NAME`", "what it computes", "options"]
    rows, more = [], ""
    for name in operators:
        options = list(options_of(OPERATORS[name]))
        listed = ", ".join(f"`{option.upper()}`" for option in options) or "none"
        rows.append([f"`{name}`", (inspect.getdoc(OPERATORS[name]) or "").partition("\n")[0], listed])
        if name in without_own and options:
            more += f"\n\nOptions of `{name}`:\n\n{operator_options(name)()}"
    return markdown(titles, rows) + more


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


def build(model: str, attention: str = "{}") -> nn.Module:
    frames, crop, kind = MODELS[model]
    settings: list[Any] = ["DATA.NUM_FRAMES", frames, "DATA.TRAIN_CROP_SIZE", crop, "DATA.TEST_CROP_SIZE", crop]
    settings += ["TIMESFORMER.ATTENTION_TYPE", kind, "MODEL.MODEL_NAME", "timesformer_base", "ATTENTION", attention]
    with torch.device("meta"):
        return build_model(load_config(None, settings))


def count(model: str, attention: str = "{}") -> Profile:
    frames, crop, _ = MODELS[model]
    return profile(build(model, attention), (frames, crop, crop))


def giga(macs: int) -> str:
    return f"{macs / 1e9:.1f}"


def savings_table() -> str:
    rows = []
    for model in MODELS:
        cost = count(model)
        share = f"{100 * cost.attention_needed / cost.macs_needed:.1f} %"
        rows.append([f"TimeSformer base, {model}", giga(cost.macs_needed), giga(cost.attention_needed), share])
    return markdown(["model", "total G", "attention products G", "sparse attention saves at most"], rows)


def methods_table(operators: Sequence[str]) -> str:
    methods = {name: f"{{AXIS: {{NAME: {name}}}}}" for name in operators} | SKIPPED
    rows = [
        [name, *(needed(model, settings.replace("AXIS", axis)) for model, axis in COMPARED.items())]
        for name, settings in methods.items()
    ]
    titles = [f"{model}, along {axis}" if axis != "JOINT" else model for model, axis in COMPARED.items()]
    return markdown(["G multiply-accumulates of a clip", *titles], rows)


def needed(model: str, attention: str) -> str:
    try:
        build(model, attention)
    except ValueError:  # of an operator, at a site that the table of what works where says it refuses
        return "refused"
    return giga(count(model, attention).macs_needed)


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
    return markdown(["tokens of a sequence", *titles], rows)


TABLES: dict[str, Callable[[], str]] = {
    **{f"{name}_options": operator_options(name) for name in OPERATORS},
    "skip_options": lambda: options_table(Skip.model_fields),
    "density": density_table,
    "savings": savings_table,
    "times": times_table,
}
OF_OPERATORS: dict[str, Callable[[Sequence[str]], str]] = {"support": render_support, "methods": methods_table}

if __name__ == "__main__":
    sys.exit(run_tool(main))
