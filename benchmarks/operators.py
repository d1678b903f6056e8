#!/usr/bin/env python3
"""Compare the speed of the attention operators with torch's dense attention on the same tensors.

Examples:
    python benchmarks/operators.py                              # writes benchmarks/results/operators_cpu.json
    python benchmarks/operators.py --sites "time 8" "joint 1568" --rounds 20 --out operators.json

Operators alone, no projections: q, k and v are strided views of one packed tensor, as in a model. The methods take
turns in every round, so that what slows the machine slows them alike; given are medians, and the median over rounds of
dense time / own time (above 1 is faster than dense). On a CPU one thread is timed by its own processor time, which
waiting for other programs does not lengthen, though their use of the caches does. docs/write_tables.py puts the figures
into docs/attention.md.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from interleave import Step, median_ratio, take_turns
from torch import Tensor

from videoattn.cli.run_tool import run_tool
from videoattn.engine.log import describe_machine, package_versions
from videoattn.files import atomic_write
from videoattn.grid import Axis, TokenGrid, fold, split_calls
from videoattn.layers.attention import BuildOperator
from videoattn.operators import OPERATORS, AttentionOperator, AttentionSite, FibonacciAttention

ROOT = Path(__file__).parents[1]
HEADS, HEAD_DIM = 12, 64


@dataclass(frozen=True)
class Place:
    """Attention along `axis` of one clip on `grid`."""

    grid: TokenGrid
    axis: Axis


# by axis and patch tokens of one call; spatial patches are those of 224² pixels in patches of 16
SITES = {
    "time 8": Place(TokenGrid(8, 14, 14, 1), Axis.TIME),
    "time 32": Place(TokenGrid(32, 14, 14, 1), Axis.TIME),
    "space 196": Place(TokenGrid(8, 14, 14, 1), Axis.SPACE),
    "joint 1568": Place(TokenGrid(8, 14, 14, 1), Axis.JOINT),
    "joint 6272": Place(TokenGrid(32, 14, 14, 1), Axis.JOINT),
}
METHODS: dict[str, BuildOperator] = {
    **OPERATORS,
    "fibonacci, masked": partial(FibonacciAttention, implementation="masked"),
}
LEFT_OUT = {("joint 6272", "fibonacci, masked")}  # minutes and many gigabytes, to no purpose
PASSES = ("forward", "forward and backward")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", nargs="+", choices=SITES, default=list(SITES), help="default: all", metavar="SITE")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/operators_DEVICE.json")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        raise ValueError(f"--rounds expects 1 or more, got {args.rounds}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.set_num_threads(1)
    figures = {name: measure(SITES[name], name, args.rounds, device, dtype) for name in args.sites}
    content = {
        "date": date.today().isoformat(), "device": device.type, "dtype": str(dtype).removeprefix("torch."),
        "heads": HEADS, "head_dim": HEAD_DIM, "rounds": args.rounds, "threads": 1, "clips": 1, "sites": figures,
        "machine": describe_machine(), "versions": package_versions(),
    }  # fmt: skip
    out = args.out or ROOT / f"benchmarks/results/operators_{device.type}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for name, methods in figures.items():
        print(f"\n{name} tokens")
        for method, passes in methods.items():
            cells = [f"{kind} {f['ms']:9.2f} ms {f['times_as_fast']:6.2f}x" for kind, f in passes.items()]
            print(f"  {method:20} " + "   ".join(cells))
    print(f"\nwritten to {out}")


def measure(place: Place, name: str, rounds: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Return for each method and pass: median milliseconds, and the speed relative to dense attention."""
    grid = place.grid.along(place.axis)
    packed = torch.randn(1, place.grid.tokens, HEADS * 3 * HEAD_DIM, generator=torch.Generator().manual_seed(0))
    packed = packed.to(device, dtype).requires_grad_()
    site = AttentionSite(grid, grid, HEADS, HEAD_DIM, block=0)
    steps: dict[tuple[str, str], Step] = {}
    for method, build in METHODS.items():
        if (name, method) not in LEFT_OUT:
            operator = build(site).to(device, dtype)
            steps[method, PASSES[0]] = partial(forward, operator, packed, place)
            steps[method, PASSES[1]] = partial(forward_and_backward, operator, packed, place)
    seconds = take_turns(steps, device, rounds, limit=math.inf, title=name)
    figures: dict[str, Any] = {}
    for (method, kind), own in seconds.items():
        ratio = median_ratio(own, seconds["dense", kind])
        values = {"ms": round(1e3 * statistics.median(own), 4), "times_as_fast": round(ratio, 3)}
        figures.setdefault(method, {})[kind] = values
    return figures


def forward(operator: AttentionOperator, packed: Tensor, place: Place) -> Tensor:
    with torch.no_grad():
        return mix(operator, packed, place)


def forward_and_backward(operator: AttentionOperator, packed: Tensor, place: Place) -> None:
    out = mix(operator, packed, place)
    inputs = [packed, *operator.parameters()]
    torch.autograd.grad(out, inputs, torch.ones_like(out))


def mix(operator: AttentionOperator, packed: Tensor, place: Place) -> Tensor:
    """As in a model: packed to operators that take it so."""
    folded = fold(packed, place.grid, place.axis).unflatten(3, (HEADS, -1))
    calls = split_calls(folded, place.axis).unflatten(3, (3, -1))
    mixed: Tensor = operator(calls) if operator.accepts_packed else operator(*calls.unbind(3))
    return mixed


if __name__ == "__main__":
    sys.exit(run_tool(main))
