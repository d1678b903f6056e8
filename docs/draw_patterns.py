#!/usr/bin/env python3
"""Draw the pictures of docs/attention.md: which tokens each attention method looks at.

Examples:
    python docs/draw_patterns.py
    python docs/draw_patterns.py --only fibonacci skipat --out pictures

Weights are not modelled but probed: the operators of the package get the columns of the identity as values, so that
their outputs are their weights. The same version of matplotlib draws the same bytes every time.
"""

import argparse
import io
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from pattern_rows import GRID, STEP, VERMILION, Row, draw_rows, token_index
from PIL import Image
from torch import Tensor

from videoattn.cli.run_tool import run_tool
from videoattn.files import atomic_write
from videoattn.grid import TokenGrid
from videoattn.operators import AttentionOperator, AttentionSite, DenseAttention
from videoattn.operators.fibonacci.operator import FibonacciAttention
from videoattn.operators.fibonacci.sets import offset_sets
from videoattn.operators.focused_linear import FocusedLinearAttention
from videoattn.operators.lisa.operator import LisaAttention

HEADS, D = 3, 16
LISA_QUERIES = (2, 2, 3), (1, 3, 5)
LOGIT = 5  # of two tokens with the same content
ORANGE, BLUE, SKY = "#e69f00", "#0072b2", "#cde8f6"
STYLE = {"font.size": 9, "axes.titlesize": 9, "font.family": "DejaVu Sans", "axes.linewidth": 0.6}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "images", help="default: docs/images")
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES), metavar="NAME",
                        help=f"some of {', '.join(PICTURES)}")  # fmt: skip
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        path = args.out / f"pattern_{name}.png"
        with matplotlib.rc_context(STYLE):
            figure = PICTURES[name]()
        figure.savefig(drawn := io.BytesIO(), format="png", dpi=110)
        with atomic_write(path) as temporary, Image.open(drawn) as image:
            image.convert("RGB").quantize(256, kmeans=4).save(temporary, format="png", optimize=True)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


# ---- what is drawn


def moving_content() -> Tensor:
    """Queries that are keys too, [1, HEADS, N, D]: smooth noise on each frame, moved by STEP columns a frame."""
    noise = torch.randn(HEADS, D, GRID.h, GRID.w, generator=torch.Generator().manual_seed(3))
    for dim in (-2, -1):
        noise = sum(share * noise.roll(shift, dim) for shift, share in ((-1, 0.5), (0, 1.0), (1, 0.5)))
    frames = torch.stack([noise.roll(STEP * t, -1) for t in range(GRID.t)], dim=2)
    tokens = frames.flatten(2).transpose(1, 2)
    return (tokens / tokens.norm(dim=-1, keepdim=True) * (LOGIT * D**0.5) ** 0.5)[None]


def build(kind: Callable[..., AttentionOperator], grid: TokenGrid = GRID, heads: int = HEADS, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(AttentionSite(grid, grid, heads, D, block=0), **options)


@torch.no_grad()
def probe(operator: AttentionOperator, q: Tensor, k: Tensor) -> np.ndarray:
    """The weights [heads, Nq, Nk] that an operator, linear in its values, gives them."""
    n, d = k.shape[-2:]
    columns = torch.cat([torch.eye(n), torch.zeros(n, -n % d)], dim=1).split(d, dim=1)
    outputs = [operator(q, k, v.expand(1, k.shape[1], n, d).contiguous()) for v in columns]
    return torch.cat(outputs, dim=-1)[0, ..., :n].numpy()


# ---- one function a picture


def draw_dense() -> Figure:
    q = moving_content()
    weights = probe(build(DenseAttention), q, q)
    rows = [Row(f"head {head}", weights[head]) for head in range(2)]
    return draw_rows(rows, "dense: every query looks at every key, most at those that resemble it")


def draw_fibonacci() -> Figure:
    q = moving_content()
    weights = probe(build(FibonacciAttention, heads_permutation="none"), q, q)
    sets = distances(GRID.patches, HEADS)
    rows = [Row(f"head {i}: distances\n{wrap(', '.join(map(str, sets[i])), 21)}", weights[i]) for i in range(HEADS)]
    return draw_rows(rows, "fibonacci: each head looks at its own distances, counted along rows, then frames")


def draw_fibonacci_options() -> Figure:
    q, head = moving_content(), 1
    chosen: dict[str, dict[str, Any]] = {
        "ORDER: thw (default)\na step of 1 goes to\nthe next column": {},
        "ORDER: hwt\na step of 1 goes to\nthe next frame": {"order": "hwt"},
        "GEOMETRY: axial\nsteps go along one of\nt, h and w at a time": {"geometry": "axial"},
        "GEOMETRY: block\nblocks of 16 look at\nblocks of 16": {"geometry": "block"},
        "SEMANTICS: zero_logit\nother keys, too, get a\n(small) weight": {"semantics": "zero_logit"},
    }
    rows = [
        Row(text, probe(build(FibonacciAttention, heads_permutation="none", **options), q, q)[head])
        for text, options in chosen.items()
    ]
    return draw_rows(rows, f"fibonacci: head {head} with other options")


def draw_fibonacci_time() -> Figure:
    heads, colours = 12, ListedColormap(["#e6e6e6", BLUE])
    figure = Figure(figsize=(10, 3.5), layout="constrained")
    figure.suptitle("fibonacci along time: 12 heads over clips of 8 and of 32 frames (rows: queries, columns: keys)",
                    fontsize=11, x=0.01, ha="left")  # fmt: skip
    for i, (length, row) in enumerate(zip((8, 32), figure.subplots(2, heads), strict=True)):
        operator = build(FibonacciAttention, TokenGrid(length, 1, 1), heads, heads_permutation="none")
        sets = distances(length, heads)
        for head, ax in enumerate(row):
            ax.imshow(operator.plan.mask(0, length)[head], cmap=colours, vmin=0, vmax=1, interpolation="nearest")
            ax.tick_params(length=0, labelbottom=False, labelleft=False)
            ax.set_xlabel(wrap(", ".join(map(str, sets[head])), 9), fontsize=7.5)
            if i == 0:
                first = sets.index(sets[head])
                ax.set_title(f"head {head}" + (f"\n= head {first}" if first < head else ""))
        row[0].set_ylabel(f"T = {length}")
    figure.supxlabel("below each: distances at which the head attends (blue); 0 is the frame itself",
                     fontsize=8.5, x=0.99, ha="right", color="#444444")  # fmt: skip
    return figure


def draw_focused_linear() -> Figure:
    q, head = moving_content(), 0
    plain, focused = (build(FocusedLinearAttention, power=power, kernel_size=0) for power in (1, 3))
    rows = [
        Row("dense,\nfor comparison", probe(build(DenseAttention), q, q)[head]),
        Row("POWER: 1\nplain linear attention", probe(plain, q, q)[head]),
        Row("POWER: 3 (default)\ndashed: what the\nconvolution adds to", probe(focused, q, q)[head], reach=(1, 2, 2)),
    ]
    return draw_rows(rows, f"focused_linear: the power makes the weights of linear attention sharper (head {head})")


def draw_lisa() -> Figure:
    q, head = moving_content(), 0
    operator = build(LisaAttention)
    weights = probe(operator, q, q)[head]
    patterns = np.stack([probe_pattern(operator, head, i) for i in range(operator.num_patterns)])
    rows = [Row("one of 4 patterns:\na Gaussian,\n2 tokens wide", patterns[2])]
    for query in LISA_QUERIES:
        i = token_index(query)
        strengths = np.linalg.lstsq(patterns[:, i].T, weights[i], rcond=None)[0]
        first, second, third, fourth = (f"{strength:+.2f}" for strength in strengths)
        text = f"weights: patterns 0 to 3\nwith strengths\n{first}, {second}\n{third}, {fourth}"
        rows.append(Row(text, weights, query))
    return draw_rows(rows, f"lisa at the start: patterns of relative position, mixed anew for each query (head {head})",
                     signed=True)  # fmt: skip


@torch.no_grad()
def probe_pattern(operator: LisaAttention, head: int, pattern: int) -> np.ndarray:
    """The matrix [N, N] of r2 of one pattern: what a copy of the operator with strength 1 for it alone gives."""
    alone = build(LisaAttention)
    alone.load_state_dict(operator.state_dict())
    alone.r1.zero_()
    alone.P.zero_()
    alone.P[:, pattern, 0] = 1.0
    q = torch.zeros(1, HEADS, GRID.patches, D)
    q[..., 0] = 1.0
    return probe(alone, q, q)[head]


def draw_skipat() -> Figure:
    figure = Figure(figsize=(10, 3.7), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(-2.35, 12.1), ylim=(-0.75, 5.1))
    ax.axis("off")
    figure.suptitle("skipat: blocks 3 to 8 of 12 make their update from the block before (along one axis)",
                    fontsize=11, x=0.01, ha="left")  # fmt: skip
    skipped = range(3, 9)
    lanes = [
        (3.3, "PHI: leff\n(or identity: no Φ)", "Φ", "Z", "the update Z, through Φ in every skipped block"),
        (1.2, "PHI: weights", "A·v", "A", "the matrix A of block 2, on each block's own values"),
    ]
    for y, name, inside, handed, legend in lanes:
        ax.text(-2.3, y + 0.5, name, va="center", linespacing=1.4)
        ax.text(6, y + 1.3, f"carried: {legend}", ha="center", va="bottom", color="#444444", fontsize=8.5)
        for block in range(12):
            skips = block in skipped
            box(ax, block, y, inside if skips else "attend", ORANGE if skips else SKY)
            if skips:
                ax.add_patch(FancyArrowPatch((block - 0.2, y + 0.5), (block + 0.06, y + 0.5), arrowstyle="-|>",
                             mutation_scale=9, color=VERMILION, linewidth=1.4, shrinkA=0, shrinkB=0))  # fmt: skip
                ax.text(block - 0.07, y + 0.62, handed, ha="center", va="bottom", color=VERMILION, fontsize=8)
    for block in range(12):
        box(ax, block, 0, "MLP", "#e6e6e6", height=0.55)
        ax.text(block + 0.44, -0.2, str(block), ha="center", va="top")
    ax.text(-2.3, 0.27, "all blocks", va="center")
    ax.text(-2.3, -0.33, "block", va="center")
    return figure


def box(axes: Axes, block: int, y: float, text: str, colour: str, height: float = 1.0) -> None:
    shape = FancyBboxPatch((block + 0.1, y), 0.66, height, boxstyle="round,pad=0,rounding_size=0.08",
                           facecolor=colour, edgecolor="#444444", linewidth=0.7)  # fmt: skip
    axes.add_patch(shape)
    axes.text(block + 0.43, y + height / 2, text, ha="center", va="center", fontsize=8.5)


def distances(num_tokens: int, heads: int) -> list[list[int]]:
    return offset_sets(num_tokens, heads, "modified", keep_self=True)


def wrap(text: str, width: int = 21) -> str:
    return "\n".join(line for part in text.split("\n") for line in textwrap.wrap(part, width))


PICTURES: dict[str, Callable[[], Figure]] = {
    "dense": draw_dense,
    "fibonacci": draw_fibonacci,
    "fibonacci_options": draw_fibonacci_options,
    "fibonacci_time": draw_fibonacci_time,
    "lisa": draw_lisa,
    "focused_linear": draw_focused_linear,
    "skipat": draw_skipat,
}

if __name__ == "__main__":
    sys.exit(run_tool(main))
