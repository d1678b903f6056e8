"""docs/attention.md: its tables and formulas are what the code says, its pictures exist."""

import itertools
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from videoattn.config.attention import OPERATOR_SECTIONS, OperatorSection, Skip
from videoattn.grid import Axis, TokenGrid
from videoattn.layers.skip import SkipSettings
from videoattn.models import TimeSformer
from videoattn.operators import OPERATORS, AttentionSite
from videoattn.operators.fibonacci.sets import offset_sets
from videoattn.operators.options import options_of
from videoattn.profiling.profile import profile

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

import draw_patterns as drawing  # noqa: E402
import write_tables as tables  # noqa: E402

PAGE = (DOCS / "attention.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: cost: ([^\n]*))?\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
COUNTED_BY_PROFILING = ("savings", "methods")
GRID = TokenGrid(4, 3, 5, prefix=1)
HEADS, D = 3, 8


def stated_cost(name: str, **values: Any) -> int:
    """Evaluate the page's formula `name` for the values of its symbols."""
    (code,) = [text for _, cost, text in BLOCKS if cost == name]
    scope: dict[str, Any] = {"log2": math.log2, "prod": math.prod, **values}
    exec(code, scope)
    assert isinstance(scope["macs"], int)
    return scope["macs"]


# ---- tables


# The operators of the page; a new one joins them when its tables are written anew.
NAMED = [name for name in OPERATORS if f"\n| `{name}` |" in PAGE]


MARKERS = [match[2] for match in tables.MARKED.finditer(PAGE)]


def test_the_page_has_every_table() -> None:
    below_the_first = {name for name in NAMED if f"Options of `{name}`:" in PAGE}  # of a method without a section
    of_options = {f"{name}_options" for name in NAMED if options_of(OPERATORS[name]) and name not in below_the_first}
    others = {name for name in tables.TABLES if name.removesuffix("_options") not in OPERATORS}
    assert set(MARKERS) >= {"operators", *tables.OF_OPERATORS, *others, *of_options}


@pytest.mark.parametrize("name", [name for name in MARKERS if name not in COUNTED_BY_PROFILING])
def test_tables_are_those_of_the_code(name: str) -> None:
    (found,) = [match for match in tables.MARKED.finditer(PAGE) if match[2] == name]
    assert found[0] == f"{found[1]}{tables.make_table(name, PAGE, NAMED)}\n{found[3]}"


@pytest.mark.slow
def test_a_page_with_all_its_tables_made_anew_is_the_same() -> None:
    assert tables.fill_tables(PAGE) == PAGE


def test_every_option_and_its_default_stand_in_the_tables() -> None:
    assert {"dense", "fibonacci", "lisa", "focused_linear"} <= set(NAMED)
    for section in [*(OPERATOR_SECTIONS[name] for name in NAMED), Skip]:
        for name, field in section.model_fields.items():
            if name not in OperatorSection.model_fields:
                start = f"| `{name.upper()}` | {tables.show(field.default)} | "
                assert [line for line in PAGE.splitlines() if line.startswith(start) and str(field.description) in line]


def test_attention_products_of_whole_models_are_those_of_their_operators() -> None:
    for model, (frames, crop, kind) in tables.MODELS.items():
        grid = TokenGrid(frames, crop // 16, crop // 16, prefix=1)
        axes = (Axis.JOINT,) if kind == tables.JOINT else (Axis.TIME, Axis.SPACE)
        sites = {axis: AttentionSite(grid.along(axis), grid.along(axis), 12, 64, block=0) for axis in axes}
        macs = 12 * sum(grid.num_calls(axis) * OPERATORS["dense"](site).macs() for axis, site in sites.items())
        (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| TimeSformer base, {model} |")]
        assert row.split(" | ")[2] == tables.giga(macs)


def test_a_table_without_end_is_refused() -> None:
    for text in (PAGE.replace("<!-- end of table -->", "", 1), "<!-- table: none -->\n<!-- end of table -->"):
        with pytest.raises(ValueError, match="expected a"):
            tables.fill_tables(text)


# ---- costs


def symbols(axis: Axis, prefix: int) -> tuple[AttentionSite, dict[str, Any]]:
    grid = TokenGrid(GRID.t, GRID.h, GRID.w, prefix).along(axis)
    values = {"heads": HEADS, "d": D, "N": grid.patches, "prefix": grid.prefix, "tokens": grid.tokens}
    return AttentionSite(grid, grid, HEADS, D, block=1), {**values, "axis": axis.name}


def transforms(grid: TokenGrid) -> dict[str, list[int]]:
    """Tokens of the axes that a transform takes, and its lengths."""
    lengths = [n for n in (grid.t, grid.h, grid.w) if n > 1]
    fast = sorted(2**a * 3**b * 5**c * 7**e for a, b, c, e in itertools.product(range(6), range(4), range(3), range(3)))
    padded = [next(m for m in fast if m >= 2 * n - 1) for n in lengths]
    padded[-1] = next(m for m in fast if m >= padded[-1] and m % 2 == 0)
    return {"n": lengths, "m": padded}


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize("axis", list(Axis))
def test_stated_costs_of_operators_are_those_that_they_count(axis: Axis, prefix: int) -> None:
    site, values = symbols(axis, prefix)
    assert stated_cost("dense", **values) == OPERATORS["dense"](site).macs()
    for variant in ("modified", "wythoff"):
        offsets = offset_sets(site.q_grid.patches, HEADS, variant, keep_self=True)  # type: ignore[arg-type]
        operator = OPERATORS["fibonacci"](site, variant=variant)
        assert stated_cost("fibonacci", offsets=offsets, **values) == operator.macs()
    for patterns in (1, 3):
        operator = OPERATORS["lisa"](site, num_patterns=patterns, method="direct")
        assert stated_cost("lisa, direct", L=patterns, **values) == operator.macs()
        operator = OPERATORS["lisa"](site, num_patterns=patterns, method="axes")
        sizes = {"t": site.kv_grid.t, "h": site.kv_grid.h, "w": site.kv_grid.w}
        assert stated_cost("lisa, axes", L=patterns, **sizes, **values) == operator.macs()
        operator = OPERATORS["lisa"](site, num_patterns=patterns, method="fft")
        assert stated_cost("lisa, fft", L=patterns, **transforms(site.kv_grid), **values) == operator.macs()
    for kernel_size in (1, 5):
        operator = OPERATORS["focused_linear"](site, kernel_size=kernel_size)
        assert stated_cost("focused_linear", k=kernel_size, **values) == operator.macs()


@pytest.mark.parametrize("axis", list(Axis))
@pytest.mark.parametrize("phi", ["leff", "weights", "identity", "attends"])
def test_stated_costs_of_skipped_slots_are_those_that_run(phi: Any, axis: Axis) -> None:
    kind: Any = "joint_space_time" if axis is Axis.JOINT else "divided_space_time"
    skip = {} if phi == "attends" else {axis: SkipSettings((1,), phi, expansion=3)}
    model = TimeSformer((GRID.t, 8 * GRID.h, 8 * GRID.w), 8, 24, 2, HEADS, 5, kind, skip=skip)
    (slot,) = [
        module for module in profile(model, model.clip_size).modules if module.name == f"blocks.1.mixers.{axis.value}"
    ]
    values = {
        "C": 24, "expansion": 3, "patches": GRID.patches, "calls": GRID.num_calls(axis), "prefix": GRID.prefix,
        "n": GRID.along(axis).tokens, "axis": axis.name,
    }  # fmt: skip
    stated = {"leff": "skipat, leff", "weights": "skipat, weights", "attends": "dense, with projections"}
    assert slot.macs_executed == (stated_cost(stated[phi], **values) if phi in stated else 0)


def test_leff_costs_as_much_as_the_projections_it_replaces() -> None:
    values = {"C": 768, "patches": 8 * 196, "calls": 196, "n": 8, "prefix": 1, "axis": "TIME"}
    leff, dense = stated_cost("skipat, leff", expansion=2, **values), stated_cost("dense, with projections", **values)
    assert abs(leff / dense - 1) < 0.01


# ---- pictures


def test_pictures_exist_are_shown_and_stay_small() -> None:
    shown = set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE))
    assert shown == {f"images/pattern_{name}.png" for name in drawing.PICTURES}
    sizes = [(DOCS / name).stat().st_size for name in shown]
    assert max(sizes) < 150_000 and sum(sizes) < 700_000


def test_what_is_drawn_are_the_weights_of_the_operators() -> None:
    q = drawing.moving_content()
    for name, options in (("dense", {}), ("fibonacci", {"semantics": "zero_logit"}), ("lisa", {})):
        operator = drawing.build(OPERATORS[name], **options)
        with torch.no_grad():
            expected = operator.weights(q, q)[0].numpy()
        np.testing.assert_allclose(drawing.probe(operator, q, q), expected, atol=1e-6)


def test_the_drawn_patterns_of_lisa_add_up_to_its_weights() -> None:
    operator = drawing.build(OPERATORS["lisa"])
    token = drawing.token_index((1, 3, 5))
    weights = drawing.probe(operator, *[drawing.moving_content()] * 2)[0][token]
    patterns = np.stack([drawing.probe_pattern(operator, 0, i)[token] for i in range(operator.num_patterns)])
    strengths = np.linalg.lstsq(patterns.T, weights, rcond=None)[0]
    np.testing.assert_allclose(strengths @ patterns, weights, atol=1e-6)


def test_the_same_picture_is_drawn_twice(tmp_path: Path) -> None:
    drawn = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        drawing.main(["--only", "skipat", "--out", str(folder)])
        drawn.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert drawn[0] == drawn[1] and drawn[0].keys() == {"pattern_skipat.png"}
